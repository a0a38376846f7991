// SPDX-License-Identifier: GPL-2.0

//! Mappings of I/O virtual addresses: ranges that do not overlap, found by address.

use crate::bindings::page::Pages;
use kernel::{
    fs::File,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
    sync::aref::ARef, //
};

/// What is behind a mapping.
pub(super) enum Backing {
    /// Memory that a kernel driver allocated through the address space; reached through the address
    /// space's own file, at the offset that is the I/O virtual address.
    Coherent(Pages),
    /// Memory of another process: a part of some file.
    File {
        /// The file.
        file: ARef<File>,
        /// Where in the file the mapping begins, in bytes.
        offset: u64,
    },
}

/// A mapping.
pub(super) struct Mapping {
    /// Its first address.
    pub(super) start: u64,
    /// Its last address.
    pub(super) last: u64,
    /// [`ACCESS_RO`](crate::uapi::ACCESS_RO), `ACCESS_WO` or `ACCESS_RW`.
    pub(super) perm: u8,
    /// What is behind it.
    pub(super) backing: Backing,
}

impl Mapping {
    /// Whether a kernel driver allocated what is behind it.
    pub(super) fn is_coherent(&self) -> bool {
        matches!(self.backing, Backing::Coherent(_))
    }
}

/// Mappings.
pub(super) struct Iotlb {
    /// Each under its last address: the first that ends at an address or after it is the one that has
    /// the address, if one has.
    tree: RBTree<u64, Mapping>,
    len: usize,
    /// No mapping has an address above this one.
    highest: Option<u64>,
}

impl Iotlb {
    /// No mappings.
    pub(super) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            len: 0,
            highest: None,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Shows `f` the first mapping that has an address of `start` to `last`. Any context.
    pub(super) fn find<R>(
        &self,
        start: u64,
        last: u64,
        f: impl FnOnce(&Mapping) -> R,
    ) -> Option<R> {
        let cursor = self.tree.cursor_lower_bound(&start)?;
        let (_, mapping) = cursor.current();

        (mapping.start <= last).then(|| f(mapping))
    }

    /// Adds a mapping. Any context.
    ///
    /// Errors: [`EINVAL`] if it ends before its start, [`EEXIST`] if it overlaps another.
    pub(super) fn insert(
        &mut self,
        mapping: Mapping,
        node: RBTreeNodeReservation<u64, Mapping>,
    ) -> Result {
        let Mapping { start, last, .. } = mapping;
        if last < start {
            return Err(EINVAL);
        }
        // Those of a process come in the order of their addresses: no need to look.
        let is_above = self.highest.is_none_or(|highest| start > highest);
        if !is_above && self.find(start, last, |_| ()).is_some() {
            return Err(EEXIST);
        }

        self.add(node.into_node(last, mapping), last);

        Ok(())
    }

    /// Takes out the mappings that `stays` is not true of. Any context.
    pub(super) fn take_unless(&mut self, stays: impl Fn(&Mapping) -> bool) -> Self {
        let mut taken = Self::new();
        let mut cursor = self.tree.cursor_front_mut();

        while let Some(at) = cursor {
            let (&last, mapping) = at.current();

            cursor = if stays(mapping) {
                at.move_next()
            } else {
                // Behind the last one, this goes back to one that stays.
                let (next, node) = at.remove_current();
                self.len -= 1;
                taken.add(node, last);
                next
            };
        }

        taken
    }

    /// Removes the mapping that begins at `start`, if `is_it` says so. Any context.
    pub(super) fn remove_if(
        &mut self,
        start: u64,
        is_it: impl FnOnce(&Mapping) -> bool,
    ) -> Option<Mapping> {
        let found =
            |mapping: &Mapping| (mapping.start == start && is_it(mapping)).then_some(mapping.last);
        let last = self.find(start, start, found)??;
        let mapping = self.tree.remove(&last)?;
        self.len -= 1;

        Some(mapping)
    }

    /// Adds a mapping that ends at `last` and overlaps no other.
    fn add(&mut self, node: RBTreeNode<u64, Mapping>, last: u64) {
        self.tree.insert(node);
        self.len += 1;
        self.highest = self.highest.max(Some(last));
    }
}
