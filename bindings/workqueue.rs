// SPDX-License-Identifier: GPL-2.0

//! Workqueues that a driver owns.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::{
    fast::current_cpu, //
    raw as bindings,
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    task::Task,
    workqueue::{
        Queue,
        RawWorkItem, //
    },
};

/// A value that a worker has attached to the work item that the worker is running.
struct Tag {
    /// The worker, or null if the tag is free. The pointer is never dereferenced.
    task: Atomic<*mut bindings::task_struct>,
    /// The value that `task` has attached.
    value: Atomic<u32>,
}

/// A workqueue. Dropping this value waits for all of its work, and destroys the workqueue.
///
/// # Invariants
///
/// `queue` is a workqueue that belongs to this value.
pub(crate) struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    /// One tag for each CPU, which is nearly always enough. Two workers of the same CPU are in
    /// [`tagged`](Self::tagged) at the same time only if the first worker was preempted in
    /// `tagged`, or sleeps in it (on `PREEMPT_RT`), and the second worker runs meanwhile.
    tags: KVec<Tag>,
}

// SAFETY: A workqueue may be used and destroyed by any task.
unsafe impl Send for OwnedQueue {}
// SAFETY: A workqueue synchronises its users itself.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a workqueue of high priority, whose work items run on the CPUs for which they are
    /// queued. They run even if memory is so short that no worker can be created
    /// (`WQ_MEM_RECLAIM`). So they must not wait for memory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new_highpri_percpu(name: &'static CStr) -> Result<Self> {
        Self::new(
            name,
            bindings::wq_flags_WQ_HIGHPRI
                | bindings::wq_flags_WQ_PERCPU
                | bindings::wq_flags_WQ_MEM_RECLAIM,
        )
    }

    fn new(name: &'static CStr, flags: c_uint) -> Result<Self> {
        let mut tags = KVec::with_capacity(nr_cpu_ids() as usize, GFP_KERNEL)?;
        for _ in 0..nr_cpu_ids() {
            let tag = Tag {
                task: Atomic::new(ptr::null_mut()),
                value: Atomic::new(0),
            };
            tags.push(tag, GFP_KERNEL)?;
        }

        // SAFETY: The name is a NUL-terminated string.
        let queue = unsafe { bindings::alloc_workqueue(name.as_char_ptr(), flags) };

        // INVARIANT: `alloc_workqueue` returned a workqueue that no other code uses.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            tags,
        })
    }

    /// Calls `f`. Until `f` returns, [`tag`](Self::tag) returns `value` in this task.
    ///
    /// Only work items of this workqueue may call this method. If too many workers are in calls of
    /// this method, returns [`None`] without calling `f`. The work item must then be enqueued
    /// again.
    pub(crate) fn tagged<R>(&self, value: u32, f: impl FnOnce() -> R) -> Option<R> {
        let task = Task::current_raw();
        let (before, from_here) = self.tags.split_at_checked(current_cpu())?;
        let tag = Iterator::chain(from_here.iter(), before)
            .find(|tag| tag.task.cmpxchg(ptr::null_mut(), task, Relaxed).is_ok())?;

        // Only this task reads the tag's value.
        tag.value.store(value, Relaxed);
        let result = f();
        tag.task.store(ptr::null_mut(), Release);

        Some(result)
    }

    /// Returns the value that the current task has passed to [`tagged`](Self::tagged). Returns
    /// [`None`] if the current task is not in a call of `tagged`, and in an interrupt. Any context.
    pub(crate) fn tag(&self) -> Option<u32> {
        // SAFETY: `current_work` accesses only the current task.
        if unsafe { bindings::current_work() }.is_null() {
            return None;
        }
        let task = Task::current_raw();

        self.tags
            .iter()
            .find(|tag| ptr::eq(tag.task.load(Relaxed), task))
            .map(|tag| tag.value.load(Relaxed))
    }

    /// Enqueues a work item, as [`Queue::enqueue`] does. Any context.
    ///
    /// There is no method for delayed work, because destroying the workqueue would not wait for the
    /// work item's timer.
    pub(crate) fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type invariants, the workqueue is valid as long as `self` is.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }.enqueue(work)
    }

    /// Enqueues a work item to run on `cpu`. Apart from that, the same as
    /// [`enqueue`](Self::enqueue).
    ///
    /// If the CPU is offline, or goes offline before the work runs, the work runs on another CPU.
    /// Any context.
    pub(crate) fn enqueue_on<W, const ID: u64>(&self, cpu: CpuId, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        let queue = self.queue.as_ptr();
        let cpu = cpu.as_u32() as c_int;

        // SAFETY: `queue_work_on` returns false only if the work is already queued. `W` is `Send`
        // and has no lifetimes. The pointer that the closure gets is valid during the call. If the
        // work was queued, the pointer stays valid until the work function has been called. `cpu`
        // is a possible CPU by the invariants of `CpuId`, and the workqueue core handles a CPU that
        // is offline.
        unsafe { work.__enqueue(move |item| bindings::queue_work_on(cpu, queue, item)) }
    }
}

/// The owner of a workqueue. Work items may hold references to the workqueue as well.
///
/// Dropping the owner waits for the queued work items. If no other reference is left after that,
/// the drop destroys the workqueue. So the workqueue is not destroyed by its own work, and no work
/// is left that would run code of a module that is being unloaded.
pub(crate) struct FlushOnDrop(Arc<OwnedQueue>);

impl FlushOnDrop {
    /// Takes ownership of a workqueue.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(queue: OwnedQueue) -> Result<Self> {
        Ok(Self(Arc::new(queue, GFP_KERNEL)?))
    }

    /// Returns the workqueue, in which the caller can enqueue work items.
    pub(crate) fn queue(&self) -> &Arc<OwnedQueue> {
        &self.0
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        // SAFETY: By the invariants of `OwnedQueue`, the pointer points to a workqueue.
        unsafe { bindings::__flush_workqueue(self.0.queue.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the workqueue belongs to this value. No more work can be
        // queued, because queueing needs a reference to `self`. `destroy_workqueue` waits for the
        // work that is queued. A drop by the workqueue's own work would wait for itself, which
        // `FlushOnDrop` prevents.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) }
    }
}
