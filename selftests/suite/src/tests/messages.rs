// SPDX-License-Identifier: GPL-2.0

//! The requests that the kernel sends to a daemon, and the daemon's answers.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use vduse::request::{Answer, Kind};
use vduse_uapi::ACCESS_RW;

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::unanswered::Unanswered;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::kernel::raw::Edge;
use crate::lab::kernel::{memory, sysfs};

tests![
    opening_vhost_resets_the_device_and_waits,
    requests_come_in_order_with_ids_of_their_own,
    virtio_sends_the_steps_of_the_status,
    mapping_sends_update_iotlb_of_everything,
    the_state_of_a_queue_is_asked_for,
    a_failed_answer_fails_the_reset,
    a_failed_answer_keeps_the_status,
    a_failed_answer_fails_the_map,
    any_result_but_ok_is_a_failure,
    an_answer_to_nothing_is_enoent,
    an_answer_with_a_reserved_field_is_einval,
    an_answer_can_be_given_once,
    a_request_must_be_read_to_be_answered,
    a_short_read_is_einval_and_loses_nothing,
    a_short_write_is_einval,
    a_long_buffer_gets_one_request,
    a_fault_in_the_buffer_is_efault_and_loses_nothing,
    a_fault_in_the_answer_is_not_an_answer,
    nonblocking_read_is_eagain_until_there_is_a_request,
    blocking_read_waits_for_a_request,
    poll_says_what_there_is_to_do,
    a_request_that_nobody_read_goes_to_the_next_daemon,
    a_request_read_and_not_answered_is_read_again,
    an_answer_from_before_the_takeover_is_enoent,
];

/// Writes the device status in another thread, because the call waits for the daemon.
fn set_status(vhost: &Arc<Vhost>, status: u8) -> Waiting<()> {
    let vhost = vhost.clone();
    Waiting::new(move || vhost.set_status(status))
}

fn opening_vhost_resets_the_device_and_waits() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    assert_eq!(request.kind, Kind::SetStatus(RESET));
    opening.assert_waits();
    bound.file().answer(&request, Answer::Ok).unwrap();
    let vhost = opening.result().unwrap();
    assert_eq!(vhost.status().unwrap(), RESET);
    let _responder = Responder::ok(bound.file());
    drop(vhost);
}

fn requests_come_in_order_with_ids_of_their_own() {
    let bound = Unanswered::new();
    let responder = Responder::ok(bound.file());
    let vhost = Vhost::open(&bound.path()).unwrap();
    let begun = ACKNOWLEDGE | DRIVER;
    let steps = [
        ACKNOWLEDGE,
        begun,
        begun,
        UP_TO_FEATURES_OK,
        UP_TO_DRIVER_OK,
    ];
    for status in steps {
        vhost.set_status(status).unwrap();
        assert_eq!(vhost.status().unwrap(), status);
    }
    vhost.set_status(RESET).unwrap();
    let seen = responder.seen();
    let kinds: Vec<Kind> = seen.iter().map(|request| request.kind).collect();
    let told = [&[RESET][..], &steps, &[RESET]].concat();
    let told: Vec<Kind> = told.into_iter().map(Kind::SetStatus).collect();
    assert_eq!(kinds, told);
    let mut ids: Vec<u32> = seen.iter().map(|request| request.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), seen.len());
    assert!(ids.is_sorted());
}

fn virtio_sends_the_steps_of_the_status() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    // Without a daemon that serves the disk, virtio_blk would wait for the first sector. The test
    // therefore leaves the virtio device without a driver.
    let autoprobe = VirtioAutoprobe::off();
    on_bus.bind(Driver::Virtio).unwrap();
    assert_eq!(
        responder.take_kinds(),
        [Kind::SetStatus(RESET), Kind::SetStatus(ACKNOWLEDGE)]
    );
    on_bus.delete().unwrap();
    drop(autoprobe);
}

/// A guard that disables the automatic binding of virtio devices to drivers until the guard is
/// dropped.
struct VirtioAutoprobe;

impl VirtioAutoprobe {
    const PATH: &str = "/sys/bus/virtio/drivers_autoprobe";

    fn off() -> Self {
        sysfs::write(Self::PATH.as_ref(), "0").expect("switching automatic binding off");
        Self
    }
}

impl Drop for VirtioAutoprobe {
    fn drop(&mut self) {
        let _ = sysfs::write(Self::PATH.as_ref(), "1");
    }
}

fn mapping_sends_update_iotlb_of_everything() {
    let bound = Unanswered::new();
    let responder = Responder::ok(bound.file());
    let vhost = Vhost::open(&bound.path()).unwrap();
    vhost.set_owner().unwrap();
    vhost.set_backend_features().unwrap();
    let file = memory::file(8192);
    let memory = vduse::Mapping::of_file(file.as_fd(), 0, 8192, ACCESS_RW).unwrap();
    responder.take_kinds();
    vhost.map(0x10000, &memory, access::RW).unwrap();
    let update = Kind::UpdateIotlb {
        first: 0,
        last: u64::MAX,
        asid: 0,
    };
    assert_eq!(responder.take_kinds(), [update]);
    vhost.unmap(0x10000, 8192).unwrap();
    assert_eq!(responder.take_kinds(), [update]);
}

fn the_state_of_a_queue_is_asked_for() {
    let bound = Unanswered::new();
    let _responder = Responder::new(bound.file(), |request| {
        Some(match request.kind {
            Kind::GetVqState { index } => Answer::SplitState {
                index,
                next_avail: 0xabcd,
            },
            _ => Answer::Ok,
        })
    });
    let vhost = Vhost::open(&bound.path()).unwrap();
    vhost.set_owner().unwrap();
    assert_eq!(vhost.queue_base(0).unwrap(), 0xabcd);
}

fn a_failed_answer_fails_the_reset() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    bound.answer(Answer::Failed);
    fails(opening.result(), Errno::IO);
    // The failed answer has not broken the device: a client can open it again.
    drop(bound.answered_vhost_kept());
}

fn a_failed_answer_keeps_the_status() {
    let bound = Unanswered::new();
    let vhost = Arc::new(bound.answered_vhost());
    let setting = set_status(&vhost, ACKNOWLEDGE);
    assert_eq!(bound.answer(Answer::Failed), Kind::SetStatus(ACKNOWLEDGE));
    setting.result().unwrap();
    assert_eq!(vhost.status().unwrap(), RESET);
    let _responder = Responder::ok(bound.file());
    vhost.set_status(ACKNOWLEDGE).unwrap();
    assert_eq!(vhost.status().unwrap(), ACKNOWLEDGE);
    drop(vhost);
}

fn a_failed_answer_fails_the_map() {
    let bound = Unanswered::new();
    let _responder = Responder::new(bound.file(), |request| {
        Some(match request.kind {
            Kind::UpdateIotlb { .. } => Answer::Failed,
            _ => Answer::Ok,
        })
    });
    let vhost = Vhost::open(&bound.path()).unwrap();
    vhost.set_owner().unwrap();
    vhost.set_backend_features().unwrap();
    let file = memory::file(4096);
    let memory = vduse::Mapping::of_file(file.as_fd(), 0, 4096, ACCESS_RW).unwrap();
    // vhost returns EFAULT for every error of an IOTLB message.
    fails(vhost.map(0x10000, &memory, access::RW), Errno::FAULT);
    fails(bound.file().iotlb_fd(0, u64::MAX), Errno::INVAL);
}

fn any_result_but_ok_is_a_failure() {
    let bound = Unanswered::new();
    for result in [1, 2, 0xff, u32::MAX] {
        let opening = bound.open_vhost();
        let request = bound.request();
        let mut response = Answer::Failed.to_abi(request.id);
        response.result = result;
        bound.file().write_raw(&response).unwrap();
        fails(opening.result(), Errno::IO);
    }
}

fn an_answer_to_nothing_is_enoent() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    for id in [request.id.wrapping_add(1), request.id.wrapping_sub(1)] {
        fails(bound.file().write_raw(&Answer::Ok.to_abi(id)), Errno::NOENT);
    }
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn an_answer_with_a_reserved_field_is_einval() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    for index in 0..4 {
        let mut response = Answer::Ok.to_abi(request.id);
        response.reserved[index] = 1 << 31;
        fails(bound.file().write_raw(&response), Errno::INVAL);
    }
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn an_answer_can_be_given_once() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(bound.file().answer(&request, Answer::Ok), Errno::NOENT);
    fails(opening.result(), Errno::IO);
}

fn a_request_must_be_read_to_be_answered() {
    let bound = Unanswered::new();
    // The id of the next request can be guessed from this request's id.
    let opening = bound.open_vhost();
    let request = bound.request();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
    let opening = bound.open_vhost();
    soon("a request", || bound.readable().contains(PollFlags::IN));
    for id in request.id..request.id + 4 {
        fails(bound.file().write_raw(&Answer::Ok.to_abi(id)), Errno::NOENT);
    }
    bound.answer(Answer::Failed);
    fails(opening.result(), Errno::IO);
}

fn a_short_read_is_einval_and_loses_nothing() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    soon("a request", || bound.readable().contains(PollFlags::IN));
    for len in [0, 1, 151] {
        let mut buffer = vec![0; len];
        let result = rustix::io::read(bound.file(), &mut buffer[..]);
        fails(result.map_err(io::Error::from), Errno::INVAL);
    }
    assert_eq!(bound.answer(Answer::Failed), Kind::SetStatus(RESET));
    fails(opening.result(), Errno::IO);
}

fn a_short_write_is_einval() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    for len in [0, 4, 151] {
        let mut bytes = [0; 152];
        bytes[..4].copy_from_slice(&request.id.to_ne_bytes());
        let result = rustix::io::write(bound.file(), &bytes[..len]);
        fails(result.map_err(io::Error::from), Errno::INVAL);
    }
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn a_long_buffer_gets_one_request() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    soon("a request", || bound.readable().contains(PollFlags::IN));
    let mut buffer = [0xff; 1000];
    assert_eq!(rustix::io::read(bound.file(), &mut buffer).unwrap(), 152);
    assert!(buffer[152..].iter().all(|&byte| byte == 0xff));
    let id = u32::from_ne_bytes(buffer[4..8].try_into().unwrap());
    bound.file().write_raw(&Answer::Failed.to_abi(id)).unwrap();
    fails(opening.result(), Errno::IO);
}

fn a_fault_in_the_buffer_is_efault_and_loses_nothing() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    soon("a request", || bound.readable().contains(PollFlags::IN));
    let edge = Edge::new();
    for len in [1, 8, 151] {
        fails(edge.read(bound.file(), len, 152), Errno::FAULT);
        assert_eq!(bound.readable(), PollFlags::IN);
    }
    assert_eq!(bound.answer(Answer::Failed), Kind::SetStatus(RESET));
    fails(opening.result(), Errno::IO);
}

fn a_fault_in_the_answer_is_not_an_answer() {
    let bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    let result = Edge::new().write(bound.file(), 100, 152);
    // If the driver has copied the answer only partially, it may also reject the answer as too
    // short.
    let errno = result.err().and_then(|e| Errno::from_io_error(&e));
    assert!(
        matches!(errno, Some(Errno::FAULT | Errno::INVAL)),
        "{errno:?}"
    );
    opening.assert_waits();
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn nonblocking_read_is_eagain_until_there_is_a_request() {
    let bound = Unanswered::new();
    fails(bound.file().read_raw(), Errno::AGAIN);
    let opening = bound.open_vhost();
    let request = bound.request();
    fails(bound.file().read_raw(), Errno::AGAIN);
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn blocking_read_waits_for_a_request() {
    let mut bound = Unanswered::new();
    bound.file = None;
    let file = Arc::new(bound.device.open());
    let reader = file.clone();
    let reading = Waiting::new(move || reader.read_request());
    reading.assert_waits();
    let opening = bound.open_vhost();
    let request = reading.result().unwrap();
    assert_eq!(request.kind, Kind::SetStatus(RESET));
    file.answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn poll_says_what_there_is_to_do() {
    let bound = Unanswered::new();
    assert_eq!(bound.readable(), PollFlags::empty());
    let opening = bound.open_vhost();
    soon("a request", || bound.readable() == PollFlags::IN);
    let request = bound.request();
    assert_eq!(bound.readable(), PollFlags::OUT);
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
    assert_eq!(bound.readable(), PollFlags::empty());
}

fn a_request_that_nobody_read_goes_to_the_next_daemon() {
    let mut bound = Unanswered::new();
    bound.file = None;
    let opening = bound.open_vhost();
    opening.assert_waits();
    bound.reopen();
    assert_eq!(bound.answer(Answer::Failed), Kind::SetStatus(RESET));
    fails(opening.result(), Errno::IO);
}

fn a_request_read_and_not_answered_is_read_again() {
    let mut bound = Unanswered::new();
    let opening = bound.open_vhost();
    let before = bound.request();
    bound.reopen();
    let after = bound.request();
    assert_eq!(before, after);
    bound.file().answer(&after, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}

fn an_answer_from_before_the_takeover_is_enoent() {
    let mut bound = Unanswered::new();
    let opening = bound.open_vhost();
    let request = bound.request();
    bound.reopen();
    // The new daemon has not read the request.
    fails(bound.file().answer(&request, Answer::Ok), Errno::NOENT);
    assert_eq!(bound.request(), request);
    bound.file().answer(&request, Answer::Failed).unwrap();
    fails(opening.result(), Errno::IO);
}
