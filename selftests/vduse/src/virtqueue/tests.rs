// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of virtqueues of both layouts.

use std::io::{Read, Write};

use super::testing::{self, Buffer, Driver, BUFFERS, DESCRIPTORS, DEVICE, DRIVER};
use std::io;
use std::sync::Arc;

use vduse_uapi as uapi;
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::*;

const PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Calls `test` with a driver for each combination of layout, event indices and indirect tables.
fn with_all(size: u16, test: impl Fn(Driver)) {
    for layout in [0, PACKED] {
        for event_idx in [0, EVENT_IDX] {
            for indirect in [false, true] {
                test(Driver::new(size, layout | event_idx | INDIRECT, indirect));
            }
        }
    }
}

fn serve(chain: &Chain) -> u32 {
    let mut text = Vec::new();
    chain.reader().read_to_end(&mut text).unwrap();
    text.reverse();
    let mut writer = chain.writer();
    let len = text.len().min(writer.available_bytes());
    writer.write_all(&text[..len]).unwrap();
    len as u32
}

#[test]
fn requests_are_served_many_times_around_the_ring() {
    with_all(8, |mut driver| {
        let mut device = driver.device();
        let mut chain = Chain::new();
        for round in 0..100u8 {
            let text = [round, 1, 2, 3];
            let (front, back) = text.split_at(usize::from(round) % 4 + 1);
            let id = driver.send(&[
                Buffer::Read(front),
                Buffer::Read(back),
                Buffer::Write(1),
                Buffer::Write(5),
            ]);
            assert!(device.pop(&mut chain).unwrap());
            assert!(!device.pop(&mut Chain::new()).unwrap());
            let written = serve(&chain);
            device.push(&chain, written);
            assert_eq!(driver.receive(), None);
            device.publish();
            let expected = vec![3, 2, 1, round, 0xee, 0xee];
            assert_eq!(driver.receive(), Some((id, 4, expected)));
            assert_eq!(driver.receive(), None);
        }
    });
}

#[test]
fn requests_are_completed_in_any_order_and_seen_at_once() {
    with_all(8, |mut driver| {
        let mut device = driver.device();
        for _ in 0..20 {
            let ids = [1, 2, 3].map(|n| driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]));
            let mut chains = [Chain::new(), Chain::new(), Chain::new()];
            for chain in &mut chains {
                assert!(device.pop(chain).unwrap());
            }
            for index in [2, 0, 1] {
                let written = serve(&chains[index]);
                device.push(&chains[index], written);
                assert_eq!(driver.receive(), None);
            }
            device.publish();
            for index in [2, 0, 1] {
                let byte = index as u8 + 1;
                assert_eq!(driver.receive(), Some((ids[index], 1, vec![byte])));
            }
            assert_eq!(driver.receive(), None);
        }
    });
}

#[test]
fn a_device_goes_on_from_its_position() {
    with_all(4, |mut driver| {
        let mut device = driver.device();
        for n in 0..11 {
            driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]);
            let mut chain = Chain::new();
            assert!(device.pop(&mut chain).unwrap());
            let written = serve(&chain);
            device.push(&chain, written);
            device.publish();
            assert_eq!(driver.receive().unwrap().2, [n]);
            let memory = driver.memory().clone();
            device = Virtqueue::at(driver.settings(), device.position(), memory).unwrap();
            assert!(!device.pop(&mut chain).unwrap());
        }
    });
}

#[test]
fn a_successor_repeats_what_was_not_completed() {
    let mut driver = Driver::new(4, 0, false);
    let mut device = driver.device();
    let mut chain = Chain::new();
    for n in 0..2 {
        driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]);
    }
    assert!(device.pop(&mut chain).unwrap());
    device.push(&chain, 1);
    device.publish();
    assert!(device.pop(&mut chain).unwrap());
    let mut successor = Virtqueue::take_over(driver.settings(), driver.memory().clone()).unwrap();
    assert!(successor.pop(&mut chain).unwrap());
    assert_eq!(chain.reader().read_array(), Some([1]));
    assert!(!successor.pop(&mut chain).unwrap());

    let packed = Driver::new(4, PACKED, false);
    let taken = Virtqueue::take_over(packed.settings(), packed.memory().clone());
    assert!(matches!(taken, Err(Error::Position)));
}

#[test]
fn kicks_are_wanted_only_when_they_are_enabled() {
    for features in [0, EVENT_IDX, PACKED, PACKED | EVENT_IDX] {
        let mut driver = Driver::new(4, features, false);
        let mut device = driver.device();
        let mut chain = Chain::new();
        // Returns whether a driver would kick for the next request that it makes available.
        let wanted = |driver: &Driver, next: u16, wrap: bool| match features {
            0 => driver.read::<u16>(DEVICE) == 0,
            EVENT_IDX => driver.read::<u16>(DEVICE + 4 + 8 * 4) == next,
            PACKED => driver.read::<u16>(DEVICE + 2) == 0,
            _ => {
                let [offset, flags]: [u16; 2] = driver.read(DEVICE);
                flags == 2 && offset == next | u16::from(wrap) << 15
            }
        };
        for n in 0..9u16 {
            assert!(!device.enable_kicks());
            let packed = features & PACKED != 0;
            let (next, wrap) = if packed {
                (n % 4, n / 4 % 2 == 0)
            } else {
                (n, false)
            };
            assert!(wanted(&driver, next, wrap), "{features:#x}, {n}");
            driver.send(&[Buffer::Write(1)]);
            assert!(device.enable_kicks());
            device.disable_kicks();
            assert!(device.pop(&mut chain).unwrap());
            assert!(!wanted(&driver, (next + 1) % 4, wrap) || features == EVENT_IDX);
            device.push(&chain, 0);
            device.publish();
            driver.receive().unwrap();
        }
    }
}

/// Completes `count` requests at once. Returns whether the driver wants an interrupt for them.
fn complete(driver: &mut Driver, device: &mut Virtqueue, count: u16) -> bool {
    let mut chain = Chain::new();
    for _ in 0..count {
        driver.send(&[Buffer::Write(1)]);
        assert!(device.pop(&mut chain).unwrap());
        device.push(&chain, 0);
    }
    let wanted = device.publish();
    while driver.receive().is_some() {}
    wanted
}

#[test]
fn interrupts_are_wanted_as_the_driver_says() {
    // Without event indices, a flag.
    let mut driver = Driver::new(4, 0, false);
    let mut device = driver.device();
    assert!(complete(&mut driver, &mut device, 1));
    driver.write(DRIVER, 1u16);
    assert!(!complete(&mut driver, &mut device, 1));

    // With event indices, the entry.
    let mut driver = Driver::new(4, EVENT_IDX, false);
    let mut device = driver.device();
    let event = DRIVER + 4 + 2 * 4;
    for (entry, count, wanted) in [(0, 1, true), (2, 1, false), (2, 1, true), (4, 3, true)] {
        driver.write(event, entry as u16);
        assert_eq!(complete(&mut driver, &mut device, count), wanted);
    }
    driver.write(event, 7u16);
    assert!(!complete(&mut driver, &mut device, 1));

    for event_idx in [0, EVENT_IDX] {
        let mut driver = Driver::new(4, PACKED | event_idx, false);
        let mut device = driver.device();
        assert!(complete(&mut driver, &mut device, 1));
        driver.write(DRIVER + 2, 1u16);
        assert!(!complete(&mut driver, &mut device, 1));
        driver.write(DRIVER + 2, 2u16);
        // The entries 2 and 3 of this round, then those of the next one.
        for (entry, wrap, count, wanted) in [
            (3u16, true, 1, false),
            (3, true, 1, true),
            (1, false, 1, false),
            (1, false, 1, true),
            (0, true, 2, false),
            (0, true, 1, true),
        ] {
            driver.write(DRIVER, entry | u16::from(wrap) << 15);
            let expected = wanted || event_idx == 0;
            let wants = complete(&mut driver, &mut device, count);
            assert_eq!(wants, expected, "{entry} {wrap} {event_idx}");
        }
    }
}

/// Writes a descriptor.
fn descriptor(driver: &Driver, at: u64, address: u64, len: u32, last: [u16; 2]) {
    driver.write(at, address);
    driver.write(at + 8, len);
    driver.write(at + 12, last);
}

/// Makes descriptor 0 of a split virtqueue available, and returns the error.
fn error(driver: &Driver) -> Error {
    driver.write(DRIVER + 4, 0u16);
    driver.write(DRIVER + 2, 1u16);
    let mut chain = Chain::new();
    let error = driver.device().pop(&mut chain).unwrap_err();
    // Nothing of a malformed request is left for the device to use.
    assert_eq!(chain.reader().available_bytes(), 0);
    assert_eq!(chain.writer().available_bytes(), 0);
    error
}

#[test]
fn a_malformed_split_request_is_an_error() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const TABLE: u16 = 4;
    let driver = Driver::new(4, INDIRECT, false);
    let set = |address, len, flags, next| {
        descriptor(&driver, DESCRIPTORS, address, len, [flags, next]);
    };
    set(BUFFERS, 1, NEXT, 4);
    assert!(matches!(error(&driver), Error::BadIndex(4)));
    set(BUFFERS, 1, NEXT, 0);
    assert!(matches!(error(&driver), Error::EndlessChain));
    set(BUFFERS, 1, WRITE | NEXT, 1);
    descriptor(&driver, DESCRIPTORS + 16, BUFFERS, 1, [0, 0]);
    assert!(matches!(error(&driver), Error::ReadableAfterWritable));

    let entry = |index: u64, len, flags, next| {
        descriptor(&driver, BUFFERS + 16 * index, BUFFERS, len, [flags, next]);
    };
    set(BUFFERS, 0, TABLE, 0);
    assert!(matches!(error(&driver), Error::BadIndirect));
    set(BUFFERS, 24, TABLE, 0);
    assert!(matches!(error(&driver), Error::BadIndirect));
    set(BUFFERS, 16, TABLE | NEXT, 0);
    assert!(matches!(error(&driver), Error::BadIndirect));
    set(BUFFERS, 16, TABLE, 0);
    entry(0, 16, TABLE, 0);
    assert!(matches!(error(&driver), Error::BadIndirect));
    set(BUFFERS, 32, TABLE, 0);
    entry(0, 1, NEXT, 2);
    assert!(matches!(error(&driver), Error::BadIndex(2)));
    entry(0, 1, NEXT, 0);
    assert!(matches!(error(&driver), Error::EndlessChain));
    set(BUFFERS, 16 * 0x8001, TABLE, 0);
    assert!(matches!(error(&driver), Error::EndlessChain));
    driver.write(DRIVER + 2, 5u16);
    let available = driver.device().pop(&mut Chain::new());
    assert!(matches!(available, Err(Error::TooManyAvailable)));
    driver.write(DRIVER + 2, 1u16);
    driver.write(DRIVER + 4, 4u16);
    let head = driver.device().pop(&mut Chain::new());
    assert!(matches!(head, Err(Error::BadIndex(4))));

    let plain = Driver::new(4, 0, false);
    descriptor(&plain, DESCRIPTORS, BUFFERS, 16, [TABLE, 0]);
    assert!(matches!(error(&plain), Error::BadIndirect));
}

#[test]
fn the_lengths_of_a_request_do_not_overflow() {
    let driver = Driver::new(8, INDIRECT, false);
    let size = (testing::SIZE - BUFFERS) as u32 - 0x8000 * 16;
    let table = BUFFERS + u64::from(size);
    let entries = 0x8000u16;
    for index in 0..entries {
        let at = table + 16 * u64::from(index);
        descriptor(&driver, at, BUFFERS, size, [1 | 2, index + 1]);
    }
    descriptor(&driver, DESCRIPTORS, table, 16 * u32::from(entries), [4, 0]);
    assert!(matches!(error(&driver), Error::TooLong));
}

#[test]
fn a_malformed_packed_request_is_an_error() {
    const AVAIL: u16 = 1 << 7;
    let driver = Driver::new(3, PACKED | INDIRECT, false);
    let pop = || driver.device().pop(&mut Chain::new());
    let set = |index: u64, address, len, flags| {
        let at = DESCRIPTORS + 16 * index;
        descriptor(&driver, at, address, len, [7, flags]);
    };
    // The size need not be a power of 2. All descriptors belong to one chain, without an end.
    for index in 0..3 {
        set(index, BUFFERS, 1, AVAIL | 1);
    }
    assert!(matches!(pop(), Err(Error::EndlessChain)));
    set(0, BUFFERS, 16, AVAIL | 4 | 1);
    assert!(matches!(pop(), Err(Error::BadIndirect)));
    // In a table, no flag but `WRITE` counts.
    descriptor(&driver, BUFFERS, BUFFERS, 16, [0, 4 | 1]);
    set(0, BUFFERS, 16, AVAIL | 4);
    assert!(pop().unwrap());
    // A descriptor with both flags equal is used already.
    set(0, BUFFERS, 16, AVAIL | 1 << 15);
    assert!(!pop().unwrap());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let driver = Driver::new(4, 0, false);
    let try_with = |change: fn(&mut Settings)| {
        let mut settings = *driver.settings();
        change(&mut settings);
        let state = uapi::VqStateUnion {
            words: [1, 0, 1, 0],
        };
        Virtqueue::new(&settings, &state, driver.memory().clone()).map(drop)
    };
    try_with(|_| ()).unwrap();
    for change in [
        (|s| s.size = 0) as fn(&mut Settings),
        |s| s.size = 3,
        |s| (s.size, s.features) = (0, PACKED),
        |s| (s.size, s.features) = (0x8001, PACKED),
    ] {
        assert!(matches!(try_with(change), Err(Error::Size(_))));
    }
    for change in [
        (|s| s.descriptors += 8) as fn(&mut Settings),
        |s| s.driver += 1,
        |s| s.device += 2,
        |s| (s.device, s.features) = (DEVICE + 2, PACKED),
    ] {
        assert!(matches!(try_with(change), Err(Error::Misaligned(_))));
    }
    for change in [
        (|s| s.descriptors = testing::SIZE - 48) as fn(&mut Settings),
        |s| s.driver = testing::SIZE - 4,
        |s| s.device = testing::SIZE - 8,
        |s| (s.driver, s.features) = (testing::SIZE - 12, EVENT_IDX),
    ] {
        assert!(matches!(try_with(change), Err(Error::Scattered(_))));
    }
    assert!(matches!(
        try_with(|s| s.device = testing::SIZE),
        Err(Error::Unmapped(..))
    ));
    let at = |features, position| {
        let mut settings = *driver.settings();
        settings.features = features;
        Virtqueue::at(&settings, position, driver.memory().clone()).map(drop)
    };
    let split = Position::Split {
        next_avail: 0,
        next_used: 0,
    };
    let packed = |last_avail_idx, last_used_counter| {
        Position::Packed(uapi::PackedState {
            last_avail_counter: 1,
            last_avail_idx,
            last_used_counter,
            last_used_idx: 0,
        })
    };
    at(0, split).unwrap();
    at(PACKED, packed(3, 1)).unwrap();
    for (features, position) in [
        (PACKED, split),
        (0, packed(0, 1)),
        (PACKED, packed(4, 1)),
        (PACKED, packed(0, 2)),
    ] {
        assert!(matches!(at(features, position), Err(Error::Position)));
    }
}

#[test]
fn readers_and_writers_are_split_anywhere() {
    let text: Vec<u8> = (0..10).collect();
    let buffers = [
        Buffer::Read(&text[..3]),
        Buffer::Read(&[]),
        Buffer::Read(&text[3..]),
        Buffer::Write(3),
        Buffer::Write(4),
    ];
    for at in 0..=10 {
        testing::ask(&buffers, |chain| {
            let mut front = chain.reader();
            let mut back = front.split_at(at).unwrap();
            assert!(back.clone().split_at(11 - at).is_none());
            assert_eq!(front.available_bytes(), at);
            let parts: usize = front.slices().map(|slice| slice.len()).sum();
            assert_eq!(parts, at);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            front.read_to_end(&mut first).unwrap();
            back.read_to_end(&mut second).unwrap();
            assert_eq!([first, second].concat(), text);
            0
        });
    }
    for at in 0..=7 {
        let (written, found) = testing::ask(&buffers, |chain| {
            let mut front = chain.writer();
            let mut back = front.split_at(at).unwrap();
            assert!(front.split_at(at + 1).is_none());
            back.write_all(&vec![2; 7 - at]).unwrap();
            front.write_all(&vec![1; at]).unwrap();
            assert_eq!(front.write(&[3]).unwrap(), 0);
            7
        });
        let expected = [vec![1; at], vec![2; 7 - at]].concat();
        assert_eq!((written, found), (7, expected));
    }
}

#[test]
fn the_last_byte_is_where_the_device_may_write() {
    let buffers = [
        Buffer::Read(b"x"),
        Buffer::Write(3),
        Buffer::Write(0),
        Buffer::Write(2),
    ];
    let done = testing::ask(&buffers, |chain| {
        assert!(chain.write_last(7));
        let mut writer = chain.writer();
        assert!(writer.limit(4));
        assert!(!writer.limit(5));
        assert_eq!(writer.write(&[1; 5]).unwrap(), 4);
        5
    });
    assert_eq!(done, (5, vec![1, 1, 1, 1, 7]));
    testing::ask(&[Buffer::Read(b"x")], |chain| {
        assert!(!chain.write_last(7));
        0
    });
}

#[test]
fn adjacent_buffers_are_one() {
    let data = [1; 16];
    let buffers = [
        Buffer::Read(&data),
        Buffer::Read(&data),
        Buffer::Write(16),
        Buffer::Write(8),
    ];
    testing::ask(&buffers, |chain| {
        // The last readable buffer and the first writable one are adjacent as well.
        assert_eq!(chain.reader().slices().count(), 1);
        assert_eq!(chain.writer().slices().count(), 1);
        assert_eq!(chain.reader().available_bytes(), 32);
        assert_eq!(chain.writer().available_bytes(), 24);
        0
    });
}

#[test]
fn a_buffer_may_be_in_several_regions() {
    let mut driver = Driver::new(4, INDIRECT, true);
    let mut device = driver.device();
    driver.send(&[Buffer::Read(b"abcdefgh"), Buffer::Write(8)]);
    // Map each 8 bytes from `BUFFERS` on as a region of their own, with the same contents. The
    // table's descriptors are in two regions each then.
    let mut scattered = driver.memory().without(0, u64::MAX);
    let contents: Vec<u8> = (0..64).map(|i| driver.read(BUFFERS + i)).collect();
    for (index, part) in (0..).zip(contents.chunks(8)) {
        let mapping = crate::Mapping::anonymous(8).unwrap();
        mapping.bytes().copy_from(part);
        let first = BUFFERS + 8 * index;
        scattered.map(first, first + 7, Arc::new(mapping));
    }
    // The table is after the two buffers, 16 bytes each. Make the first buffer longer.
    let table = BUFFERS + 32;
    vm_memory::Bytes::write_obj(&scattered, 12u32, vm_memory::GuestAddress(table + 8)).unwrap();
    let rings = crate::Mapping::anonymous(BUFFERS as usize).unwrap();
    let low: Vec<u8> = (0..BUFFERS).map(|i| driver.read(i)).collect();
    rings.bytes().copy_from(&low);
    scattered.map(0, BUFFERS - 1, Arc::new(rings));
    device.set_memory(Arc::new(scattered)).unwrap();
    let mut chain = Chain::new();
    assert!(device.pop(&mut chain).unwrap());
    let reader = chain.reader();
    assert_eq!(reader.slices().count(), 2);
    assert_eq!(chain.reader().read_array(), Some(*b"abcdefgh\0\0\0\0"));
    assert_eq!(chain.writer().available_bytes(), 8);
}

/// Returns a log in memory, and its device side of a new driver's virtqueue.
fn logged(driver: &Driver, log: &InFlightLog, take_over: bool) -> Virtqueue {
    let mut device = match take_over {
        true => Virtqueue::take_over(driver.settings(), driver.memory().clone()).unwrap(),
        false => driver.device(),
    };
    device.set_log(log, 1, take_over);
    device
}

/// Takes and completes all available requests. Returns the first byte of each.
fn take_all(device: &mut Virtqueue) -> Vec<u8> {
    let mut chain = Chain::new();
    let mut found = Vec::new();
    while device.pop(&mut chain).unwrap() {
        found.extend(chain.reader().read_array::<1>().unwrap());
        device.push(&chain, 1);
    }
    device.publish();
    found.sort_unstable();
    found
}

fn new_log() -> InFlightLog {
    let memory = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    InFlightLog::open(std::path::Path::new(&path), 2).unwrap()
}

#[test]
fn a_successor_with_a_log_repeats_what_was_in_flight() {
    let log = new_log();
    let mut driver = Driver::new(8, EVENT_IDX, false);
    let mut device = logged(&driver, &log, false);
    for round in 0..30u8 {
        let numbers = [0, 1, 2].map(|n| round.wrapping_mul(4) + n);
        let mut chains = Vec::new();
        for n in numbers {
            driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]);
            let mut chain = Chain::new();
            assert!(device.pop(&mut chain).unwrap());
            chains.push(chain);
        }
        // One is complete, another one was pushed but not published.
        let last = usize::from(round) % 3;
        device.push(&chains[last], 1);
        device.publish();
        driver.receive().unwrap();
        device.push(&chains[(last + 1) % 3], 1);
        driver.send(&[Buffer::Read(&[250]), Buffer::Write(1)]);

        device = logged(&driver, &log, true);
        let mut expected: Vec<u8> = numbers.to_vec();
        expected.remove(last);
        expected.push(250);
        assert_eq!(take_all(&mut device), expected);
        while driver.receive().is_some() {}
        device = logged(&driver, &log, true);
        assert_eq!(take_all(&mut device), []);
    }
}

#[test]
fn a_successor_knows_whether_the_last_requests_were_published() {
    for published in [false, true] {
        let log = new_log();
        let mut driver = Driver::new(8, 0, false);
        let mut device = logged(&driver, &log, false);
        for n in 0..3 {
            driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]);
        }
        let mut chain = Chain::new();
        assert!(device.pop(&mut chain).unwrap());
        assert!(device.pop(&mut chain).unwrap());
        // The program dies while it publishes the second request: its state is the one between
        // `prepare` and `published`.
        let mut part = log.queue(1);
        part.pushed(chain.id());
        device.push(&chain, 1);
        part.prepare(0, 1);
        if published {
            driver.write(DEVICE + 2, 1u16);
        }
        let mut successor = logged(&driver, &log, true);
        let expected: &[u8] = if published { &[0, 2] } else { &[0, 1, 2] };
        assert_eq!(take_all(&mut successor), expected);
    }
}

#[test]
fn the_log_of_another_driver_does_not_count() {
    let log = new_log();
    let mut driver = Driver::new(4, 0, false);
    let mut device = logged(&driver, &log, false);
    for n in 0..2 {
        driver.send(&[Buffer::Read(&[n]), Buffer::Write(1)]);
    }
    assert_eq!(take_all(&mut device), [0, 1]);
    while driver.receive().is_some() {}
    driver.send(&[Buffer::Read(&[2]), Buffer::Write(1)]);
    assert!(device.pop(&mut Chain::new()).unwrap());

    // A driver that has begun anew, of which the device was not told.
    let mut other = Driver::new(4, 0, false);
    other.send(&[Buffer::Read(&[7]), Buffer::Write(1)]);
    let mut successor = logged(&other, &log, true);
    assert_eq!(take_all(&mut successor), [7]);
    let larger = Driver::new(8, 0, false);
    let mut successor = logged(&larger, &log, true);
    assert_eq!(take_all(&mut successor), []);
}

#[test]
fn a_log_of_another_shape_begins_anew() {
    let memory = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let path = std::path::Path::new(&path);
    // Something else is left as it is.
    rustix::io::write(&memory, &[0xff; 10_000]).unwrap();
    let error = InFlightLog::open(path, 2).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(rustix::fs::fstat(&memory).unwrap().st_size, 10_000);
    rustix::fs::ftruncate(&memory, 0).unwrap();
    let log = InFlightLog::open(path, 2).unwrap();
    assert!(log.is_new());
    let mut driver = Driver::new(4, 0, false);
    let mut device = logged(&driver, &log, false);
    driver.send(&[Buffer::Read(&[1]), Buffer::Write(1)]);
    assert!(device.pop(&mut Chain::new()).unwrap());
    let again = InFlightLog::open(path, 2).unwrap();
    assert!(!again.is_new());
    assert_eq!(take_all(&mut logged(&driver, &again, true)), [1]);
    let third = InFlightLog::open(path, 3).unwrap();
    assert!(third.is_new());
    // Without the log, the requests after the used index count as in flight.
    assert_eq!(take_all(&mut logged(&driver, &third, true)), []);
}

#[test]
fn a_driver_gets_nothing_back_before_it_is_published() {
    with_all(4, |mut driver| {
        let mut device = driver.device();
        let mut chains = Vec::new();
        for _ in 0..4 {
            driver.send(&[Buffer::Write(1)]);
            let mut chain = Chain::new();
            assert!(device.pop(&mut chain).unwrap());
            device.push(&chain, 0);
            chains.push(chain);
        }
        // The driver makes a fifth request available, although it has only four descriptors and has
        // not seen that one is used.
        driver.send(&[Buffer::Write(1)]);
        let fifth = device.pop(&mut Chain::new());
        assert!(matches!(fifth, Err(Error::TooManyAvailable)), "{fifth:?}");
    });
}

#[test]
fn an_index_that_makes_no_sense_is_an_error_once_it_is_seen() {
    let driver = Driver::new(4, 0, false);
    let mut device = driver.device();
    driver.write(DRIVER + 2, 5u16);
    assert!(device.enable_kicks());
    let found = device.pop(&mut Chain::new());
    assert!(matches!(found, Err(Error::TooManyAvailable)));
}

#[test]
fn a_request_with_an_unmapped_buffer_is_given_back() {
    with_all(8, |mut driver| {
        let mut device = driver.device();
        let mut chain = Chain::new();
        let bad = driver.send(&[Buffer::Read(b"x"), Buffer::Write(1), Buffer::Write(2)]);
        let good = driver.send(&[Buffer::Read(b"y"), Buffer::Write(1)]);
        // The second descriptor of the first request, or of its table.
        let indirect = driver.read::<u64>(DESCRIPTORS) >= BUFFERS + 3 * 16;
        let table = if indirect {
            driver.read(DESCRIPTORS)
        } else {
            DESCRIPTORS
        };
        driver.write(table + 16, testing::SIZE);
        assert!(device.pop(&mut chain).unwrap());
        assert_eq!(chain.reader().read_array(), Some(*b"y"));
        device.push(&chain, 1);
        device.publish();
        let (id, written, _) = driver.receive().unwrap();
        assert_eq!((id, written), (bad, 0));
        assert_eq!(driver.receive().unwrap().0, good);
        assert_eq!(driver.receive(), None);
    });
}
