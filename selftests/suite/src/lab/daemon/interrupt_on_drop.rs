// SPDX-License-Identifier: GPL-2.0

//! Interrupts that keep a driver from waiting forever after a test has failed.

use vduse::Device;

/// A guard for the case that a test fails while the driver of a device waits for an interrupt. When
/// the guard is dropped, it interrupts the driver once for each of the first `queues` virtqueues,
/// unless a daemon has the device open.
#[derive(Debug)]
pub struct InterruptOnDrop {
    /// The device's name.
    pub name: String,
    /// Number of virtqueues to interrupt.
    pub queues: u32,
}

impl Drop for InterruptOnDrop {
    fn drop(&mut self) {
        if let Ok(device) = Device::open_nonblocking(&self.name) {
            for queue in 0..self.queues {
                let _ = device.inject_vq_irq(queue);
            }
        }
    }
}
