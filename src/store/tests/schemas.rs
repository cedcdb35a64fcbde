//! Tests that the tables' published schemas are those of the code.

use super::*;

/// `schemas/tables.json` is what readers of the store build on; `UPDATE_GOLDEN=1` writes it anew.
#[test]
fn the_published_schemas_of_tables_are_those_of_the_code() {
    let tables: serde_json::Map<String, serde_json::Value> = columns::record_tables()
        .into_iter()
        .chain(columns::loop_tables())
        .map(|spec| {
            let columns = spec.schema.fields().iter().map(|field| {
                serde_json::json!({
                    "name": field.name(),
                    "type": field.data_type().to_string(),
                    "nullable": field.is_nullable(),
                })
            });
            let partitioned_by = spec.day_of.map(|column| format!("day of {column}"));
            let columns: Vec<_> = columns.collect();
            (spec.name, serde_json::json!({ "columns": columns, "partitioned_by": partitioned_by }))
        })
        .collect();
    let now = serde_json::to_string_pretty(&tables).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/tables.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(published, now, "schemas/tables.json is stale (hint: UPDATE_GOLDEN=1)");
}
