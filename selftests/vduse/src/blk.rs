// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A backend for a disk (virtio 1.3, section 5.2).
//!
//! The data is in a file or in an anonymous memory file (memfd). Tests can read the same file, to
//! check which data the disk has written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::server::Backend;
use crate::virtqueue::{Chain, Reader, Writer};
use crate::{Device, DeviceConfig};

/// Size of a sector in bytes. A disk's addresses count sectors.
pub const SECTOR: u64 = 512;

/// Length of a request's header in bytes: a type, an unused word, and a sector.
const HEADER: usize = 16;

/// Maximum number of data descriptors in one request.
const SEG_MAX: u32 = 126;

/// The virtio feature bits that a [`Disk`] supports.
pub const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_F_ACCESS_PLATFORM)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_BLK_F_SEG_MAX)
    | (1 << VIRTIO_BLK_F_BLK_SIZE)
    | (1 << VIRTIO_BLK_F_FLUSH)
    | (1 << VIRTIO_BLK_F_MQ);

/// The virtio feature bit of a disk that rejects writes.
pub const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;

/// Offset of the capacity in the configuration space, in bytes. The capacity itself is in sectors.
const CAPACITY_OFFSET: u32 = 0;

/// Returns the configuration space of a disk: the first 60 bytes of `struct virtio_blk_config`. All
/// fields after the number of queues are 0.
pub fn config_space(sectors: u64, queues: u16) -> Vec<u8> {
    let mut space = vec![0; 60];
    space[0..8].copy_from_slice(&sectors.to_le_bytes());
    space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
    space[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
    space[34..36].copy_from_slice(&queues.to_le_bytes());
    space
}

/// Returns the configuration of a disk with this size in bytes and number of queues.
pub fn device_config(name: &str, bytes: u64, queues: u16) -> DeviceConfig {
    let mut config = DeviceConfig::new(name, VIRTIO_ID_BLOCK);
    config.features = FEATURES;
    config.queues = queues;
    config.space = config_space(bytes / SECTOR, queues);
    config
}

/// Tells the driver that a disk in use now has `bytes` bytes. The caller must have resized the file
/// before.
///
/// # Errors
///
/// Returns the error of the ioctl that failed.
pub fn resize(device: &Device, bytes: u64) -> io::Result<()> {
    device.set_config(CAPACITY_OFFSET, &(bytes / SECTOR).to_le_bytes())?;
    match device.inject_config_irq() {
        // No driver is ready for the configuration interrupt. The next driver reads the new size
        // when it starts.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

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

    /// Makes the disk reject writes. The device must also offer [`READ_ONLY`].
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

    /// Executes a request, but does not write its status to the driver's memory. Returns the
    /// status, and the number of bytes written to `output`.
    fn request(
        &mut self,
        input: &mut Reader<'_>,
        output: &mut Writer<'_>,
        data: Data,
    ) -> (u8, u32) {
        let Some(header) = input.read_array::<HEADER>() else {
            return (VIRTIO_BLK_S_IOERR as u8, 0);
        };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = header[8..]
            .iter()
            .rev()
            .fold(0, |n, &b| (n << 8) | u64::from(b));
        let done = match kind {
            VIRTIO_BLK_T_IN => self.read(sector, output, data.writable),
            VIRTIO_BLK_T_OUT if self.read_only => None,
            VIRTIO_BLK_T_OUT => self.write(sector, input, data.readable),
            VIRTIO_BLK_T_FLUSH => {
                self.stats.flushes += 1;
                self.file.sync_data().ok().map(|()| 0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id[..9].copy_from_slice(b"vduse-blk");
                let len = id.len().min(data.writable);
                output.write_all(&id[..len]).ok().map(|()| len)
            }
            _ => return (VIRTIO_BLK_S_UNSUPP as u8, 0),
        };
        match done {
            // The cast is lossless: a chain has less than 2^32 bytes.
            Some(written) => (VIRTIO_BLK_S_OK as u8, written as u32),
            None => (VIRTIO_BLK_S_IOERR as u8, 0),
        }
    }

    fn read(&mut self, sector: u64, output: &mut Writer<'_>, len: usize) -> Option<usize> {
        let start = self.range(sector, len as u64)?;
        self.buffer.resize(len, 0);
        self.file.read_exact_at(&mut self.buffer, start).ok()?;
        output.write_all(&self.buffer).ok()?;
        self.stats.reads += 1;
        Some(len)
    }

    fn write(&mut self, sector: u64, input: &mut Reader<'_>, len: usize) -> Option<usize> {
        let start = self.range(sector, len as u64)?;
        self.buffer.resize(len, 0);
        input.read_exact(&mut self.buffer).ok()?;
        self.file.write_all_at(&self.buffer, start).ok()?;
        self.stats.writes += 1;
        Some(0)
    }
}

/// Number of data bytes in a request, without the header and the status.
struct Data {
    readable: usize,
    writable: usize,
}

impl Backend for Disk {
    fn serve(&mut self, _queue: u16, chain: &Chain) -> u32 {
        let (mut input, mut output) = (chain.reader(), chain.writer());
        // The last device-writable byte is the status.
        let status = output
            .available_bytes()
            .checked_sub(1)
            .and_then(|writable| output.split_at(writable));
        let Some(mut status) = status else {
            self.stats.errors += 1;
            return 0;
        };
        let data = Data {
            readable: input.available_bytes().saturating_sub(HEADER),
            writable: output.available_bytes(),
        };
        let (result, written) = self.request(&mut input, &mut output, data);
        if u32::from(result) != VIRTIO_BLK_S_OK {
            self.stats.errors += 1;
        }
        if status.write_all(&[result]).is_err() {
            self.stats.errors += 1;
            return written;
        }
        written + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtqueue::testing::{self, Buffer};

    /// Sends one request to a disk. Returns the status and the number of bytes that the disk wrote.
    fn ask(disk: &mut Disk, kind: u32, sector: u64, data: &mut [u8], to_device: bool) -> (u8, u32) {
        let mut header = [0; HEADER];
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
