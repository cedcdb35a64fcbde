//! The protobuf wire format, read in place: fields of a message as numbers and slices of the payload.
//!
//! Written out rather than generated, because generated types own every string of every point: a series seen before
//! needs none of them, and a few bytes of payload could claim a hundred times their size in memory.

use crate::ingest::intake::clip;
use crate::model::reject::{Reason, Reject};

/// The value of one field, by its wire type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// Returns a message, string, byte string or packed list as its bytes.
    pub fn bytes(self, field: &str) -> Result<&'a [u8], Reject> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(other.wrong(field, "length-delimited")),
        }
    }

    pub fn text(self, field: &str) -> Result<&'a str, Reject> {
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes).map_err(|_| {
            let got = clip(&String::from_utf8_lossy(bytes));
            Reject::new(Reason::Encoding, format!("{field}: expected UTF-8 text, got {got:?}"))
        })
    }

    pub fn varint(self, field: &str) -> Result<u64, Reject> {
        match self {
            Value::Varint(n) => Ok(n),
            other => Err(other.wrong(field, "varint")),
        }
    }

    /// Returns a `sint32`.
    pub fn zigzag(self, field: &str) -> Result<i32, Reject> {
        let n = self.varint(field)? as u32;
        Ok((n >> 1) as i32 ^ -((n & 1) as i32))
    }

    pub fn fixed64(self, field: &str) -> Result<u64, Reject> {
        match self {
            Value::Fixed64(n) => Ok(n),
            other => Err(other.wrong(field, "64-bit")),
        }
    }

    pub fn double(self, field: &str) -> Result<f64, Reject> {
        self.fixed64(field).map(f64::from_bits)
    }

    /// Appends the numbers of a repeated fixed 64-bit field, packed or not.
    pub fn fixed64s(self, field: &str, into: &mut Vec<u64>) -> Result<(), Reject> {
        if let Value::Fixed64(n) = self {
            into.push(n);
            return Ok(());
        }
        let (words, rest) = self.bytes(field)?.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(syntax(&format!("{field}: expected packed 64-bit numbers"), "a length not divisible by 8"));
        }
        into.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        Ok(())
    }

    /// Appends the numbers of a repeated varint field, packed or not.
    pub fn varints(self, field: &str, into: &mut Vec<u64>) -> Result<(), Reject> {
        if let Value::Varint(n) = self {
            into.push(n);
            return Ok(());
        }
        let mut rest = self.bytes(field)?;
        while !rest.is_empty() {
            into.push(varint(&mut rest)?);
        }
        Ok(())
    }

    fn wrong(self, field: &str, expected: &str) -> Reject {
        let got = match self {
            Value::Varint(_) => "varint",
            Value::Fixed64(_) => "64-bit",
            Value::Bytes(_) => "length-delimited",
            Value::Fixed32(_) => "32-bit",
        };
        Reject::new(Reason::Type, format!("{field}: expected wire type {expected}, got {got}"))
    }
}

/// The fields of one message, in the order in which they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Fields { rest: message }
    }

    /// Returns the number and value of the next field; `None` at the end of the message.
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Reject> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or_else(|| syntax("expected a protobuf field number", &(key >> 3).to_string()))?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = varint(&mut self.rest)?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(syntax("expected protobuf wire type 0, 1, 2 or 5", &other.to_string())),
        };
        Ok(Some((number, value)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reject> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| ended(N as u64, self.rest.len()))?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Reject> {
        let left = self.rest.len();
        let at = usize::try_from(len).map_err(|_| ended(len, left))?;
        let (head, rest) = self.rest.split_at_checked(at).ok_or_else(|| ended(len, left))?;
        self.rest = rest;
        Ok(head)
    }
}

fn varint(rest: &mut &[u8]) -> Result<u64, Reject> {
    let mut n = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or_else(|| ended(1, 0))?;
        *rest = tail;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(n);
        }
    }
    Err(syntax("expected a protobuf varint of at most 10 bytes", "more"))
}

fn ended(wanted: u64, left: usize) -> Reject {
    syntax(&format!("expected {wanted} more bytes of protobuf"), &format!("{left}; is the record cut off?"))
}

fn syntax(expected: &str, got: &str) -> Reject {
    Reject::new(Reason::Syntax, format!("{expected}, got {got}"))
}
