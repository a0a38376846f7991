// SPDX-License-Identifier: GPL-2.0

//! Both sides of a split virtqueue (virtio 1.3, section 2.7): the device's side, and a driver's
//! side that has one request in flight at a time.
//!
//! Neither side trusts what the other side has written: each index, address and length is read
//! once, checked, and then used. The driver's side never reads back what it has written.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

/// Flag of a descriptor: the next descriptor continues the request.
pub(crate) const DESC_F_NEXT: u16 = 1;
/// Flag of a descriptor: the device writes to the buffer.
pub(crate) const DESC_F_WRITE: u16 = 2;
/// Flag of a descriptor: the buffer is a table of descriptors.
pub(crate) const DESC_F_INDIRECT: u16 = 4;

/// The length of a descriptor, in bytes.
const DESC_LEN: u32 = 16;

/// Maximum size of a virtqueue, in descriptors.
const MAX_SIZE: u32 = 1 << 15;

/// The error of an unusable virtqueue: the other side has written invalid contents, or a part of
/// the virtqueue or of a buffer is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The memory that both sides of a virtqueue access.
///
/// Addresses are in bytes. The other side may write to the memory at any time, so two reads of the
/// same bytes may differ.
pub(crate) trait Memory {
    /// Fills `buf` with the bytes from `address` on.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if a part of the range is not mapped.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Malformed>;

    /// Writes `bytes` from `address` on.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if a part of the range is not mapped for writing.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Malformed>;

    /// Loads the 16-bit little-endian value at an even `address`, with acquire ordering: later
    /// reads see everything that the other side wrote before it stored the value.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if `address` is odd or not mapped.
    fn load_acquire(&self, address: u64) -> Result<u16, Malformed>;

    /// Stores a 16-bit little-endian value at an even `address`, with release ordering: once the
    /// other side sees the value, it also sees everything that was written before.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if `address` is odd or not mapped for writing.
    fn store_release(&self, address: u64, value: u16) -> Result<(), Malformed>;
}

/// The size of a virtqueue, and the addresses of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The number of descriptors, a power of two.
    size: u16,
    /// The address of the descriptor table.
    pub(crate) desc: u64,
    /// The address of the available ring.
    pub(crate) driver: u64,
    /// The address of the used ring.
    pub(crate) device: u64,
}

impl Layout {
    /// Describes a virtqueue of `size` descriptors whose parts are at the given addresses. Returns
    /// [`None`] if `size` is not a valid virtqueue size.
    pub(crate) fn new(size: u32, desc: u64, driver: u64, device: u64) -> Option<Self> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return None;
        }

        Some(Self {
            // `size` is at most 1 << 15, so the cast is lossless.
            size: size as u16,
            desc,
            driver,
            device,
        })
    }

    /// Describes a virtqueue of `size` descriptors that begins at address 0 and whose parts follow
    /// one another, each with the alignment that it needs. Returns [`None`] if `size` is not a
    /// valid virtqueue size.
    pub(crate) fn contiguous(size: u32) -> Option<Self> {
        let driver = u64::from(DESC_LEN) * u64::from(size);
        let device = (driver + 6 + 2 * u64::from(size)).next_multiple_of(4);

        Self::new(size, 0, driver, device)
    }

    /// Returns the address of the first byte after the used ring.
    pub(crate) fn end(&self) -> u64 {
        self.avail_event().wrapping_add(2)
    }

    /// Returns the offset of entry `index` in a ring whose entries have `len` bytes. `index` counts
    /// entries modulo 65,536, so it may exceed the virtqueue's size.
    fn entry(&self, index: u16, len: u8) -> u64 {
        u64::from(index & self.size.wrapping_sub(1)) * u64::from(len)
    }

    fn avail_index(&self) -> u64 {
        self.driver.wrapping_add(2)
    }

    fn avail_entry(&self, index: u16) -> u64 {
        self.driver.wrapping_add(4 + self.entry(index, 2))
    }

    fn used_event(&self) -> u64 {
        self.driver.wrapping_add(4 + 2 * u64::from(self.size))
    }

    fn used_index(&self) -> u64 {
        self.device.wrapping_add(2)
    }

    fn used_entry(&self, index: u16) -> u64 {
        self.device.wrapping_add(4 + self.entry(index, 8))
    }

    fn avail_event(&self) -> u64 {
        self.device.wrapping_add(4 + 8 * u64::from(self.size))
    }
}

/// A descriptor.
#[derive(Clone, Copy)]
struct Desc {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    fn from_bytes(bytes: [u8; DESC_LEN as usize]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;

        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn write(self, memory: &impl Memory, at: u64) -> Result<(), Malformed> {
        memory.write(at, &self.address.to_le_bytes())?;
        memory.write(at.wrapping_add(8), &self.len.to_le_bytes())?;
        memory.write(at.wrapping_add(12), &self.flags.to_le_bytes())?;
        memory.write(at.wrapping_add(14), &self.next.to_le_bytes())
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A request that the device's side has taken and not yet completed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    head: u16,
    /// The number of bytes that the device can read, according to the descriptors. If this is more
    /// than the buffer of [`DeviceSide::take`] has room for, the buffer has only the first part of
    /// the request.
    pub(crate) len: usize,
    /// The address of the first byte that the device can write, or [`None`] if there is no such
    /// byte.
    pub(crate) answer: Option<u64>,
}

/// The device's side of a virtqueue.
pub(crate) struct DeviceSide {
    layout: Layout,
    /// The number of requests taken, modulo 65,536.
    taken: u16,
    /// The number of requests completed, modulo 65,536.
    completed: u16,
}

impl DeviceSide {
    /// Creates the device's side of a virtqueue from which no request has been taken yet.
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            taken: 0,
            completed: 0,
        }
    }

    /// Takes the next request, and copies the bytes that the device can read to `buf`, as far as
    /// they fit. Returns [`None`] if no request is available. A malformed request is returned with
    /// length 0 and without an address for an answer. The caller must complete malformed requests,
    /// too.
    ///
    /// Also asks a driver that uses `VIRTIO_F_EVENT_IDX` to kick for the request after this one.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the virtqueue is not mapped.
    pub(crate) fn take(
        &mut self,
        memory: &impl Memory,
        buf: &mut [u8],
    ) -> Result<Option<Request>, Malformed> {
        let layout = &self.layout;
        if memory.load_acquire(layout.avail_index())? == self.taken {
            return Ok(None);
        }

        let head = memory.load_acquire(layout.avail_entry(self.taken))?;
        self.taken = self.taken.wrapping_add(1);
        // With `VIRTIO_F_EVENT_IDX`, the driver kicks when it makes the request with this index
        // available. Without the feature, the driver does not read this field.
        memory.store_release(layout.avail_event(), self.taken)?;

        let request = Self::read_request(layout, memory, head, buf);
        Ok(Some(request.unwrap_or(Request {
            head,
            len: 0,
            answer: None,
        })))
    }

    fn read_request(
        layout: &Layout,
        memory: &impl Memory,
        head: u16,
        buf: &mut [u8],
    ) -> Result<Request, Malformed> {
        let mut request = Request {
            head,
            len: 0,
            answer: None,
        };
        let (mut table, mut count, mut index) = (layout.desc, u32::from(layout.size), head);
        let mut is_indirect = false;

        // A loop in a chain is detected by counting descriptors, because no valid chain has more
        // descriptors than the table.
        let mut left = count;
        while left != 0 {
            left = left.wrapping_sub(1);
            if u32::from(index) >= count {
                return Err(Malformed);
            }
            let mut bytes = [0; DESC_LEN as usize];
            let at = u64::from(DESC_LEN) * u64::from(index);
            memory.read(table.wrapping_add(at), &mut bytes)?;
            let desc = Desc::from_bytes(bytes);

            if desc.has(DESC_F_INDIRECT) {
                let fits = desc.len >= DESC_LEN && desc.len % DESC_LEN == 0;
                if is_indirect || !fits || desc.has(DESC_F_NEXT) || desc.has(DESC_F_WRITE) {
                    return Err(Malformed);
                }
                (table, count, index) = (desc.address, desc.len / DESC_LEN, 0);
                (is_indirect, left) = (true, count);
                continue;
            }

            Self::read_buffer(memory, &desc, &mut request, buf)?;
            if !desc.has(DESC_F_NEXT) {
                return Ok(request);
            }
            index = desc.next;
        }

        Err(Malformed)
    }

    fn read_buffer(
        memory: &impl Memory,
        desc: &Desc,
        request: &mut Request,
        buf: &mut [u8],
    ) -> Result<(), Malformed> {
        if desc.has(DESC_F_WRITE) {
            if desc.len != 0 {
                request.answer = request.answer.or(Some(desc.address));
            }
            return Ok(());
        }
        // Buffers that the device reads must come before those that it writes (section 2.7.4.2).
        if request.answer.is_some() {
            return Err(Malformed);
        }

        let rest = buf.get_mut(request.len..).unwrap_or_default();
        let len = rest.len().min(desc.len as usize);
        if let Some(to) = rest.get_mut(..len) {
            memory.read(desc.address, to)?;
        }
        request.len = request.len.saturating_add(desc.len as usize);

        Ok(())
    }

    /// Completes a request, to whose buffers the device has written `written` bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the virtqueue is no longer mapped.
    pub(crate) fn complete(
        &mut self,
        memory: &impl Memory,
        request: Request,
        written: u32,
    ) -> Result<(), Malformed> {
        let at = self.layout.used_entry(self.completed);
        memory.write(at, &u32::from(request.head).to_le_bytes())?;
        memory.write(at.wrapping_add(4), &written.to_le_bytes())?;

        self.completed = self.completed.wrapping_add(1);
        memory.store_release(self.layout.used_index(), self.completed)
    }
}

/// A buffer of a request.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    /// The address at which the device accesses the buffer.
    pub(crate) address: u64,
    /// The length in bytes, not 0.
    pub(crate) len: u32,
}

/// The device's progress with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The device has not completed the request.
    Pending,
    /// The device has completed the request.
    Completed,
    /// The device has written an invalid used ring, or the used ring is not mapped.
    Malformed,
}

/// The driver's side of a virtqueue of at least two descriptors.
///
/// Each request consists of descriptor 0, which the device reads, and descriptor 1, which the
/// device writes.
pub(crate) struct DriverSide {
    layout: Layout,
    /// The number of requests sent, modulo 65,536.
    sent: u16,
}

impl DriverSide {
    /// Creates the driver's side of an empty virtqueue, whose memory must be zeroed. Returns
    /// [`None`] if the virtqueue has fewer than two descriptors.
    pub(crate) fn new(layout: Layout) -> Option<Self> {
        (layout.size >= 2).then_some(Self { layout, sent: 0 })
    }

    /// Makes a request available to the device. The previous request must be
    /// [complete](Progress::Completed) or [withdrawn](Self::withdraw).
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the virtqueue is not mapped.
    pub(crate) fn send(
        &mut self,
        memory: &impl Memory,
        readable: Buffer,
        writable: Buffer,
    ) -> Result<(), Malformed> {
        self.sent = self.sent.wrapping_add(1);
        self.publish(memory, readable, writable)
    }

    /// Writes the descriptors and the available ring entry of the last request, and makes the
    /// request available.
    fn publish(
        &self,
        memory: &impl Memory,
        readable: Buffer,
        writable: Buffer,
    ) -> Result<(), Malformed> {
        let index = self.sent.wrapping_sub(1);
        let first = Desc {
            address: readable.address,
            len: readable.len,
            flags: DESC_F_NEXT,
            next: 1,
        };
        let second = Desc {
            address: writable.address,
            len: writable.len,
            flags: DESC_F_WRITE,
            next: 0,
        };

        first.write(memory, self.layout.desc)?;
        second.write(memory, self.layout.desc.wrapping_add(DESC_LEN.into()))?;
        memory.write(self.layout.avail_entry(index), &[0; 2])?;
        // With `VIRTIO_F_EVENT_IDX`, the device interrupts when it has completed the request with
        // this index. Without the feature, the device does not read this field.
        memory.write(self.layout.used_event(), &index.to_le_bytes())?;

        memory.store_release(self.layout.avail_index(), self.sent)
    }

    /// Returns the device's progress with the last request. Ignores the length in the used ring,
    /// because some devices do not report the number of written bytes there.
    pub(crate) fn progress(&self, memory: &impl Memory) -> Progress {
        let last = self.sent.wrapping_sub(1);
        let used = match memory.load_acquire(self.layout.used_index()) {
            Ok(used) if used == self.sent => used.wrapping_sub(1),
            Ok(used) if used == last => return Progress::Pending,
            _ => return Progress::Malformed,
        };
        let mut id = [0; 4];

        match memory.read(self.layout.used_entry(used), &mut id) {
            Ok(()) if id == [0; 4] => Progress::Completed,
            _ => Progress::Malformed,
        }
    }

    /// Marks the last request as completed, so that another device that takes over the virtqueue
    /// does not begin the request. Must be called only while no device uses the virtqueue.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the virtqueue is not mapped.
    pub(crate) fn withdraw(&self, memory: &impl Memory) -> Result<(), Malformed> {
        let at = self.layout.used_entry(self.sent.wrapping_sub(1));

        memory.write(at, &[0; 8])?;
        memory.store_release(self.layout.used_index(), self.sent)?;
        memory.store_release(self.layout.avail_index(), self.sent)
    }

    /// Makes the last request available again, whatever a previous device has written to the
    /// virtqueue. `readable` and `writable` must be the buffers of the last request. All earlier
    /// requests count as completed. Must be called only while no device uses the virtqueue.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the virtqueue is not mapped.
    pub(crate) fn reoffer(
        &self,
        memory: &impl Memory,
        readable: Buffer,
        writable: Buffer,
    ) -> Result<(), Malformed> {
        memory.store_release(self.layout.used_index(), self.sent.wrapping_sub(1))?;
        self.publish(memory, readable, writable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Memory that begins at address 0.
    struct Bytes(RefCell<Vec<u8>>);

    impl Bytes {
        fn new(len: u64) -> Self {
            Self(RefCell::new(vec![0; usize::try_from(len).unwrap()]))
        }

        fn put(&self, at: u64, bytes: &[u8]) {
            self.write(at, bytes).unwrap();
        }

        fn put_desc(&self, layout: &Layout, index: u64, desc: Desc) {
            desc.write(self, layout.desc + 16 * index).unwrap();
        }

        /// Makes the descriptor chain that begins at `head` available, as the request with number
        /// `index`.
        fn offer(&self, layout: &Layout, index: u16, head: u16) {
            self.put(layout.avail_entry(index), &head.to_le_bytes());
            self.put(layout.avail_index(), &(index + 1).to_le_bytes());
        }
    }

    fn range(memory: &[u8], address: u64, len: usize) -> Result<std::ops::Range<usize>, Malformed> {
        let start = usize::try_from(address).map_err(|_| Malformed)?;
        let end = start.checked_add(len).filter(|&end| end <= memory.len());
        Ok(start..end.ok_or(Malformed)?)
    }

    impl Memory for Bytes {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Malformed> {
            let memory = self.0.borrow();
            let range = range(&memory, address, buf.len())?;
            buf.copy_from_slice(&memory[range]);
            Ok(())
        }

        fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Malformed> {
            let mut memory = self.0.borrow_mut();
            let range = range(&memory, address, bytes.len())?;
            memory[range].copy_from_slice(bytes);
            Ok(())
        }

        fn load_acquire(&self, address: u64) -> Result<u16, Malformed> {
            let mut bytes = [0; 2];
            if address % 2 != 0 {
                return Err(Malformed);
            }
            self.read(address, &mut bytes)?;
            Ok(u16::from_le_bytes(bytes))
        }

        fn store_release(&self, address: u64, value: u16) -> Result<(), Malformed> {
            if address % 2 != 0 {
                return Err(Malformed);
            }
            self.write(address, &value.to_le_bytes())
        }
    }

    const SIZE: u32 = 8;
    /// The address of the first buffer, after the virtqueue.
    const DATA: u64 = 0x400;

    fn queue() -> (Bytes, Layout) {
        let layout = Layout::contiguous(SIZE).unwrap();
        assert!(layout.end() <= DATA);
        (Bytes::new(0x1000), layout)
    }

    fn readable(at: u64, len: u32, next: Option<u16>) -> Desc {
        Desc {
            address: at,
            len,
            flags: if next.is_some() { DESC_F_NEXT } else { 0 },
            next: next.unwrap_or(0),
        }
    }

    fn writable(at: u64, len: u32) -> Desc {
        Desc {
            flags: DESC_F_WRITE,
            ..readable(at, len, None)
        }
    }

    /// Returns the expected result of taking a malformed request whose chain begins at `head`.
    fn malformed(head: u16) -> Result<Option<Request>, Malformed> {
        Ok(Some(Request {
            head,
            len: 0,
            answer: None,
        }))
    }

    fn take(memory: &Bytes, layout: Layout) -> (Result<Option<Request>, Malformed>, [u8; 8]) {
        let mut buf = [0xee; 8];
        let taken = DeviceSide::new(layout).take(memory, &mut buf);
        (taken, buf)
    }

    #[test]
    fn parts_are_aligned_and_do_not_overlap() {
        for size in (0..16).map(|order| 1 << order) {
            let layout = Layout::contiguous(size).unwrap();
            assert_eq!(layout.driver, 16 * u64::from(size));
            assert_eq!(layout.driver % 2, 0);
            assert_eq!(layout.device % 4, 0);
            assert!(layout.device >= layout.used_event() + 2);
            assert_eq!(layout.end(), layout.device + 6 + 8 * u64::from(size));
        }
        for size in [0, 3, 1000, 65536, u32::MAX] {
            assert_eq!(Layout::contiguous(size), None);
        }
    }

    #[test]
    fn a_request_is_read_in_the_order_of_its_descriptors() {
        let (memory, layout) = queue();
        memory.put(DATA, b"abcdef");
        memory.put_desc(&layout, 5, readable(DATA + 4, 2, Some(1)));
        memory.put_desc(&layout, 1, readable(DATA, 3, Some(7)));
        memory.put_desc(&layout, 7, writable(DATA + 64, 1));
        assert_eq!(take(&memory, layout).0, Ok(None));
        memory.offer(&layout, 0, 5);
        let (taken, buf) = take(&memory, layout);
        assert_eq!(
            taken,
            Ok(Some(Request {
                head: 5,
                len: 5,
                answer: Some(DATA + 64)
            }))
        );
        assert_eq!(&buf, b"efabc\xee\xee\xee");
        assert_eq!(memory.load_acquire(layout.avail_event()), Ok(1));
    }

    #[test]
    fn a_request_in_a_table_of_its_own_is_read() {
        let (memory, layout) = queue();
        let table = Layout {
            desc: DATA + 256,
            ..layout
        };
        memory.put(DATA, b"abc");
        memory.put_desc(&table, 0, readable(DATA, 3, Some(1)));
        memory.put_desc(&table, 1, writable(DATA + 64, 1));
        let indirect = |len, flags| Desc {
            flags: DESC_F_INDIRECT | flags,
            ..readable(table.desc, len, None)
        };
        memory.offer(&layout, 0, 2);
        memory.put_desc(&layout, 2, indirect(32, 0));
        let (taken, buf) = take(&memory, layout);
        assert_eq!(taken.unwrap().unwrap().answer, Some(DATA + 64));
        assert_eq!(&buf[..3], b"abc");
        // Each of these tables or descriptors is malformed, in this order: a table that is too
        // short for its second descriptor, a length that is not a multiple of 16, an empty table,
        // `NEXT` with `INDIRECT`, and `WRITE` with `INDIRECT`.
        for (len, flags) in [
            (16, 0),
            (31, 0),
            (0, 0),
            (32, DESC_F_NEXT),
            (32, DESC_F_WRITE),
        ] {
            memory.put_desc(&layout, 2, indirect(len, flags));
            assert_eq!(take(&memory, layout).0, malformed(2));
        }
        // An indirect table must not contain another indirect table.
        memory.put_desc(&layout, 2, indirect(32, 0));
        memory.put_desc(&table, 0, indirect(32, 0));
        assert_eq!(take(&memory, layout).0, malformed(2));
    }

    #[test]
    fn a_table_may_be_longer_than_the_virtqueue() {
        let layout = Layout::contiguous(1).unwrap();
        let memory = Bytes::new(0x1000);
        let table = Layout {
            desc: DATA + 256,
            ..layout
        };
        memory.put(DATA, b"abc");
        for index in 0..3_u16 {
            let desc = readable(DATA + u64::from(index), 1, Some(index + 1));
            memory.put_desc(&table, index.into(), desc);
        }
        memory.put_desc(&table, 3, writable(DATA + 64, 1));
        let desc = Desc {
            flags: DESC_F_INDIRECT,
            ..readable(table.desc, 64, None)
        };
        memory.put_desc(&layout, 0, desc);
        memory.offer(&layout, 0, 0);
        let (taken, buf) = take(&memory, layout);
        assert_eq!(taken.unwrap().unwrap().answer, Some(DATA + 64));
        assert_eq!(&buf[..3], b"abc");
    }

    #[test]
    fn what_is_too_long_is_told_and_not_copied() {
        let (memory, layout) = queue();
        memory.put(DATA, b"abcdefghijkl");
        memory.put_desc(&layout, 0, readable(DATA, 6, Some(1)));
        memory.put_desc(&layout, 1, readable(DATA + 6, 6, Some(2)));
        memory.put_desc(&layout, 2, writable(DATA + 64, 1));
        memory.offer(&layout, 0, 0);
        let (taken, buf) = take(&memory, layout);
        assert_eq!(taken.unwrap().unwrap().len, 12);
        assert_eq!(&buf, b"abcdefgh");
    }

    #[test]
    fn malformed_requests_are_refused() {
        let (memory, layout) = queue();
        let check = |head, descs: &[Desc]| {
            for (index, &desc) in (0..).zip(descs) {
                memory.put_desc(&layout, index, desc);
            }
            memory.offer(&layout, 0, head);
            assert_eq!(take(&memory, layout).0, malformed(head));
        };
        // These requests are malformed because of, in this order: a head that is out of range, a
        // next descriptor that is out of range, an endless chain, a readable buffer after a
        // writable one, and two buffers that are not fully mapped.
        check(8, &[]);
        check(0, &[readable(DATA, 1, Some(8))]);
        check(0, &[readable(DATA, 0, Some(0))]);
        let mut answer = writable(DATA, 1);
        answer.flags |= DESC_F_NEXT;
        answer.next = 1;
        check(0, &[answer, readable(DATA, 1, None)]);
        check(0, &[readable(u64::MAX - 2, 8, None)]);
        check(0, &[readable(0xfff, 2, None)]);
    }

    #[test]
    fn requests_go_from_side_to_side_and_around() {
        let (memory, layout) = queue();
        let mut driver = DriverSide::new(layout).unwrap();
        let mut device = DeviceSide::new(layout);
        for round in 0..70_000_u32 {
            memory.put(DATA, &round.to_le_bytes());
            let request = Buffer {
                address: DATA,
                len: 4,
            };
            let answer = Buffer {
                address: DATA + 64,
                len: 1,
            };
            driver.send(&memory, request, answer).unwrap();
            assert_eq!(driver.progress(&memory), Progress::Pending);
            let mut buf = [0; 8];
            let taken = device.take(&memory, &mut buf).unwrap().unwrap();
            assert_eq!(device.take(&memory, &mut buf), Ok(None));
            assert_eq!(buf[..4], round.to_le_bytes());
            assert_eq!((taken.len, taken.answer), (4, Some(DATA + 64)));
            device.complete(&memory, taken, round).unwrap();
            assert_eq!(driver.progress(&memory), Progress::Completed);
            // `used_event` asks the device for an interrupt for exactly this request.
            let event = memory.load_acquire(layout.used_event()).unwrap();
            assert_eq!(event, round as u16);
        }
    }

    fn sent() -> (Bytes, Layout, DriverSide) {
        let (memory, layout) = queue();
        let mut driver = DriverSide::new(layout).unwrap();
        let buffer = Buffer {
            address: DATA,
            len: 1,
        };
        driver.send(&memory, buffer, buffer).unwrap();
        (memory, layout, driver)
    }

    #[test]
    fn a_malformed_answer_is_neither_pending_nor_complete() {
        let (memory, layout, driver) = sent();
        for index in [2, 0xffff, 0x8000] {
            memory.put(layout.used_index(), &u16::to_le_bytes(index));
            assert_eq!(driver.progress(&memory), Progress::Malformed);
        }
        memory.put(layout.used_index(), &[1, 0]);
        for id in [1, SIZE, 0x1_0000, u32::MAX] {
            memory.put(layout.used_entry(0), &id.to_le_bytes());
            assert_eq!(driver.progress(&memory), Progress::Malformed);
        }
        memory.put(layout.used_entry(0), &[0; 4]);
        assert_eq!(driver.progress(&memory), Progress::Completed);
    }

    #[test]
    fn another_device_finds_what_is_to_be_done() {
        let (memory, layout, driver) = sent();
        let end = layout.end();
        let buffer = Buffer {
            address: DATA,
            len: 1,
        };
        for byte in [0x55, 0xff, 0] {
            memory.put(0, &vec![byte; end as usize]);
            driver.reoffer(&memory, buffer, buffer).unwrap();
            assert_eq!(driver.progress(&memory), Progress::Pending);
            let taken = take(&memory, layout).0.unwrap().unwrap();
            assert_eq!((taken.len, taken.answer), (1, Some(DATA)));
            memory.put(0, &vec![byte; end as usize]);
            driver.withdraw(&memory).unwrap();
            assert_eq!(driver.progress(&memory), Progress::Completed);
            assert_eq!(memory.load_acquire(layout.avail_index()), Ok(1));
        }
    }

    #[test]
    fn a_virtqueue_of_one_descriptor_has_no_driver() {
        assert!(DriverSide::new(Layout::contiguous(1).unwrap()).is_none());
    }
}
