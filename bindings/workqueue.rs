// SPDX-License-Identifier: GPL-2.0

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::raw as bindings;
use core::ptr::NonNull;
use kernel::{
    cpu::CpuId,
    prelude::*,
    sync::Arc,
    workqueue::{
        Queue,
        RawWorkItem, //
    },
};

/// A workqueue that is destroyed when it is dropped, after all the work in it has been done.
///
/// # Invariants
///
/// The pointer is a workqueue that is ours.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A workqueue may be used and destroyed by any task.
unsafe impl Send for OwnedQueue {}
// SAFETY: A workqueue synchronises its users itself.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a workqueue of high priority whose work runs on the CPU that it is queued for.
    ///
    /// May sleep.
    pub(crate) fn new_highpri_percpu(name: &'static CStr) -> Result<Self> {
        Self::new(
            name,
            bindings::wq_flags_WQ_HIGHPRI | bindings::wq_flags_WQ_PERCPU,
        )
    }

    fn new(name: &'static CStr, flags: c_uint) -> Result<Self> {
        // SAFETY: The name is a string.
        let queue = unsafe { bindings::alloc_workqueue(name.as_char_ptr(), flags) };

        // INVARIANT: `alloc_workqueue` returned a workqueue that nobody else has.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Enqueues a work item, as [`Queue::enqueue`] does. May be called in any context.
    ///
    /// There is no delayed work here: a timer that is to queue it would not be waited for when the
    /// workqueue is destroyed.
    pub(crate) fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type invariants, the workqueue is valid as long as `self` is.
        unsafe { Queue::from_raw(self.0.as_ptr()) }.enqueue(work)
    }

    /// Enqueues a work item to run on `cpu`, as [`enqueue`](Self::enqueue) does for any CPU.
    ///
    /// If the CPU is offline, or goes offline before the work runs, it runs on another one. May be
    /// called in any context.
    pub(crate) fn enqueue_on<W, const ID: u64>(&self, cpu: CpuId, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        let queue = self.0.as_ptr();
        let cpu = cpu.as_u32() as c_int;

        // SAFETY: `queue_work_on` returns false only if the work is already queued. `W` is `Send`
        // and has no lifetimes. The pointer that the closure gets is valid during the call and, if
        // the work was queued, until its function has been called. `cpu` is a possible CPU by the
        // invariants of `CpuId`, and an offline one is taken care of by the workqueue core.
        unsafe { work.__enqueue(move |item| bindings::queue_work_on(cpu, queue, item)) }
    }
}

/// The owner of a workqueue that work items may hold references to as well.
///
/// When it is dropped, it waits for the work that is queued. So if nobody else holds a reference by
/// then, the workqueue is destroyed here, and not by its own work; and no work is left that would
/// run code of a module that is being unloaded.
pub(crate) struct Drained(Arc<OwnedQueue>);

impl Drained {
    /// Takes the ownership of a workqueue. May sleep.
    pub(crate) fn new(queue: OwnedQueue) -> Result<Self> {
        Ok(Self(Arc::new(queue, GFP_KERNEL)?))
    }

    /// A reference for those who queue work.
    pub(crate) fn queue(&self) -> &Arc<OwnedQueue> {
        &self.0
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        // SAFETY: By the invariants of `OwnedQueue`, it is a workqueue.
        unsafe { bindings::__flush_workqueue(self.0 .0.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the workqueue is ours. Nothing can be queued any more, as
        // that takes a reference to `self`; what is queued is done first. Dropped by its own work it
        // would wait for itself: `Drained` sees to it that it is not.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}
