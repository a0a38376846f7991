// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A request in progress: its buffers, and how far it has come.

use std::cell::Cell;
use std::io::{Read, Write};
use std::rc::Rc;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use vduse::blk::{self, Operation, Segments, Status, SECTOR};
use vduse::memory::touched;
use vduse::virtqueue::Chain;
use vm_memory::VolatileSlice;

use crate::aligned::Aligned;
use crate::image::Image;

/// The image's index among the files that are registered with the ring.
pub const IMAGE: types::Fixed = types::Fixed(0);

/// The operation that a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read,
    Write,
    Flush,
    /// To make a hole, which reads as zeroes.
    Discard,
    /// To write zeroes. A hole will do.
    Unmap,
    /// To write zeroes without a hole.
    Zero,
    /// To make a hole, because the file system cannot do [`Zero`](Self::Zero), and then to
    /// [`Allocate`](Self::Allocate) its blocks again.
    Punch,
    Allocate,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The operation of [`Slot::entry`] follows.
    Operation,
    /// The request is complete, and this number of bytes was written to its buffers.
    Done(Status, u32),
}

/// What all requests of a virtqueue share.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// The image.
    pub image: &'a Image,
    /// The serial number.
    pub serial: &'a str,
    /// Whether a write is complete only when it is persistent, because the driver does not flush.
    pub write_through: bool,
    /// The copies of unaligned data.
    pub copies: &'a Copies,
    /// The memory that is registered with the ring.
    pub fixed: Fixed,
}

/// Maximum number of sectors that one request may discard: 64 MiB. A larger request would hold up
/// those that come after it, and whoever stops the virtqueue.
pub const MAX_DISCARD: u32 = 1 << 17;

/// How often an operation is repeated that the kernel could not execute.
const MAX_RETRIES: u32 = 1000;

/// Maximum length of all copies of a virtqueue's requests in bytes. Only drivers of virtual machines
/// have unaligned buffers, mostly firmware, with one request at a time. A driver must not be able to
/// use up the memory of the host.
const MAX_COPIES: usize = 8 << 20;

/// The copies of unaligned data of a virtqueue's requests.
#[derive(Clone, Debug, Default)]
pub struct Copies(Rc<Cell<usize>>);

impl Copies {
    /// Allocates memory for a copy of `len` bytes, or returns `None` if there are too many.
    fn allocate(&self, len: usize) -> Option<Copied> {
        let sum = self.0.get().checked_add(len)?;
        if sum > MAX_COPIES {
            return None;
        }
        self.0.set(sum);
        Some(Copied {
            memory: Aligned::new(len),
            all: self.clone(),
        })
    }
}

/// A copy of unaligned data.
#[derive(Debug)]
struct Copied {
    memory: Aligned,
    all: Copies,
}

impl Copied {
    fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let left = self.all.0.get() - self.bytes().len();
        self.all.0.set(left);
    }
}

/// Memory that is registered with the ring as its first buffer. The kernel need not pin the pages
/// of each request there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed {
    /// Address of the first byte.
    pub start: usize,
    /// Length in bytes; 0 if no memory is registered.
    pub len: usize,
    /// Whether the kernel can also read into and write from several parts of it at once.
    pub vectored: bool,
}

impl Fixed {
    /// Returns whether all vectors are in the memory, and the kernel can use them so.
    #[inline]
    fn has(&self, vectors: &[libc::iovec]) -> bool {
        (self.vectored || vectors.len() == 1)
            && vectors.iter().all(|vector| {
                let offset = (vector.iov_base as usize).wrapping_sub(self.start);
                offset < self.len && vector.iov_len <= self.len - offset
            })
    }
}

/// The index of the registered memory.
const FIXED: u16 = 0;

/// A slot for a request. One slot serves many requests, one after the other.
#[derive(Debug)]
pub struct Slot {
    /// The request.
    pub chain: Chain,
    step: Step,
    /// Position in the image of the first byte that is left.
    offset: u64,
    /// Number of bytes that are left.
    left: u64,
    /// Number of bytes that are written to the request's buffers.
    written: u32,
    /// Whether the result must be made persistent before the request is complete.
    write_through: bool,
    /// The memory that is left to read or write.
    vectors: Vec<libc::iovec>,
    /// Whether the vectors are in memory that is registered with the ring.
    fixed: bool,
    /// How often an operation was repeated.
    retries: u32,
    /// A copy of the data, if the driver's buffers are not aligned as direct I/O needs it.
    copy: Option<Copied>,
}

impl Slot {
    /// Creates a slot without a request, with memory for requests of up to `segments` segments. A
    /// larger request makes the slot allocate.
    pub fn new(segments: usize) -> Self {
        Self {
            // Beside the data, there are the header and the status.
            chain: Chain::with_capacity(segments + 2),
            step: Step::Flush,
            offset: 0,
            left: 0,
            written: 0,
            write_through: false,
            vectors: touched(segments),
            fixed: false,
            retries: 0,
            copy: None,
        }
    }

    /// Begins to execute the request that is in `chain`.
    #[inline]
    pub fn begin(&mut self, disk: Disk<'_>) -> Next {
        self.written = 0;
        self.left = 0;
        self.retries = 0;
        self.copy = None;
        self.vectors.clear();
        self.write_through = disk.write_through;
        let image = disk.image;
        match blk::parse(&self.chain) {
            Some(Operation::Read { sector, to }) => {
                let len = to.available_bytes();
                let Some(offset) = offset_of(image, sector, len as u64) else {
                    return Next::Done(Status::IoError, 0);
                };
                (self.step, self.offset, self.left) = (Step::Read, offset, len as u64);
                // CAST: A request has less than 2^32 bytes.
                self.written = len as u32;
                self.vectors.extend(to.slices().map(vector_of));
                if len != 0 && !is_aligned(&self.vectors, image.alignment()) {
                    match disk.copies.allocate(len) {
                        Some(copy) => self.use_copy(copy),
                        None => return Next::Done(Status::IoError, 0),
                    }
                }
            }
            Some(Operation::Write { sector, mut from }) => {
                let len = from.available_bytes();
                let offset = offset_of(image, sector, len as u64);
                let Some(offset) = offset.filter(|_| !image.is_read_only()) else {
                    return Next::Done(Status::IoError, 0);
                };
                (self.step, self.offset, self.left) = (Step::Write, offset, len as u64);
                self.vectors.extend(from.slices().map(vector_of));
                if len != 0 && !is_aligned(&self.vectors, image.alignment()) {
                    let Some(mut copy) = disk.copies.allocate(len) else {
                        return Next::Done(Status::IoError, 0);
                    };
                    if from.read_exact(copy.bytes_mut()).is_err() {
                        return Next::Done(Status::IoError, 0);
                    }
                    self.use_copy(copy);
                }
            }
            Some(Operation::Flush) => {
                self.step = Step::Flush;
                return Next::Operation;
            }
            Some(Operation::Id(mut to)) => {
                let written = blk::write_id(&mut to, disk.serial.as_bytes());
                return Next::Done(Status::Ok, written);
            }
            Some(Operation::Discard(segments)) => {
                return match segment(segments, image) {
                    // A driver must not set this flag in a request to discard.
                    Ok((_, _, true)) => Next::Done(Status::Unsupported, 0),
                    Ok((sector, len, _)) => self.begin_range(image, Step::Discard, sector, len),
                    Err(status) => Next::Done(status, 0),
                };
            }
            Some(Operation::WriteZeroes(segments)) => {
                return match segment(segments, image) {
                    Ok((sector, len, true)) => self.begin_range(image, Step::Unmap, sector, len),
                    Ok((sector, len, false)) => self.begin_range(image, Step::Zero, sector, len),
                    Err(status) => Next::Done(status, 0),
                };
            }
            Some(_) => return Next::Done(Status::Unsupported, 0),
            None => return Next::Done(Status::IoError, 0),
        }
        if self.left == 0 {
            return Next::Done(Status::Ok, 0);
        }
        self.fixed = disk.fixed.has(&self.vectors);
        Next::Operation
    }

    fn begin_range(&mut self, image: &Image, step: Step, sector: u64, len: u64) -> Next {
        let Some(offset) = offset_of(image, sector, len) else {
            return Next::Done(Status::IoError, 0);
        };
        (self.step, self.offset, self.left) = (step, offset, len);
        if len == 0 {
            Next::Done(Status::Ok, 0)
        } else {
            Next::Operation
        }
    }

    /// Makes the operation read into or write from `copy`.
    #[cold]
    fn use_copy(&mut self, mut copy: Copied) {
        let bytes = copy.bytes_mut();
        self.vectors.clear();
        self.vectors.push(vector(bytes.as_mut_ptr(), bytes.len()));
        self.copy = Some(copy);
    }

    /// Returns the next operation for the ring.
    ///
    /// # Safety
    ///
    /// Until the operation is complete, the slot must be neither dropped nor changed.
    #[inline]
    pub unsafe fn entry(&self) -> Entry {
        // CAST: A request has less than 2^32 bytes, and far fewer vectors.
        match (self.step, &self.vectors[..]) {
            (Step::Read, [one]) if self.fixed => {
                opcode::ReadFixed::new(IMAGE, one.iov_base.cast(), one.iov_len as u32, FIXED)
                    .offset(self.offset)
                    .build()
            }
            (Step::Read, many) if self.fixed => {
                opcode::ReadvFixed::new(IMAGE, many.as_ptr(), many.len() as u32, FIXED)
                    .offset(self.offset)
                    .build()
            }
            (Step::Write, [one]) if self.fixed => {
                opcode::WriteFixed::new(IMAGE, one.iov_base.cast(), one.iov_len as u32, FIXED)
                    .offset(self.offset)
                    .rw_flags(self.write_flags())
                    .build()
            }
            (Step::Write, many) if self.fixed => {
                opcode::WritevFixed::new(IMAGE, many.as_ptr(), many.len() as u32, FIXED)
                    .offset(self.offset)
                    .rw_flags(self.write_flags())
                    .build()
            }
            (Step::Read, [one]) => {
                opcode::Read::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(self.offset)
                    .build()
            }
            (Step::Read, many) => opcode::Readv::new(IMAGE, many.as_ptr(), many.len() as u32)
                .offset(self.offset)
                .build(),
            (Step::Write, [one]) => {
                opcode::Write::new(IMAGE, one.iov_base.cast(), one.iov_len as u32)
                    .offset(self.offset)
                    .rw_flags(self.write_flags())
                    .build()
            }
            (Step::Write, many) => opcode::Writev::new(IMAGE, many.as_ptr(), many.len() as u32)
                .offset(self.offset)
                .rw_flags(self.write_flags())
                .build(),
            (Step::Flush, _) => opcode::Fsync::new(IMAGE)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            (Step::Discard | Step::Unmap | Step::Punch, _) => {
                self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            }
            (Step::Zero, _) => {
                self.fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
            }
            (Step::Allocate, _) => self.fallocate(libc::FALLOC_FL_KEEP_SIZE),
        }
    }

    #[inline]
    fn write_flags(&self) -> i32 {
        if self.write_through {
            libc::RWF_DSYNC
        } else {
            0
        }
    }

    fn fallocate(&self, mode: i32) -> Entry {
        opcode::Fallocate::new(IMAGE, self.left)
            .offset(self.offset)
            .mode(mode)
            .build()
    }

    /// Goes on with the request after an operation has completed with `result`: a number of bytes,
    /// 0, or a negative error number.
    #[inline]
    pub fn go_on(&mut self, result: i32) -> Next {
        let next = self.next(result);
        if matches!(next, Next::Done(..)) {
            self.copy = None;
        }
        next
    }

    #[inline]
    fn next(&mut self, result: i32) -> Next {
        let unsupported = result == -libc::EOPNOTSUPP;
        match (self.step, result) {
            (Step::Read | Step::Write, 1..) => self.transferred(result as u64),
            (_, _) if result == -libc::EINTR || result == -libc::EAGAIN => self.again(),
            (Step::Unmap, _) if unsupported => self.then(Step::Zero),
            (Step::Zero, _) if unsupported => self.then(Step::Punch),
            (Step::Punch, 0) => self.then(Step::Allocate),
            (Step::Discard, _) if unsupported => Next::Done(Status::Unsupported, 0),
            (Step::Flush, 0) => Next::Done(Status::Ok, self.written),
            (Step::Discard | Step::Unmap | Step::Zero | Step::Allocate, 0)
                if self.write_through =>
            {
                self.then(Step::Flush)
            }
            (Step::Discard | Step::Unmap | Step::Zero | Step::Allocate, 0) => {
                Next::Done(Status::Ok, 0)
            }
            // Also a read or a write of 0 bytes: the file has become shorter.
            _ => Next::Done(Status::IoError, 0),
        }
    }

    /// Repeats an operation that the kernel could not execute now, but not for ever.
    fn again(&mut self) -> Next {
        self.retries += 1;
        if self.retries > MAX_RETRIES {
            return Next::Done(Status::IoError, 0);
        }
        Next::Operation
    }

    fn then(&mut self, step: Step) -> Next {
        self.step = step;
        Next::Operation
    }

    /// Records that `count` bytes were read or written, at least 1.
    #[inline]
    fn transferred(&mut self, count: u64) -> Next {
        self.left = self.left.saturating_sub(count);
        if self.left != 0 {
            self.offset += count;
            skip(&mut self.vectors, count as usize);
            return Next::Operation;
        }
        if let (Step::Read, Some(copy)) = (self.step, &self.copy) {
            if self.chain.writer().write_all(copy.bytes()).is_err() {
                return Next::Done(Status::IoError, 0);
            }
        }
        Next::Done(Status::Ok, self.written)
    }
}

/// Returns the position of a sector in the image, or `None` if the image does not have the `len`
/// bytes from there on, or if these are not whole sectors.
#[inline]
fn offset_of(image: &Image, sector: u64, len: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(len)?;
    (len % SECTOR == 0 && end <= image.size()).then_some(offset)
}

/// Returns the only segment of a request as a sector, a length in bytes, and whether its blocks may
/// be deallocated. Fails with the request's status.
fn segment(mut segments: Segments<'_>, image: &Image) -> Result<(u64, u64, bool), Status> {
    if !image.discards() {
        return Err(Status::Unsupported);
    }
    let segment = segments.next().ok_or(Status::IoError)?;
    if segment.sectors > MAX_DISCARD {
        return Err(Status::IoError);
    }
    if segment.unknown_flags || segments.next().is_some() {
        return Err(Status::Unsupported);
    }
    let len = u64::from(segment.sectors) * SECTOR;
    Ok((segment.sector, len, segment.unmap))
}

fn vector_of(slice: VolatileSlice<'_>) -> libc::iovec {
    vector(slice.ptr_guard_mut().as_ptr(), slice.len())
}

fn vector(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start.cast(),
        iov_len: len,
    }
}

/// Returns whether each vector begins and ends at a multiple of `alignment`, a power of 2.
#[inline]
fn is_aligned(vectors: &[libc::iovec], alignment: usize) -> bool {
    let bits = vectors.iter().fold(0, |bits, vector| {
        bits | vector.iov_base as usize | vector.iov_len
    });
    bits & (alignment - 1) == 0
}

/// Removes the first `count` bytes from `vectors`.
fn skip(vectors: &mut Vec<libc::iovec>, mut count: usize) {
    let whole = vectors
        .iter()
        .take_while(|vector| {
            let fits = vector.iov_len <= count;
            count -= if fits { vector.iov_len } else { 0 };
            fits
        })
        .count();
    vectors.drain(..whole);
    if let Some(first) = vectors.first_mut() {
        let start = first.iov_base.cast::<u8>().wrapping_add(count);
        *first = vector(start, first.iov_len - count);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use io_uring::IoUring;
    use vduse::device::Region;
    use vduse::iotlb::{AddressSpace, Source};
    use vduse::virtqueue::{Position, Settings, Virtqueue};
    use vduse::Mapping;

    use super::*;

    /// A source without regions.
    #[derive(Debug)]
    struct Nothing;

    impl Source for Nothing {
        fn find(&self, _iova: u64) -> std::io::Result<Region> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    // The IOVAs of a virtqueue of `SIZE` descriptors, and of the memory for buffers.
    const SIZE: u16 = 256;
    const DESCRIPTORS: usize = 0;
    const DRIVER: usize = 0x1000;
    const DEVICE: usize = 0x2000;
    const HEADER: usize = 0x3000;
    const STATUS: usize = 0x3010;
    const DATA: usize = 0x4000;

    /// Reads and writes a request of many segments again and again, as the worker does.
    #[test]
    fn a_request_takes_no_memory() {
        const SEGMENTS: usize = 64;
        let len = DATA + 2 * SEGMENTS * 4096;
        let mapping = Arc::new(Mapping::anonymous(len).unwrap());
        let mut space = AddressSpace::new(Arc::new(Nothing));
        space.map(0, len as u64 - 1, mapping.clone());
        let write = |at: usize, bytes: &[u8]| {
            mapping.slice(at, bytes.len()).unwrap().copy_from(bytes);
        };
        let descriptor = |index: usize, iova: usize, len: u32, flags: u16| {
            let at = DESCRIPTORS + 16 * index;
            write(at, &(iova as u64).to_le_bytes());
            write(at + 8, &len.to_le_bytes());
            write(at + 12, &flags.to_le_bytes());
            write(at + 14, &(index as u16 + 1).to_le_bytes());
        };
        let settings = Settings {
            size: SIZE,
            descriptors: DESCRIPTORS as u64,
            driver: DRIVER as u64,
            device: DEVICE as u64,
            features: 0,
        };
        let start = Position::Split {
            next_avail: 0,
            next_used: 0,
        };
        let mut vq = Virtqueue::at(&settings, start, Arc::new(space)).unwrap();

        let path = std::env::temp_dir().join(format!("vduse-blk-memory-{}", std::process::id()));
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let image = Image::open(&path, false, true).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut ring = match IoUring::new(8) {
            Ok(ring) => ring,
            // A container may forbid it.
            Err(_) => return,
        };
        ring.submitter().register_files(&[image.fd()]).unwrap();
        let copies = Copies::default();
        let disk = Disk {
            image: &image,
            serial: "",
            write_through: false,
            copies: &copies,
            fixed: Fixed::default(),
        };
        let mut slot = Slot::new(SEGMENTS);
        for round in 0..4u16 {
            let is_write = round % 2 == 0;
            let mut header = [0; 16];
            header[0] = u8::from(is_write);
            write(HEADER, &header);
            write(STATUS, &[0xff]);
            descriptor(0, HEADER, 16, 1);
            for index in 1..=SEGMENTS {
                // Every second page, so that no two segments become one.
                let iova = DATA + (index - 1) * 2 * 4096;
                descriptor(index, iova, 4096, if is_write { 1 } else { 3 });
            }
            descriptor(SEGMENTS + 1, STATUS, 1, 2);
            write(DRIVER + 4 + 2 * usize::from(round), &0u16.to_le_bytes());
            write(DRIVER + 2, &(round + 1).to_le_bytes());

            let allocations = allocation_counter::measure(|| {
                assert!(vq.pop(&mut slot.chain).unwrap());
                let mut next = slot.begin(disk);
                while next == Next::Operation {
                    // SAFETY: The slot is not changed before the operation is complete.
                    let entry = unsafe { slot.entry() };
                    // SAFETY: The buffers are in `mapping`, which outlives the operation.
                    unsafe { ring.submission().push(&entry) }.unwrap();
                    ring.submit_and_wait(1).unwrap();
                    next = slot.go_on(ring.completion().next().unwrap().result());
                }
                let Next::Done(status, written) = next else {
                    panic!("not done");
                };
                let written = blk::complete(&slot.chain, status, written);
                vq.push(&slot.chain, written);
                vq.publish();
            });
            let mut status = [0xffu8];
            mapping.slice(STATUS, 1).unwrap().copy_to(&mut status);
            assert_eq!((status, allocations.count_total), ([0], 0), "{round}");
        }
    }

    /// Returns the offsets and lengths of vectors, relative to `start`.
    fn relative(vectors: &[libc::iovec], start: *mut u8) -> Vec<(usize, usize)> {
        vectors
            .iter()
            .map(|vector| (vector.iov_base as usize - start as usize, vector.iov_len))
            .collect()
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_ended() {
        let mut bytes = [0u8; 30];
        let start = bytes.as_mut_ptr();
        let at = |offset, len| vector(start.wrapping_add(offset), len);
        for (count, expected) in [
            (1, vec![(1, 9), (10, 10), (20, 10)]),
            (10, vec![(10, 10), (20, 10)]),
            (19, vec![(19, 1), (20, 10)]),
            (29, vec![(29, 1)]),
        ] {
            let mut vectors = vec![at(0, 10), at(10, 10), at(20, 10)];
            skip(&mut vectors, count);
            assert_eq!(relative(&vectors, start), expected);
        }
    }

    #[test]
    fn registered_memory_has_all_vectors_or_is_not_used() {
        let at = |start: usize, len| vector(start as *mut u8, len);
        let mut fixed = Fixed {
            start: 0x1000,
            len: 0x2000,
            vectored: true,
        };
        assert!(fixed.has(&[at(0x1000, 0x2000)]));
        assert!(fixed.has(&[at(0x1000, 1), at(0x2fff, 1)]));
        assert!(!fixed.has(&[at(0x1000, 1), at(0xfff, 1)]));
        assert!(!fixed.has(&[at(0x3000, 1)]));
        assert!(!fixed.has(&[at(0x2fff, 2)]));
        fixed.vectored = false;
        assert!(fixed.has(&[at(0x1000, 1)]));
        assert!(!fixed.has(&[at(0x1000, 1), at(0x2fff, 1)]));
        assert!(!Fixed::default().has(&[at(0, 1)]));
    }

    #[test]
    fn each_start_and_each_length_must_be_aligned() {
        let at = |start: usize, len| vector(start as *mut u8, len);
        assert!(is_aligned(&[at(4096, 512), at(8192, 4096)], 512));
        assert!(!is_aligned(&[at(4096, 512), at(8192, 4096)], 4096));
        assert!(!is_aligned(&[at(4096, 512), at(8193, 512)], 512));
        assert!(is_aligned(&[at(1, 3)], 1));
    }

    fn slot(step: Step, left: u64) -> Slot {
        Slot {
            step,
            left,
            written: left as u32,
            ..Slot::new(0)
        }
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_cannot() {
        let mut slot = slot(Step::Zero, 4096);
        assert_eq!(slot.go_on(-libc::EOPNOTSUPP), Next::Operation);
        assert_eq!(slot.step, Step::Punch);
        assert_eq!(slot.go_on(0), Next::Operation);
        assert_eq!(slot.step, Step::Allocate);
        slot.write_through = true;
        assert_eq!(slot.go_on(0), Next::Operation);
        assert_eq!(slot.step, Step::Flush);
        slot.written = 0;
        assert_eq!(slot.go_on(0), Next::Done(Status::Ok, 0));
    }

    #[test]
    fn copies_are_limited() {
        let copies = Copies::default();
        let first = copies.allocate(MAX_COPIES - 1).unwrap();
        assert!(copies.allocate(2).is_none());
        let second = copies.allocate(1).unwrap();
        drop(first);
        assert!(copies.allocate(MAX_COPIES).is_none());
        drop(second);
        assert!(copies.allocate(MAX_COPIES).is_some());
        assert!(copies.allocate(usize::MAX).is_none());
    }

    #[test]
    fn what_the_kernel_cannot_do_is_repeated_but_not_for_ever() {
        let mut slot = slot(Step::Read, 512);
        for _ in 0..MAX_RETRIES {
            assert_eq!(slot.go_on(-libc::EAGAIN), Next::Operation);
        }
        assert_eq!(slot.go_on(-libc::EAGAIN), Next::Done(Status::IoError, 0));
    }

    #[test]
    fn zeroes_need_no_hole_where_there_can_be_none() {
        let mut slot = slot(Step::Unmap, 4096);
        assert_eq!(slot.go_on(-libc::EOPNOTSUPP), Next::Operation);
        assert_eq!(slot.step, Step::Zero);
    }

    #[test]
    fn an_error_is_the_status() {
        let failed = Next::Done(Status::IoError, 0);
        for step in [Step::Read, Step::Write] {
            assert_eq!(slot(step, 512).go_on(-libc::EIO), failed);
            // The file has become shorter.
            assert_eq!(slot(step, 512).go_on(0), failed);
            assert_eq!(slot(step, 512).go_on(-libc::EINTR), Next::Operation);
        }
        assert_eq!(slot(Step::Flush, 0).go_on(-libc::EIO), failed);
        assert_eq!(slot(Step::Punch, 512).go_on(-libc::EOPNOTSUPP), failed);
        let unsupported = Next::Done(Status::Unsupported, 0);
        assert_eq!(
            slot(Step::Discard, 512).go_on(-libc::EOPNOTSUPP),
            unsupported
        );
    }

    #[test]
    fn a_transfer_is_done_when_nothing_is_left() {
        let mut slot = slot(Step::Read, 1024);
        slot.vectors = vec![vector(std::ptr::null_mut(), 1024)];
        assert_eq!(slot.go_on(512), Next::Operation);
        assert_eq!((slot.offset, slot.left), (512, 512));
        assert_eq!(slot.go_on(512), Next::Done(Status::Ok, 1024));
    }
}
