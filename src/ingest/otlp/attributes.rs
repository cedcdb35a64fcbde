//! Attributes of resources and points to labels.
//!
//! The rule: every resource attribute and every point attribute is a label under its sanitised name; where both have
//! one, the point's stands. `service.namespace/service.name` also gives `job` and `service.instance.id` gives
//! `instance`, over anything else of these names. Names that become equal when sanitised have their values joined by
//! `;`, in the order of the original names. Values that are no strings are written as Prometheus' receiver writes them.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::naming;
use super::wire::{Fields, Value};
use crate::ingest::intake::{at, clip};
use crate::model::reject::{Reason, Reject};

pub(super) type Labels = BTreeMap<String, String>;

/// Returns the labels of a point: `point` is its message, and `number` the field that holds its attributes.
pub(super) fn labels(resource: &[u8], point: &[u8], number: u32, depth_max: usize) -> Result<Labels, Reject> {
    let of_resource = key_values(resource, 1, depth_max).map_err(at("resource"))?;
    let of_point = key_values(point, number, depth_max)?;
    let mut labels = sanitised(&of_resource);
    labels.extend(sanitised(&of_point));
    let given = |name: &str| of_resource.get(name).filter(|value| !value.is_empty());
    if let Some(service) = given("service.name") {
        let job = given("service.namespace").map_or_else(|| service.clone(), |space| format!("{space}/{service}"));
        labels.insert("job".to_owned(), job);
    }
    if let Some(instance) = given("service.instance.id") {
        labels.insert("instance".to_owned(), instance.clone());
    }
    // An empty label value means no label, in Prometheus and here.
    labels.retain(|_, value| !value.is_empty());
    Ok(labels)
}

/// Returns the attributes in field `number` of a message, under their original names.
fn key_values(message: &[u8], number: u32, depth_max: usize) -> Result<Labels, Reject> {
    let mut pairs = Labels::new();
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == number {
            let (key, value) = key_value(value.bytes("attributes")?, depth_max)?;
            let text = match value {
                Json::String(text) => text,
                Json::Null => String::new(),
                other => other.to_string(),
            };
            pairs.insert(key, text);
        }
    }
    Ok(pairs)
}

fn sanitised(attributes: &Labels) -> Labels {
    let mut labels = Labels::new();
    for (name, value) in attributes {
        let name = naming::label(name);
        if name.is_empty() || value.is_empty() {
            continue;
        }
        labels
            .entry(name)
            .and_modify(|known| {
                known.push(';');
                known.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    labels
}

fn key_value(message: &[u8], depth_left: usize) -> Result<(String, Json), Reject> {
    let (mut key, mut value) = (String::new(), Json::Null);
    let mut fields = Fields::of(message);
    while let Some((field, raw)) = fields.next()? {
        match field {
            1 => key = raw.text("attribute key")?.to_owned(),
            2 => {
                let place = format!("attribute {:?}", clip(&key));
                value = any_value(raw.bytes("value")?, depth_left).map_err(at(place))?;
            }
            _ => {}
        }
    }
    Ok((key, value))
}

/// Reads an `AnyValue`. Goes down no further than the depth left.
fn any_value(message: &[u8], depth_left: usize) -> Result<Json, Reject> {
    let depth_left = depth_left
        .checked_sub(1)
        .ok_or_else(|| Reject::new(Reason::TooLarge, "expected a value nested less deeply; see limits.depth_max"))?;
    let mut value = Json::Null;
    let mut fields = Fields::of(message);
    while let Some((field, raw)) = fields.next()? {
        value = match field {
            1 => Json::from(raw.text("string_value")?),
            2 => Json::from(raw.varint("bool_value")? != 0),
            3 => Json::from(raw.varint("int_value")? as i64),
            4 => double(raw)?,
            5 => Json::Array(array(raw.bytes("array_value")?, depth_left)?),
            6 => Json::Object(object(raw.bytes("kvlist_value")?, depth_left)?),
            7 => Json::from(base64(raw.bytes("bytes_value")?)),
            _ => value,
        };
    }
    Ok(value)
}

fn double(raw: Value<'_>) -> Result<Json, Reject> {
    let n = raw.double("double_value")?;
    // Only finite numbers are JSON; the others are labels too, by their names.
    Ok(serde_json::Number::from_f64(n).map_or_else(|| Json::from(n.to_string()), Json::Number))
}

fn array(message: &[u8], depth_left: usize) -> Result<Vec<Json>, Reject> {
    let mut items = Vec::new();
    let mut fields = Fields::of(message);
    while let Some((field, raw)) = fields.next()? {
        if field == 1 {
            items.push(any_value(raw.bytes("values")?, depth_left)?);
        }
    }
    Ok(items)
}

fn object(message: &[u8], depth_left: usize) -> Result<serde_json::Map<String, Json>, Reject> {
    let mut entries = serde_json::Map::new();
    let mut fields = Fields::of(message);
    while let Some((field, raw)) = fields.next()? {
        if field == 1 {
            let (key, value) = key_value(raw.bytes("values")?, depth_left)?;
            entries.insert(key, value);
        }
    }
    Ok(entries)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0_u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) as usize & 63;
            let present = digit <= chunk.len();
            text.push(if present { DIGITS.get(index).copied().map_or('=', char::from) } else { '=' });
        }
    }
    text
}
