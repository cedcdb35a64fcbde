//! Files that no reader needs any more, deleted: what a rewrite or a retention took out of the table a while ago, and
//! what a writer left behind that was killed before its commit.
//!
//! A reader may hold on to a commit for as long as `keep`; a writer may take as long between a file and its commit.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, Path};
use futures::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStoreExt as _};

use super::super::StoreError;
use super::Table;
use crate::model::time::EventTime;

/// How long a file that no commit names is left alone where others may write, an import at least: theirs may be waiting for a
/// log that is away.
const STRANGERS_KEEP: Duration = Duration::from_secs(24 * 3600);

/// What one vacuum deleted, or would delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vacuumed {
    pub files: usize,
    pub bytes: u64,
    /// Entries of the log that a checkpoint has summed up.
    pub log_entries: usize,
}

impl Table {
    /// Deletes what was taken out of the table longer than `keep` ago, and files as old that no commit ever named.
    pub async fn vacuum(&self, keep: Duration, now: EventTime, dry_run: bool) -> Result<Vacuumed, StoreError> {
        let store = self.log.object_store(None);
        let failed = |source| StoreError::Write { table: self.spec().name.clone(), source };
        let mut done = Vacuumed::default();
        for file in self.deletable(keep, now).await? {
            if !dry_run {
                match store.delete(&file.location).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(source) => return Err(failed(source)),
                }
            }
            done.files += 1;
            done.bytes += file.size;
        }
        if !dry_run {
            let mut table = DeltaTable::new(self.log.clone());
            table.load().await.map_err(|source| self.unread(source))?;
            done.log_entries =
                deltalake::checkpoints::cleanup_metadata(&table, None).await.map_err(|source| self.unread(source))?;
        }
        Ok(done)
    }

    async fn deletable(&self, keep: Duration, now: EventTime) -> Result<Vec<ObjectMeta>, StoreError> {
        let now = now.as_micros() / 1000;
        let is_old = |since: i64, keep: Duration| now.saturating_sub(since) >= keep.as_millis() as i64;
        // Looked for before the log is: a file that is committed in between is found named.
        let listed: Vec<ObjectMeta> = self
            .log
            .object_store(None)
            .list(None)
            .try_filter(|file| std::future::ready(is_ours(&file.location)))
            .try_collect()
            .await
            .map_err(|source| StoreError::Write { table: self.spec().name.clone(), source })?;
        let waiting = self.about_to_be_named();
        let state = DeltaTableState::try_new(self.log.as_ref(), None).await.map_err(|source| self.unread(source))?;
        let live: HashSet<String> = state.log_data().iter().map(|view| view.path().into_owned()).collect();
        let removed: HashMap<String, Option<i64>> = state
            .all_tombstones(self.log.as_ref())
            .map_ok(|gone| (gone.path().into_owned(), gone.deletion_timestamp()))
            .try_collect()
            .await
            .map_err(|source| self.unread(source))?;
        let orphans_keep = if self.alone { keep } else { keep.max(STRANGERS_KEEP) };
        let is_deletable = |file: &ObjectMeta| {
            let path = file.location.as_ref();
            match removed.get(path) {
                _ if live.contains(path) || waiting.contains(path) => false,
                Some(at) => is_old(at.unwrap_or(0), keep),
                None => is_old(file.last_modified.timestamp_millis(), orphans_keep),
            }
        };
        Ok(listed.into_iter().filter(is_deletable).collect())
    }
}

/// Tells whether a path is one of a table's files; its log has a life of its own.
fn is_ours(path: &Path) -> bool {
    let in_log = path.parts().next().is_some_and(|first| first.as_ref() == "_delta_log");
    !in_log && path.as_ref().ends_with(".parquet")
}
