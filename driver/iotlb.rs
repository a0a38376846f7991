// SPDX-License-Identifier: GPL-2.0

//! Mappings of I/O virtual addresses: ranges that do not overlap, found by address.

use crate::bindings::page::Pages;
use kernel::{
    fs::File,
    prelude::*,
    rbtree::{
        RBTree,
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
    /// Its last address.
    pub(super) last: u64,
    /// [`ACCESS_RO`](crate::uapi::ACCESS_RO), `ACCESS_WO` or `ACCESS_RW`.
    pub(super) perm: u8,
    /// What is behind it.
    pub(super) backing: Backing,
}

/// Mappings, each under its first address.
pub(super) struct Iotlb {
    tree: RBTree<u64, Mapping>,
    len: usize,
}

impl Iotlb {
    /// No mappings.
    pub(super) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            len: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Finds the first mapping that has an address of `start` to `last`. Any context.
    pub(super) fn find(&self, start: u64, last: u64) -> Option<(u64, &Mapping)> {
        let at_or_after = self.tree.cursor_lower_bound(&start);

        // The mapping before `start` may reach into the range. It is borrowed from the tree, not
        // from a cursor, by looking its key up again.
        let before = match &at_or_after {
            Some(cursor) => cursor.peek_prev().map(|(&key, _)| key),
            None => self.tree.cursor_back().map(|cursor| *cursor.current().0),
        };
        let found = |key: u64| self.tree.get(&key).map(|mapping| (key, mapping));

        before
            .and_then(found)
            .filter(|(_, mapping)| mapping.last >= start)
            .or_else(|| {
                at_or_after
                    .map(|cursor| *cursor.current().0)
                    .filter(|&key| key <= last)
                    .and_then(found)
            })
    }

    /// Adds a mapping from `start` on. Any context.
    ///
    /// Errors: [`EINVAL`] if it ends before its start, [`EEXIST`] if it overlaps another.
    pub(super) fn insert(
        &mut self,
        start: u64,
        mapping: Mapping,
        node: RBTreeNodeReservation<u64, Mapping>,
    ) -> Result {
        if mapping.last < start {
            return Err(EINVAL);
        }
        if self.find(start, mapping.last).is_some() {
            return Err(EEXIST);
        }

        self.tree.insert(node.into_node(start, mapping));
        self.len += 1;

        Ok(())
    }

    /// Moves the mapping that begins at `start`, if there is one, to where none overlaps it.
    pub(super) fn move_to(&mut self, start: u64, other: &mut Self) {
        if let Some(node) = self.tree.remove_node(&start) {
            self.len -= 1;
            other.tree.insert(node);
            other.len += 1;
        }
    }

    /// Removes the mapping that begins at `start`. Any context.
    pub(super) fn remove(&mut self, start: u64) -> Option<Mapping> {
        let mapping = self.tree.remove(&start)?;
        self.len -= 1;

        Some(mapping)
    }
}
