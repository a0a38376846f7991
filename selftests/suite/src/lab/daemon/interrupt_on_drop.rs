// SPDX-License-Identifier: GPL-2.0

//! Interrupts for a driver that would otherwise wait for them after a test has failed.

use vduse::Device;

/// Interrupts the first virtqueues of a device on drop, if the device is not served by then. So a
/// test that fails leaves no driver waiting for an interrupt.
#[derive(Debug)]
pub struct InterruptOnDrop {
    /// The device's name.
    pub name: String,
    /// Number of virtqueues.
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
