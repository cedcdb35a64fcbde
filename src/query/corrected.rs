//! What a view means where its rows are corrected: the newest version of each window. The rows as they were emitted, and
//! all versions, stand beside it under names of their own.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::catalog::TableProvider;

/// The end of the name of a view's corrected windows: rows of the view, with [`REVISION`] and [`WITHDRAWN`].
pub const CORRECTED: &str = "_corrected";
/// The end of the name under which the rows of a corrected view can be read as they were emitted.
pub const EMITTED: &str = "_emitted";
/// The column with the version of a window: 1 for its first correction.
pub const REVISION: &str = "revision";
/// The column that says that a window has no row any more; the row that says so has no other.
pub const WITHDRAWN: &str = "withdrawn";

/// Returns, for each table whose windows are corrected, its name and the query for the newest version of each window, in
/// which the table itself goes by its name with [`EMITTED`].
pub(super) fn newest(tables: &[(String, Arc<dyn TableProvider>)]) -> Vec<(String, String)> {
    let is_of_versions =
        |name: &str| tables.iter().any(|(table, rows)| table == name && rows.schema().index_of(REVISION).is_ok());
    let corrected = tables.iter().filter(|(name, _)| is_of_versions(&format!("{name}{CORRECTED}")));
    corrected.map(|(name, table)| (name.clone(), query(name, &table.schema()))).collect()
}

fn query(name: &str, schema: &Schema) -> String {
    let columns = |of: &str| {
        let columns: Vec<String> = schema.fields().iter().map(|field| format!("{of}.\"{}\"", field.name())).collect();
        columns.join(", ")
    };
    let same_window = "n.window_start = {of}.window_start AND n.window_end = {of}.window_end";
    // The corrections are the few: they are what a join holds in memory.
    format!(
        "WITH n AS (SELECT window_start, window_end, max({REVISION}) AS {REVISION} FROM \"{name}{CORRECTED}\" \
         GROUP BY window_start, window_end) \
         SELECT {emitted} FROM n RIGHT ANTI JOIN \"{name}{EMITTED}\" e ON {of_emitted} \
         UNION ALL SELECT {corrected} FROM n JOIN \"{name}{CORRECTED}\" c \
         ON {of_corrected} AND n.{REVISION} = c.{REVISION} WHERE NOT c.{WITHDRAWN}",
        emitted = columns("e"),
        corrected = columns("c"),
        of_emitted = same_window.replace("{of}", "e"),
        of_corrected = same_window.replace("{of}", "c"),
    )
}
