// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A request of the driver: its buffers, which the device reads and writes.

use std::io::{self, Read, Write};
use std::sync::Arc;

use vm_memory::volatile_memory::VolatileSlice;

use crate::iotlb::AddressSpace;
use crate::memory;
use crate::virtqueue::error::Error;

/// The driver's memory, in which a virtqueue and its buffers are.
pub type Memory = Arc<AddressSpace>;

/// A part of a buffer that is contiguous in this process.
///
/// # Invariants
///
/// `len` is not 0. The memory is mapped, with the permissions that the request needs, as long as the
/// memory of the chain exists.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    address: *mut u8,
    len: usize,
}

// SAFETY: Any thread may access the memory, which the driver accesses as well.
unsafe impl Send for Buffer {}
// SAFETY: As for `Send`. All accesses are volatile.
unsafe impl Sync for Buffer {}

/// A request that the device has taken from a virtqueue.
///
/// The device reads the buffers that the driver has filled with a [`Reader`], and writes the others
/// with a [`Writer`]. A `Chain` keeps its buffers mapped. Reusing a `Chain` saves the allocation of
/// its list of buffers.
#[derive(Debug, Default)]
pub struct Chain {
    /// The index of the first descriptor in a split virtqueue, or the buffer id in a packed one.
    id: u16,
    /// Number of the virtqueue's entries that the request takes. Needed for a packed virtqueue.
    entries: u16,
    /// The buffers. Those that the device reads come first.
    buffers: Vec<Buffer>,
    /// Number of the buffers that the device reads.
    readable: usize,
    readable_bytes: u32,
    writable_bytes: u32,
    /// The memory that has the buffers. `None` before the chain is first used.
    memory: Option<Memory>,
}

impl Chain {
    /// Creates an empty chain, for [`Virtqueue::pop`](crate::virtqueue::Virtqueue::pop) to fill.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty chain with memory for `buffers` buffers. A request with more of them makes the
    /// chain allocate.
    pub fn with_capacity(buffers: usize) -> Self {
        Self {
            buffers: memory::touched(buffers),
            ..Self::default()
        }
    }

    /// Removes all buffers, before the chain is filled with a request whose buffers are in
    /// `memory`.
    #[inline]
    pub(super) fn clear(&mut self, memory: &Memory) {
        // The buffers go first: they refer to the memory that the chain holds until then.
        self.buffers.clear();
        self.readable = 0;
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        match &self.memory {
            Some(held) if Arc::ptr_eq(held, memory) => {}
            _ => self.memory = Some(memory.clone()),
        }
    }

    /// Adds a part of a buffer: `len` bytes at `address`, at least 1 and less than 2^32.
    ///
    /// # Safety
    ///
    /// The bytes are mapped as long as the memory with which the chain was [cleared](Self::clear)
    /// exists, and may be read or, if `writable` is set, written.
    #[inline]
    pub(super) unsafe fn add(
        &mut self,
        writable: bool,
        address: *mut u8,
        len: usize,
    ) -> Result<(), Error> {
        if !writable && self.readable != self.buffers.len() {
            return Err(Error::ReadableAfterWritable);
        }
        let (bytes, is_first) = if writable {
            (
                &mut self.writable_bytes,
                self.buffers.len() == self.readable,
            )
        } else {
            (&mut self.readable_bytes, self.buffers.is_empty())
        };
        // CAST: Less than 2^32, by the requirements of this function.
        *bytes = bytes.checked_add(len as u32).ok_or(Error::TooLong)?;
        match self.buffers.last_mut() {
            // The pages of a kernel driver's buffers are often adjacent in the bounce area. As one
            // buffer, they take less work in system calls. Two parts may also be in two mappings
            // that happen to be adjacent. Both stay mapped.
            // INVARIANT: Both parts are mapped, and have the same permissions.
            Some(last) if !is_first && last.address.wrapping_add(last.len) == address => {
                last.len += len;
            }
            // INVARIANT: By the requirements of this function.
            _ => {
                self.buffers.push(Buffer { address, len });
                self.readable += usize::from(!writable);
            }
        }
        Ok(())
    }

    /// Records which request the chain is.
    #[inline]
    pub(super) fn set_id(&mut self, id: u16, entries: u16) {
        self.id = id;
        self.entries = entries;
    }

    #[inline]
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    #[inline]
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Writes the last byte that the device may write, where the drivers of some devices expect a
    /// request's status. Returns whether there is such a byte.
    #[inline]
    pub fn write_last(&self, byte: u8) -> bool {
        let Some(last) = self.buffers[self.readable..].last() else {
            return false;
        };
        // SAFETY: By the type invariants of `Buffer`, which is not empty.
        unsafe { last.address.wrapping_add(last.len - 1).write_volatile(byte) };
        true
    }

    /// Returns a reader of all bytes that the driver has provided.
    #[inline]
    pub fn reader(&self) -> Reader<'_> {
        Reader(Cursor {
            buffers: &self.buffers[..self.readable],
            offset: 0,
            left: self.readable_bytes as usize,
        })
    }

    /// Returns a writer to all bytes that the device may write.
    #[inline]
    pub fn writer(&self) -> Writer<'_> {
        Writer(Cursor {
            buffers: &self.buffers[self.readable..],
            offset: 0,
            left: self.writable_bytes as usize,
        })
    }
}

/// A position in the buffers of a request.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    buffers: &'a [Buffer],
    /// Number of bytes of the first buffer that are before the position.
    offset: usize,
    /// Number of bytes after the position.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// Returns the bytes after the position that are contiguous, or `None` at the end.
    #[inline]
    fn first(&self) -> Option<VolatileSlice<'a>> {
        if self.left == 0 {
            return None;
        }
        let buffer = self.buffers.first()?;
        let address = buffer.address.wrapping_add(self.offset);
        let len = (buffer.len - self.offset).min(self.left);
        // SAFETY: The bytes are a part of the buffer, which is mapped as long as the chain that is
        // borrowed for `'a`. This process accesses them only through volatile slices.
        Some(unsafe { VolatileSlice::new(address, len) })
    }

    /// Moves the position by `len` bytes, which are at most those of [`first`](Self::first).
    #[inline]
    fn advance(&mut self, len: usize) {
        self.offset += len;
        self.left -= len;
        if self
            .buffers
            .first()
            .is_some_and(|buffer| buffer.len == self.offset)
        {
            self.buffers = &self.buffers[1..];
            self.offset = 0;
        }
    }

    /// Moves `len` bytes with `copy`, slice by slice. `copy` gets each slice, and the offset of its
    /// first byte from the position. Returns the number of bytes.
    #[inline]
    fn transfer(&mut self, len: usize, mut copy: impl FnMut(VolatileSlice<'_>, usize)) -> usize {
        let len = len.min(self.left);
        let mut done = 0;
        while done < len {
            let Some(slice) = self.first() else { break };
            let part = slice.len().min(len - done);
            let address = slice.ptr_guard_mut().as_ptr();
            // SAFETY: These bytes are the first ones of `slice`.
            copy(unsafe { VolatileSlice::new(address, part) }, done);
            self.advance(part);
            done += part;
        }
        done
    }

    /// Returns the position `at` bytes further, and limits this one to the bytes before it. Returns
    /// `None` if there are fewer bytes.
    #[inline]
    fn split_at(&mut self, at: usize) -> Option<Self> {
        let mut rest = self.clone();
        rest.left = self.left.checked_sub(at)?;
        self.left = at;
        let mut skip = at;
        while let Some(buffer) = rest.buffers.first() {
            let len = buffer.len - rest.offset;
            if skip < len {
                rest.offset += skip;
                break;
            }
            skip -= len;
            rest.buffers = &rest.buffers[1..];
            rest.offset = 0;
        }
        Some(rest)
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        let mut cursor = self.clone();
        std::iter::from_fn(move || {
            let slice = cursor.first()?;
            cursor.advance(slice.len());
            Some(slice)
        })
    }
}

/// Reads the bytes that the driver has provided in a request, in order.
#[derive(Clone, Debug)]
pub struct Reader<'a>(Cursor<'a>);

/// Writes to the buffers of a request, in order.
#[derive(Debug)]
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Returns the number of bytes that have not been read.
    #[inline]
    pub fn available_bytes(&self) -> usize {
        self.0.left
    }

    /// Limits the reader to its next `at` bytes. Returns a reader of the bytes after them, or `None`
    /// if there are fewer bytes.
    #[inline]
    pub fn split_at(&mut self, at: usize) -> Option<Self> {
        self.0.split_at(at).map(Self)
    }

    /// Returns the parts of the buffers that have not been read, for example for `readv`.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.0.slices()
    }

    /// Reads `N` bytes. Returns `None` if there are fewer bytes.
    #[inline]
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        if let Some(first) = self.0.first().filter(|first| first.len() >= N) {
            let at = first.ptr_guard().as_ptr().cast::<[u8; N]>();
            // SAFETY: The slice has `N` bytes, which any array may have. An array of bytes has no
            // alignment.
            let bytes = unsafe { at.read_volatile() };
            self.0.advance(N);
            return Some(bytes);
        }
        let mut bytes = [0; N];
        (self.read_bytes(&mut bytes) == N).then_some(bytes)
    }

    #[inline]
    fn read_bytes(&mut self, to: &mut [u8]) -> usize {
        let len = to.len();
        self.0.transfer(len, |slice, offset| {
            slice.copy_to(&mut to[offset..offset + slice.len()]);
        })
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_bytes(to))
    }
}

impl<'a> Writer<'a> {
    /// Returns the number of bytes that can still be written.
    #[inline]
    pub fn available_bytes(&self) -> usize {
        self.0.left
    }

    /// Limits the writer to its next `len` bytes. Returns `false` if there are fewer bytes.
    #[inline]
    pub fn limit(&mut self, len: usize) -> bool {
        let fits = len <= self.0.left;
        self.0.left = self.0.left.min(len);
        fits
    }

    /// Limits the writer to its next `at` bytes. Returns a writer to the bytes after them, or `None`
    /// if there are fewer bytes.
    #[inline]
    pub fn split_at(&mut self, at: usize) -> Option<Self> {
        self.0.split_at(at).map(Self)
    }

    /// Returns the parts of the buffers that have not been written, for example for `writev`.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.0.slices()
    }
}

impl Write for Writer<'_> {
    #[inline]
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(self.0.transfer(from.len(), |slice, offset| {
            slice.copy_from(&from[offset..offset + slice.len()]);
        }))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
