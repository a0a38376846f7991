// SPDX-License-Identifier: GPL-2.0

//! A page that this process provides late, or never, while the kernel copies from or to it
//! (userfaultfd).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, UserfaultfdFlags};

use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::raw::{self, Bytes};
use crate::lab::kernel::userfaultfd::{API, COPY, MODE_MISSING, REGISTER, VERSION, WAKE};

/// How the thread of a [`LatePage`] resolves a fault.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Time from the fault to its resolution.
    pub delay: Duration,
    /// Whether the thread provides the page. Otherwise, the thread makes the page inaccessible.
    pub comes: bool,
}

/// The page's first bytes at the next fault, and how the thread resolves that fault.
type Next = Arc<Mutex<(Vec<u8>, Manner)>>;

/// A page whose faults a thread of this process resolves. The page and the thread exist until the
/// process ends.
#[derive(Debug)]
pub struct LatePage {
    page: *mut u8,
    next: Next,
    /// Locked while a system call uses the page.
    busy: Mutex<()>,
}

// SAFETY: The page is ordinary memory, and each user of the page holds `busy`.
unsafe impl Send for LatePage {}
// SAFETY: As above.
unsafe impl Sync for LatePage {}

impl LatePage {
    /// Returns the page of this process, or `None` if the kernel does not support userfaultfd.
    pub fn get() -> Option<&'static Self> {
        static PAGE: OnceLock<Option<LatePage>> = OnceLock::new();
        PAGE.get_or_init(|| Self::new().ok()).as_ref()
    }

    fn new() -> io::Result<Self> {
        // SAFETY: The descriptor reports faults only in the page that is registered below.
        let uffd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        raw::call(&uffd, API, &mut Bytes::new().u64(VERSION).zeroes(16).0)?;
        // SAFETY: A new mapping touches no other memory.
        let page: *mut u8 = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?
        .cast();
        let range = Bytes::new().u64(page as u64).u64(PAGE).u64(MODE_MISSING);
        raw::call(&uffd, REGISTER, &mut range.zeroes(8).0)?;
        let manner = Manner {
            delay: Duration::ZERO,
            comes: true,
        };
        let next = Arc::new(Mutex::new((Vec::new(), manner)));
        let theirs = next.clone();
        let address = page as usize;
        let _ = std::thread::spawn(move || answer(uffd, address, &theirs));
        let busy = Mutex::new(());
        Ok(Self { page, next, busy })
    }

    /// Makes the page missing, and sets how the thread resolves the next fault. If the thread then
    /// provides the page, the page starts with `bytes`. The returned guard reserves the page.
    fn prepare(&self, bytes: &[u8], manner: Manner) -> io::Result<MutexGuard<'_, ()>> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(bytes.len() as u64 <= PAGE);
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = (bytes.to_vec(), manner);
        // SAFETY: The page is ours, and no references to it exist.
        unsafe {
            let access = MprotectFlags::READ | MprotectFlags::WRITE;
            rustix::mm::mprotect(self.page.cast(), PAGE as usize, access)?;
            rustix::mm::madvise(self.page.cast(), PAGE as usize, Advice::LinuxDontNeed)?;
        }
        Ok(busy)
    }

    /// Calls an ioctl with the page as its argument. If the thread provides the page, the page
    /// contains `bytes`, followed by zeroes.
    pub fn call(
        &self,
        fd: impl AsFd,
        number: u32,
        bytes: &[u8],
        manner: Manner,
    ) -> io::Result<i32> {
        let _busy = self.prepare(bytes, manner)?;
        // SAFETY: The page is ours, and no references to it exist.
        unsafe { raw::call_at(fd, number, self.page) }
    }

    /// Reads `len` bytes from a file into the page.
    pub fn read(&self, fd: impl AsFd, len: usize, manner: Manner) -> io::Result<usize> {
        assert!(len as u64 <= PAGE);
        let _busy = self.prepare(&[], manner)?;
        // SAFETY: The buffer is passed to a system call and not accessed by this program.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.page, len) };
        Ok(rustix::io::read(fd, buffer)?)
    }

    /// Writes `bytes` to a file. The buffer of the system call is the start of the page.
    pub fn write(&self, fd: impl AsFd, bytes: &[u8], manner: Manner) -> io::Result<usize> {
        let _busy = self.prepare(bytes, manner)?;
        // SAFETY: As in `read`.
        let buffer = unsafe { std::slice::from_raw_parts(self.page, bytes.len()) };
        Ok(rustix::io::write(fd, buffer)?)
    }
}

/// Resolves the page's faults until an error occurs.
fn answer(uffd: OwnedFd, page: usize, next: &Next) -> io::Result<()> {
    let mut events = File::from(uffd.try_clone()?);
    loop {
        let mut event = [0; 32];
        events.read_exact(&mut event)?;
        let (mut bytes, manner) = next.lock().unwrap_or_else(PoisonError::into_inner).clone();
        std::thread::sleep(manner.delay);
        if manner.comes {
            bytes.resize(PAGE as usize, 0);
            let range = Bytes::new().u64(page as u64).u64(bytes.as_ptr() as u64);
            // `COPY` fails if an earlier fault already made this thread provide the page.
            let _ = raw::call(&uffd, COPY, &mut range.u64(PAGE).zeroes(16).0);
        } else {
            let address = std::ptr::with_exposed_provenance_mut(page);
            // SAFETY: The page belongs to a `LatePage`, and no references to the page exist.
            unsafe { rustix::mm::mprotect(address, PAGE as usize, MprotectFlags::empty()) }?;
            raw::call(&uffd, WAKE, &mut Bytes::new().u64(page as u64).u64(PAGE).0)?;
        }
    }
}
