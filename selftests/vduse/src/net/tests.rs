// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the card that need no kernel.

use std::sync::mpsc::{self, Receiver};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const GROUP: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

const CONTROL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const PAIRS: u64 = 1 << VIRTIO_NET_F_MQ;

/// A card of two pairs whose driver has accepted these features.
fn card(features: u64) -> (Card<Loopback>, Receiver<Event>) {
    let mut shape = Shape::new("card", MAC);
    shape.pairs = 2;
    let ports = (0..2).map(|_| Loopback::new(4).unwrap()).collect();
    let (sender, receiver) = mpsc::channel();
    let mut card = Card::new(&shape, ports).observed(sender);
    card.start(features);
    receiver.recv().unwrap();
    (card, receiver)
}

/// Puts one request to a virtqueue: bytes to the device, and room for so many. Returns those.
fn ask(card: &mut Card<Loopback>, queue: u16, input: &[u8], room: usize) -> Vec<u8> {
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const INPUT: u64 = 0x1_0000;
    const OUTPUT: u64 = 0x8_0000;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    memory.write_slice(input, GuestAddress(INPUT)).unwrap();
    let write = VRING_DESC_F_WRITE as u16;
    let mut parts = Vec::new();
    if !input.is_empty() {
        parts.push((INPUT, input.len() as u32, 0));
    }
    if room != 0 {
        parts.push((OUTPUT, room as u32, write));
    }
    for (i, &(address, len, flags)) in parts.iter().enumerate() {
        let last = i + 1 == parts.len();
        let next = if last { 0 } else { VRING_DESC_F_NEXT as u16 };
        // A descriptor: address, length, flags, and which one is next (virtio 1.3, 2.7.5).
        let at = 16 * i as u64;
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory
            .write_obj(flags | next, GuestAddress(at + 12))
            .unwrap();
        memory
            .write_obj(i as u16 + 1, GuestAddress(at + 14))
            .unwrap();
    }
    memory.write_obj(1u16, GuestAddress(AVAIL + 2)).unwrap();
    let mut ring = Queue::new(16).unwrap();
    ring.set_desc_table_address(Some(0), None);
    ring.set_avail_ring_address(Some(AVAIL as u32), None);
    ring.set_used_ring_address(Some(USED as u32), None);
    ring.set_ready(true);
    let chain = ring.pop_descriptor_chain(&memory).unwrap();
    let written = card.serve_in(queue, chain, &memory) as usize;
    assert!(written <= room);
    let mut output = vec![0; written];
    memory
        .read_slice(&mut output, GuestAddress(OUTPUT))
        .unwrap();
    output
}

/// Gives a command through virtqueue 4, and says whether it was obeyed.
fn command(card: &mut Card<Loopback>, bytes: &[u8]) -> bool {
    let answer = ask(card, 4, bytes, 1);
    assert_eq!(answer.len(), 1);
    answer[0] == 0
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.resize(len, 0x55);
    frame
}

fn tables(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    for table in [unicast, multicast] {
        bytes.extend((table.len() as u32).to_le_bytes());
        bytes.extend(table.iter().flat_map(|mac| mac.0));
    }
    bytes
}

#[test]
fn a_frame_goes_out_without_its_header_and_comes_back_with_one() {
    let (mut card, _) = card(0);
    let sent = frame(MAC, 60);
    assert!(!card.ready(0));
    ask(&mut card, 1, &[&[0xee; HEADER][..], &sent].concat(), 0);
    assert!(card.ready(0));
    assert_eq!(
        ask(&mut card, 0, &[], 1526),
        [&PLAIN[..], &sent[..]].concat()
    );
    assert!(!card.ready(0));
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_the_next_one_is_not() {
    let (mut card, _) = card(0);
    for len in [1000, 60] {
        let packet = [&[0; HEADER][..], &frame(MAC, len)].concat();
        ask(&mut card, 1, &packet, 0);
    }
    assert!(card.ready(0));
    assert_eq!(ask(&mut card, 0, &[], 100), []);
    assert!(card.ready(0));
    assert_eq!(ask(&mut card, 0, &[], 100).len(), HEADER + 60);
}

#[test]
fn what_is_shorter_than_a_header_is_nothing() {
    let (mut card, _) = card(0);
    for len in [1, 11] {
        ask(&mut card, 1, &vec![0; len], 0);
        assert!(!card.ready(0));
    }
}

#[test]
fn the_control_queue_is_behind_the_pairs_that_were_accepted() {
    let roles = |features, expected: [Role; 5]| {
        let (card, _) = card(features);
        for (queue, role) in expected.into_iter().enumerate() {
            assert_eq!(card.role(queue as u16), role, "{features:x} {queue}");
        }
    };
    use Role::{Control, None, Receive, Transmit};
    roles(0, [Receive(0), Transmit(0), None, None, None]);
    roles(CONTROL, [Receive(0), Transmit(0), Control, None, None]);
    roles(
        CONTROL | PAIRS,
        [Receive(0), Transmit(0), Receive(1), Transmit(1), Control],
    );
}

#[test]
fn commands_are_obeyed_and_told_of() {
    let (mut card, events) = card(CONTROL | PAIRS);
    let cases: [(&[u8], Command); 10] = [
        (&[0, 0, 0], Command::Promiscuous(false)),
        (&[0, 1, 1], Command::AllMulticast(true)),
        (&[0, 2, 1], Command::AllUnicast(true)),
        (&[0, 3, 1], Command::NoMulticast(true)),
        (&[0, 4, 1], Command::NoUnicast(true)),
        (&[0, 5, 1], Command::NoBroadcast(true)),
        (
            &tables(&[OTHER], &[GROUP]),
            Command::Tables {
                unicast: vec![OTHER],
                multicast: vec![GROUP],
            },
        ),
        (&[1, 1, 2, 0, 0, 0, 0, 2], Command::Address(OTHER)),
        (&[3, 0], Command::Announced),
        (&[4, 0, 2, 0], Command::Pairs(2)),
    ];
    for (bytes, expected) in cases {
        assert!(command(&mut card, bytes), "{expected:?}");
        assert_eq!(events.try_recv().unwrap(), Event::Command(expected));
    }
    let state = card.state().lock().unwrap().clone();
    assert_eq!(
        state.filter,
        Filter {
            mac: OTHER,
            promiscuous: false,
            all_multicast: true,
            all_unicast: true,
            no_multicast: true,
            no_unicast: true,
            no_broadcast: true,
            unicast: vec![OTHER],
            multicast: vec![GROUP],
        }
    );
    assert_eq!(state.pairs, 2);

    card.reset();
    assert_eq!(events.try_recv().unwrap(), Event::Reset);
    assert_eq!(*card.state().lock().unwrap(), State::initial(MAC));
}

#[test]
fn commands_that_make_no_sense_are_refused_and_change_nothing() {
    let (mut card, events) = card(CONTROL | PAIRS);
    let before = card.state().lock().unwrap().clone();
    let mut long = vec![1, 0];
    long.extend(u32::MAX.to_le_bytes());
    let cases: &[&[u8]] = &[
        &[0],
        &[0, 0],
        &[0, 0, 2],
        &[0, 0, 1, 1],
        &[0, 6, 1],
        &[1, 0],
        &[1, 0, 1, 0, 0, 0],
        &tables(&[OTHER], &[])[..11],
        &[&tables(&[OTHER], &[])[..], &[0]].concat(),
        &long,
        &[1, 1, 2, 0, 0, 0, 0],
        &[1, 1, 2, 0, 0, 0, 0, 2, 0],
        &[1, 2, 0],
        &[2, 0, 0, 0],
        &[3, 0, 0],
        &[3, 1],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 1],
        &[4, 1, 1, 0],
        &[255, 255, 255],
        &vec![0; COMMAND as usize + 1],
    ];
    for bytes in cases {
        assert!(!command(&mut card, bytes), "{bytes:?}");
        assert_eq!(events.try_recv().unwrap(), Event::Refused);
    }
    assert_eq!(*card.state().lock().unwrap(), before);
}

#[test]
fn pairs_are_not_set_by_a_driver_that_has_not_accepted_them() {
    let (mut card, _) = card(CONTROL);
    assert_eq!(ask(&mut card, 2, &[4, 0, 1, 0], 1), [1]);
}

#[test]
fn a_command_without_room_for_an_answer_is_obeyed_all_the_same() {
    let (mut card, _) = card(CONTROL | PAIRS);
    assert_eq!(ask(&mut card, 4, &[0, 0, 0], 0), []);
    assert!(!card.state().lock().unwrap().filter.promiscuous);
}

#[test]
fn frames_are_filtered_as_the_driver_said() {
    let filter = |change: &dyn Fn(&mut Filter)| {
        let mut filter = Filter::new(MAC);
        filter.promiscuous = false;
        change(&mut filter);
        [MAC, OTHER, GROUP, BROADCAST].map(|to| filter.accepts(&frame(to, 60)))
    };
    const BROADCAST: Mac = Mac([0xff; 6]);
    assert_eq!(filter(&|_| ()), [true, false, false, true]);
    assert_eq!(filter(&|f| f.promiscuous = true), [true; 4]);
    assert_eq!(
        filter(&|f| f.all_multicast = true),
        [true, false, true, true]
    );
    assert_eq!(filter(&|f| f.all_unicast = true), [true, true, false, true]);
    assert_eq!(
        filter(&|f| f.no_unicast = true),
        [false, false, false, true]
    );
    assert_eq!(
        filter(&|f| f.no_broadcast = true),
        [true, false, false, false]
    );
    assert_eq!(
        filter(&|f| {
            f.no_multicast = true;
            f.multicast = vec![GROUP];
        }),
        [true, false, false, true]
    );
    assert_eq!(
        filter(&|f| f.unicast = vec![OTHER]),
        [true, true, false, true]
    );
    assert_eq!(
        filter(&|f| f.multicast = vec![GROUP]),
        [true, false, true, true]
    );
    assert_eq!(filter(&|f| f.mac = OTHER), [false, true, false, true]);
    assert!(!Filter::new(MAC).accepts(&[0; 5]));
}

#[test]
fn unwanted_frames_do_not_reach_the_driver() {
    let (mut card, _) = card(CONTROL | PAIRS);
    assert!(command(&mut card, &[0, 0, 0]));
    for to in [OTHER, GROUP, MAC] {
        let packet = [&[0; HEADER][..], &frame(to, 60)].concat();
        ask(&mut card, 1, &packet, 0);
    }
    assert!(card.ready(0));
    assert_eq!(ask(&mut card, 0, &[], 1526)[HEADER..], frame(MAC, 60));
    assert!(!card.ready(0));
}

#[test]
fn the_shape_says_how_the_device_is_made() {
    let mut shape = Shape::new("card", MAC);
    assert_eq!(shape.features(), 0x3_0087_0020);
    assert_eq!(shape.queues(), [(1024, 0); 3]);
    assert_eq!(shape.spaces(), 1);
    shape.isolated = true;
    shape.pairs = 2;
    assert_eq!(shape.features(), 0x3_00c7_0020);
    assert_eq!(shape.queues()[4], (1024, CONTROL_GROUP));
    let config = shape.device_config();
    assert_eq!(
        (config.groups, config.address_spaces, config.queues),
        (2, 2, 5)
    );
    assert_eq!(config.space[..10], [2, 0, 0, 0, 0, 1, 1, 0, 2, 0]);
    shape.control = false;
    assert_eq!(shape.queues(), [(1024, 0); 4]);
}

#[test]
fn addresses_are_read_and_written_as_people_do() {
    assert_eq!(Mac::parse("02:00:00:00:00:01"), Some(MAC));
    assert_eq!(MAC.to_string(), "02:00:00:00:00:01");
    for bad in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:00",
        "02:00:00:00:00:1g",
    ] {
        assert_eq!(Mac::parse(bad), None, "{bad}");
    }
}
