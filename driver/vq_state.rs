// SPDX-License-Identifier: GPL-2.0

//! A virtqueue's state, converted between the ABI and the vDPA bus.
//!
//! The layout, split or packed, depends on the features that were negotiated.

use crate::{
    bindings::vdpa::{
        PackedPosition,
        VqState, //
    },
    uapi::{
        PackedState,
        VqStateUnion, //
    },
};

/// Converts a virtqueue's state from the form of the ABI, in which the daemon has reported it, to
/// the form of the vDPA bus. Bits for which the vDPA bus has no room are dropped.
pub(super) fn from_abi(state: VqStateUnion, is_packed: bool) -> VqState {
    if !is_packed {
        return VqState::from_split(state.split());
    }
    let packed = state.packed();

    VqState::from_packed(
        PackedPosition {
            wrap_counter: packed.last_avail_counter,
            index: packed.last_avail_idx,
        },
        PackedPosition {
            wrap_counter: packed.last_used_counter,
            index: packed.last_used_idx,
        },
    )
}

/// Converts a virtqueue's state, which the driver has set, from the form of the vDPA bus to the
/// form of the ABI.
pub(super) fn to_abi(state: VqState, is_packed: bool) -> VqStateUnion {
    if !is_packed {
        return VqStateUnion::from_split(state.split());
    }
    let (avail, used) = state.packed();

    VqStateUnion::from_packed(PackedState {
        last_avail_counter: avail.wrap_counter,
        last_avail_idx: avail.index,
        last_used_counter: used.wrap_counter,
        last_used_idx: used.index,
    })
}
