// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The requests of a disk's driver (virtio 1.3, section 5.2.6).

use std::io::Write;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::virtqueue::{Chain, Reader, Writer};

/// Length of a request's header in bytes: a type, an unused word, and a sector.
const HEADER: usize = 16;

/// Length of a segment of a discard request in bytes: a sector, a number of sectors, and flags.
const SEGMENT: usize = 16;

/// What a request asks for. Sectors have 512 bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// To read from a sector on.
    Read {
        /// The first sector.
        sector: u64,
        /// The buffers for the data.
        to: Writer<'a>,
    },
    /// To write from a sector on.
    Write {
        /// The first sector.
        sector: u64,
        /// The data.
        from: Reader<'a>,
    },
    /// To make all completed writes persistent.
    Flush,
    /// To write the disk's id ([`write_id`]).
    Id(Writer<'a>),
    /// To discard the contents of sectors.
    Discard(Segments<'a>),
    /// To write zeroes to sectors.
    WriteZeroes(Segments<'a>),
    /// Something else.
    Unsupported,
}

/// The segments of a request to discard sectors or to write zeroes.
#[derive(Debug)]
pub struct Segments<'a>(Reader<'a>);

/// A range of sectors to discard or to write zeroes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// The first sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// Whether the device may deallocate the sectors. Only for writing zeroes.
    pub unmap: bool,
    /// Whether a flag is set that this library does not know. Such a request is not supported.
    pub unknown_flags: bool,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let bytes = self.0.read_array::<SEGMENT>()?;
        let (sector, rest) = bytes.split_at(8);
        let (sectors, flags) = rest.split_at(4);
        let flags = word(flags);
        Some(Segment {
            sector: u64::from(word(&sector[..4])) | u64::from(word(&sector[4..])) << 32,
            sectors: word(sectors),
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            unknown_flags: flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

/// Returns what a request asks for, or `None` if the request has no header or no byte for its
/// status.
#[inline]
pub fn parse(chain: &Chain) -> Option<Operation<'_>> {
    let (mut input, mut output) = (chain.reader(), chain.writer());
    // The last device-writable byte is the status.
    output.limit(output.available_bytes().checked_sub(1)?);
    let header = input.read_array::<HEADER>()?;
    let sector = u64::from(word(&header[8..12])) | u64::from(word(&header[12..])) << 32;
    Some(match word(&header[..4]) {
        VIRTIO_BLK_T_IN => Operation::Read { sector, to: output },
        VIRTIO_BLK_T_OUT => Operation::Write {
            sector,
            from: input,
        },
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => Operation::Id(output),
        VIRTIO_BLK_T_DISCARD => Operation::Discard(Segments(input)),
        VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes(Segments(input)),
        _ => Operation::Unsupported,
    })
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The request was executed.
    Ok,
    /// The request failed.
    IoError,
    /// The device does not support the request.
    Unsupported,
}

/// Writes the status of a request, to whose buffers the device has written `written` bytes of data.
/// Returns the number of bytes with the status, as [`push`](crate::virtqueue::Virtqueue::push)
/// needs it.
#[inline]
pub fn complete(chain: &Chain, status: Status, written: u32) -> u32 {
    let status = match status {
        Status::Ok => VIRTIO_BLK_S_OK,
        Status::IoError => VIRTIO_BLK_S_IOERR,
        Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
    };
    if chain.write_last(status as u8) {
        written + 1
    } else {
        0
    }
}

/// Writes the id of a disk, of which a driver sees 20 bytes at most. Returns the number of bytes
/// written.
pub fn write_id(to: &mut Writer<'_>, id: &[u8]) -> u32 {
    let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
    let len = id.len().min(bytes.len());
    bytes[..len].copy_from_slice(&id[..len]);
    // CAST: At most 20 bytes. There is no error: fewer bytes are written if there is less space.
    to.write(&bytes).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::testing::{self, Buffer};

    fn header(kind: u32, sector: u64) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header
    }

    /// Passes what a request asks for to `check`, and completes the request with success. Returns
    /// the number of bytes written, and the status.
    #[track_caller]
    fn ask(buffers: &[Buffer<'_>], check: impl FnOnce(Option<Operation<'_>>)) -> (u32, u8) {
        let (written, found) = testing::ask(buffers, |chain| {
            check(parse(chain));
            complete(chain, Status::Ok, 0)
        });
        (written, found.last().copied().unwrap_or(0xff))
    }

    #[test]
    fn buffers_may_be_cut_anywhere() {
        let bytes = [&header(VIRTIO_BLK_T_OUT, 1 << 40 | 7)[..], b"data"].concat();
        for at in 0..=bytes.len() {
            let (front, back) = bytes.split_at(at);
            let buffers = [Buffer::Read(front), Buffer::Read(back), Buffer::Write(1)];
            let done = ask(&buffers, |operation| match operation {
                Some(Operation::Write { sector, mut from }) => {
                    assert_eq!(sector, 1 << 40 | 7);
                    assert_eq!(from.available_bytes(), 4);
                    assert_eq!(from.read_array(), Some(*b"data"));
                }
                other => panic!("{other:?}"),
            });
            assert_eq!(done, (1, 0));
        }
        let read = header(VIRTIO_BLK_T_IN, 3);
        let buffers = [Buffer::Read(&read), Buffer::Write(512), Buffer::Write(513)];
        let done = ask(&buffers, |operation| match operation {
            Some(Operation::Read { sector: 3, to }) => assert_eq!(to.available_bytes(), 1024),
            other => panic!("{other:?}"),
        });
        assert_eq!(done, (1, 0));
    }

    #[test]
    fn segments_are_read_one_by_one() {
        let segment = |sector: u64, sectors: u32, flags: u32| {
            [
                &sector.to_le_bytes()[..],
                &sectors.to_le_bytes(),
                &flags.to_le_bytes(),
            ]
            .concat()
        };
        let bytes = [
            &header(VIRTIO_BLK_T_WRITE_ZEROES, 0)[..],
            &segment(1 << 33, 8, 1),
            &segment(5, u32::MAX, 2),
            &[0; 15],
        ]
        .concat();
        ask(&[Buffer::Read(&bytes), Buffer::Write(1)], |operation| {
            let Some(Operation::WriteZeroes(segments)) = operation else {
                panic!("{operation:?}");
            };
            let segments: Vec<_> = segments.collect();
            let expected = [
                Segment {
                    sector: 1 << 33,
                    sectors: 8,
                    unmap: true,
                    unknown_flags: false,
                },
                Segment {
                    sector: 5,
                    sectors: u32::MAX,
                    unmap: false,
                    unknown_flags: true,
                },
            ];
            assert_eq!(segments, expected);
        });
    }

    #[test]
    fn a_request_without_header_or_status_is_none() {
        let flush = header(VIRTIO_BLK_T_FLUSH, 0);
        let without_status = ask(&[Buffer::Read(&flush)], |operation| {
            assert!(operation.is_none());
        });
        assert_eq!(without_status.0, 0);
        let without_header = ask(
            &[Buffer::Read(&flush[1..]), Buffer::Write(1)],
            |operation| {
                assert!(operation.is_none());
            },
        );
        assert_eq!(without_header, (1, 0));
        ask(&[Buffer::Read(&flush), Buffer::Write(1)], |operation| {
            assert!(matches!(operation, Some(Operation::Flush)));
        });
        ask(
            &[Buffer::Read(&header(99, 0)), Buffer::Write(1)],
            |operation| {
                assert!(matches!(operation, Some(Operation::Unsupported)));
            },
        );
    }
}
