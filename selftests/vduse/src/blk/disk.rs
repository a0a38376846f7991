// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk that executes one request after the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::MemfdFlags;

use crate::blk::geometry::SECTOR;
use crate::blk::request::{complete, parse, write_id, Operation, Status};
use crate::server::Backend;
use crate::virtqueue::{Chain, Reader, Writer};

/// The disk's id, which a driver can ask for.
const ID: &[u8] = b"vduse-blk";

/// Counters of a [`Disk`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of reads that succeeded.
    pub reads: u64,
    /// Number of writes that succeeded.
    pub writes: u64,
    /// Number of flush requests.
    pub flushes: u64,
    /// Number of requests that failed or were malformed.
    pub errors: u64,
}

/// A disk, as the [`Backend`] of a server.
#[derive(Debug)]
pub struct Disk {
    file: Arc<File>,
    read_only: bool,
    stats: Stats,
    buffer: Vec<u8>,
}

impl Disk {
    /// Creates a disk whose data is in `file`. The disk is as large as the file: each request is
    /// checked against the file's size at that time.
    pub fn new(file: Arc<File>) -> Self {
        Self {
            file,
            read_only: false,
            stats: Stats::default(),
            buffer: Vec::new(),
        }
    }

    /// Creates a zeroed disk in memory.
    ///
    /// # Errors
    ///
    /// Returns the error of creating the memory file or of setting its size.
    pub fn in_memory(bytes: u64) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        Ok(Self::new(Arc::new(file)))
    }

    /// Makes the disk reject writes. The device must also offer
    /// [`READ_ONLY`](crate::blk::READ_ONLY).
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Returns the file with the disk's data.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns the counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Returns the file offset of `sector`, or `None` if the `len` bytes from there are not whole
    /// sectors or extend beyond the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        let size = self.file.metadata().ok()?.len();
        (len % SECTOR == 0 && end <= size).then_some(start)
    }

    /// Executes a request. Returns its status, and the number of bytes of data written to its
    /// buffers.
    fn execute(&mut self, operation: Operation<'_>) -> (Status, u32) {
        let done = match operation {
            Operation::Read { sector, mut to } => self.read(sector, &mut to),
            Operation::Write { .. } if self.read_only => None,
            Operation::Write { sector, mut from } => self.write(sector, &mut from),
            Operation::Flush => {
                self.stats.flushes += 1;
                self.file.sync_data().ok().map(|()| 0)
            }
            Operation::Id(mut to) => Some(write_id(&mut to, ID) as usize),
            Operation::Discard(_) | Operation::WriteZeroes(_) | Operation::Unsupported => {
                return (Status::Unsupported, 0)
            }
        };
        match done {
            // CAST: A request has less than 2^32 bytes.
            Some(written) => (Status::Ok, written as u32),
            None => (Status::IoError, 0),
        }
    }

    fn read(&mut self, sector: u64, output: &mut Writer<'_>) -> Option<usize> {
        let len = output.available_bytes();
        let start = self.range(sector, len as u64)?;
        self.buffer.resize(len, 0);
        self.file.read_exact_at(&mut self.buffer, start).ok()?;
        output.write_all(&self.buffer).ok()?;
        self.stats.reads += 1;
        Some(len)
    }

    fn write(&mut self, sector: u64, input: &mut Reader<'_>) -> Option<usize> {
        let len = input.available_bytes();
        let start = self.range(sector, len as u64)?;
        self.buffer.resize(len, 0);
        input.read_exact(&mut self.buffer).ok()?;
        self.file.write_all_at(&self.buffer, start).ok()?;
        self.stats.writes += 1;
        Some(0)
    }
}

impl Backend for Disk {
    fn serve(&mut self, _queue: u16, chain: &Chain) -> u32 {
        let Some(operation) = parse(chain) else {
            self.stats.errors += 1;
            return complete(chain, Status::IoError, 0);
        };
        let (status, written) = self.execute(operation);
        if status != Status::Ok {
            self.stats.errors += 1;
        }
        complete(chain, status, written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::geometry::device_config;
    use crate::virtqueue::testing::{self, Buffer};
    use virtio_bindings::virtio_blk::{
        VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
    };

    /// Sends one request to a disk. Returns the status and the number of bytes that the disk wrote.
    fn ask(disk: &mut Disk, kind: u32, sector: u64, data: &mut [u8], to_device: bool) -> (u8, u32) {
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        let (header, status) = (Buffer::Read(&header), Buffer::Write(1));
        let buffers = match to_device {
            true => [header, Buffer::Read(data), status],
            false => [header, Buffer::Write(data.len()), status],
        };
        let (written, mut found) = testing::ask(&buffers, |chain| disk.serve(0, chain));
        let status = found.pop().unwrap();
        if !to_device {
            data.copy_from_slice(&found);
        }
        (status, written)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let mut disk = Disk::in_memory(8 * SECTOR).unwrap();
        let mut data: Vec<u8> = (0..1024u32).map(|n| (n * 7) as u8).collect();
        assert_eq!(ask(&mut disk, VIRTIO_BLK_T_OUT, 3, &mut data, true), (0, 1));
        let mut back = vec![0; 1024];
        assert_eq!(
            ask(&mut disk, VIRTIO_BLK_T_IN, 3, &mut back, false),
            (0, 1025)
        );
        assert_eq!(data, back);
        let stats = disk.stats();
        assert_eq!((stats.reads, stats.writes, stats.errors), (1, 1, 0));
    }

    #[test]
    fn nothing_is_done_beyond_the_end() {
        let mut disk = Disk::in_memory(8 * SECTOR).unwrap();
        let mut data = vec![1; 1024];
        let io_error = (VIRTIO_BLK_S_IOERR as u8, 1);
        for sector in [7, 8, u64::MAX / SECTOR, u64::MAX] {
            for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN] {
                let to_device = kind == VIRTIO_BLK_T_OUT;
                assert_eq!(ask(&mut disk, kind, sector, &mut data, to_device), io_error);
            }
        }
        assert_eq!(disk.stats().errors, 8);
        assert_eq!(disk.file().metadata().unwrap().len(), 8 * SECTOR);
    }

    #[test]
    fn parts_of_sectors_and_read_only_disks_are_refused() {
        let mut disk = Disk::in_memory(8 * SECTOR).unwrap();
        let io_error = (VIRTIO_BLK_S_IOERR as u8, 1);
        assert_eq!(
            ask(&mut disk, VIRTIO_BLK_T_OUT, 0, &mut [1; 100], true),
            io_error
        );
        let mut disk = disk.read_only();
        assert_eq!(
            ask(&mut disk, VIRTIO_BLK_T_OUT, 0, &mut [1; 512], true),
            io_error
        );
    }

    #[test]
    fn an_unknown_request_is_unsupported() {
        let mut disk = Disk::in_memory(8 * SECTOR).unwrap();
        assert_eq!(
            ask(&mut disk, 99, 0, &mut [0; 512], true),
            (VIRTIO_BLK_S_UNSUPP as u8, 1)
        );
    }

    #[test]
    fn the_id_is_told() {
        let mut disk = Disk::in_memory(8 * SECTOR).unwrap();
        let mut id = [0xff; 20];
        assert_eq!(
            ask(&mut disk, VIRTIO_BLK_T_GET_ID, 0, &mut id, false),
            (0, 21)
        );
        assert_eq!(&id[..10], b"vduse-blk\0");
    }

    #[test]
    fn the_configuration_space_has_the_size_and_the_queues() {
        let config = device_config("d", 1 << 20, 4);
        assert_eq!(config.space[..8], 2048u64.to_le_bytes());
        assert_eq!(config.space[34..36], 4u16.to_le_bytes());
        assert_eq!(config.queues, 4);
    }
}
