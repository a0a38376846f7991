// SPDX-License-Identifier: GPL-2.0

//! The credentials of tasks.
//!
//! C headers: [`include/linux/cred.h`](srctree/include/linux/cred.h),
//! [`include/linux/uidgid.h`](srctree/include/linux/uidgid.h)

use super::raw as bindings;

/// The user and the group that a file belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(super) uid: bindings::kuid_t,
    pub(super) gid: bindings::kgid_t,
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        (self.uid.val, self.gid.val) == (other.uid.val, other.gid.val)
    }
}

impl Owner {
    /// User 0 and group 0 of the initial user namespace.
    pub(crate) const ROOT: Self = Self {
        uid: bindings::kuid_t { val: 0 },
        gid: bindings::kgid_t { val: 0 },
    };

    /// Returns the owner that the file system gives to files which the current task creates: the
    /// task's fsuid and fsgid.
    ///
    /// # Context
    ///
    /// Process context. Does not sleep.
    pub(crate) fn of_current() -> Self {
        let mut owner = Self::ROOT;

        // SAFETY: Both pointers are valid. A task may read its own credentials without a lock.
        unsafe { bindings::current_fsuid_fsgid(&mut owner.uid, &mut owner.gid) };

        owner
    }
}
