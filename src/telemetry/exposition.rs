//! From OpenMetrics text to the Prometheus text format 0.0.4. A pure function of the page; adds and drops no sample.

use std::fmt::Write;

/// Returns the page in the text format 0.0.4.
///
/// The formats differ in three points that matter here: OpenMetrics names a counter's family without the `_total` of its
/// samples, knows units, and ends with `# EOF`. A 0.0.4 parser would take the first for a family without samples beside
/// samples without a type.
pub(super) fn to_text(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len());
    // The help comes before the type, and whether its name gets the suffix is known with the type.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            write_head(&mut page, help.take(), name, kind);
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            page.push_str(line);
            page.push('\n');
        }
    }
    page
}

fn write_head(page: &mut String, help: Option<(&str, &str)>, name: &str, kind: &str) {
    let suffix = if kind == "counter" { "_total" } else { "" };
    let kind = if kind == "unknown" { "untyped" } else { kind };
    let written = match help {
        Some((_, help)) => writeln!(page, "# HELP {name}{suffix} {help}"),
        None => Ok(()),
    };
    written.and_then(|()| writeln!(page, "# TYPE {name}{suffix} {kind}")).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::to_text;

    #[test]
    fn counters_take_their_suffix_and_units_go() {
        let open_metrics = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total 1\n\
                            # HELP b Depth.\n# TYPE b gauge\nb{q=\"# EOF\"} 2\n# EOF\n";
        let text = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total 1\n\
                    # HELP b Depth.\n# TYPE b gauge\nb{q=\"# EOF\"} 2\n";
        assert_eq!(to_text(open_metrics), text);
    }
}
