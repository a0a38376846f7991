// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The file or block device that has a disk's data.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{
    fallocate, fcntl_lock, flock, major, minor, statx, AtFlags, FallocateFlags, FlockOperation,
    OFlags, StatxFlags,
};
use rustix::io::Errno;

use crate::aligned::Aligned;

/// Sizes of blocks, in bytes, one of which suits any file system and any disk.
const BLOCKS: [u32; 4] = [512, 1024, 2048, 4096];

/// An open image. The file stays locked as long as it is open.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// Size in bytes, rounded down to whole blocks.
    size: AtomicU64,
    block: u32,
    discards: bool,
    read_only: bool,
    direct: bool,
    /// Keeps a block device from being mounted.
    _claim: Option<File>,
}

impl Image {
    /// Opens an image and locks it, so that no other program that locks images uses it.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when another program has locked the image; `InvalidInput` when the file system
    /// supports no direct I/O, but `buffered` is not set; otherwise the error of the system call
    /// that failed.
    ///
    /// # Context
    ///
    /// Waits for the requests of a program that had the image open and was killed.
    pub fn open(path: &Path, read_only: bool, buffered: bool) -> io::Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let message = "neither a regular file nor a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut flags = OFlags::empty();
        flags.set(OFlags::DIRECT, !buffered);
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        options.custom_flags(flags.bits() as i32);
        let file = options.open(path)?;
        let (at_once, lock) = if read_only {
            (
                FlockOperation::NonBlockingLockShared,
                FlockOperation::LockShared,
            )
        } else {
            (
                FlockOperation::NonBlockingLockExclusive,
                FlockOperation::LockExclusive,
            )
        };
        // A lock of this kind ends with the process.
        fcntl_lock(&file, at_once).map_err(|errno| match errno {
            Errno::AGAIN | Errno::ACCESS => {
                io::Error::new(io::ErrorKind::WouldBlock, "another program uses it")
            }
            _ => errno.into(),
        })?;
        // A lock of this kind ends with the last request of a process that was killed, for which its
        // io_uring keeps the file open. Only then may a successor repeat the request.
        flock(&file, lock)?;
        let claim = if kind.is_block_device() && !read_only {
            Some(claim(path)?)
        } else {
            None
        };
        let block = if buffered {
            BLOCKS[0]
        } else {
            block_of(&file)?
        };
        let image = Self {
            discards: !read_only && supports_holes(&file)?,
            file,
            size: AtomicU64::new(0),
            block,
            read_only,
            direct: !buffered,
            _claim: claim,
        };
        image.refresh()?;
        Ok(image)
    }

    /// Returns the file descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads the size of the file, which may have changed. Returns that size in bytes, rounded down
    /// to whole blocks.
    ///
    /// # Errors
    ///
    /// Returns the error of the system call that failed.
    pub fn refresh(&self) -> io::Result<u64> {
        let size = (&self.file).seek(SeekFrom::End(0))?;
        let size = size - size % u64::from(self.block);
        self.size.store(size, Ordering::Release);
        Ok(size)
    }

    /// Returns the size in bytes, a multiple of the size of a block.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Returns the size of a block in bytes: the lengths and positions of requests must be multiples
    /// of it.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Returns whether the image can have holes, so that sectors can be discarded.
    pub fn discards(&self) -> bool {
        self.discards
    }

    /// Returns whether the image is open for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns the alignment of buffers in bytes that reads and writes need: 1 if any will do.
    pub fn alignment(&self) -> usize {
        if self.direct {
            self.block as usize
        } else {
            1
        }
    }
}

/// Claims a block device, which must not be mounted.
fn claim(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(OFlags::EXCL.bits() as i32);
    for _ in 0..100 {
        match options.open(path) {
            // A process that was killed gives its lock back a moment before its claim.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
    options.open(path)
}

/// Returns the smallest size of a block with which direct I/O works.
fn block_of(file: &File) -> io::Result<u32> {
    let flags = AtFlags::EMPTY_PATH;
    let found = statx(file, "", flags, StatxFlags::DIOALIGN)?;
    let has = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let align = found.stx_dio_offset_align.max(found.stx_dio_mem_align);
    if has && found.stx_dio_offset_align != 0 && align <= BLOCKS[3] {
        return Ok(align.max(BLOCKS[0]));
    }
    // The file system does not say.
    let mut buffer = Aligned::new(BLOCKS[3] as usize);
    for block in BLOCKS {
        // The offset is the size of the block, so that the file system cannot find it aligned to
        // more than that. Beyond the end of the file, nothing is read.
        let into = &mut buffer.bytes_mut()[..block as usize];
        match rustix::io::pread(file, into, block.into()) {
            Ok(_) => return Ok(block),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let message = "direct I/O does not work there; see --buffered";
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Returns whether the file can have holes.
fn supports_holes(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        let number = metadata.rdev();
        let device = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        // A partition has no queue of its own.
        let attribute = ["queue", "../queue"]
            .map(|queue| format!("{device}/{queue}/write_zeroes_max_bytes"))
            .into_iter()
            .find_map(|path| std::fs::read_to_string(path).ok());
        return Ok(attribute.is_some_and(|bytes| bytes.trim() != "0"));
    }
    // Beyond the end of the file, this changes nothing.
    let mut end = file;
    let end = end.seek(SeekFrom::End(0))?.next_multiple_of(4096);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, hole, end, 4096) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, size: u64) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    #[test]
    fn the_size_is_of_whole_blocks_and_follows_the_file() {
        let path = scratch("vduse-blk-size", 512 * 5 + 100);
        let image = Image::open(&path, false, true).unwrap();
        assert_eq!((image.size(), image.block()), (512 * 5, 512));
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        assert_eq!(image.refresh().unwrap(), 1 << 20);
        assert_eq!(image.size(), 1 << 20);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_directory_is_no_image() {
        assert!(Image::open(&std::env::temp_dir(), true, true).is_err());
    }
}
