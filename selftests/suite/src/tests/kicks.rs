// SPDX-License-Identifier: GPL-2.0

//! Kicks of virtqueues.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use vduse::eventfd::EventFd;

use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{ACKNOWLEDGE, DRIVER, RESET, UP_TO_FEATURES_OK};
use crate::lab::driver::bare_disk::BareDisk;

tests![
    a_kick_reaches_the_eventfd,
    a_kick_before_the_eventfd_is_delivered_when_it_comes,
    a_kick_is_delivered_once,
    a_kick_of_a_queue_that_is_not_ready_is_dropped,
    a_reset_takes_the_eventfd_away,
    a_kick_between_two_daemons_reaches_the_second,
    a_kick_that_kicks_itself_comes_to_rest,
    kicks_that_go_in_circles_come_to_rest,
    a_kick_is_forwarded_from_device_to_device,
];

fn a_kick_reaches_the_eventfd() {
    let bare = BareDisk::started();
    let kicked = bare.kick_fd();
    for _ in 0..5 {
        bare.driver.kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
}

fn a_kick_before_the_eventfd_is_delivered_when_it_comes() {
    let bare = BareDisk::started();
    bare.driver.kick_at_once();
    let kicked = bare.kick_fd();
    soon("the kick arrives", || kicked.take().unwrap() == 1);
}

fn a_kick_is_delivered_once() {
    let bare = BareDisk::started();
    bare.driver.kick_at_once();
    let first = bare.kick_fd();
    soon("the kick arrives", || first.take().unwrap() == 1);
    let second = bare.kick_fd();
    stays("nothing more comes", || second.take().unwrap() == 0);
}

fn a_kick_of_a_queue_that_is_not_ready_is_dropped() {
    let bare = BareDisk::new();
    bare.driver
        .vhost
        .set_kick(0, bare.driver.kick.as_fd())
        .unwrap();
    let kicked = bare.kick_fd();
    bare.driver.kick.signal().unwrap();
    stays("no kick comes", || kicked.take().unwrap() == 0);
}

fn a_reset_takes_the_eventfd_away() {
    let bare = BareDisk::started();
    let before = bare.kick_fd();
    bare.driver.vhost.set_status(RESET).unwrap();
    // The next driver's kicks must not reach the eventfd that the daemon set before the reset.
    let driver = &bare.driver;
    driver.vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let features = driver.vhost.features().unwrap() & !feature::RING_EVENT_IDX;
    driver.vhost.set_features(features).unwrap();
    driver.vhost.set_status(UP_TO_FEATURES_OK).unwrap();
    driver.set_queue_up();
    driver.start();
    driver.kick.signal().unwrap();
    stays("no kick comes", || before.take().unwrap() == 0);
    let after = bare.kick_fd();
    soon("the kick arrives", || after.take().unwrap() == 1);
}

fn a_kick_between_two_daemons_reaches_the_second() {
    let BareDisk {
        driver,
        on_bus,
        responder,
        file,
        device,
    } = BareDisk::started();
    let first = EventFd::new().unwrap();
    file.set_kick(0, first.as_fd()).unwrap();
    drop(responder);
    drop(file);
    driver.kick_at_once();
    let file = Arc::new(device.open_nonblocking());
    let responder = Responder::ok(&file);
    let second = EventFd::new().unwrap();
    file.set_kick(0, second.as_fd()).unwrap();
    // There is no need to wait for the kick. If the kick went to the first eventfd, it arrived
    // before `kick_at_once` returned. If it went to the second, it arrived before `set_kick`
    // returned.
    let counts = [&first, &second].map(|event| event.take().unwrap());
    drop(driver);
    drop(on_bus);
    drop(responder);
    assert_eq!(
        counts,
        [0, 1],
        "the kick went to the first daemon's eventfd"
    );
}

/// Waits for a while, and asserts that no eventfd is signalled afterwards.
#[track_caller]
fn comes_to_rest(events: &[&EventFd]) {
    std::thread::sleep(Duration::from_millis(100));
    for event in events {
        event.take().unwrap();
    }
    stays("no more kicks", || {
        events.iter().all(|event| event.take().unwrap() == 0)
    });
}

fn a_kick_that_kicks_itself_comes_to_rest() {
    let bare = BareDisk::started();
    let kick = &bare.driver.kick;
    bare.file.set_kick(0, kick.as_fd()).unwrap();
    kick.signal().unwrap();
    comes_to_rest(&[kick]);
    // A new kick eventfd, which does not kick the device again, still gets each kick.
    let kicked = bare.kick_fd();
    for _ in 0..5 {
        kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
}

fn kicks_that_go_in_circles_come_to_rest() {
    let bares = [(); 3].map(|()| BareDisk::started());
    let kicks = [0, 1, 2].map(|n: usize| &bares[n].driver.kick);
    // Each device passes its kicks to the kick eventfd of the next device.
    for (n, bare) in bares.iter().enumerate() {
        bare.file.set_kick(0, kicks[(n + 1) % 3].as_fd()).unwrap();
    }
    for kick in kicks {
        kick.signal().unwrap();
    }
    comes_to_rest(&kicks);
}

fn a_kick_is_forwarded_from_device_to_device() {
    let [first, second, third] = [(); 3].map(|()| BareDisk::started());
    first.file.set_kick(0, second.driver.kick.as_fd()).unwrap();
    second.file.set_kick(0, third.driver.kick.as_fd()).unwrap();
    let kicked = third.kick_fd();
    for _ in 0..20 {
        first.driver.kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
    stays("no more kicks", || kicked.take().unwrap() == 0);
}
