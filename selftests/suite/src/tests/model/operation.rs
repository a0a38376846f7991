// SPDX-License-Identifier: GPL-2.0

//! The operations and their outcomes.

use rustix::io::Errno;
use vduse::request::Kind;

pub(super) const QUEUES: u32 = 3;

pub(super) const GROUPS: u32 = 4;

pub(super) const SPACES: u32 = 3;

pub(super) const FILES: usize = 4;

/// An operation on the device.
#[derive(Clone, Debug)]
pub(super) enum Op {
    // Operations of the control device.
    CreateAgain,
    CreateBad {
        groups: u32,
        spaces: u32,
        version: u64,
    },
    Destroy,
    Renew,
    // Operations of the daemon.
    OpenAgain,
    SetUp {
        queue: u32,
        size: u16,
        group: u32,
        reserved: bool,
    },
    QueueInfo {
        queue: u32,
    },
    Features,
    Interrupt {
        queue: u32,
    },
    Find {
        asid: u32,
        first: u64,
        last: u64,
        reserved: bool,
    },
    FindOld {
        first: u64,
        last: u64,
    },
    Info {
        asid: u32,
        first: u64,
        last: u64,
    },
    Register {
        asid: u32,
    },
    Deregister {
        asid: u32,
    },
    /// Sets whether the daemon refuses all requests from now on.
    Refuse(bool),
    // Operations of the bus.
    Attach,
    Open,
    Close,
    // Operations of the driver.
    Own,
    Backend,
    Group {
        queue: u32,
    },
    Move {
        group: u32,
        asid: u32,
    },
    Map {
        asid: u32,
        iova: u64,
        file: usize,
        pages: u64,
        access: u8,
    },
    Unmap {
        asid: u32,
        iova: u64,
        pages: u64,
    },
    Begin {
        asid: u32,
    },
    End {
        asid: u32,
    },
    Status(u8),
    SetFeatures(u64),
    Size {
        queue: u32,
        size: u32,
    },
    Address {
        queue: u32,
        at: u64,
    },
    Base {
        queue: u32,
        base: u32,
    },
    State {
        queue: u32,
    },
    Enable {
        queue: u32,
        ready: bool,
    },
    Suspend,
    Resume,
}

/// The outcome of an operation: its result, which is either numbers or an error, and the requests
/// that the kernel sent to the daemon during the operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) answer: Result<Vec<u64>, Errno>,
    pub(super) requests: Vec<Kind>,
}

/// The optional features that the kernel supports.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Support {
    /// Whether the kernel asks the daemon before a virtqueue becomes ready.
    pub(super) queue_ready: bool,
    /// Whether a client can suspend the device.
    pub(super) suspend: bool,
    /// Whether a client can resume a suspended device.
    pub(super) resume: bool,
}

/// Returns the features that the device offers.
pub(super) fn offered() -> u64 {
    vduse::blk::FEATURES
}
