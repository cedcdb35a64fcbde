//! Prometheus' text exposition format and OpenMetrics, a line at a time: `name{label="value",…} number [time]`.
//!
//! `# TYPE` and `# UNIT` hold for the lines of their family that follow. Times are milliseconds, or seconds as OpenMetrics
//! has them; which is told by their size. A NaN is no sample: it is how Prometheus says that there is none. Exemplars are
//! passed over.

use std::borrow::Cow;

use super::intake::{Intake, Spelling, at, clip, text};
use super::{Parser, Record};
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, Kind, SeriesRef};
use crate::model::time::EventTime;

/// Reads one line of a file after the other; each is a record.
#[derive(Default)]
pub(super) struct Exposition {
    spelling: Spelling,
    family: Family,
}

/// What the lines of metadata last said.
#[derive(Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
}

impl Family {
    /// Returns the kind and unit of a metric: those of the family where it is one of its metrics.
    fn of(&self, metric: &str) -> (Kind, &str) {
        let Some(suffix) = metric.strip_prefix(self.name.as_str()).filter(|_| !self.name.is_empty()) else {
            return (Kind::Gauge, "");
        };
        let kind = match (self.kind.as_str(), suffix) {
            ("counter", "" | "_total") | ("histogram" | "summary", "_sum" | "_count") | ("histogram", "_bucket") => {
                Kind::Counter
            }
            (_, "" | "_info" | "_gsum" | "_gcount" | "_created" | "_bucket") => Kind::Gauge,
            _ => return (Kind::Gauge, ""),
        };
        // What is counted has no unit, and a creation has its own.
        let has_unit = !matches!(suffix, "_count" | "_bucket" | "_gcount" | "_created");
        (kind, if has_unit { &self.unit } else { "" })
    }

    /// Takes in what a line that begins with `#` says.
    fn learn(&mut self, line: &str) {
        let mut words = line.trim_start_matches('#').split_ascii_whitespace();
        let (Some(what @ ("TYPE" | "UNIT")), Some(name)) = (words.next(), words.next()) else { return };
        let name = name.trim_matches('"');
        if name != self.name {
            *self = Family { name: name.to_owned(), ..Family::default() };
        }
        let said = words.next().unwrap_or_default().to_owned();
        match what {
            "TYPE" => self.kind = said,
            _ => self.unit = said,
        }
    }
}

impl Parser for Exposition {
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let line = text(record.value)?.trim_ascii();
        if line.starts_with('#') {
            self.family.learn(line);
            return Ok(());
        }
        let (head, rest) = line.split_at(end_of_series(line)?);
        let place = head.len();
        let mut words = rest.split_ascii_whitespace();
        let number = words.next().ok_or_else(|| refuse(line, place, Reason::Syntax, "a number after the series"))?;
        let value: f64 = number.parse().map_err(|_| refuse(line, place, Reason::Type, "a number after the series"))?;
        let stamp = words.next().filter(|word| !word.starts_with('#'));
        let time = match stamp {
            Some(word) => time(word).ok_or_else(|| refuse(line, place, Reason::Type, "a time after the number"))?,
            None => record.timestamp,
        };
        if stamp.is_some() && words.next().is_some_and(|word| !word.starts_with('#')) {
            return Err(refuse(line, place, Reason::Syntax, "nothing more than a number and a time"));
        }
        if value.is_nan() {
            return Ok(());
        }
        let series = self.series(line, head, intake)?;
        intake.sample(series, time, value).map_err(at(format_args!("column {}", column(line, place))))
    }
}

impl Exposition {
    const TAG: u8 = b'p';

    fn series(&mut self, line: &str, head: &str, intake: &mut Intake<'_>) -> Result<SeriesRef, Reject> {
        let plain = head.split(['{', ' ', '\t']).next().unwrap_or_default();
        let (kind, unit) = self.family.of(plain);
        let spelling = self.spelling.start(Self::TAG).part(kind.as_str().as_bytes()).part(unit.as_bytes());
        let spelling = spelling.part(head.as_bytes()).hash();
        if let Some(known) = intake.recall(spelling) {
            return Ok(known);
        }
        let (inner, labels) = labels(line, head, plain.len())?;
        let name = inner.as_deref().unwrap_or(plain);
        // A name that stands among the labels was not to be seen before.
        let (kind, unit) = if inner.is_some() { self.family.of(name) } else { (kind, unit) };
        let labels = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
        intake
            .intern(spelling, &mut Descriptor { name, labels, kind, unit })
            .map_err(at(format_args!("column {}", column(line, 0))))
    }
}

/// Returns where name and labels end.
fn end_of_series(line: &str) -> Result<usize, Reject> {
    let bytes = line.as_bytes();
    let open = bytes.iter().position(|b| matches!(b, b'{' | b' ' | b'\t')).unwrap_or(bytes.len());
    // Between name and brace there may be blanks.
    let brace = open + bytes[open..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    if bytes.get(brace) != Some(&b'{') {
        return Ok(open);
    }
    let (mut quoted, mut place) = (false, brace + 1);
    while let Some(byte) = bytes.get(place) {
        match byte {
            b'\\' if quoted => place += 1,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Ok(place + 1),
            _ => {}
        }
        place += 1;
    }
    Err(refuse(line, brace, Reason::Syntax, "labels that end with }"))
}

type Labels<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// The label that is the name, as dumps of Prometheus have it.
const NAME: &str = "__name__";

/// Returns the labels of a series, and its name where that stands among them.
fn labels<'a>(line: &str, head: &'a str, name_end: usize) -> Result<(Option<Cow<'a, str>>, Labels<'a>), Reject> {
    let (mut name, mut labels) = (None, Labels::new());
    let Some(open) = head[name_end..].find('{') else { return Ok((None, labels)) };
    let inner_start = name_end + open + 1;
    let inner = &head[inner_start..head.len() - 1];
    let mut rest = inner.trim_ascii_start();
    while !rest.is_empty() {
        let here = inner_start + inner.len() - rest.len();
        let (key, after) = match quoted(rest) {
            Some(found) => found,
            None => {
                let end = rest.find(['=', ',', ' ', '\t']).unwrap_or(rest.len());
                (Cow::Borrowed(&rest[..end]), &rest[end..])
            }
        };
        let after = after.trim_ascii_start();
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = quoted(value.trim_ascii_start())
                    .ok_or_else(|| refuse(line, here, Reason::Syntax, "a label as name=\"value\""))?;
                match (&*key, name_end) {
                    (NAME, 0) => name = Some(value),
                    // An empty label is no label.
                    _ if value.is_empty() => {}
                    _ => labels.push((key, value)),
                }
                after.trim_ascii_start()
            }
            None if name.is_none() && name_end == 0 && rest.starts_with('"') => {
                name = Some(key);
                after
            }
            None => return Err(refuse(line, here, Reason::Syntax, "a label as name=\"value\"")),
        };
        rest = match rest.strip_prefix(',') {
            Some(next) => next.trim_ascii_start(),
            None if rest.is_empty() => rest,
            None => return Err(refuse(line, here, Reason::Syntax, "a comma between labels")),
        };
    }
    Ok((name, labels))
}

/// Returns what stands between quotes, and what comes after them.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = inner.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })?;
    let (raw, after) = (&inner[..end], &inner[end + 1..]);
    if !raw.contains('\\') {
        return Some((Cow::Borrowed(raw), after));
    }
    let (mut plain, mut rest) = (String::with_capacity(raw.len()), raw.chars());
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            (_, Some('n')) => plain.push('\n'),
            (_, Some(c @ ('\\' | '"'))) => plain.push(c),
            (c, Some(other)) => plain.extend([c, other]),
            (c, None) => plain.push(c),
        }
    }
    Some((Cow::Owned(plain), after))
}

fn time(word: &str) -> Option<EventTime> {
    if let Ok(whole) = word.parse() {
        return Some(EventTime::from_epoch_guess(whole));
    }
    EventTime::from_epoch_guess_f64(word.parse().ok()?)
}

fn column(line: &str, place: usize) -> usize {
    1 + line.get(..place).unwrap_or_default().chars().count()
}

fn refuse(line: &str, place: usize, reason: Reason, expected: &str) -> Reject {
    let rest = line.get(place..).unwrap_or_default().trim_ascii_start();
    let got = if rest.is_empty() { "the end of the line".to_owned() } else { format!("{:?}", clip(rest)) };
    at(format_args!("column {}", column(line, place)))(Reject::new(reason, format!("expected {expected}, got {got}")))
}
