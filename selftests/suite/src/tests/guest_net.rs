// SPDX-License-Identifier: GPL-2.0

//! A guest's network card, whose control queue is in an address space of its own. Virtqueue groups
//! exist for this purpose.
//!
//! QEMU intercepts the control queue. It maps its own rings and buffers in address space 1, and so
//! knows how the guest has configured the card. The data queues use the guest's memory directly, in
//! address space 0.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vduse::net::{Command, Event, Groups, Mac, Shape, What};
use vduse::{Device, Mapping};
use vduse_uapi as uapi;

use crate::lab::assert::timing::within;
use crate::lab::device::bus::Driver;
use crate::lab::device::test_device::unique_name;
use crate::lab::guest::card::GuestCard;
use crate::lab::guest::interface::Interface;
use crate::lab::guest::ping::Pinger;
use crate::lab::guest::qemu::{Guest, Setup};
use crate::lab::guest::qsd::tool;
use crate::lab::run::report::note;

tests![
    the_control_queue_is_isolated_and_the_guest_migrates => 600,
    a_guest_migrates_there_and_back_ten_times_and_loses_nothing => 900,
    two_pairs_of_queues_work_and_the_fifth_queue_is_isolated => 400,
    without_a_group_of_its_own_the_control_queue_works_all_the_same => 400,
];

/// The host's IP address on the network that connects the host and the guest.
const HOST: &str = "10.9.0.1";
/// The guest's IP address on the network that connects the host and the guest.
const GUEST: &str = "10.9.0.2";

/// The time limit for an event that depends on the guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// The MAC address with which the guest's card is created.
const GIVEN: Mac = [0x52, 0x54, 0, 0, 0, 1];
/// The MAC address that the guest sets later.
const CHANGED: Mac = [0x52, 0x54, 0, 0, 0x99, 0x99];

/// The control queue's group, if the control queue has its own group.
const CONTROL_GROUP: u32 = 1;

/// Formats a MAC address with colons.
fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Creates a card with a control queue, bound to vhost-vdpa.
#[track_caller]
fn card(tap: &str, groups: Groups, pairs: u16) -> GuestCard {
    let mut shape = Shape::new(&unique_name(), GIVEN);
    shape.control = true;
    shape.groups = groups;
    shape.pairs = pairs;
    GuestCard::new(&shape, tap)
}

/// Returns the setup of a guest with the card. `options` are further options of QEMU's
/// virtio-net-pci device.
fn setup(card: &GuestCard, options: &str) -> Setup {
    let netdev = format!("vhost-vdpa,vhostdev={},id=net", card.node());
    let mac = text(GIVEN);
    let device = format!("virtio-net-pci,netdev=net,mac={mac},ctrl_vq=on,romfile=,{options}");
    Setup::new().arguments(["-netdev", &netdev, "-device", &device])
}

/// Sets up the guest's interface, and checks that pings work in both directions.
#[track_caller]
fn connect(guest: &mut Guest) {
    for line in [
        "modprobe virtio_net",
        "ip link set eth0 up",
        &format!("ip address add {GUEST}/24 dev eth0"),
    ] {
        guest.ok(line);
    }
    exchange_pings(guest);
}

#[track_caller]
fn exchange_pings(guest: &mut Guest) {
    guest.ok(&format!("ping -c 3 -W 20 {HOST}"));
    tool("ping", &["-c", "3", "-W", "20", GUEST]);
}

/// Makes the guest change its card through the control queue, and checks that the daemon executes
/// the commands.
#[track_caller]
fn change_through_the_control_queue(guest: &mut Guest, card: &mut GuestCard) {
    // Every interface joins some IPv6 multicast groups.
    card.wait_for("the groups of the guest", PATIENCE, |event| {
        !event.settings.multicast.is_empty()
    });
    guest.ok(&format!("ip link set eth0 address {}", text(CHANGED)));
    guest.ok("ifconfig eth0 allmulti");
    for command in [Command::MacAddress(CHANGED), Command::AllMulticast(true)] {
        let what = format!("{command:?}");
        card.wait_for(&what, PATIENCE, |event| {
            event.what == What::Done(command.clone())
        });
    }
    let settings = card.settings();
    assert_eq!(settings.mac, CHANGED);
    assert!(
        settings.all_multicast && !settings.promiscuous,
        "{settings:?}"
    );
    assert!(!settings.multicast.is_empty(), "{settings:?}");
    // The host's neighbour table still has the old MAC address.
    tool("ip", &["neighbour", "flush", "all"]);
    exchange_pings(guest);
}

/// The identity of a file: its device number and its inode number.
type Identity = (u64, u64);

/// A region of an address space, and the file that backs it.
struct Region {
    file: Identity,
    first: u64,
    offset: u64,
    mapping: Mapping,
}

/// Returns all regions that the daemon can look up in an address space.
#[track_caller]
fn regions(device: &Device, asid: u32) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut next = Some(0);
    while let Some(first) = next {
        let Ok(region) = device.iotlb_fd2(asid, first, u64::MAX) else {
            break;
        };
        let stat = rustix::fs::fstat(&region.file).expect("looking at the file");
        let size = region.last - region.first + 1;
        regions.push(Region {
            file: (stat.st_dev, stat.st_ino),
            first: region.first,
            offset: region.offset,
            mapping: Mapping::of_file(region.file.as_fd(), region.offset, size, uapi::ACCESS_RO)
                .expect("mapping the region"),
        });
        next = region.last.checked_add(1);
    }
    regions
}

/// Returns whether any of the regions contains the bytes `needle`.
fn contain(regions: &[Region], needle: &[u8]) -> bool {
    const CHUNK: usize = 1 << 20;
    let mut buffer = vec![0; CHUNK + needle.len()];
    regions.iter().any(|region| {
        (0..region.mapping.len()).step_by(CHUNK).any(|start| {
            let len = buffer.len().min(region.mapping.len() - start);
            let part = region.mapping.slice(start, len).expect("a part");
            part.copy_to(&mut buffer[..len]);
            let mut rest = &buffer[..len];
            // The library function `position` finds the first byte faster than a loop here could.
            while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
                rest = &rest[at..];
                if rest.starts_with(needle) {
                    return true;
                }
                rest = &rest[1..];
            }
            false
        })
    })
}

/// Returns the identities of the files in which the QEMU process `pid` holds the guest's memory.
fn memory_files(pid: u32) -> HashSet<Identity> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the files of QEMU")
        .flatten()
        .filter(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| {
                target
                    .to_string_lossy()
                    .starts_with("/memfd:memory-backend")
            })
        })
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|file| (file.dev(), file.ino()))
        .collect()
}

/// Asserts that the control queue, with the index `control`, is in QEMU's memory and not in the
/// guest's memory. Asserts that the daemon cannot find the guest's memory in the control queue's
/// address space.
#[track_caller]
fn assert_isolated(guest: &mut Guest, card: &mut GuestCard, control: u32) {
    let moved = What::Moved {
        group: CONTROL_GROUP,
        asid: 1,
    };
    assert!(card.has_seen(&moved), "{:?}", card.events());
    assert_eq!(card.address_space(CONTROL_GROUP), 1);
    assert_eq!(card.address_space(0), 0);

    let device = card.device().clone();
    let guests = memory_files(guest.pid());
    assert_eq!(guests.len(), 1, "QEMU has one file for the guest's memory");
    let of_guest = regions(&device, 0);
    let of_qemu = regions(&device, 1);
    assert!(!of_guest.is_empty() && !of_qemu.is_empty());
    assert!(of_guest.iter().all(|region| guests.contains(&region.file)));
    assert!(of_qemu.iter().all(|region| !guests.contains(&region.file)));

    // At the addresses of the control queue's rings, address spaces 0 and 1 do not have the same
    // memory.
    let info = device.vq_info(control).expect("the control queue");
    assert_eq!(info.ready, 1);
    let at = |regions: &[Region], iova: u64| {
        regions
            .iter()
            .find(|region| iova.wrapping_sub(region.first) < region.mapping.len() as u64)
            .map(|region| (region.file, region.offset + (iova - region.first)))
    };
    for iova in [info.desc_addr, info.driver_addr, info.device_addr] {
        let ours = at(&of_qemu, iova);
        assert!(ours.is_some(), "{iova:#x} is not in address space 1");
        assert_ne!(ours, at(&of_guest, iova), "{iova:#x}");
    }
    let collide = of_qemu
        .iter()
        .any(|region| at(&of_guest, region.first).is_some());
    assert!(collide, "no IOVA is in use in both address spaces");

    // The guest's memory contains a secret that only the guest knows, and address space 1 does not.
    guest.ok(
        "echo -n 'a secret of ' >/secret; cat /secret /proc/sys/kernel/random/boot_id >/secret2",
    );
    let secret = guest.ok("cat /secret2").trim().to_owned();
    assert!(secret.len() > 40, "{secret}");
    assert!(contain(&of_guest, secret.as_bytes()));
    assert!(!contain(&of_qemu, secret.as_bytes()));
    // A second listing of address space 1 does not contain the secret either.
    assert!(!contain(&regions(&device, 1), secret.as_bytes()));
}

/// Returns the longest time between two answered pings, in seconds.
fn longest_gap(answered: &[f64]) -> f64 {
    let gaps = answered.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.fold(0.0, f64::max)
}

fn the_control_queue_is_isolated_and_the_guest_migrates() {
    // Both cards are on one bridge, which learns from the guest's frames which card the guest uses.
    let bridge = Interface::bridge("br0");
    bridge.add_address(HOST);
    let _taps = ["tap0", "tap1"].map(|name| {
        let tap = Interface::tap(name, 1);
        tap.join(&bridge);
        tap
    });
    let mut here = card("tap0", Groups::Isolated, 1);
    let mut there = card("tap1", Groups::Isolated, 1);

    let mut guest = setup(&here, "mq=off").boot();
    connect(&mut guest);
    assert_isolated(&mut guest, &mut here, 2);
    change_through_the_control_queue(&mut guest, &mut here);
    let before = here.settings();

    let mut arrived = setup(&there, "mq=off")
        .arguments(["-incoming", "defer"])
        .start();
    let pinger = Pinger::start(GUEST);
    std::thread::sleep(Duration::from_secs(2));
    guest.migrate_to(&mut arrived);

    // After the migration, the second card has the settings of the first card.
    within(PATIENCE, "the card has what the guest has set", || {
        there.settings() == before
    });
    let address = arrived.ok("cat /sys/class/net/eth0/address");
    assert_eq!(address.trim(), text(CHANGED));
    exchange_pings(&mut arrived);
    let answered = pinger.stop();
    note(format_args!(
        "{} pings were answered, the longest time without an answer was {:.1} s",
        answered.len(),
        longest_gap(&answered)
    ));
    assert!(longest_gap(&answered) < PATIENCE.as_secs_f64());
    // The data queues do not restart at position 0 after the migration.
    for queue in [0, 1] {
        let info = there.device().vq_info(queue).expect("a data queue");
        assert_ne!(info.state.split(), 0, "queue {queue} began anew");
    }
    assert_isolated(&mut arrived, &mut there, 2);
    // The first card can be unbound, and its control queue's group is back in address space 0.
    assert_eq!(here.address_space(CONTROL_GROUP), 0);
    here.on_bus.unbind(Driver::Vhost).expect("unbinding");
    arrived.power_off();
}

/// A TCP stream of lines from the guest, numbered consecutively from 1 on.
struct Stream {
    lines: Arc<AtomicU64>,
    reader: JoinHandle<Result<(), String>>,
}

impl Stream {
    const PORT: u16 = 7777;

    /// Listens on the host. Makes the guest connect and send numbered lines.
    #[track_caller]
    fn start(guest: &mut Guest) -> Self {
        let listener = TcpListener::bind((HOST, Self::PORT)).expect("listening");
        let port = Self::PORT;
        guest.ok(&format!(
            "(seq 1 1000000000 | nc {HOST} {port}) </dev/null >/dev/null 2>&1 &"
        ));
        let lines = Arc::new(AtomicU64::new(0));
        let count = lines.clone();
        let reader = std::thread::spawn(move || {
            let (stream, _) = listener.accept().map_err(|error| error.to_string())?;
            for (line, expected) in BufReader::new(stream).lines().zip(1u64..) {
                // The stream breaks off when the test kills the guest.
                let Ok(line) = line else {
                    return Ok(());
                };
                if line.parse() != Ok(expected) {
                    return Err(format!("{line:?} rather than {expected}"));
                }
                count.store(expected, Ordering::Relaxed);
                // Slows the stream down, so that the guest has time for other work.
                if expected % 2_000 == 0 {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            Ok(())
        });
        Self { lines, reader }
    }

    /// Waits until 2,000 more lines have arrived.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.lines.load(Ordering::Relaxed);
        within(PATIENCE, "the guest sends", || {
            self.lines.load(Ordering::Relaxed) > before + 2_000
        });
        assert!(!self.reader.is_finished(), "the stream has ended");
    }
}

fn a_guest_migrates_there_and_back_ten_times_and_loses_nothing() {
    let bridge = Interface::bridge("br0");
    bridge.add_address(HOST);
    let names = ["tap0", "tap1", "tap2", "tap3"];
    let _taps = names.map(|name| {
        let tap = Interface::tap(name, 1);
        tap.join(&bridge);
        tap
    });
    // The first two cards can be suspended. The other two cannot.
    let mut cards = names.map(|tap| {
        let mut shape = Shape::new(&unique_name(), GIVEN);
        (shape.control, shape.groups) = (true, Groups::Isolated);
        shape.suspend = tap < "tap2";
        GuestCard::new(&shape, tap)
    });
    // The guests have little memory, because a migration scans and copies all of a guest's memory,
    // and the machine is emulated.
    let small = |card: &GuestCard| {
        let mut setup = setup(card, "mq=off");
        setup.memory = 160;
        setup
    };
    let mut guest = small(&cards[0]).boot();
    connect(&mut guest);
    // The bridge learns from the guest's frames which card the guest uses. Without this ping, a
    // guest whose TCP stream waits for its receiver would send hardly any frames.
    guest.ok(&format!("ping -i 1 {HOST} </dev/null >/dev/null 2>&1 &"));
    let pinger = Pinger::start(GUEST);
    let stream = Stream::start(&mut guest);
    let path = [1, 0].repeat(5).into_iter().chain([2, 3, 2]);
    let mut at = 0;
    let mut downtimes = [Vec::new(), Vec::new()];
    for to in path {
        stream.goes_on();
        let suspended = |card: &mut GuestCard| {
            let events = card.events().iter();
            events.filter(|event| event.what == What::Suspended).count()
        };
        let before = suspended(&mut cards[at]);
        let mut arrived = small(&cards[to]).arguments(["-incoming", "defer"]).start();
        let downtime = guest.migrate_to(&mut arrived);
        guest = arrived;
        let by_suspending = at < 2;
        let times = suspended(&mut cards[at]) - before;
        assert_eq!(times > 0, by_suspending, "suspended {times} times");
        downtimes[usize::from(!by_suspending)].push(downtime);
        at = to;
    }
    stream.goes_on();
    exchange_pings(&mut guest);
    let answered = pinger.stop();
    let mean = |times: &[Duration]| times.iter().sum::<Duration>() / times.len() as u32;
    note(format_args!(
        "{} lines in order; downtime by suspending {:?} on average of {}, by resetting {:?} of {}; {} pings were \
         answered, the longest time without an answer was {:.1} s",
        stream.lines.load(Ordering::Relaxed),
        mean(&downtimes[0]),
        downtimes[0].len(),
        mean(&downtimes[1]),
        downtimes[1].len(),
        answered.len(),
        longest_gap(&answered)
    ));
    guest.kill();
    drop(guest);
    // The stream may still be running. If it has ended, all lines must have been in order.
    if stream.reader.is_finished() {
        stream
            .reader
            .join()
            .expect("a thread")
            .expect("each line once");
    }
}

fn two_pairs_of_queues_work_and_the_fifth_queue_is_isolated() {
    let tap = Interface::tap("tap0", 2);
    tap.add_address(HOST);
    let mut card = card("tap0", Groups::Isolated, 2);
    let mut guest = setup(&card, "mq=on").boot();
    connect(&mut guest);
    // By default, virtio_net uses as many queue pairs as the guest has CPUs.
    guest.ok("ethtool -L eth0 combined 2");
    assert!(
        card.has_seen(&What::Done(Command::Pairs(2))),
        "{:?}",
        card.events()
    );
    assert_eq!(card.settings().pairs, 2);
    for queue in 0..5 {
        assert_eq!(card.device().vq_info(queue).unwrap().ready, 1, "{queue}");
    }
    assert_isolated(&mut guest, &mut card, 4);
    change_through_the_control_queue(&mut guest, &mut card);
    guest.power_off();
}

fn without_a_group_of_its_own_the_control_queue_works_all_the_same() {
    let tap = Interface::tap("tap0", 1);
    tap.add_address(HOST);
    let mut card = card("tap0", Groups::One, 1);
    let mut guest = setup(&card, "mq=off").boot();
    connect(&mut guest);
    let moved = |event: &Event| matches!(event.what, What::Moved { .. });
    assert!(!card.events().iter().any(moved), "{:?}", card.events());
    // All regions, including those of the control queue, are in the guest's memory.
    let guests = memory_files(guest.pid());
    let of_guest = regions(card.device(), 0);
    assert!(!of_guest.is_empty());
    assert!(of_guest.iter().all(|region| guests.contains(&region.file)));
    change_through_the_control_queue(&mut guest, &mut card);
    guest.power_off();
}
