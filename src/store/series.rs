//! The series of a store by their labels, in memory: read from the table once, then brought up to date by what is new in
//! it. Never changes the table.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::RecordBatch;
use futures::TryStreamExt as _;

use super::table::Table;
use super::{Store, StoreError, columns};
use crate::model::series::index::Index;

/// The table that is looked through.
const SERIES: &str = "series";

/// The index, and what of the table is in it.
#[derive(Debug, Default)]
pub(super) struct Indexed {
    index: Arc<RwLock<Index>>,
    /// The files that were read. Merged files are read again: they come seldom, and a series told twice changes nothing.
    read: tokio::sync::Mutex<HashSet<String>>,
}

impl Store {
    /// Returns an index of every series of this moment, committed or waiting, and maybe newer ones. The first call reads
    /// the whole table, later ones what has come since.
    ///
    /// # Errors
    /// A store without series, or a file that cannot be read; what was read of the others stays.
    pub async fn series(&self) -> Result<Arc<RwLock<Index>>, StoreError> {
        self.series.bring_up_to_date(&*self.table(SERIES)?).await?;
        Ok(self.series.index.clone())
    }
}

impl Indexed {
    async fn bring_up_to_date(&self, table: &Table) -> Result<(), StoreError> {
        let mut read = self.read.lock().await;
        // First what waits: what is committed meanwhile is then in a file, or in both.
        let waiting = table.waiting();
        let live = table.live();
        read.retain(|path| live.iter().any(|file| file.path == *path));
        for file in &live {
            if read.contains(&file.path) {
                continue;
            }
            let (mut rows, _) = table.stored_rows(file).await?;
            while let Some(rows) = rows.try_next().await.map_err(|source| table.unreadable(source))? {
                self.insert(&rows)?;
            }
            read.insert(file.path.clone());
        }
        waiting.iter().try_for_each(|rows| self.insert(rows))
    }

    fn insert(&self, rows: &RecordBatch) -> Result<(), StoreError> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        columns::each_series(rows, |id, described, first_seen| index.insert(id, described, first_seen))
            .map_err(|source| StoreError::Encode { table: SERIES.to_owned(), source })
    }
}
