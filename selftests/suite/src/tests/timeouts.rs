// SPDX-License-Identifier: GPL-2.0

//! Requests that a daemon does not answer in time. Such a request breaks the device.

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use vduse::request::Answer;
use vduse_uapi::DevResponse;

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::unanswered::{events, Unanswered};
use crate::lab::device::bus::{self};
use crate::lab::device::virtio::status::ACKNOWLEDGE;
use crate::lab::driver::vhost::Vhost;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::{missing_page, sysfs};

tests![
    msg_timeout_ends_the_wait_and_breaks_the_device,
    a_late_answer_is_enoent,
    a_broken_device_is_eperm_and_polls_an_error,
    a_blocked_reader_wakes_when_the_device_breaks,
    a_nonblocking_read_of_a_broken_device_is_eperm,
    a_broken_device_fails_at_once,
    a_broken_device_can_be_taken_away,
    a_new_daemon_mends_a_broken_device,
    msg_timeout_0_is_without_end,
    msg_timeout_of_all_ones_is_long,
    who_waits_for_an_answer_can_be_killed,
    a_request_that_times_out_while_it_is_handed_out_is_gone,
    netlink_is_held_for_no_longer_than_the_timeout,
];

fn msg_timeout_ends_the_wait_and_breaks_the_device() {
    let bound = Unanswered::new();
    bound.set_timeout("1");
    let begin = Instant::now();
    let opening = bound.open_vhost();
    fails(opening.result(), Errno::IO);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(bound.readable().contains(PollFlags::ERR));
}

fn a_late_answer_is_enoent() {
    let bound = broken();
    let response = DevResponse::default();
    fails(bound.file().write_raw(&response), Errno::NOENT);
}

/// A timeout, in seconds, that is long enough for a test to act before a request times out.
const LONGER: &str = "3";

/// Returns a device that a timeout has broken.
#[track_caller]
fn broken() -> Unanswered {
    let bound = Unanswered::new();
    bound.set_timeout("1");
    fails(bound.open_vhost().result(), Errno::IO);
    bound
}

fn a_broken_device_is_eperm_and_polls_an_error() {
    let bound = broken();
    fails(bound.file().features(), Errno::PERM);
    fails(bound.file().vq_info(0), Errno::PERM);
    fails(bound.file().vq_setup(0, 64), Errno::PERM);
    fails(bound.file().iotlb_fd(0, u64::MAX), Errno::PERM);
    assert_eq!(bound.readable(), PollFlags::ERR);
}

fn a_blocked_reader_wakes_when_the_device_breaks() {
    let mut bound = Unanswered::new();
    bound.set_timeout(LONGER);
    bound.file = None;
    let file = Arc::new(bound.device.open());
    let opening = bound.open_vhost();
    file.read_request().unwrap();
    let reader = file.clone();
    let reading = Waiting::new(move || reader.read_request());
    reading.falls_asleep();
    fails(opening.result(), Errno::IO);
    fails(reading.result(), Errno::PERM);
}

fn a_nonblocking_read_of_a_broken_device_is_eperm() {
    let bound = broken();
    fails(bound.file().read_raw(), Errno::PERM);
}

fn a_broken_device_fails_at_once() {
    let bound = broken();
    // The call must fail without waiting for this timeout.
    bound.set_timeout("30");
    let begin = Instant::now();
    fails(Vhost::open(&bound.path()), Errno::IO);
    assert!(begin.elapsed() < Duration::from_secs(30));
}

fn a_broken_device_can_be_taken_away() {
    let bound = broken();
    bound.set_timeout("30");
    let Unanswered {
        on_bus,
        file,
        device,
    } = bound;
    let begin = Instant::now();
    on_bus.delete().unwrap();
    drop(file);
    device.destroy().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
}

fn a_new_daemon_mends_a_broken_device() {
    let mut bound = broken();
    bound.reopen();
    bound.set_timeout("30");
    let (vhost, _responder) = bound.answered_vhost_kept();
    vhost.set_status(ACKNOWLEDGE).unwrap();
    assert_eq!(vhost.status().unwrap(), ACKNOWLEDGE);
    drop(vhost);
}

fn msg_timeout_0_is_without_end() {
    let bound = Unanswered::new();
    bound.set_timeout("0");
    let opening = bound.open_vhost();
    let request = bound.request();
    std::thread::sleep(Duration::from_millis(1500));
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
    assert_eq!(bound.readable(), PollFlags::empty());
}

fn msg_timeout_of_all_ones_is_long() {
    let bound = Unanswered::new();
    bound.set_timeout("4294967295");
    let opening = bound.open_vhost();
    let request = bound.request();
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
    assert_eq!(bound.readable(), PollFlags::empty());
}

fn who_waits_for_an_answer_can_be_killed() {
    let bound = Unanswered::new();
    let mut child: Child = Command::new("/proc/self/exe")
        .args(["--helper", "open"])
        .arg(bound.path())
        .spawn()
        .unwrap();
    let request = bound.request();
    child.kill().unwrap();
    soon("the process is gone", || {
        child.try_wait().unwrap().is_some()
    });
    // No call waits for the answer any more, and the device is not broken.
    fails(bound.file().answer(&request, Answer::Ok), Errno::NOENT);
    assert_eq!(bound.readable(), PollFlags::empty());
    drop(bound.answered_vhost_kept());
}

fn a_request_that_times_out_while_it_is_handed_out_is_gone() {
    let mut bound = Unanswered::new();
    bound.set_timeout(LONGER);
    let page = Arc::new(missing_page::Missing::new());
    let opening = bound.open_vhost();
    soon("a request", || bound.readable().contains(PollFlags::IN));
    let (theirs, file) = (page.clone(), bound.file().clone());
    let reading = Waiting::new(move || theirs.read(&*file, 152));
    soon("the reader waits for its page", || page.is_waited_for());
    fails(opening.result(), Errno::IO);
    reading.assert_waits();
    page.resolve();
    // The read may succeed or fail. In any case, the daemon is too late to answer.
    let _ = reading.result();
    for id in 0..4 {
        fails(bound.file().write_raw(&Answer::Ok.to_abi(id)), Errno::NOENT);
    }
    fails(bound.file().features(), Errno::PERM);
    bound.reopen();
    bound.set_timeout("30");
    assert_eq!(bound.readable(), PollFlags::empty());
    let (vhost, _responder) = bound.answered_vhost_kept();
    vhost.set_status(ACKNOWLEDGE).unwrap();
    assert_eq!(vhost.status().unwrap(), ACKNOWLEDGE);
    drop(vhost);
}

fn netlink_is_held_for_no_longer_than_the_timeout() {
    // The time, in seconds, that the machine needs to delete a device whose daemon answers.
    let needs = {
        let disk = LiveDisk::new(Shape::default());
        let begin = Instant::now();
        disk.on_bus.delete().unwrap();
        begin.elapsed().as_secs()
    };
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = LiveDisk::new(Shape::default());
    served.stop();
    let file = device.open_nonblocking();
    // The timeout is several times longer than the deletion itself. So one timeout plus the time
    // for the deletion is clearly less than two timeouts.
    let timeout = Duration::from_secs(3 + 5 * needs);
    let seconds = timeout.as_secs().to_string();
    sysfs::write(&sysfs::attribute(device.name(), "msg_timeout"), &seconds).unwrap();
    let begin = Instant::now();
    let deleting = Waiting::new(move || on_bus.delete());
    // The daemon never answers this request.
    soon("a request", || events(&file).contains(PollFlags::IN));
    bus::vdpa().devices().unwrap();
    let took = begin.elapsed();
    deleting.result().unwrap();
    // The netlink query waited for the timeout of one request only, although the deletion sends
    // several requests.
    assert!(
        took + Duration::from_millis(100) >= timeout,
        "{took:?} of {timeout:?}"
    );
    assert!(took < 2 * timeout, "{took:?} of {timeout:?}");
    drop(file);
}
