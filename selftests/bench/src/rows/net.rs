// SPDX-License-Identifier: GPL-2.0

//! Measurements of frames through virtio_net: of each direction separately, with the null card, and
//! of the round trip, with the library's card and its loopback port.

use vduse::net::{Loopback, Net, Shape};
use vduse_selftests::lab::assert::timing::soon;
use vduse_selftests::lab::daemon::card::MAC;
use vduse_selftests::lab::daemon::serving::Serving;
use vduse_selftests::lab::device::bus::{Driver, OnBus};
use vduse_selftests::lab::device::test_device::{unique_name, TestDevice};
use vduse_selftests::lab::kernel::modules;

use crate::measurement::{Bench, Row};
use crate::null::{ethernet, NullCard, LAST, OTHER};
use crate::packet::Interface;
use crate::{clock, profile};

/// Number of frames that are timed, after `WARM_UP` untimed ones. The library's loopback port can
/// queue this number of frames.
const FRAMES: u64 = 4000;
const WARM_UP: u64 = 1000;

/// Measures a row. `pass` makes the given number of frames pass through the card, and waits for
/// them. Returns the number of frames per second.
fn per_second(row: &Row, mut pass: impl FnMut(u64)) -> f64 {
    pass(WARM_UP);
    let took = clock::time(|| profile::watch(&row.name, FRAMES as usize, || pass(FRAMES)));
    FRAMES as f64 * 1e9 / took as f64
}

/// Builds a frame that is addressed to the card. `bytes` is the frame's length, including the
/// Ethernet header.
fn frame(bytes: u32, ether_type: u16) -> Vec<u8> {
    let mut frame = ethernet(ether_type).to_vec();
    frame.resize(bytes as usize, 0);
    frame
}

/// Calls `start`, which makes `count` frames arrive, and waits until all frames have arrived.
fn receive(interface: &Interface, count: u64, start: impl FnOnce()) {
    let before = interface.received();
    start();
    interface.wait();
    // The counter of received frames may lag behind. If the driver runs on another CPU, it first
    // passes all frames to the network stack, and only then updates the counter.
    soon("all frames are received", || {
        interface.received() - before == count
    });
}

/// Measures each direction separately: frames that the driver sends, and frames that it receives.
fn one_way(rows: [&Row; 2], bytes: u32) -> [f64; 2] {
    let card = NullCard::new();
    let interface = Interface::of(card.name(), LAST);
    let frame = frame(bytes, LAST);
    let sent = per_second(rows[0], |count| {
        card.expect(count);
        (0..count).for_each(|_| interface.send(&frame));
        card.wait_sent();
    });
    let received = per_second(rows[1], |count| {
        receive(&interface, count, || card.receive(count, bytes))
    });
    [sent, received]
}

/// Measures the round trip through the library's card with a loopback port.
fn loopback(row: &Row, bytes: u32) -> f64 {
    let shape = Shape::new(&unique_name(), MAC);
    let device = TestDevice::new(&shape.config());
    let card = Net::new(MAC, vec![Loopback::new().expect("a loopback")]).expect("a card");
    let server = shape.server(device.open_nonblocking(), card);
    let _serving = Serving::run(server.expect("serving the card"));
    let on_bus = OnBus::add(device.name()).expect("adding a card");
    on_bus.bind(Driver::Virtio).expect("binding a card");
    let interface = Interface::of(device.name(), LAST);
    let (other, last) = (frame(bytes, OTHER), frame(bytes, LAST));
    per_second(row, |count| {
        receive(&interface, count, || {
            (1..count).for_each(|_| interface.send(&other));
            interface.send(&last);
        });
    })
}

/// Returns the measurements of frames through virtio_net.
pub fn benches() -> Vec<Bench> {
    let bench = |bytes: u32| {
        let row = |what| Row::higher(format!("virtio-net: {bytes} B {what}"), "frames/s", 1.0);
        let rows = vec![row("sent"), row("received"), row("there and back")];
        Bench::new(rows.clone(), move || {
            modules::tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
            let [sent, received] = one_way([&rows[0], &rows[1]], bytes);
            vec![sent, received, loopback(&rows[2], bytes)]
        })
    };
    [64, 1500].map(bench).into()
}
