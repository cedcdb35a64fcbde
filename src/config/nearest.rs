//! The nearest of the names that would have been right. Compares text, nothing else.

/// Returns the candidate that `typed` was most likely meant to be; `None` where none is near.
///
/// Near is at most one edit in three letters, by the optimal string alignment distance (an edit inserts, removes or
/// changes a letter, or swaps two neighbours).
pub(super) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (typed.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(typed, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, candidate)| candidate)
}
