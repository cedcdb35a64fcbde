//! What the JSON formats share: walking the objects of a payload, scalars, times, and refusals with their place.
//!
//! Borrows from the payload wherever the text allows it, and never builds a tree.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::Limits;
use super::intake::{at, clip, refuse};
use crate::model::reject::{Reason, Reject};
use crate::model::time::EventTime;

/// Hands over every object of a payload: a single one, an array of them, or one after another (as newline-delimited).
pub(super) fn each<'de, T, F>(text: &'de str, limits: &Limits, mut take: F) -> Result<(), Reject>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), Reject>,
{
    shallow(text, limits.depth_max)?;
    if text.trim_ascii_start().starts_with('[') { array(text, &mut take) } else { stream(text, &mut take) }
}

/// Reads the one object of a payload.
pub(super) fn one<'de, T: Deserialize<'de>>(text: &'de str, limits: &Limits) -> Result<T, Reject> {
    shallow(text, limits.depth_max)?;
    serde_json::from_str::<Object<T>>(text).map(|object| object.0).map_err(|e| explain::<Object<T>>(text, &e))
}

/// Refuses a text nested deeper than `max`, in one pass and without recursion.
pub(super) fn shallow(text: &str, max: usize) -> Result<(), Reject> {
    let bytes = text.as_bytes();
    // Most records have fewer brackets than levels allowed, and counting them is much cheaper than following strings.
    if bytes.iter().filter(|b| matches!(b, b'{' | b'[')).count() <= max {
        return Ok(());
    }
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (place, byte) in bytes.iter().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > max {
            let message = format!("byte {place}: expected at most {max} levels of nesting, got more");
            return Err(Reject::new(Reason::TooLarge, message));
        }
    }
    Ok(())
}

/// A string, borrowed unless it holds escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        d.deserialize_str(TextVisitor)
    }
}

/// The entries of an object in their order, values unread. A name given twice is kept twice.
#[derive(Clone, Debug)]
pub(super) struct Entries<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Entries<'a> {
    /// Reads the entries of a value that must be an object; `null` has none.
    pub fn of(field: &str, raw: &'a RawValue) -> Result<Self, Reject> {
        match raw.get().as_bytes().first() {
            Some(b'{') => serde_json::from_str(raw.get()).map_err(|e| at(field)(explain::<Entries<'_>>(raw.get(), &e))),
            Some(b'n') => Ok(Entries(Vec::new())),
            _ => Err(refuse(Reason::Type, field, "an object", raw.get())),
        }
    }

    /// Returns the value under a name, the first where it is given twice; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().find(|(key, _)| key == name)?;
        Some(found.1).filter(|raw| raw.get() != "null")
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    entries.push((key.0, value));
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(EntriesVisitor)
    }
}

/// A time: an RFC 3339 string, or an epoch number whose unit is told by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(pub EventTime);

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct StampVisitor;
        impl Visitor<'_> for StampVisitor {
            type Value = Stamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time or an epoch number")
            }
            fn visit_i64<E>(self, n: i64) -> Result<Stamp, E> {
                Ok(Stamp(EventTime::from_epoch_guess(n)))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Stamp, E> {
                Ok(Stamp(EventTime::from_epoch_guess(i64::try_from(n).unwrap_or(i64::MAX))))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Stamp, E> {
                Ok(Stamp(from_fractional_epoch(n)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Stamp, E> {
                let time = EventTime::parse_rfc3339(text);
                time.map(Stamp).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        d.deserialize_any(StampVisitor)
    }
}

/// Returns a scalar's text: a string without its quotes, a number or bool as written; `None` for `null`.
pub(super) fn scalar<'a>(field: &str, raw: &'a RawValue) -> Result<Option<Cow<'a, str>>, Reject> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => string(field, raw).map(Some),
        Some(b'{' | b'[') => Err(refuse(Reason::Type, field, "a string, number or bool", text)),
        Some(b'n') | None => Ok(None),
        Some(_) => Ok(Some(Cow::Borrowed(text))),
    }
}

/// Returns a string without its quotes.
pub(super) fn string<'a>(field: &str, raw: &'a RawValue) -> Result<Cow<'a, str>, Reject> {
    let text = raw.get();
    let wrong = || refuse(Reason::Type, field, "a string", text);
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or_else(wrong)?;
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str(text).map(Cow::Owned).map_err(|_| wrong())
}

/// Returns a number, rounded to the nearest double; infinite where it is beyond the doubles.
///
/// Parsed by the standard library: `serde_json` may be one unit off in the last place.
pub(super) fn number(field: &str, raw: &RawValue) -> Result<f64, Reject> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => text.parse().map_err(|_| refuse(Reason::Type, field, "a number", text)),
        _ => Err(refuse(Reason::Type, field, "a number", text)),
    }
}

/// Reads an epoch number with a fraction. Rounded, as binary fractions fall just short of the decimal that was meant.
fn from_fractional_epoch(n: f64) -> EventTime {
    let per_unit = match n.abs() {
        size if size < 1e11 => 1e6,
        size if size < 1e14 => 1e3,
        size if size < 1e17 => 1.0,
        _ => 1e-3,
    };
    EventTime::from_micros((n * per_unit).round() as i64)
}

fn stream<'de, T, F>(text: &'de str, take: &mut F) -> Result<(), Reject>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), Reject>,
{
    let mut items = serde_json::Deserializer::from_str(text).into_iter::<Object<T>>();
    let mut start = 0;
    while let Some(item) = items.next() {
        match item {
            Ok(Object(item)) => take(item).map_err(|reject| in_line(text, start, items.byte_offset(), reject))?,
            Err(error) => return Err(explain::<Object<T>>(text.get(start..).unwrap_or_default(), &error)),
        }
        start = items.byte_offset();
    }
    Ok(())
}

fn array<'de, T, F>(text: &'de str, take: &mut F) -> Result<(), Reject>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), Reject>,
{
    let mut refused = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let items = Items { take, refused: &mut refused, item: PhantomData::<T> };
    match items.deserialize(&mut reader).and_then(|()| reader.end()) {
        Ok(()) => Ok(()),
        Err(error) => Err(refused.unwrap_or_else(|| explain::<Vec<Object<T>>>(text, &error))),
    }
}

/// Says in which line the refused object began, where there is more than one object.
fn in_line(text: &str, start: usize, end: usize, reject: Reject) -> Reject {
    let alone = start == 0 && text.get(end..).unwrap_or_default().trim_ascii().is_empty();
    if alone {
        return reject;
    }
    let gap = text.get(start..end).map_or(0, |t| t.len() - t.trim_ascii_start().len());
    let before = text.get(..start + gap).unwrap_or_default();
    at(format_args!("line {}", 1 + before.bytes().filter(|b| *b == b'\n').count()))(reject)
}

/// Turns the reader's error into a refusal. Reads once more, slowly, to learn the path of the field.
fn explain<'de, T: Deserialize<'de>>(text: &'de str, error: &serde_json::Error) -> Reject {
    let (line, column) = (error.line(), error.column());
    let whole = error.to_string();
    let what = whole.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&whole);
    let reason = match error.classify() {
        Category::Data if what.starts_with("missing field") => Reason::Missing,
        Category::Data if what.starts_with("duplicate field") => Reason::Syntax,
        Category::Data => Reason::Type,
        _ if what.starts_with("recursion limit") => Reason::TooLarge,
        _ if what.starts_with("number out of range") => Reason::NotFinite,
        _ => Reason::Syntax,
    };
    let mut reader = serde_json::Deserializer::from_str(text);
    let path = serde_path_to_error::deserialize::<_, T>(&mut reader).err().map(|e| e.path().to_string());
    let place = path.filter(|path| path != "." && path != "?").map(|path| format!("{path}: ")).unwrap_or_default();
    Reject::new(reason, format!("{place}{} (line {line}, column {column})", reword(what)))
}

/// Turns serde's "invalid type: A, expected B" into "expected B, got A", A being cut to a readable length.
fn reword(what: &str) -> String {
    let told = what.strip_prefix("invalid type: ").or_else(|| what.strip_prefix("invalid value: "));
    match told.and_then(|told| told.rsplit_once(", expected ")) {
        Some((got, expected)) => format!("expected {expected}, got {}", clip(got)),
        None => clip(what),
    }
}

/// A value that must be an object: derived readers alone would also take an array for one.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        d.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// Hands over the items of an array as they are read, so that a long array is never held at once.
struct Items<'f, T, F> {
    take: &'f mut F,
    refused: &'f mut Option<Reject>,
    item: PhantomData<T>,
}

impl<'de, T, F> DeserializeSeed<'de> for Items<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), Reject>,
{
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de, T, F> Visitor<'de> for Items<'_, T, F>
where
    T: Deserialize<'de>,
    F: FnMut(T) -> Result<(), Reject>,
{
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while let Some(Object(item)) = seq.next_element::<Object<T>>()? {
            if let Err(reject) = (self.take)(item) {
                *self.refused = Some(at(format_args!("[{index}]"))(reject));
                return Err(A::Error::custom("refused"));
            }
            index += 1;
        }
        Ok(())
    }
}
