//! The page of metrics as data, for those who ask for it in SQL.

use super::{Exposition, Telemetry};

/// One line of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    /// Names and values of the labels, as the page has them.
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// Returns the value of a label; nothing where it has none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

impl Telemetry {
    /// Returns what the page of metrics shows now.
    pub fn samples(&self) -> Vec<Sample> {
        let page = self.render_as(Exposition::Text);
        page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }
}

/// Reads a line such as `name{label="value"} 1`.
fn sample(line: &str) -> Option<Sample> {
    // A label's value may hold a space, or a brace; a number holds neither.
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: Vec::new(), value });
    };
    let labels = labels_of(labels.strip_suffix('}')?)?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads labels such as `a="1",b="it\"s"`.
fn labels_of(mut text: &str) -> Option<Vec<(String, String)>> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    escaped => escaped,
                }),
                (_, char) => value.push(char),
            }
        };
        labels.push((name.to_owned(), value));
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_labels() {
        let made = |name: &str, labels: &[(&str, &str)], value| Sample {
            name: name.to_owned(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            value,
        };
        let cases = [
            ("up 1", Some(made("up", &[], 1.0))),
            ("a_total{b=\"c\"} 2.5", Some(made("a_total", &[("b", "c")], 2.5))),
            (
                "a{b=\"x} y\",c=\"q\\\"\\\\\\n\"} +Inf",
                Some(made("a", &[("b", "x} y"), ("c", "q\"\\\n")], f64::INFINITY)),
            ),
            ("a{b=\"c} 1", None),
            ("a", None),
        ];
        for (line, expected) in cases {
            assert_eq!(sample(line), expected, "{line}");
        }
    }

    #[test]
    fn every_line_of_the_page_is_read() {
        let telemetry = Telemetry::default();
        telemetry.input.declare("metrics");
        telemetry.broker.set_lag("metrics", 3, 7);
        let page = telemetry.render_as(Exposition::Text);
        let samples = telemetry.samples();
        assert_eq!(samples.len(), page.lines().filter(|line| !line.starts_with('#')).count());
        let lag = samples.iter().find(|one| one.name == "bellwether_consumer_lag_records").unwrap();
        assert_eq!((lag.label("topic"), lag.label("partition"), lag.value), ("metrics", "3", 7.0));
    }
}
