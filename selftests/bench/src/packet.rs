// SPDX-License-Identifier: GPL-2.0

//! A network interface, and a raw socket (packet(7)) that sends and receives frames through it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libc::{c_int, sockaddr_ll, socklen_t};
use vduse_selftests::lab::assert::timing::soon;
use vduse_selftests::lab::device::bus;
use vduse_selftests::lab::driver::namespace::ip;
use vduse_selftests::lab::kernel::sysfs;

use crate::clock;

/// A network interface that is up, and a socket that receives frames of one type.
#[derive(Debug)]
pub struct Interface {
    directory: PathBuf,
    socket: OwnedFd,
}

impl Interface {
    /// Returns the network interface of `device`, which must be bound to virtio_net. Disables IPv6
    /// on the interface, brings the interface up, and opens a socket that receives its frames of
    /// the type `ether_type`.
    pub fn of(device: &str, ether_type: u16) -> Self {
        soon("the interface appears", || bus::interface(device).is_some());
        let name = bus::interface(device).expect("an interface");
        // With IPv6, the kernel would send frames of its own.
        let ipv6 = Path::new("/proc/sys/net/ipv6/conf").join(&name);
        if ipv6.exists() {
            sysfs::write(&ipv6.join("disable_ipv6"), "1").expect("disabling IPv6");
        }
        let directory = Path::new("/sys/class/net").join(&name);
        let up = format!("link set {name} up");
        ip(&up);
        // When the link comes up, the kernel still has to process the new link state. Until then,
        // the kernel drops sent frames without an error. The processing holds the same lock as
        // `ip link set up`. So the second `ip link set up` waits until the processing is complete.
        soon("the link is up", || {
            sysfs::read(&directory.join("operstate")).is_ok_and(|state| state == "up")
        });
        ip(&up);
        let index = sysfs::read(&directory.join("ifindex")).expect("an index");
        let index = index.parse().expect("a number");
        let socket = socket(index, ether_type).expect("a socket");
        Self { directory, socket }
    }

    /// Sends a frame. Waits until the socket's send buffer has space.
    pub fn send(&self, frame: &[u8]) {
        let sent = rustix::io::write(&self.socket, frame);
        assert_eq!(sent, Ok(frame.len()), "sending");
    }

    /// Waits for a frame of the socket's type.
    pub fn wait(&self) {
        clock::read(&self.socket, &mut [0; 64]);
    }

    /// Returns how many frames the interface has received. `rx_packets` also counts received
    /// buffers that are too short to hold a frame, so their number (`rx_length_errors`) is
    /// subtracted.
    pub fn received(&self) -> u64 {
        let count = |name| -> u64 {
            let count = sysfs::read(&self.directory.join("statistics").join(name));
            count.expect("a counter").parse().expect("a number")
        };
        count("rx_packets") - count("rx_length_errors")
    }
}

/// Opens a socket on an interface. The socket sends any frames and receives frames of one type.
fn socket(index: c_int, ether_type: u16) -> io::Result<OwnedFd> {
    let family = libc::AF_PACKET;
    // SAFETY: The call only takes numbers.
    let socket = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The descriptor is open, and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = sockaddr_ll {
        sll_family: family as u16,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = size_of_val(&address) as socklen_t;
    // SAFETY: The address is as long as `size` says.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
