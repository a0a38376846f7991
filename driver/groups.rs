// SPDX-License-Identifier: GPL-2.0

//! Virtqueue groups: the address space that each group is in.

use super::{
    domain::{
        Domain,
        Mappings, //
    },
    vq::Vq, //
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

    fn set(&self, group: u32, asid: u32) {
        if let Some(at) = get_nospec(&self.0, group as usize) {
            at.store(asid, Relaxed);
        }
    }

    /// Returns all groups.
    fn groups(&self) -> impl Iterator<Item = u32> {
        // CAST: The number of groups came from a `u32`.
        0..self.0.len() as u32
    }
}

/// The mapping token of a virtqueue, and the virtqueue's group.
struct VqToken {
    token: Token<Mappings>,
    group: u32,
}

/// The mapping tokens of a device on the vDPA bus, by virtqueue. A virtio driver of this kernel maps
/// its memory through the tokens. The tokens of a group point to the group's address space.
pub(super) struct VqTokens(KVVec<VqToken>);

impl VqTokens {
    /// Creates a token for each of `vqs`, which must not change their groups any more. The tokens
    /// map into `space`: the domain of address space 0.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(vqs: &[Arc<Vq>], space: &Arc<Domain>) -> Result<Self> {
        let mut tokens = KVVec::with_capacity(vqs.len(), GFP_KERNEL_ACCOUNT)?;
        for (index, vq) in (0..).zip(vqs) {
            let token = VqToken {
                token: Token::new(index, space.clone()),
                group: vq.group(),
            };
            tokens.push(token, GFP_KERNEL_ACCOUNT)?;
        }

        Ok(Self(tokens))
    }

    /// Returns the token of a virtqueue, or [`None`] if there is no such virtqueue.
    pub(super) fn get(&self, vq: u16) -> Option<&Token<Mappings>> {
        Some(&self.0.get(usize::from(vq))?.token)
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
    /// Those of [`Token::retarget`].
    pub(super) fn set_asid(
        &self,
        asids: &GroupAsids,
        group: u32,
        asid: u32,
        space: &Arc<Domain>,
        ask: impl FnOnce() -> Result,
    ) -> Result {
        let of_group = self.0.iter().filter(|vq| vq.group == group);

        Token::retarget(of_group.map(|vq| &vq.token), space, ask)?;
        asids.set(group, asid);

        Ok(())
    }

    /// Moves all groups back to address space 0, where drivers expect them after a reset. `space` is
    /// its domain.
    pub(super) fn reset(&self, asids: &GroupAsids, space: &Arc<Domain>) {
        // Only a process can move a group out of address space 0. So no kernel driver has mapped
        // anything in the address spaces that the groups leave now.
        Token::retarget_unused(self.0.iter().map(|vq| &vq.token), space);

        let elsewhere = self.0.iter().filter(|vq| !vq.token.points_to(space));
        let all_moved = elsewhere.clone().next().is_none();
        for group in asids.groups() {
            if all_moved || !elsewhere.clone().any(|vq| vq.group == group) {
                asids.set(group, 0);
            }
        }
    }
}
