//! Annotation templates: text with `{column}` and `{value}`. Holds no logic beyond substitution, and never fails once
//! parsed.

use std::collections::BTreeMap;

/// The longest annotation, in bytes; what is longer is cut.
pub const RENDERED_BYTES_MAX: usize = 4096;

/// A parsed template. `{name}` stands for a value, `{{` and `}}` for the braces themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// Parses a template; the error says what was expected, and at which character, counted from one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            let doubled = matches!(c, '{' | '}') && rest.next_if(|(_, next)| *next == c).is_some();
            match c {
                '{' if !doubled => {
                    let after = text.get(at + 1..).unwrap_or_default();
                    let name = after.split_once('}').map(|(name, _)| name).filter(|name| is_column(name));
                    let Some(name) = name else {
                        return Err(format!("a column in `{{` `}}` at character {}", place(text, at)));
                    };
                    if !plain.is_empty() {
                        pieces.push(Piece::Plain(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Column(name.to_owned()));
                    // The name holds no brace, so this stops right behind the one that closes it.
                    rest.by_ref().find(|(_, c)| *c == '}');
                }
                '}' if !doubled => {
                    return Err(format!(
                        "`{{` before the `}}` at character {}, or `}}}}` for the brace",
                        place(text, at)
                    ));
                }
                _ => plain.push(c),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        Ok(Template { pieces })
    }

    /// Returns the columns that the template names, `value` among them, in order of appearance.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Column(name) => Some(name.as_str()),
            Piece::Plain(_) => None,
        })
    }

    /// Returns the text with every `{name}` replaced: `value` by the value, others by the column of that name, else by
    /// the label of that name. A name that nothing answers to stays as it was written, so that the reader sees which.
    pub fn render(
        &self,
        value: Option<f64>,
        columns: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Plain(plain) => text.push_str(plain),
                Piece::Column(name) => match (name.as_str(), value) {
                    ("value", Some(value)) => text.push_str(&short_number(value)),
                    _ => match columns.get(name).or_else(|| labels.get(name)) {
                        Some(found) => text.push_str(found),
                        None => text.extend(["{", name, "}"]),
                    },
                },
            }
        }
        if text.len() > RENDERED_BYTES_MAX {
            text.truncate(text.floor_char_boundary(RENDERED_BYTES_MAX));
        }
        text
    }
}

/// Returns a number as people write it: four significant digits, no trailing zeros, no exponent below 1e15.
pub fn short_number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { value.to_string() };
    }
    let magnitude = value.abs().log10().floor();
    if !(-6.0..15.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Plain(String),
    Column(String),
}

fn is_column(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Returns the number of the character at a byte, counted from one.
fn place(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().chars().count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn columns_come_before_labels_and_unknown_names_stay_visible() {
        let template = Template::parse("{service}: {value} of {n}, {{literal}} {nope} é").unwrap();
        let text = template.render(Some(0.123_456), &map(&[("n", "40")]), &map(&[("service", "cart"), ("n", "no")]));
        assert_eq!(text, "cart: 0.1235 of 40, {literal} {nope} é");
        assert_eq!(template.columns().collect::<Vec<_>>(), ["service", "value", "n", "nope"]);
    }

    #[test]
    fn a_value_that_is_not_there_stays_visible() {
        assert_eq!(Template::parse("{value}").unwrap().render(None, &map(&[]), &map(&[])), "{value}");
    }

    #[test]
    fn braces_that_do_not_pair_are_refused_with_their_place() {
        for (text, place) in [("é {value", "character 3"), ("a}", "character 2"), ("{a b}", "character 1"), ("{}", "1")]
        {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (1.5, "1.5"), (412.0, "412"), (1_234_567.8, "1234568"), (0.000_123_4, "0.0001234")];
        for (value, text) in cases {
            assert_eq!(short_number(value), text);
        }
        assert_eq!(short_number(-2.5e20), "-2.500e20");
    }

    #[test]
    fn what_is_rendered_is_bounded() {
        let long = "é".repeat(RENDERED_BYTES_MAX);
        let text = Template::parse("x{a}").unwrap().render(None, &map(&[("a", &long)]), &map(&[]));
        assert!(text.len() <= RENDERED_BYTES_MAX);
    }
}
