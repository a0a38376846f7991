// SPDX-License-Identifier: GPL-2.0

//! Patterns that select tests by name.

/// Returns whether `name` matches `pattern`. A pattern with `*` or `?` must match the whole name.
/// Any other pattern must be a part of the name.
pub fn matches(pattern: &str, name: &str) -> bool {
    if pattern.contains(['*', '?']) {
        glob(pattern.as_bytes(), name.as_bytes())
    } else {
        name.contains(pattern)
    }
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if glob(rest, name) => true,
        (Some((b'*', _)), Some((_, tail))) => glob(pattern, tail),
        (Some((b'?', rest)), Some((_, tail))) => glob(rest, tail),
        (Some((p, rest)), Some((n, tail))) if p == n => glob(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_word_is_looked_for_anywhere() {
        assert!(matches("umem", "umem::twice_is_eexist"));
        assert!(matches("eexist", "umem::twice_is_eexist"));
        assert!(!matches("enoent", "umem::twice_is_eexist"));
        assert!(matches("", "anything"));
    }

    #[test]
    fn a_glob_matches_as_a_whole() {
        assert!(matches("umem::*", "umem::twice_is_eexist"));
        assert!(!matches("umem*exis", "umem::twice_is_eexist"));
        assert!(matches("*::twice*", "umem::twice_is_eexist"));
        assert!(matches("?mem*t", "umem::twice_is_eexist"));
        assert!(!matches("mem*", "umem::twice_is_eexist"));
    }
}
