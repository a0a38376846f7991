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

/// A value that a worker has attached to the work that it is doing.
struct Tag {
    /// The worker, or null if the tag is free. Never dereferenced.
    task: Atomic<*mut bindings::task_struct>,
    /// The value that `task` has attached.
    value: Atomic<u32>,
}

/// A workqueue that is destroyed when it is dropped, after all the work in it has been done.
///
/// # Invariants
///
/// `queue` is a workqueue that belongs to this value.
pub(crate) struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    /// One tag for each CPU. More workers are hardly ever inside [`tagged`](Self::tagged): only if
    /// a worker was preempted there, or sleeps there, as on `PREEMPT_RT`, and another runs on its
    /// CPU.
    tags: KVec<Tag>,
}

// SAFETY: A workqueue may be used and destroyed by any task.
unsafe impl Send for OwnedQueue {}
// SAFETY: A workqueue synchronises its users itself.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Creates a workqueue of high priority whose work runs on the CPU that it is queued for.
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
            bindings::wq_flags_WQ_HIGHPRI | bindings::wq_flags_WQ_PERCPU,
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

        // SAFETY: The name is a string.
        let queue = unsafe { bindings::alloc_workqueue(name.as_char_ptr(), flags) };

        // INVARIANT: `alloc_workqueue` returned a workqueue that no other code has.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            tags,
        })
    }

    /// Calls `f`, and makes [`tag`](Self::tag) return `value` to all code that `f` calls in this
    /// task.
    ///
    /// For work items of this queue. Returns [`None`], without having called `f`, if too many
    /// workers are in such calls at this moment: the work item must then be enqueued again.
    pub(crate) fn tagged<R>(&self, value: u32, f: impl FnOnce() -> R) -> Option<R> {
        let task = Task::current_raw();
        let (before, from_here) = self.tags.split_at_checked(current_cpu())?;
        let tag = Iterator::chain(from_here.iter(), before)
            .find(|tag| tag.task.cmpxchg(ptr::null_mut(), task, Relaxed).is_ok())?;

        // Only this task reads the value.
        tag.value.store(value, Relaxed);
        let result = f();
        tag.task.store(ptr::null_mut(), Release);

        Some(result)
    }

    /// Returns the value of the call of [`tagged`](Self::tagged) that the current task is in, or
    /// [`None`] outside of such a call and in an interrupt. Any context.
    pub(crate) fn tag(&self) -> Option<u32> {
        // SAFETY: The function looks at the current task only.
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
    /// There is no method for delayed work: destroying the workqueue would not wait for the timer.
    pub(crate) fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type invariants, the workqueue is valid as long as `self` is.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }.enqueue(work)
    }

    /// Enqueues a work item to run on `cpu`, as [`enqueue`](Self::enqueue) does for any CPU.
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
        // and has no lifetimes. The pointer that the closure gets is valid during the call and, if
        // the work was queued, until its function has been called. `cpu` is a possible CPU by the
        // invariants of `CpuId`, and the workqueue core handles a CPU that is offline.
        unsafe { work.__enqueue(move |item| bindings::queue_work_on(cpu, queue, item)) }
    }
}

/// The owner of a workqueue to which work items may hold references as well.
///
/// Dropping the owner waits for the work that is queued. If no other reference is left by then, the
/// workqueue is destroyed by this drop and not by its own work, and no work is left that would run
/// code of a module that is being unloaded.
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

    /// Returns the reference by which work can be queued.
    pub(crate) fn queue(&self) -> &Arc<OwnedQueue> {
        &self.0
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        // SAFETY: By the invariants of `OwnedQueue`, the pointer is that of a workqueue.
        unsafe { bindings::__flush_workqueue(self.0.queue.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the workqueue belongs to this value. No work can be
        // queued any more, as that takes a reference to `self`; the work that is queued is done
        // first. A drop by the queue's own work would wait for itself, which `FlushOnDrop`
        // prevents.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) }
    }
}
