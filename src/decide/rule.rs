//! Alert rules: one query of standard SQL under a header of comments. Reads text alone: it opens no file, and leaves
//! the SQL to the query engine.
//!
//! ```sql
//! -- Free prose: any comment that does not begin with one of the keys.
//! -- severity: warning
//! -- for: 5m
//! -- labels: team=payments
//! -- summary: {service} fails {error_percent} % of its requests
//! SELECT service, error_rate AS value, round(error_rate * 100, 1) AS error_percent
//! FROM service_errors_1m
//! WHERE error_rate > 0.1
//! ```
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `alert` | name of the rule | the file's name without its ending |
//! | `severity` | `info`, `warning`, `critical` or `emergency` | none: it must be given |
//! | `for` | how long the condition must hold before the alert fires, such as `90s` or `5m` | `0s` |
//! | `keep_firing_for` | how long it goes on firing after the condition was last seen | `0s` |
//! | `labels` | `a=b, c=d`: labels added to every instance, over those of the row | none |
//! | `summary`, `description` | annotations, with `{column}` and `{value}` | none |
//!
//! The query runs at every evaluation tick. Its tables are the views, each showing its newest closed window: the rows
//! with `window_end` in `(tick - slide, tick]`. Every row it returns is one firing instance: text columns are its
//! labels, the column `value` is its value, and all columns can be named in annotations. There is no `now()`: an
//! answer depends on the windows alone, so that a replay finds what the live run found.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::Error;
use super::template::Template;
use crate::model::alert::Severity;
use crate::model::id;

/// The longest rule file that is read, in bytes.
pub const RULE_BYTES_MAX: usize = 64 * 1024;

/// A checked alert rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub name: String,
    /// The file it came from, for messages and for `/api/v1/rules`.
    pub file: String,
    /// Hash of the file's text: another text is another version.
    pub version: String,
    pub severity: Severity,
    /// How long the condition holds before the alert fires.
    pub for_: Duration,
    pub keep_firing_for: Duration,
    pub labels: BTreeMap<String, String>,
    /// By name: `summary`, `description`.
    pub annotations: BTreeMap<String, Template>,
    /// The file's text, comments and all, so that the lines of the engine's errors are those of the file.
    pub sql: String,
}

impl Rule {
    /// Parses the text of a rule file. `file` names it in errors and, by its stem, the rule.
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        if text.len() > RULE_BYTES_MAX {
            return Err(Error::RuleSize { file: file.to_owned(), bytes: text.len(), max: RULE_BYTES_MAX });
        }
        let header = Header::read(file, text)?;
        let severity = header.value("severity", parse_severity)?.ok_or_else(|| Error::MissingKey {
            file: file.to_owned(),
            key: "severity",
            example: "severity: warning",
        })?;
        let mut annotations = BTreeMap::new();
        for key in ["summary", "description"] {
            if let Some(template) = header.value(key, Template::parse)? {
                annotations.insert(key.to_owned(), template);
            }
        }
        let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or(file);
        Ok(Rule {
            name: header.value("alert", parse_name)?.unwrap_or_else(|| stem.to_owned()),
            file: file.to_owned(),
            version: id::of_parts(["rule", text]),
            severity,
            for_: header.value("for", parse_duration)?.unwrap_or_default(),
            keep_firing_for: header.value("keep_firing_for", parse_duration)?.unwrap_or_default(),
            labels: header.value("labels", parse_labels)?.unwrap_or_default(),
            annotations,
            sql: text.to_owned(),
        })
    }

    /// Returns the columns that the annotations name, so that a check can hold them against what the query returns.
    pub fn annotation_columns(&self) -> impl Iterator<Item = (&str, &str)> {
        self.annotations.iter().flat_map(|(key, template)| template.columns().map(|column| (key.as_str(), column)))
    }
}

/// Refuses two rules of one name: their instances could not be told apart.
pub fn check_names(rules: &[Rule]) -> Result<(), Error> {
    let mut files = BTreeMap::new();
    for rule in rules {
        if let Some(first) = files.insert(&rule.name, &rule.file) {
            return Err(Error::RepeatedRule {
                name: rule.name.clone(),
                first: first.clone(),
                second: rule.file.clone(),
            });
        }
    }
    Ok(())
}

const KEYS: [&str; 7] = ["alert", "severity", "for", "keep_firing_for", "labels", "summary", "description"];

/// How much of a refused value an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// The keys of a rule file with their lines, counted from one.
struct Header<'a> {
    file: &'a str,
    entries: BTreeMap<&'static str, (usize, &'a str)>,
}

impl<'a> Header<'a> {
    fn read(file: &'a str, text: &'a str) -> Result<Self, Error> {
        let mut header = Header { file, entries: BTreeMap::new() };
        let mut in_query = false;
        for (line, content) in text.lines().enumerate().map(|(i, content)| (i + 1, content.trim())) {
            let Some(comment) = content.strip_prefix("--") else {
                in_query |= !content.trim_matches(';').is_empty();
                continue;
            };
            let Some((key, value)) = split_key(comment) else { continue };
            let known = KEYS.into_iter().find(|known| *known == key);
            match known {
                Some(key) if in_query => {
                    return Err(Error::KeyAfterQuery { file: file.to_owned(), line, key });
                }
                Some(key) => header.insert(line, key, value)?,
                // Below the header a comment about the SQL may say anything.
                None if in_query => {}
                None => {
                    if let Some(nearest) = misspelt(key) {
                        return Err(Error::UnknownKey { file: file.to_owned(), line, key: key.to_owned(), nearest });
                    }
                }
            }
        }
        if in_query { Ok(header) } else { Err(Error::NoQuery { file: file.to_owned() }) }
    }

    fn insert(&mut self, line: usize, key: &'static str, value: &'a str) -> Result<(), Error> {
        match self.entries.insert(key, (line, value)) {
            Some((first, _)) => Err(Error::RepeatedKey { file: self.file.to_owned(), line, key, first }),
            None => Ok(()),
        }
    }

    /// Parses the value of a key where it is given; `parse` fails with what it expected.
    fn value<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
        let Some((line, text)) = self.entries.get(key) else { return Ok(None) };
        let parsed = if text.is_empty() { Err("something".to_owned()) } else { parse(text) };
        parsed.map(Some).map_err(|expected| Error::HeaderValue {
            file: self.file.to_owned(),
            line: *line,
            key,
            expected,
            got: text.chars().take(SHOWN_CHARS_MAX).collect(),
        })
    }
}

/// Splits `key: value` where the key is a single word; anything else is prose.
fn split_key(comment: &str) -> Option<(&str, &str)> {
    let (key, value) = comment.split_once(':')?;
    let key = key.trim();
    let is_word = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphabetic() || c == '_' || c == '-');
    is_word.then(|| (key, value.trim()))
}

/// Returns the key that a word was probably meant to be: one that differs by case, or by one letter in three.
/// Words farther off ("note", "see") are prose.
fn misspelt(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    KEYS.into_iter()
        .map(|key| (strsim::damerau_levenshtein(key, &word), key))
        .filter(|(distance, key)| *distance <= key.len() / 3)
        .min()
        .map(|(_, key)| key)
}

fn parse_severity(text: &str) -> Result<Severity, String> {
    Severity::parse(text).ok_or_else(|| "one of info, warning, critical, emergency".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a duration such as 90s, 5m or 1h 30m".to_owned())
}

fn parse_name(text: &str) -> Result<String, String> {
    let fits = text.len() <= 200 && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| "a name of at most 200 printable bytes".to_owned())
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').ok_or("labels such as `team=payments, tier=1`")?;
        let (name, value) = (name.trim(), value.trim());
        let mut chars = name.chars();
        let starts = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !starts || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("a label name of letters, digits and underscores where {name:?} stands"));
        }
        if value.is_empty() {
            return Err(format!("a value for the label {name:?}"));
        }
        if labels.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the label {name:?} once"));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests;
