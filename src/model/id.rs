//! Deterministic ids: a hash of what a thing is about, never of when it was emitted nor of a measured value, so that a
//! re-emission is recognisable.

use xxhash_rust::xxh3::xxh3_128;

/// Returns the id of a thing told by its parts: 32 lower-case hex digits of XXH3-128 over the length-prefixed parts
/// (so that `("ab", "c")` and `("a", "bc")` differ).
pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut bytes = Vec::with_capacity(128);
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    format!("{:032x}", xxh3_128(&bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_border_between_parts_counts() {
        assert_ne!(super::of_parts(["ab", "c"]), super::of_parts(["a", "bc"]));
        assert_eq!(super::of_parts(["ab", "c"]), super::of_parts(["ab", "c"]));
    }
}
