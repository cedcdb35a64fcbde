//! The views and alert rules that come with the program, and those of a folder given instead.

use std::path::Path;

use anyhow::{Context, Result};

use crate::decide::rule::{self, Rule};
use crate::stream::definition::{Defaults, Definitions};

/// Names files of `sql/` and takes their text into the program.
macro_rules! shipped {
    ($folder:literal: $($name:literal)*) => {
        &[$((concat!("sql/", $folder, "/", $name, ".sql"),
             include_str!(concat!("../../sql/", $folder, "/", $name, ".sql")))),*]
    };
}

/// Every file of `sql/views`; a test keeps the list whole.
pub const VIEWS: &[(&str, &str)] = shipped!("views":
    "component_health_10s" "deployments_5m" "queue_depth_1m" "replica_latency_30s" "resource_use_30s"
    "service_errors_1m" "service_latency_1m" "service_throughput_1m" "task_duration_5m" "workflow_duration_5m"
    "workflow_outcomes_5m_by_1m");

/// Every file of `sql/alerts`; a test keeps the list whole.
pub const ALERTS: &[(&str, &str)] = shipped!("alerts":
    "component_unhealthy" "error_rate_high" "resource_exhausted" "response_time_high" "workflow_failing");

/// Reads the views and dimension tables of a folder, or the shipped ones where none is named.
pub fn views(folder: &str, defaults: Defaults) -> Result<Definitions> {
    Ok(Definitions::read(&files(folder, VIEWS)?, defaults)?)
}

/// Reads the alert rules of a folder, or the shipped ones where none is named.
pub fn rules(folder: &str) -> Result<Vec<Rule>> {
    let files = files(folder, ALERTS)?;
    let rules = files.iter().map(|(file, text)| Ok(Rule::parse(file, text)?)).collect::<Result<Vec<_>>>()?;
    rule::check_names(&rules)?;
    Ok(rules)
}

fn files(folder: &str, shipped: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
    if folder.is_empty() {
        return Ok(shipped.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("failed to read the folder {folder}"))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_sql(path)).collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        Ok((path.display().to_string(), text))
    };
    paths.iter().map(read).collect()
}

fn is_sql(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sql")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_shipped() {
        for (folder, shipped) in [("views", VIEWS), ("alerts", ALERTS)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(folder);
            let mut there: Vec<String> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| format!("sql/{folder}/{}", entry.unwrap().file_name().to_string_lossy()))
                .collect();
            there.sort();
            let listed: Vec<String> = shipped.iter().map(|(file, _)| (*file).to_owned()).collect();
            assert_eq!(listed, there, "the list in shipped.rs and the folder sql/{folder} differ");
        }
    }
}
