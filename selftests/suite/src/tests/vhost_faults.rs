// SPDX-License-Identifier: GPL-2.0

//! Injected faults on the code paths of a vhost client.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use vduse::request::Kind;
use vduse_uapi::IovaInfo;

use crate::lab::assert::errors::fails_at;
use crate::lab::assert::fault_paths::{several, FEW, NEVER, NO_MEMORY, TIMES, UNTOLD};
use crate::lab::daemon::replaceable::{Driven, ReplaceableDaemon};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::virtio::status::{ACKNOWLEDGE, RESET};
use crate::lab::driver::ring;
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::kernel::fault_injection::{Below, Fault, Injection};
use crate::lab::kernel::memory::{page_of, PAGE};

tests![
    binding_to_vhost_fails_cleanly => 120,
    opening_through_vhost_fails_cleanly => 120,
    mapping_through_vhost_fails_cleanly_and_unmapping_succeeds => 120,
    moving_a_group_fails_cleanly => 120,
    requests_fail_cleanly => 120,
    queue_ready_suspend_and_resume_fail_cleanly => 120,
    finding_a_mapping_fails_cleanly => 60,
];

fn binding_to_vhost_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let daemon = ReplaceableDaemon::disk();
    let on_bus = OnBus::add(daemon.name()).unwrap();
    let bind = || on_bus.bind(Driver::Vhost);
    let unbind = |()| on_bus.unbind(Driver::Vhost).expect("unbinding");
    several(FEW, ["binding to vhost"], || {
        [injection.survived("binding to vhost", NO_MEMORY, bind, unbind)]
    });
}

fn opening_through_vhost_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let mut daemon = ReplaceableDaemon::disk();
    let on_bus = OnBus::add(daemon.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let path = bus::vhost_path(daemon.name()).unwrap();
    let paths = ["opening through vhost", "closing"];
    several(FEW, paths, || {
        [
            injection.each(paths[0], |fault| {
                let opened = fault.hit(UNTOLD, || Vhost::open(&path));
                daemon.replace_if_broken();
                if opened.is_none() {
                    fault.again(|| Vhost::open(&path));
                }
            }),
            injection.each(paths[1], |fault| {
                let opened = Vhost::open(&path).expect("opening");
                opened.set_owner().expect("owning");
                opened.set_backend_features().expect("backend features");
                opened
                    .map(0x10_0000, &page_of(1), access::RW)
                    .expect("mapping");
                fault.hit(NEVER, || {
                    drop(opened);
                    Ok(())
                });
                daemon.replace_if_broken();
                // No mapping is left.
                fails_at(
                    daemon.file().iotlb_fd(0, u64::MAX),
                    Errno::INVAL,
                    fault.number(),
                );
            }),
        ]
    });
    drop(on_bus);
}

fn mapping_through_vhost_fails_cleanly_and_unmapping_succeeds() {
    const HERE: u64 = 0x10_0000;
    const THERE: u64 = 0x20_0000;
    // vhost returns EFAULT for every error of an IOTLB message.
    const REFUSED: &[Errno] = &[Errno::FAULT];
    let injection = Injection::of_allocations(Below::Driver);
    let page = page_of(1);
    let other = page_of(2);
    let paths = ["mapping through vhost", "unmapping"];
    several(TIMES, paths, || {
        let mut driven = Driven::new(3);
        driven
            .vhost
            .map_in(1, THERE, &other, access::RW)
            .expect("mapping");
        // Asserts that the mapping at `THERE` is unchanged.
        let check = |driven: &Driven, fault: &Fault<'_>| {
            assert_eq!(driven.byte(THERE).expect("another page"), 2, "{fault}");
        };
        let mapped = injection.each(paths[0], |fault| {
            let map = |driven: &Driven| driven.vhost.map_in(1, HERE, &page, access::RW);
            let done = fault.hit(REFUSED, || map(&driven));
            driven.replace_if_broken();
            check(&driven, fault);
            if done.is_none() {
                fails_at(driven.byte(HERE), Errno::INVAL, fault.number());
                fault.again(|| map(&driven));
            }
            assert_eq!(driven.byte(HERE).expect("a page"), 1, "{fault}");
            driven.vhost.unmap_in(1, HERE, PAGE).expect("unmapping");
        });
        let unmapped = injection.each(paths[1], |fault| {
            driven
                .vhost
                .map_in(1, HERE, &page, access::RW)
                .expect("mapping");
            // vhost ignores the driver's result, because vhost releases the client's page anyway.
            fault.hit(NEVER, || driven.vhost.unmap_in(1, HERE, PAGE));
            driven.replace_if_broken();
            fails_at(driven.byte(HERE), Errno::INVAL, fault.number());
            check(&driven, fault);
        });
        [mapped, unmapped]
    });
}

fn moving_a_group_fails_cleanly() {
    /// The number of address spaces. The device keeps the memory that it allocates for an address
    /// space, so each fault uses a different address space.
    const SPACES: u32 = 64;
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["moving a group"], || {
        let mut driven = Driven::new(SPACES);
        let tally = injection.each("moving a group", |fault| {
            let asid = fault.number();
            let go = |driven: &Driven| driven.vhost.set_group_asid(0, asid);
            let done = fault.hit(UNTOLD, || go(&driven));
            driven.replace_if_broken();
            let asked = |driven: &Driven| {
                let is_it = |kind: &Kind| matches!(kind, Kind::SetGroupAsid { .. });
                driven.daemon.take_kinds().iter().any(is_it)
            };
            if done.is_none() {
                assert!(!asked(&driven), "{fault}");
                fault.again(|| go(&driven));
                assert!(asked(&driven), "{fault}");
            }
            asked(&driven);
        });
        [tally]
    });
}

fn requests_fail_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    let paths = [
        "setting the status",
        "resetting",
        "asking for a queue's state",
    ];
    several(TIMES, paths, || {
        let mut driven = Driven::new(2);
        // Returns whether the daemon received the request. If it did not, the device must be
        // broken. A broken device ignores status writes except for a reset.
        let told = |driven: &mut Driven, kind: &Kind, fault: &Fault<'_>| {
            let told = driven.daemon.take_kinds().contains(kind);
            let broken = driven.daemon.file().features().is_err();
            assert_eq!(told, !broken, "{fault}");
            driven.replace_if_broken();
            told
        };
        let mut untold = [0; 3];
        let mut tell = |path: usize, status: u8| {
            injection.each(paths[path], |fault| {
                driven
                    .vhost
                    .set_status(ACKNOWLEDGE - status)
                    .expect("setting the status");
                driven.daemon.take_kinds();
                // vhost ignores the failure of a status write, but reports the failure of a reset.
                let errors = if status == RESET { UNTOLD } else { NEVER };
                let done = fault.hit(errors, || driven.vhost.set_status(status));
                let now = driven.vhost.status().expect("reading the status");
                if told(&mut driven, &Kind::SetStatus(status), fault) {
                    assert!(done.is_some(), "{fault}");
                    assert_eq!(now, status, "{fault}");
                } else {
                    untold[path] += 1;
                    // The daemon has not received the request. A write of `ACKNOWLEDGE` has had no
                    // effect, so the status is still 0. A reset has taken effect nevertheless, so
                    // the status is 0 as well.
                    assert_eq!(now, 0, "{fault}");
                    fault.again(|| driven.vhost.set_status(status));
                    assert_eq!(
                        driven.vhost.status().expect("reading it"),
                        status,
                        "{fault}"
                    );
                    assert!(
                        told(&mut driven, &Kind::SetStatus(status), fault),
                        "{fault}"
                    );
                }
            })
        };
        let set = tell(0, ACKNOWLEDGE);
        let reset = tell(1, 0);
        let asked = injection.each(paths[2], |fault| {
            driven.daemon.take_kinds();
            let ask = |driven: &Driven| driven.vhost.queue_base(0);
            let done = fault.hit(UNTOLD, || ask(&driven));
            let was_told = told(&mut driven, &Kind::GetVqState { index: 0 }, fault);
            assert_eq!(done.is_some(), was_told, "{fault}");
            if done.is_none() {
                untold[2] += 1;
                assert_eq!(fault.again(|| ask(&driven)), 0, "{fault}");
            }
        });
        let tallies = [set, reset, asked];
        // The driver itself makes only one allocation for a request, and the request fails only if
        // that allocation fails. The kernel makes all other allocations, and has fallbacks for
        // them.
        assert!(untold.iter().all(|&faults| faults == 1), "{untold:?}");
        tallies
    });
}

fn queue_ready_suspend_and_resume_fail_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    let paths = ["enabling a queue", "suspending", "resuming"];
    several(TIMES, paths, || {
        let mut driven = Driven::of(ReplaceableDaemon::negotiated());
        ring::agree(&driven.vhost);
        ring::start(&driven.vhost);
        let ready = |driven: &Driven| driven.daemon.file().vq_info(0).map(|info| info.ready);
        let enabled = injection.each(paths[0], |fault| {
            driven.vhost.disable_queue(0).expect("disabling");
            driven.daemon.take_kinds();
            // If enabling the queue fails, the device breaks, but vhost reports no error.
            fault.hit(NEVER, || driven.vhost.enable_queue(0));
            let asked = Kind::SetVqReady {
                index: 0,
                ready: true,
            };
            let told = driven.daemon.take_kinds().contains(&asked);
            assert_eq!(told, ready(&driven).is_ok(), "{fault}");
            driven.replace_if_broken();
            assert_eq!(ready(&driven).expect("the queue"), 1, "{fault}");
        });
        let interrupts = |driven: &Driven| driven.daemon.file().inject_vq_irq(0).is_ok();
        let suspended = injection.each(paths[1], |fault| {
            let done = fault.hit(UNTOLD, || driven.vhost.suspend());
            driven.replace_if_broken();
            assert_eq!(done.is_some(), !interrupts(&driven), "{fault}");
            if done.is_none() {
                fault.again(|| driven.vhost.suspend());
            }
            driven.vhost.resume().expect("resuming");
            assert!(interrupts(&driven), "{fault}");
        });
        let resumed = injection.each(paths[2], |fault| {
            driven.vhost.suspend().expect("suspending");
            let done = fault.hit(UNTOLD, || driven.vhost.resume());
            driven.replace_if_broken();
            assert_eq!(done.is_some(), interrupts(&driven), "{fault}");
            if done.is_none() {
                fault.again(|| driven.vhost.resume());
            }
            assert!(interrupts(&driven), "{fault}");
        });
        assert!(enabled.faults > 0 && suspended.failures > 0 && resumed.failures > 0);
        [enabled, suspended, resumed]
    });
}

fn finding_a_mapping_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let driven = Driven::new(2);
    driven.vhost.map_in(1, 0, &page_of(1), access::RW).unwrap();
    let file = driven.daemon.file();
    let info = IovaInfo {
        asid: 1,
        ..Default::default()
    };
    // The kernel allocates a larger descriptor table when the number of descriptors reaches a power
    // of two.
    raise_descriptor_limit();
    let mut others: Vec<File> = Vec::new();
    let open = || File::open("/dev/null").expect("opening a file");
    let lowest_free = || open().as_raw_fd();
    let found = injection.each("GET_FD", |fault| {
        let size = 64 << (fault.number() - 1);
        while others.last().is_none_or(|last| last.as_raw_fd() < size - 1) {
            others.push(open());
        }
        let find = || file.iotlb_fd2(1, 0, 0);
        if fault.hit(NO_MEMORY, find).is_none() {
            assert_eq!(lowest_free(), size, "{fault}");
            fault.again(find);
        }
        assert_eq!(lowest_free(), size, "{fault}");
    });
    found.note("GET_FD");
    let told = injection.survived("GET_INFO", NO_MEMORY, || file.iotlb_info(info), drop);
    told.note("GET_INFO");
    assert!(found.failures > 0);
}

/// Raises this process's limit of open files as far as the kernel allows.
#[track_caller]
fn raise_descriptor_limit() {
    use rustix::process::{setrlimit, Resource, Rlimit};
    let most = Some(1 << 20);
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).expect("setting RLIMIT_NOFILE");
}
