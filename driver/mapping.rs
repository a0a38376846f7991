// SPDX-License-Identifier: GPL-2.0

//! The mappings of an address space: ranges of I/O virtual addresses (IOVAs) that do not overlap,
//! looked up by address.

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

/// The memory that a mapping refers to.
pub(super) enum Backing {
    /// Coherent memory that a kernel driver allocated. The daemon accesses this memory through the
    /// domain's own file, at the offset that equals the IOVA.
    Coherent(Pages),
    /// Memory of a process that uses the device through vhost: a part of a file.
    File {
        /// The file.
        file: ARef<File>,
        /// The offset in the file at which the mapping begins, in bytes.
        offset: u64,
    },
}

/// A range of IOVAs, and the memory that is mapped there.
pub(super) struct Mapping {
    /// The first IOVA.
    pub(super) start: u64,
    /// The last IOVA.
    pub(super) last: u64,
    /// The access permission: [`ACCESS_RO`](crate::uapi::ACCESS_RO), `ACCESS_WO` or `ACCESS_RW`.
    pub(super) perm: u8,
    /// The memory that the mapping refers to.
    pub(super) backing: Backing,
}

impl Mapping {
    /// Returns whether the mapped memory is coherent memory of a kernel driver.
    pub(super) fn is_coherent(&self) -> bool {
        matches!(self.backing, Backing::Coherent(_))
    }
}

/// A set of mappings that do not overlap.
pub(super) struct MappingTree {
    /// The mappings, each with its last address as the key. The mapping that contains an address,
    /// if there is one, is the first mapping whose key is at or above that address.
    tree: RBTree<u64, Mapping>,
    len: usize,
    /// An upper bound of all mapped addresses; [`None`] if no mapping was ever added.
    highest: Option<u64>,
}

impl MappingTree {
    /// Returns an empty tree.
    pub(super) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            len: 0,
            highest: None,
        }
    }

    /// Returns the number of mappings.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Calls `f` with the first mapping that contains an address from `start` to `last`, and
    /// returns the result. Returns [`None`] if there is no such mapping. May be called in any
    /// context.
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

    /// Adds a mapping, in the memory that `node` has reserved.
    ///
    /// # Context
    ///
    /// Any context.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the mapping ends before its start.
    /// - [`EEXIST`] if the mapping overlaps another mapping.
    pub(super) fn insert(
        &mut self,
        mapping: Mapping,
        node: RBTreeNodeReservation<u64, Mapping>,
    ) -> Result {
        let Mapping { start, last, .. } = mapping;
        if last < start {
            return Err(EINVAL);
        }
        // A mapping above all others overlaps none, so it needs no lookup. The mappings of a
        // process are added in the order of their addresses.
        let is_above = self.highest.is_none_or(|highest| start > highest);
        if !is_above && self.find(start, last, |_| ()).is_some() {
            return Err(EEXIST);
        }

        self.add(node.into_node(last, mapping), last);

        Ok(())
    }

    /// Removes and returns the mappings for which `stays` returns false. May be called in any
    /// context.
    pub(super) fn take_unless(&mut self, stays: impl Fn(&Mapping) -> bool) -> Self {
        let mut taken = Self::new();
        let mut cursor = self.tree.cursor_front_mut();

        while let Some(at) = cursor {
            let (&last, mapping) = at.current();

            cursor = if stays(mapping) {
                at.move_next()
            } else {
                // If the highest mapping was removed, `next` is the mapping before it. The loop has
                // already kept that mapping, and keeps it again.
                let (next, node) = at.remove_current();
                self.len -= 1;
                taken.add(node, last);
                next
            };
        }

        taken
    }

    /// Removes and returns the mapping that begins at `start`, if `is_it` returns true for that
    /// mapping. May be called in any context.
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

    /// Adds the mapping in `node`, which ends at `last` and overlaps no other mapping.
    fn add(&mut self, node: RBTreeNode<u64, Mapping>, last: u64) {
        self.tree.insert(node);
        self.len += 1;
        self.highest = self.highest.max(Some(last));
    }
}
