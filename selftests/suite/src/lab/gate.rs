// SPDX-License-Identifier: GPL-2.0

//! A gate that a daemon's interrupts pass, whatever program the daemon is: once it is shut, the
//! daemon stands still in the system call that would interrupt a virtqueue, and can be killed there.
//!
//! The kernel asks this process about each such call of the daemon (seccomp).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use vduse::Device;
use vduse_uapi::ioctl::VQ_INJECT_IRQ;

use crate::lab::raw::{self, number, Bytes, READ, WRITE};

/// Where the daemon has the file by which it is asked about, so that it can be found.
const LISTENER: i32 = 100;

/// The type byte of the ioctls of that file (`include/uapi/linux/seccomp.h`).
const SECCOMP: u8 = b'!';
/// Receives a question: its id, who it is about, and the system call.
const RECEIVE: u32 = number(READ | WRITE, SECCOMP, 0, QUESTION);
const QUESTION: usize = 80;
/// Sends an answer: the question's id, a result, an error, and flags.
const SEND: u32 = number(READ | WRITE, SECCOMP, 1, 24);
/// In an answer's flags: the call is carried out.
const CONTINUE: u32 = 1;

/// The gate of a daemon.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    shut: AtomicBool,
    held: AtomicBool,
    stop: AtomicBool,
}

/// Has a program that is about to be started ask for each interrupt.
pub fn install(command: &mut Command) {
    // SAFETY: The closure makes system calls only.
    unsafe { command.pre_exec(ask) };
}

fn ask() -> io::Result<()> {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    // In `struct seccomp_data`: the system call's number, the lower half of its second argument.
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
    // SAFETY: The kernel reads the program, which is there, and nothing else.
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
    // SAFETY: The process is about to be another program, and has no file of that number.
    if unsafe { libc::dup2(listener as i32, LISTENER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Gate {
    /// The gate of a daemon that [`install`] was done for, open.
    #[track_caller]
    pub fn of(child: &Child) -> Self {
        let pid = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("the daemon");
        let listener =
            pidfd_getfd(pid, LISTENER, PidfdGetfdFlags::empty()).expect("the daemon's listener");
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        let thread = std::thread::spawn(move || keep(&listener, &ours));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Shuts it.
    pub fn shut(&self) {
        self.shared.shut.store(true, Ordering::SeqCst);
    }

    /// Whether the daemon stands before it.
    pub fn holds_one(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Interrupts the first virtqueues of a device when this is dropped, if nobody serves it then: so that a
/// test that fails leaves no driver that waits for an interrupt.
#[derive(Debug)]
pub struct InterruptOnDrop {
    /// The device's name.
    pub name: String,
    /// How many virtqueues.
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

/// Answers the questions, but for those that come when the gate is shut.
fn keep(listener: &OwnedFd, shared: &Shared) {
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
        // Who asked may be gone.
        if raw::call(listener, RECEIVE, &mut question).is_err() {
            continue;
        }
        if shared.shut.load(Ordering::SeqCst) {
            shared.held.store(true, Ordering::SeqCst);
            continue;
        }
        let id = u64::from_ne_bytes(question[..8].try_into().unwrap_or_default());
        let answer = Bytes::new().u64(id).u64(0).u32(0).u32(CONTINUE);
        let _ = raw::call(listener, SEND, &mut answer.0.clone());
    }
}
