//! Influx line protocol: `measurement[,tag=value…] field=value[,field=value…] [timestamp]`, timestamps in nanoseconds.
//!
//! Every field that is a number or bool (as 0 or 1) is a sample of the metric `<measurement>_<field>`, or of
//! `<measurement>` where the field is called `value`; string fields are skipped. A measurement with its tags is parsed
//! once and then known by its bytes.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_128;

use super::intake::{Intake, Spelling, at, clip, text};
use super::{Parser, Record};
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, Kind, SeriesRef};
use crate::model::time::EventTime;

#[derive(Default)]
pub(super) struct Influx {
    spelling: Spelling,
    /// Samples of the current line, whose time stands behind them.
    pending: Vec<(SeriesRef, f64, usize)>,
}

impl Parser for Influx {
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let mut cursor = Cursor { text: text(record.value)?, at: 0 };
        while cursor.go_to_next_line() {
            self.line(&mut cursor, record.timestamp, intake)?;
        }
        Ok(())
    }
}

impl Influx {
    const TAG: u8 = b'i';

    fn line(&mut self, cursor: &mut Cursor<'_>, arrived: EventTime, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let start = cursor.at;
        let head = cursor.until(|b| b == b' ');
        if cursor.peek() != Some(b' ') {
            return Err(cursor.refuse(Reason::Syntax, "a space and fields after the measurement and tags"));
        }
        let head_hash = xxh3_128(head.as_bytes()).to_le_bytes();
        self.pending.clear();
        loop {
            cursor.at += 1;
            self.field(cursor, start, head, &head_hash, intake)?;
            if cursor.peek() != Some(b',') {
                break;
            }
        }
        let time = cursor.timestamp()?.unwrap_or(arrived);
        for (series, value, place) in self.pending.drain(..) {
            intake.sample(series, time, value).map_err(|reject| cursor.located(place, hint(reject)))?;
        }
        Ok(())
    }

    /// Reads `key=value`; a string value leaves nothing pending.
    fn field(
        &mut self,
        cursor: &mut Cursor<'_>,
        start: usize,
        head: &str,
        head_hash: &[u8],
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        let place = cursor.at;
        let key = cursor.until(|b| matches!(b, b'=' | b' ' | b','));
        if key.is_empty() || cursor.peek() != Some(b'=') {
            return Err(cursor.refuse(Reason::Syntax, "a field as key=value"));
        }
        cursor.at += 1;
        let Some(value) = cursor.value()? else { return Ok(()) };
        if self.pending.len() >= intake.limits.points_per_record_max {
            return Err(cursor.located(place, Reject::new(Reason::TooLarge, "expected fewer fields in one line")));
        }
        let spelling = self.spelling.start(Self::TAG).part(head_hash).part(key.as_bytes()).hash();
        let series = match intake.recall(spelling) {
            Some(series) => series,
            None => describe(spelling, cursor, start, head, key, intake)?,
        };
        self.pending.push((series, value, place));
        Ok(())
    }
}

/// Parses a measurement with its tags, not seen before with this field, and interns the series.
fn describe(
    spelling: u128,
    cursor: &Cursor<'_>,
    start: usize,
    head: &str,
    field: &str,
    intake: &mut Intake<'_>,
) -> Result<SeriesRef, Reject> {
    let mut part = Cursor { text: head, at: 0 };
    let refuse =
        |part: &Cursor<'_>, expected: &str| Cursor { at: start + part.at, ..*cursor }.refuse(Reason::Syntax, expected);
    let measurement = unescape(part.until(|b| b == b','), b", ");
    if measurement.is_empty() {
        return Err(refuse(&part, "a measurement"));
    }
    let mut tags = Vec::new();
    while part.peek() == Some(b',') {
        part.at += 1;
        let key = part.until(|b| matches!(b, b'=' | b','));
        if key.is_empty() || part.peek() != Some(b'=') {
            return Err(refuse(&part, "a tag as key=value"));
        }
        part.at += 1;
        let value = part.until(|b| matches!(b, b'=' | b','));
        if value.is_empty() || part.peek() == Some(b'=') {
            return Err(refuse(&part, "a tag value, with any equals sign in it escaped"));
        }
        tags.push((unescape(key, b",= "), unescape(value, b",= ")));
    }
    let field = unescape(field, b",= ");
    let name = if field == "value" { measurement } else { Cow::Owned(format!("{measurement}_{field}")) };
    let labels = tags.iter().map(|(key, value)| (&**key, &**value)).collect();
    intake
        .intern(spelling, &mut Descriptor { name: &name, labels, kind: Kind::Gauge, unit: "" })
        .map_err(|reject| cursor.located(start, reject))
}

/// Adds the likely cause to a time far off: a producer that writes another precision than nanoseconds.
fn hint(reject: Reject) -> Reject {
    match reject.reason {
        Reason::TimeRange => Reject::new(reject.reason, reject.message + "; timestamps are read as nanoseconds"),
        _ => reject,
    }
}

/// Takes away the backslash before any of these bytes; before any other it stands for itself.
fn unescape<'a>(text: &'a str, escapable: &[u8]) -> Cow<'a, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let escapes =
            c == '\\' && rest.peek().is_some_and(|next| u8::try_from(*next).is_ok_and(|b| escapable.contains(&b)));
        plain.push(if escapes { rest.next().unwrap_or(c) } else { c });
    }
    Cow::Owned(plain)
}

/// A place in the text. All it stops at is ASCII, so it never stands inside a character.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.text.get(start..end).unwrap_or_default()
    }

    /// Goes to the start of the next line with something in it, over blank lines and comments; false at the end.
    fn go_to_next_line(&mut self) -> bool {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                b'#' => self.at = self.end_of_line(),
                _ => return true,
            }
        }
        false
    }

    fn end_of_line(&self) -> usize {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        rest.iter().position(|b| *b == b'\n').map_or(self.text.len(), |n| self.at + n)
    }

    /// Returns what stands before the next unescaped byte that `stops`, or before the end of the line.
    fn until(&mut self, stops: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'\n' => break,
                b'\\' if !matches!(bytes.get(self.at + 1), None | Some(b'\n')) => self.at += 2,
                byte if stops(byte) => break,
                _ => self.at += 1,
            }
        }
        // A backslash may have been followed by a character of several bytes, whose rest stops nothing.
        self.at = self.at.min(bytes.len());
        self.slice(start, self.at)
    }

    /// Reads a field's value; `None` for a string, which may hold line breaks.
    fn value(&mut self) -> Result<Option<f64>, Reject> {
        if self.peek() == Some(b'"') {
            return self.skip_string().map(|()| None);
        }
        let start = self.at;
        let raw = self.until(|b| matches!(b, b',' | b' ')).trim_end_matches('\r');
        let number = match raw {
            "t" | "T" | "true" | "True" | "TRUE" => Some(1.0),
            "f" | "F" | "false" | "False" | "FALSE" => Some(0.0),
            _ => match raw.as_bytes().last() {
                Some(b'i') => raw.get(..raw.len() - 1).and_then(|n| n.parse::<i64>().ok()).map(|n| n as f64),
                Some(b'u') => raw.get(..raw.len() - 1).and_then(|n| n.parse::<u64>().ok()).map(|n| n as f64),
                _ => raw.parse().ok(),
            },
        };
        number.map(Some).ok_or_else(|| {
            let reason = if raw.is_empty() { Reason::Syntax } else { Reason::Type };
            Cursor { at: start, ..*self }.refuse(reason, "a number, an integer with i or u, a bool or a quoted string")
        })
    }

    fn skip_string(&mut self) -> Result<(), Reject> {
        let start = *self;
        let mut escaped = false;
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => return Ok(()),
                _ => {}
            }
        }
        Err(start.refuse(Reason::Syntax, "a closing quote"))
    }

    /// Reads the rest of the line: blank, or a timestamp.
    fn timestamp(&mut self) -> Result<Option<EventTime>, Reject> {
        if !matches!(self.peek(), None | Some(b' ' | b'\n' | b'\r')) {
            return Err(self.refuse(Reason::Syntax, "a comma, a space or the end of the line after a field"));
        }
        let (start, end) = (self.at, self.end_of_line());
        let rest = self.slice(start, end);
        let raw = rest.trim_ascii();
        let place = Cursor { at: start + (rest.len() - rest.trim_ascii_start().len()), ..*self };
        self.at = end;
        if raw.is_empty() {
            return Ok(None);
        }
        let nanos: i64 = raw.parse().map_err(|_| place.refuse(Reason::Type, "a timestamp in nanoseconds"))?;
        Ok(Some(EventTime::from_micros(nanos.div_euclid(1_000))))
    }

    /// Returns a refusal of what stands here.
    fn refuse(&self, reason: Reason, expected: &str) -> Reject {
        let rest = self.slice(self.at, self.end_of_line());
        let got = if rest.is_empty() { "the end of the line".to_owned() } else { format!("{:?}", clip(rest)) };
        self.located(self.at, Reject::new(reason, format!("expected {expected}, got {got}")))
    }

    /// Puts line and column, both counted from one, in front of a refusal.
    fn located(&self, place: usize, reject: Reject) -> Reject {
        let before = self.slice(0, place);
        let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
        let column = 1 + before.rsplit('\n').next().map_or(0, |last| last.chars().count());
        at(format_args!("line {line}, column {column}"))(reject)
    }
}
