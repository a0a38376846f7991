// SPDX-License-Identifier: GPL-2.0

//! Blocking of a daemon in the ioctl with which it interrupts the driver. A test can kill the
//! daemon while the daemon is blocked.
//!
//! The blocker works with any daemon program, because the blocker uses seccomp: the kernel notifies
//! the test process before the kernel executes the ioctl.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use vduse_uapi::ioctl::VQ_INJECT_IRQ;

use crate::lab::kernel::raw::{self, number, Bytes, READ, WRITE};

/// Number that the seccomp listener's file descriptor has in the daemon process. The test process
/// copies the descriptor from the daemon process.
const LISTENER: i32 = 100;

/// Type byte of the listener's ioctls (`include/uapi/linux/seccomp.h`).
const SECCOMP: u8 = b'!';

/// Ioctl that receives a notification. The notification contains its ID, the calling process, and
/// the system call.
const RECEIVE: u32 = number(READ | WRITE, SECCOMP, 0, QUESTION);

const QUESTION: usize = 80;

/// Ioctl that sends a reply. The reply contains the notification's ID, a result, an error, and
/// flags.
const SEND: u32 = number(READ | WRITE, SECCOMP, 1, 24);

/// Flag of a reply that makes the kernel execute the system call.
const CONTINUE: u32 = 1;

/// A blocker of a daemon's interrupts. It blocks them from the first call of [`block`](Self::block)
/// on.
#[derive(Debug)]
pub struct IrqBlocker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    blocking: AtomicBool,
    blocked: AtomicBool,
    stop: AtomicBool,
}

/// Makes the kernel notify the [`IrqBlocker`] whenever the program that `command` starts is about
/// to interrupt the driver.
pub fn install(command: &mut Command) {
    // SAFETY: The closure only makes system calls.
    unsafe { command.pre_exec(ask) };
}

fn ask() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    // Offsets in `struct seccomp_data` of the system call's number, and of the lower half of the
    // system call's second argument.
    const NUMBER: u32 = 0;
    const SECOND: u32 = 24;
    let step = |code: u32, skip: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: skip,
        k,
    };
    let mut program = [
        step(BPF_LD | BPF_W | BPF_ABS, 0, NUMBER),
        step(BPF_JMP | BPF_JEQ | BPF_K, 3, libc::SYS_ioctl as u32),
        step(BPF_LD | BPF_W | BPF_ABS, 0, SECOND),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, VQ_INJECT_IRQ),
        step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: The kernel only reads the program, which is valid.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The process is about to execute another program, and has no open file with the number
    // `LISTENER`.
    if unsafe { libc::dup2(listener as i32, LISTENER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl IrqBlocker {
    /// Returns the blocker of a daemon that was started with [`install`]. The blocker does not
    /// block interrupts yet.
    #[track_caller]
    pub fn of(child: &Child) -> Self {
        let pid = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("the daemon");
        let listener =
            pidfd_getfd(pid, LISTENER, PidfdGetfdFlags::empty()).expect("the daemon's listener");
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        let thread = std::thread::spawn(move || reply(&listener, &ours));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Blocks all further interrupts.
    pub fn block(&self) {
        self.shared.blocking.store(true, Ordering::SeqCst);
    }

    /// Returns whether this blocker has blocked an interrupt of the daemon so far.
    pub fn has_blocked(&self) -> bool {
        self.shared.blocked.load(Ordering::SeqCst)
    }
}

impl Drop for IrqBlocker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets each notified system call continue. While interrupts are blocked, a notification gets no
/// reply, so that the daemon stays in the system call.
fn reply(listener: &OwnedFd, shared: &Shared) {
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    while !shared.stop.load(Ordering::SeqCst) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut fds, Some(&moment)).is_err() || !fds[0].revents().contains(PollFlags::IN) {
            continue;
        }
        let mut question = [0; QUESTION];
        // `RECEIVE` fails if the process that made the system call has ended.
        if raw::call(listener, RECEIVE, &mut question).is_err() {
            continue;
        }
        if shared.blocking.load(Ordering::SeqCst) {
            shared.blocked.store(true, Ordering::SeqCst);
            continue;
        }
        let id = u64::from_ne_bytes(question[..8].try_into().unwrap_or_default());
        let answer = Bytes::new().u64(id).u64(0).u32(0).u32(CONTINUE);
        let _ = raw::call(listener, SEND, &mut answer.0.clone());
    }
}
