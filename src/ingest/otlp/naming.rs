//! OpenTelemetry names to Prometheus names, as Prometheus' OTLP receiver does by default (translation strategy
//! `UnderscoreEscapingWithSuffixes`): runs of other characters become one underscore, the unit and `total` or `ratio`
//! are appended. Source of the rules: OpenTelemetry's "Prometheus and OpenMetrics Compatibility" and
//! prometheus/otlptranslator.

/// What a metric is, as far as its name depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    /// `_total`, for a monotonic sum.
    Total,
    /// `_ratio` where the unit is `1`, for a gauge.
    Ratio,
    None,
}

/// Returns the Prometheus name of a metric; empty where no character of it can stay.
pub(super) fn metric(name: &str, unit: &str, suffix: Suffix) -> String {
    let mut tokens: Vec<&str> = name.split(|c| !is_name_char(c)).filter(|token| !token.is_empty()).collect();
    if tokens.is_empty() {
        return String::new();
    }
    let (main, per) = unit_words(unit);
    let has = |tokens: &[&str], word: &str| word.is_empty() || tokens.contains(&word);
    if !has(&tokens, &main) {
        tokens.push(&main);
    }
    if !has(&tokens, &per) {
        tokens.push(&per);
    }
    let last = match suffix {
        Suffix::Total => Some("total"),
        Suffix::Ratio if unit == "1" => Some("ratio"),
        Suffix::Ratio | Suffix::None => None,
    };
    if let Some(last) = last {
        tokens.retain(|token| *token != last);
        tokens.push(last);
    }
    let joined = tokens.join("_");
    if joined.starts_with(|c: char| c.is_ascii_digit()) { format!("_{joined}") } else { joined }
}

/// Returns the Prometheus name of a label; empty where no character of it can stay.
pub(super) fn label(name: &str) -> String {
    let mut clean = String::with_capacity(name.len());
    for c in name.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '_' };
        // Leading underscores are kept (`__x__` is a reserved name, not noise), inner runs become one.
        let inner_run = c == '_' && clean.ends_with('_') && clean.contains(|c| c != '_');
        if !inner_run {
            clean.push(c);
        }
    }
    if clean.chars().all(|c| c == '_') {
        return String::new();
    }
    if clean.starts_with(|c: char| c.is_ascii_digit()) {
        return format!("key_{clean}");
    }
    if clean.starts_with('_') && !clean.starts_with("__") { format!("key{clean}") } else { clean }
}

/// Returns the words for a UCUM unit: `By/s` gives `bytes` and `per_second`.
fn unit_words(unit: &str) -> (String, String) {
    let (main, per) = unit.split_once('/').unwrap_or((unit, ""));
    let (main, per) = (main.trim(), per.trim());
    let annotated = |unit: &str| unit.contains(['{', '}']);
    let main = if annotated(main) { String::new() } else { words(main_word(main)) };
    let per = if annotated(per) { String::new() } else { words(per_word(per)) };
    let per = if per.is_empty() { per } else { format!("per_{per}") };
    (main, per)
}

fn words(unit: &str) -> String {
    let tokens: Vec<&str> = unit.split(|c| !is_name_char(c)).filter(|token| !token.is_empty()).collect();
    tokens.join("_")
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == ':'
}

fn main_word(unit: &str) -> &str {
    match unit {
        "d" => "days",
        "h" => "hours",
        "min" => "minutes",
        "s" => "seconds",
        "ms" => "milliseconds",
        "us" => "microseconds",
        "ns" => "nanoseconds",
        "By" => "bytes",
        "KiBy" => "kibibytes",
        "MiBy" => "mebibytes",
        "GiBy" => "gibibytes",
        "TiBy" => "tebibytes",
        "kBy" | "KBy" => "kilobytes",
        "MBy" => "megabytes",
        "GBy" => "gigabytes",
        "TBy" => "terabytes",
        "m" => "meters",
        "V" => "volts",
        "A" => "amperes",
        "J" => "joules",
        "W" => "watts",
        "g" => "grams",
        "Cel" => "celsius",
        "Hz" => "hertz",
        "1" => "",
        "%" => "percent",
        other => other,
    }
}

fn per_word(unit: &str) -> &str {
    match unit {
        "s" => "second",
        "m" | "min" => "minute",
        "h" => "hour",
        "d" => "day",
        "w" => "week",
        "mo" => "month",
        "y" => "year",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_carry_unit_and_type() {
        let cases = [
            ("http.server.request.duration", "s", Suffix::None, "http_server_request_duration_seconds"),
            ("system.cpu.time", "s", Suffix::Total, "system_cpu_time_seconds_total"),
            ("requests.total.count", "{request}", Suffix::Total, "requests_count_total"),
            ("cpu.utilization", "1", Suffix::Ratio, "cpu_utilization_ratio"),
            ("cpu.utilization", "1", Suffix::None, "cpu_utilization"),
            ("network.io", "By/s", Suffix::None, "network_io_bytes_per_second"),
            ("memory_bytes", "By", Suffix::None, "memory_bytes"),
            ("2xx..rate", "", Suffix::None, "_2xx_rate"),
            ("a__b", "foo/bar", Suffix::None, "a_b_foo_per_bar"),
            ("größe", "", Suffix::None, "gr_e"),
            ("...", "s", Suffix::None, ""),
        ];
        for (name, unit, suffix, expected) in cases {
            assert_eq!(metric(name, unit, suffix), expected, "{name} {unit}");
        }
    }

    #[test]
    fn label_names_are_made_legal() {
        let cases = [
            ("http.method", "http_method"),
            ("a..b", "a_b"),
            ("1st", "key_1st"),
            ("_x", "key_x"),
            ("__reserved__", "__reserved_"),
            ("é", ""),
            ("", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(label(name), expected, "{name}");
        }
    }
}
