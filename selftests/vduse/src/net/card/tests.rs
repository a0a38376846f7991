// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the network card.

use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::net::loopback::Loopback;
use crate::net::shape::{self, Shape};
use crate::virtqueue::testing::{self, Buffer};

const OURS: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];

/// Sends one request to a card. Returns the number of bytes that the card reports as written, and
/// the contents of the device-writable buffers. The buffers initially contain 0xee.
fn ask<P: Port>(card: &mut Net<P>, queue: u16, buffers: &[Buffer<'_>]) -> (u32, Vec<u8>) {
    testing::ask(buffers, |chain| card.serve(queue, chain))
}

/// A loopback port that records whether it is enabled.
struct Cable {
    back: Loopback,
    enabled: bool,
    fails: bool,
}

impl Port for Cable {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.back.send(frame)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.back.receive(buffer)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.back.descriptor()
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        if on && self.fails {
            return Err(io::ErrorKind::Other.into());
        }
        self.enabled = on;
        Ok(())
    }
}

/// Returns a started card with this number of queue pairs and all features, and the receiver of its
/// events.
fn card(pairs: u16) -> (Net<Cable>, Receiver<Event>) {
    let mut shape = Shape::new("n", OURS);
    shape.control = true;
    shape.pairs = pairs;
    shape.options = shape::GUEST_ANNOUNCE | shape::CTRL_RX_EXTRA;
    let cable = |_| Cable {
        back: Loopback::new().unwrap(),
        enabled: true,
        fails: false,
    };
    let (sender, receiver) = mpsc::channel();
    let mut card = Net::new(OURS, (0..pairs).map(cable).collect())
        .unwrap()
        .observed_by(move |event| sender.send(event).unwrap());
    card.start(shape.features());
    let started = receiver.try_recv().unwrap();
    assert_eq!(started.what, What::Started(shape.features()));
    (card, receiver)
}

/// Sends a command and checks the event that reports it. Returns the command's status.
fn command(card: &mut Net<Cable>, events: &Receiver<Event>, bytes: &[u8]) -> u32 {
    let queue = 2 * card.pairs.len() as u16;
    let (written, answer) = ask(card, queue, &[Buffer::Read(bytes), Buffer::Write(1)]);
    assert_eq!(written, 1);
    let answer = u32::from(answer[0]);
    let event = events.try_recv().unwrap();
    assert_eq!(event.what == What::Refused, answer == VIRTIO_NET_ERR);
    assert_eq!(event.settings, card.settings);
    assert!(events.try_recv().is_err());
    card.answered();
    answer
}

fn frame(to: Mac, byte: u8) -> Vec<u8> {
    [&to[..], &OTHER, &[8, 0], &[byte; 50]].concat()
}

/// Sends a frame through a queue pair.
fn send(card: &mut Net<Cable>, pair: u16, frame: &[u8]) {
    let sent = ask(
        card,
        2 * pair + 1,
        &[Buffer::Read(&[0; HEADER]), Buffer::Read(frame)],
    );
    assert_eq!(sent, (0, vec![]));
}

#[test]
fn a_frame_loses_its_header_and_gets_another() {
    let (mut card, _events) = card(1);
    let frame = frame(OURS, 7);
    assert!(!card.ready(0));
    send(&mut card, 0, &frame);
    assert!(card.ready(0));
    let (written, found) = ask(&mut card, 0, &[Buffer::Write(100), Buffer::Write(1000)]);
    let expected = [&[0; 10][..], &[1, 0], &frame].concat();
    assert_eq!(written as usize, expected.len());
    assert_eq!(found[..expected.len()], expected);
    assert!(found[expected.len()..].iter().all(|&byte| byte == 0xee));
    assert!(!card.ready(0));
}

#[test]
fn a_header_may_be_anywhere_in_the_chain() {
    let (mut card, _events) = card(1);
    let frame = frame(OURS, 9);
    let whole = [&[0; HEADER][..], &frame].concat();
    let (front, back) = whole.split_at(5);
    ask(&mut card, 1, &[Buffer::Read(front), Buffer::Read(back)]);
    let mut buffer = [0; 100];
    let received = card.pairs[0].port.receive(&mut buffer).unwrap();
    assert_eq!(received, Some(frame.len()));
    assert_eq!(buffer[..frame.len()], frame);
}

#[test]
fn what_is_shorter_than_a_header_or_too_long_is_not_sent() {
    let (mut card, _events) = card(1);
    ask(&mut card, 1, &[Buffer::Read(&[0; HEADER - 1])]);
    let half = vec![0; LONGEST / 2 + 1];
    ask(&mut card, 1, &[Buffer::Read(&half), Buffer::Read(&half)]);
    ask(&mut card, 1, &[Buffer::Write(100)]);
    assert!(!card.ready(0));
}

#[test]
fn a_frame_that_does_not_fit_is_lost_and_the_next_one_comes() {
    let (mut card, _events) = card(1);
    send(&mut card, 0, &frame(OURS, 1));
    send(&mut card, 0, &frame(OURS, 2));
    assert!(card.ready(0));
    let len = HEADER + frame(OURS, 1).len();
    let (written, found) = ask(&mut card, 0, &[Buffer::Write(len - 1)]);
    assert_eq!(written, 0);
    assert!(found.iter().all(|&byte| byte == 0xee));
    assert!(card.ready(0));
    let (written, found) = ask(&mut card, 0, &[Buffer::Write(len)]);
    assert_eq!(written as usize, len);
    assert_eq!(found.last(), Some(&2));
}

#[test]
fn frames_to_others_are_not_received_once_that_is_said() {
    let (mut card, events) = card(1);
    assert_eq!(command(&mut card, &events, &[0, 0, 0]), VIRTIO_NET_OK);
    for byte in 0..10 {
        send(&mut card, 0, &frame(OTHER, byte));
    }
    send(&mut card, 0, &frame(OURS, 10));
    assert!(card.ready(0));
    let (_, found) = ask(&mut card, 0, &[Buffer::Write(76)]);
    assert_eq!(found.last(), Some(&10));
    // One call drops at most `PATIENCE` frames, so only the second call finds the frame that is
    // addressed to this card.
    for _ in 0..PATIENCE {
        send(&mut card, 0, &frame(OTHER, 0));
    }
    send(&mut card, 0, &frame(OURS, 11));
    assert!(!card.ready(0));
    assert!(card.ready(0));
}

#[test]
fn commands_are_done_and_told_and_a_reset_undoes_them() {
    let (mut card, events) = card(2);
    let first = card.settings.clone();
    let address = [&[1, 1][..], &OTHER].concat();
    let table = [&[1, 0, 1, 0, 0, 0][..], &OTHER, &[0; 4]].concat();
    for bytes in [&[0, 0, 0][..], &address, &table, &[4, 0, 2, 0]] {
        assert_eq!(command(&mut card, &events, bytes), VIRTIO_NET_OK);
    }
    let expected = Settings {
        mac: OTHER,
        promiscuous: false,
        unicast: vec![OTHER],
        pairs: 2,
        ..first.clone()
    };
    assert_eq!(card.settings, expected);
    assert_eq!(card.config_changes(), [(0, OTHER.to_vec())]);
    assert!(card.pairs[1].port.enabled);
    card.reset();
    assert_eq!(card.settings, first);
    assert_eq!(card.config_changes(), [(0, OURS.to_vec())]);
    assert!(!card.pairs[1].port.enabled);
    let event = events.try_recv().unwrap();
    assert_eq!((event.what, event.settings), (What::Reset, first));
}

#[test]
fn what_is_malformed_is_refused_and_changes_nothing() {
    let (mut card, events) = card(2);
    let before = card.settings.clone();
    let too_many = [&[1, 0, 2, 0, 0, 0][..], &OTHER, &[0; 4]].concat();
    let long = vec![0; 60_000];
    for bytes in [
        &[][..],
        &[0],
        &[0, 0],
        &[0, 0, 0, 0],
        &[0, 9, 1],
        &[1, 1, 2, 0],
        &too_many,
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0, 0x80],
        &[2, 0, 1, 0],
        &[3, 1],
        &[77, 0],
        &long,
    ] {
        assert_eq!(command(&mut card, &events, bytes), VIRTIO_NET_ERR);
    }
    // Three malformed requests: two writable bytes for the status, no byte for the status, and a
    // command that is too long.
    let plain = [0, 0, 0];
    let two = ask(&mut card, 4, &[Buffer::Read(&plain), Buffer::Write(2)]);
    assert_eq!(two, (1, vec![1, 0xee]));
    assert_eq!(ask(&mut card, 4, &[Buffer::Read(&plain)]), (0, vec![]));
    let much = ask(
        &mut card,
        4,
        &[Buffer::Read(&long), Buffer::Read(&long), Buffer::Write(1)],
    );
    assert_eq!(much, (1, vec![1]));
    assert!(events.try_iter().all(|event| event.what == What::Refused));
    assert_eq!(card.settings, before);
    assert_eq!(card.config_changes(), []);
}

#[test]
fn a_command_in_pieces_is_put_together() {
    let (mut card, _events) = card(1);
    let pieces = [
        Buffer::Read(&[0]),
        Buffer::Read(&[1]),
        Buffer::Read(&[1]),
        Buffer::Write(1),
    ];
    assert_eq!(ask(&mut card, 2, &pieces), (1, vec![0]));
    assert!(card.settings.all_multicast);
}

#[test]
fn an_announcement_that_was_made_is_taken_out_of_the_status() {
    let (mut card, events) = card(1);
    assert_eq!(command(&mut card, &events, &[3, 0]), VIRTIO_NET_OK);
    assert_eq!(card.config_changes(), [(6, vec![1, 0])]);
}

#[test]
fn a_pair_is_used_once_the_driver_says_so() {
    let (mut card, events) = card(2);
    send(&mut card, 1, &frame(OURS, 1));
    assert!(card.source(0).is_some());
    assert!(card.source(2).is_none() && !card.ready(2));
    assert_eq!(command(&mut card, &events, &[4, 0, 2, 0]), VIRTIO_NET_OK);
    assert!(card.source(2).is_some() && card.ready(2));
    assert!(card.pairs[1].port.enabled);
    assert_eq!(command(&mut card, &events, &[4, 0, 1, 0]), VIRTIO_NET_OK);
    assert!(card.source(2).is_none() && !card.pairs[1].port.enabled);
    // If the port cannot be enabled, it stays disabled. The command still succeeds, because the
    // card answers it before it enables the port.
    card.pairs[1].port.fails = true;
    assert_eq!(command(&mut card, &events, &[4, 0, 2, 0]), VIRTIO_NET_OK);
    assert!(!card.pairs[1].port.enabled);
}

#[test]
fn a_port_is_enabled_once_the_driver_is_answered() {
    let (mut card, _events) = card(2);
    let buffers = [Buffer::Read(&[4, 0, 2, 0]), Buffer::Write(1)];
    assert_eq!(ask(&mut card, 4, &buffers), (1, vec![0]));
    assert!(!card.pairs[1].port.enabled);
    card.answered();
    assert!(card.pairs[1].port.enabled);
}

#[test]
fn the_control_queue_is_behind_the_pairs_that_the_driver_knows_of() {
    let (mut card, _events) = card(3);
    let roles = |card: &Net<Cable>| (0..8).map(|queue| card.role(queue)).collect::<Vec<_>>();
    let all = [
        Role::Receive(0),
        Role::Transmit(0),
        Role::Receive(1),
        Role::Transmit(1),
        Role::Receive(2),
        Role::Transmit(2),
        Role::Control,
        Role::Unused,
    ];
    assert_eq!(roles(&card), all);
    let features = card.features.unwrap();
    let mut few = vec![Role::Receive(0), Role::Transmit(0), Role::Control];
    few.resize(8, Role::Unused);
    card.reset();
    assert_eq!(roles(&card), [Role::Unused; 8]);
    card.start(features & !(1 << VIRTIO_NET_F_MQ));
    assert_eq!(roles(&card), few);
    few[2] = Role::Unused;
    card.reset();
    card.start(features & !(1 << VIRTIO_NET_F_MQ) & !(1 << VIRTIO_NET_F_CTRL_VQ));
    assert_eq!(roles(&card), few);
}

#[test]
fn a_start_is_told_once() {
    let (mut card, events) = card(1);
    card.start(0);
    assert!(events.try_recv().is_err());
    card.moved(1, 1);
    let moved = What::Moved { group: 1, asid: 1 };
    assert_eq!(events.try_recv().unwrap().what, moved);
}
