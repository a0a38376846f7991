// SPDX-License-Identifier: GPL-2.0

//! Virtqueue groups: the address space that each group is in.

use super::domain::{
    Domain,
    Mappings, //
};
use crate::bindings::{
    nospec::get_nospec,
    virtio_map::Token, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// The id of the address space (ASID) of each group of a device.
pub(super) struct GroupAsids(KVVec<Atomic<u32>>);

impl GroupAsids {
    /// Creates `count` groups in address space 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(count: u32) -> Result<Self> {
        let mut asids = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            asids.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
        }

        Ok(Self(asids))
    }

    /// Returns the address space of a group, or [`None`] if there is no such group.
    pub(super) fn get(&self, group: usize) -> Option<u32> {
        Some(self.0.get(group)?.load(Relaxed))
    }

    fn set(&self, group: usize, asid: u32) {
        if let Some(at) = self.0.get(group) {
            at.store(asid, Relaxed);
        }
    }
}

/// The mapping token of each group of a device on the vDPA bus. A virtio driver of this kernel maps
/// its memory through the tokens.
pub(super) struct GroupTokens(KVVec<Token<Mappings>>);

impl GroupTokens {
    /// Creates the tokens of `count` groups, which map into `space`: the domain of address space 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(count: u32, space: &Arc<Domain>) -> Result<Self> {
        let mut tokens = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            tokens.push(Token::new(space.clone()), GFP_KERNEL_ACCOUNT)?;
        }

        Ok(Self(tokens))
    }

    /// Returns the token of a group, or [`None`] if there is no such group.
    pub(super) fn get(&self, group: u32) -> Option<&Token<Mappings>> {
        self.0.get(group as usize)
    }

    /// Moves a group to the address space `asid`, whose domain is `space`, if the daemon agrees.
    /// `ask` asks the daemon.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no such group.
    /// - Those of [`Token::quiesce`], if the group is in another address space now.
    /// - Those of `ask`.
    pub(super) fn set_asid(
        &self,
        asids: &GroupAsids,
        group: u32,
        asid: u32,
        space: &Arc<Domain>,
        ask: impl FnOnce() -> Result,
    ) -> Result {
        let token = get_nospec(&self.0, group as usize).ok_or(EINVAL)?;

        if token.points_to(space) {
            ask()?;
        } else {
            let quiesced = token.quiesce()?;

            ask()?;
            quiesced.retarget(space.clone());
        }
        asids.set(group as usize, asid);

        Ok(())
    }

    /// Moves all groups back to address space 0, where drivers expect them after a reset. `space` is
    /// its domain.
    pub(super) fn reset(&self, asids: &GroupAsids, space: &Arc<Domain>) {
        // Only a process can move a group out of address space 0. So no kernel driver has mapped
        // anything in the address spaces that the groups leave now.
        Token::retarget_all(&self.0, space);
        for (group, token) in self.0.iter().enumerate() {
            if token.points_to(space) {
                asids.set(group, 0);
            }
        }
    }
}
