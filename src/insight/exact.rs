//! Floating point numbers in saved state, bit for bit: as hex digits of their IEEE 754 form, in one string per field.
//!
//! JSON's decimal form is not enough here. serde_json reads a float correctly only with its `float_roundtrip` feature,
//! and writes NaN as null; a detector that comes back one bit off continues on another path. Must never round.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serializer};

/// A number, or a run of numbers, that is written as hex digits.
pub trait Exact: Sized {
    fn write(&self, out: &mut String);

    /// Reads back what [`Exact::write`] wrote; `None` where the text is something else.
    fn read(text: &str) -> Option<Self>;
}

/// For `#[serde(with = "exact")]`.
pub fn serialize<T: Exact, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::new();
    value.write(&mut text);
    serializer.serialize_str(&text)
}

/// For `#[serde(with = "exact")]`.
pub fn deserialize<'de, T: Exact, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    T::read(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("expected floats as hex digits, got {} bytes of something else", text.len()))
    })
}

impl Exact for f64 {
    fn write(&self, out: &mut String) {
        use std::fmt::Write;
        write!(out, "{:016x}", self.to_bits()).expect("writing to a String cannot fail");
    }

    fn read(text: &str) -> Option<Self> {
        digits(text, 16).map(f64::from_bits)
    }
}

impl Exact for f32 {
    fn write(&self, out: &mut String) {
        use std::fmt::Write;
        write!(out, "{:08x}", self.to_bits()).expect("writing to a String cannot fail");
    }

    fn read(text: &str) -> Option<Self> {
        digits(text, 8).and_then(|bits| u32::try_from(bits).ok()).map(f32::from_bits)
    }
}

impl Exact for Vec<f64> {
    fn write(&self, out: &mut String) {
        self.iter().for_each(|number| number.write(out));
    }

    fn read(text: &str) -> Option<Self> {
        run(text, 16)
    }
}

impl Exact for VecDeque<f64> {
    fn write(&self, out: &mut String) {
        self.iter().for_each(|number| number.write(out));
    }

    fn read(text: &str) -> Option<Self> {
        run(text, 16).map(|numbers: Vec<f64>| numbers.into())
    }
}

impl<const N: usize> Exact for [f64; N] {
    fn write(&self, out: &mut String) {
        self.iter().for_each(|number| number.write(out));
    }

    fn read(text: &str) -> Option<Self> {
        run::<f64>(text, 16)?.try_into().ok()
    }
}

impl<const N: usize> Exact for [f32; N] {
    fn write(&self, out: &mut String) {
        self.iter().for_each(|number| number.write(out));
    }

    fn read(text: &str) -> Option<Self> {
        run::<f32>(text, 8)?.try_into().ok()
    }
}

fn run<T: Exact>(text: &str, width: usize) -> Option<Vec<T>> {
    if !text.is_ascii() || !text.len().is_multiple_of(width) {
        return None;
    }
    (0..text.len()).step_by(width).map(|at| T::read(text.get(at..at + width)?)).collect()
}

fn digits(text: &str, width: usize) -> Option<u64> {
    let plain = text.len() == width && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_comes_back() {
        let numbers = vec![0.1 + 0.2, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 3.0];
        let mut text = String::new();
        numbers.write(&mut text);
        let back = Vec::<f64>::read(&text).unwrap();
        assert_eq!(
            numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>(),
            back.iter().map(|n| n.to_bits()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn other_text_is_refused() {
        assert_eq!(f64::read("+123456789abcdef"), None);
        assert_eq!(f64::read("12"), None);
        assert_eq!(Vec::<f64>::read("0123456789abcdef0"), None);
        assert_eq!(<[f32; 2]>::read("00000000"), None);
        assert_eq!(Vec::<f64>::read("ééééééèè"), None);
    }
}
