// SPDX-License-Identifier: GPL-2.0

//! Comparison of data.

/// Asserts that two buffers are equal. The panic message shows the first difference. `what` names
/// the data in that message.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let end = (at + 16).min(found.len());
        panic!(
            "{what}: differs from byte {at} on: {:02x?} rather than {:02x?}",
            &found[at..end],
            &expected[at..end]
        );
    }
}
