// SPDX-License-Identifier: GPL-2.0

//! Workqueues of one's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::{
    raw as bindings,
    smp::current_cpu, //
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

/// What a worker has said about the work that it is doing.
struct Tag {
    /// The worker; null if the place is free. Never dereferenced.
    task: Atomic<*mut bindings::task_struct>,
    /// Belongs to `task`.
    value: Atomic<u32>,
}

/// A workqueue that is destroyed when it is dropped, after all the work in it has been done.
///
/// # Invariants
///
/// `queue` is a workqueue that is ours.
pub(crate) struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    /// One for each CPU. More workers than that are hardly ever inside [`tagged`](Self::tagged): only if
    /// another one runs on the CPU of one that was preempted there, or sleeps, as on `PREEMPT_RT`.
    tags: KVec<Tag>,
}

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

        // INVARIANT: `alloc_workqueue` returned a workqueue that nobody else has.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            tags,
        })
    }

    /// Calls `f`, during which [`tag`](Self::tag) returns `value` to whatever the current task calls.
    ///
    /// To be called by work items of this queue. Returns [`None`], without having called `f`, if too
    /// many do so at this moment: the item is to be enqueued again.
    pub(crate) fn tagged<R>(&self, value: u32, f: impl FnOnce() -> R) -> Option<R> {
        let task = Task::current_raw();
        let (before, from_here) = self.tags.split_at_checked(current_cpu())?;
        let tag = Iterator::chain(from_here.iter(), before)
            .find(|tag| tag.task.cmpxchg(ptr::null_mut(), task, Relaxed).is_ok())?;

        // Only this task reads it.
        tag.value.store(value, Relaxed);
        let result = f();
        tag.task.store(ptr::null_mut(), Release);

        Some(result)
    }

    /// The value of the call of [`tagged`](Self::tagged) that the current task is in, if it is in one.
    ///
    /// Any context. In an interrupt there is none.
    pub(crate) fn tag(&self) -> Option<u32> {
        // SAFETY: Looks at the current task only.
        if unsafe { bindings::current_work() }.is_null() {
            return None;
        }
        let task = Task::current_raw();

        self.tags
            .iter()
            .find(|tag| ptr::eq(tag.task.load(Relaxed), task))
            .map(|tag| tag.value.load(Relaxed))
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
        unsafe { Queue::from_raw(self.queue.as_ptr()) }.enqueue(work)
    }

    /// Enqueues a work item to run on `cpu`, as [`enqueue`](Self::enqueue) does for any CPU.
    ///
    /// If the CPU is offline, or goes offline before the work runs, it runs on another one. May be
    /// called in any context.
    pub(crate) fn enqueue_on<W, const ID: u64>(&self, cpu: CpuId, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        let queue = self.queue.as_ptr();
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
pub(crate) struct FlushOnDrop(Arc<OwnedQueue>);

impl FlushOnDrop {
    /// Takes the ownership of a workqueue. May sleep.
    pub(crate) fn new(queue: OwnedQueue) -> Result<Self> {
        Ok(Self(Arc::new(queue, GFP_KERNEL)?))
    }

    /// A reference for those who queue work.
    pub(crate) fn queue(&self) -> &Arc<OwnedQueue> {
        &self.0
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        // SAFETY: By the invariants of `OwnedQueue`, it is a workqueue.
        unsafe { bindings::__flush_workqueue(self.0.queue.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the workqueue is ours. Nothing can be queued any more, as
        // that takes a reference to `self`; what is queued is done first. Dropped by its own work it
        // would wait for itself: `FlushOnDrop` sees to it that it is not.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) }
    }
}
