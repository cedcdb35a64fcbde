//! The quantile sketch of one group: sorted-on-demand exact values while they are few, an HDR histogram after.
//!
//! Pure: no Arrow, no DataFusion, no clock. What it yields depends only on the multiset of values that went in, never on
//! their order nor on how they were split over sketches that were merged.
//!
//! # Error bound
//! Up to [`EXACT_MAX`] values the answer is exact. Above, every value is known to its *bucket*: sign, exponent and the
//! top [`SUB_BUCKET_BITS`] bits of the fraction of the `f64`, which is the log-linear layout of an HDR histogram with
//! two significant digits. A bucket stands for its midpoint, so an order statistic `x` comes back within
//! `|x| * RELATIVE_ERROR_MAX`, over the whole range of normal `f64` (about 2.2e-308 to 1.8e308, either sign); zero, the
//! least and the greatest value are exact. Interpolation between two neighbours of one sign keeps the bound; between
//! neighbours of opposite sign it holds against the greater of their magnitudes.

use std::cmp::Ordering;

use hdrhistogram::Histogram;

/// How many values a group keeps as they are: 1 kB, which covers most groups of a one-minute window.
pub const EXACT_MAX: usize = 128;

/// Half a bucket's width over its lower edge, at its widest.
pub const RELATIVE_ERROR_MAX: f64 = 1.0 / 256.0;

/// Fraction bits that tell buckets of one octave apart; HDR's two significant digits need 128 buckets an octave.
const SUB_BUCKET_BITS: u32 = 7;
const SUB_BUCKETS: u64 = 1 << SUB_BUCKET_BITS;
const DROPPED_BITS: u32 = 52 - SUB_BUCKET_BITS;
const SIGNIFICANT_DIGITS: u8 = 2;

/// Octaves in one dense histogram. HDR addresses its counters from zero, so that one histogram over all of `f64` would
/// need 2^2000; bands of eight octaves (a factor of 256) cost 9 kB each, and a group seldom touches three.
const OCTAVES_PER_BAND: i32 = 8;
const BAND_VALUE_MAX: u64 = (SUB_BUCKETS << OCTAVES_PER_BAND) - 1;
const BAND_BYTES: usize = (2 * SUB_BUCKETS as usize + (OCTAVES_PER_BAND as usize - 1) * SUB_BUCKETS as usize)
    * size_of::<u64>()
    + size_of::<(i32, Histogram<u64>)>();

/// Distinct buckets above which adding to a sorted list of them costs more than to a band or two of dense counters.
const SPARSE_MAX: usize = 512;
/// The same for merging, which goes through two lists side by side.
const MERGED_SPARSE_MAX: usize = 2048;

/// Version of the encoding, its first byte.
const VERSION: u8 = 1;
const KIND_EXACT: u8 = 0;
const KIND_BUCKETS: u8 = 1;
/// Two signs of every exponent and sub-bucket, and zero.
const BUCKETS_MAX: u64 = 2 * (1 << (63 - DROPPED_BITS)) + 1;

/// The values of one group, or what is kept of them.
#[derive(Clone, Debug)]
pub struct Sketch(Form);

#[derive(Clone, Debug)]
enum Form {
    Exact(Vec<f64>),
    Buckets(Box<Buckets>),
}

#[derive(Clone, Debug)]
struct Buckets {
    min: f64,
    max: f64,
    count: u64,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    /// Buckets and their counts, in ascending order of bucket.
    Sparse(Vec<(i32, u64)>),
    /// Histograms by band, in ascending order of band; zeros are counted in the band 0.
    Dense(Vec<(i32, Histogram<u64>)>),
}

/// Why bytes are not a sketch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("expected a sketch of version {VERSION}, got version {got}; it was written by another release")]
    Version { got: u8 },
    #[error("expected sketch form {KIND_EXACT} or {KIND_BUCKETS}, got {got}")]
    Kind { got: u8 },
    #[error("expected more bytes of a sketch, got its end after {len}")]
    Truncated { len: usize },
    #[error("expected the {what} of a sketch to be in range and in order")]
    Malformed { what: &'static str },
}

impl Default for Sketch {
    fn default() -> Self {
        Sketch(Form::Exact(Vec::new()))
    }
}

impl Sketch {
    /// Adds a value. NaN and the infinities are no measurements and are left out.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        // Adding zero makes one zero of the two.
        let value = value + 0.0;
        match &mut self.0 {
            Form::Exact(values) if values.len() < EXACT_MAX => values.push(value),
            Form::Exact(values) => {
                let mut buckets = Buckets::of(values);
                buckets.add(value);
                self.0 = Form::Buckets(Box::new(buckets));
            }
            Form::Buckets(buckets) => buckets.add(value),
        }
    }

    /// Adds everything another sketch has seen.
    pub fn merge(&mut self, other: &Sketch) {
        match &other.0 {
            Form::Exact(values) => values.iter().for_each(|&value| self.add(value)),
            Form::Buckets(theirs) => match &mut self.0 {
                Form::Exact(values) => {
                    let mut merged = theirs.clone();
                    values.iter().for_each(|&value| merged.add(value));
                    self.0 = Form::Buckets(merged);
                }
                Form::Buckets(ours) => ours.merge(theirs),
            },
        }
    }

    /// Returns how many values went in.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Form::Exact(values) => values.len() as u64,
            Form::Buckets(buckets) => buckets.count,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Returns the `q`-quantile, `q` in [0, 1], `None` where there is no value.
    ///
    /// Continuous definition, as `percentile_cont` of SQL, DuckDB's `quantile_cont` and NumPy's default (type 7 of
    /// Hyndman and Fan, 1996): with `n` values, rank `q * (n - 1)`, linear between the two neighbours of a broken rank.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.count().checked_sub(1)?;
        let rank = q.clamp(0.0, 1.0) * last as f64;
        let (below, above) = (rank.floor() as u64, (rank.ceil() as u64).min(last));
        let (low, high) = match &self.0 {
            Form::Exact(values) => {
                let mut sorted = values.clone();
                sorted.sort_unstable_by(f64::total_cmp);
                (*sorted.get(below as usize)?, *sorted.get(above as usize)?)
            }
            Form::Buckets(buckets) => buckets.at_ranks(below, above),
        };
        let weight = rank - below as f64;
        // Not low + (high - low) * weight: the difference of two huge values of opposite sign is infinite.
        Some(if below == above { low } else { low * (1.0 - weight) + high * weight })
    }

    /// Returns the bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Form::Exact(values) => values.capacity() * size_of::<f64>(),
            Form::Buckets(buckets) => {
                size_of::<Buckets>()
                    + match &buckets.store {
                        Store::Sparse(list) => list.capacity() * size_of::<(i32, u64)>(),
                        Store::Dense(bands) => bands.len() * BAND_BYTES,
                    }
            }
        }
    }

    /// Appends the canonical bytes of the sketch: equal multisets of values have equal bytes.
    ///
    /// Version, form, then the sorted values as little-endian `f64`, or: least, greatest, number of buckets, and for each
    /// the distance to the previous bucket and its count, as LEB128.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match &self.0 {
            Form::Exact(values) => {
                out.push(KIND_EXACT);
                let mut sorted = values.clone();
                sorted.sort_unstable_by(f64::total_cmp);
                sorted.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
            }
            Form::Buckets(buckets) => {
                out.push(KIND_BUCKETS);
                out.extend_from_slice(&buckets.min.to_le_bytes());
                out.extend_from_slice(&buckets.max.to_le_bytes());
                let list = buckets.store.list();
                put_varint(out, list.len() as u64);
                let mut previous = -(BUCKETS_MAX as i64);
                for (bucket, count) in list {
                    put_varint(out, (i64::from(bucket) - previous) as u64);
                    put_varint(out, count);
                    previous = i64::from(bucket);
                }
            }
        }
    }

    /// Reads what [`Sketch::encode`] wrote; anything else is refused, never trusted.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader { rest: bytes, len: bytes.len() };
        match from.byte()? {
            VERSION => {}
            got => return Err(DecodeError::Version { got }),
        }
        match from.byte()? {
            KIND_EXACT => decode_exact(from),
            KIND_BUCKETS => decode_buckets(from),
            got => Err(DecodeError::Kind { got }),
        }
    }
}

impl Buckets {
    fn of(values: &[f64]) -> Self {
        let mut buckets = Buckets { min: f64::MAX, max: f64::MIN, count: 0, store: Store::Sparse(Vec::new()) };
        values.iter().for_each(|&value| buckets.add(value));
        buckets
    }

    fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.count = self.count.saturating_add(1);
        self.store.add(bucket_of(value), 1);
    }

    fn merge(&mut self, other: &Buckets) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.count = self.count.saturating_add(other.count);
        self.store.merge(&other.store);
    }

    /// Returns the values at two ranks, counted from zero, the first not above the second.
    fn at_ranks(&self, below: u64, above: u64) -> (f64, f64) {
        let (mut seen, mut low) = (0_u64, None);
        let mut high = self.max;
        self.store.each(&mut |bucket, count| {
            seen = seen.saturating_add(count);
            let value = midpoint_of(bucket).clamp(self.min, self.max);
            if low.is_none() && seen > below {
                low = Some(value);
            }
            if seen > above {
                high = value;
            }
            seen <= above
        });
        // The first and the last are known exactly.
        let low = if below == 0 { self.min } else { low.unwrap_or(self.max) };
        let high = if above + 1 == self.count { self.max } else { high };
        (if below + 1 == self.count { self.max } else { low }, if above == 0 { self.min } else { high })
    }
}

impl Store {
    fn add(&mut self, bucket: i32, count: u64) {
        match self {
            Store::Sparse(list) => {
                match list.binary_search_by_key(&bucket, |&(b, _)| b) {
                    Ok(at) => {
                        if let Some((_, n)) = list.get_mut(at) {
                            *n = n.saturating_add(count);
                        }
                    }
                    Err(at) => list.insert(at, (bucket, count)),
                }
                if list.len() > SPARSE_MAX {
                    *self = Store::Dense(dense(list));
                }
            }
            Store::Dense(bands) => add_dense(bands, bucket, count),
        }
    }

    fn merge(&mut self, other: &Store) {
        if let (Store::Sparse(ours), Store::Sparse(theirs)) = (&mut *self, other) {
            let merged = merge_lists(ours, theirs);
            *self = match merged.len() > MERGED_SPARSE_MAX {
                true => Store::Dense(dense(&merged)),
                false => Store::Sparse(merged),
            };
            return;
        }
        if let Store::Sparse(list) = self {
            *self = Store::Dense(dense(list));
        }
        other.each(&mut |bucket, count| {
            self.add(bucket, count);
            true
        });
    }

    /// Calls `visit` with every bucket and its count, ascending, until it returns false.
    fn each(&self, visit: &mut dyn FnMut(i32, u64) -> bool) {
        match self {
            Store::Sparse(list) => {
                let _ = list.iter().all(|&(bucket, count)| visit(bucket, count));
            }
            Store::Dense(bands) => {
                let _ = bands.iter().all(|(band, histogram)| each_of_band(*band, histogram, visit));
            }
        }
    }

    fn list(&self) -> Vec<(i32, u64)> {
        let mut list = Vec::new();
        self.each(&mut |bucket, count| {
            list.push((bucket, count));
            true
        });
        list
    }
}

/// Merges two ascending lists.
fn merge_lists(ours: &[(i32, u64)], theirs: &[(i32, u64)]) -> Vec<(i32, u64)> {
    let mut merged = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.iter().copied().peekable(), theirs.iter().copied().peekable());
    while let (Some(&(a, n)), Some(&(b, m))) = (ours.peek(), theirs.peek()) {
        if a <= b {
            ours.next();
        }
        if b <= a {
            theirs.next();
        }
        merged.push(match a.cmp(&b) {
            Ordering::Less => (a, n),
            Ordering::Greater => (b, m),
            Ordering::Equal => (a, n.saturating_add(m)),
        });
    }
    merged.extend(ours);
    merged.extend(theirs);
    merged
}

fn dense(list: &[(i32, u64)]) -> Vec<(i32, Histogram<u64>)> {
    let mut bands = Vec::new();
    list.iter().for_each(|&(bucket, count)| add_dense(&mut bands, bucket, count));
    bands
}

fn add_dense(bands: &mut Vec<(i32, Histogram<u64>)>, bucket: i32, count: u64) {
    let (band, value) = place_of(bucket);
    let at = match bands.binary_search_by_key(&band, |(b, _)| *b) {
        Ok(at) => at,
        Err(at) => {
            let histogram = Histogram::new_with_bounds(1, BAND_VALUE_MAX, SIGNIFICANT_DIGITS)
                .expect("the bounds of a band are constants within what HDR can represent");
            bands.insert(at, (band, histogram));
            at
        }
    };
    if let Some((_, histogram)) = bands.get_mut(at) {
        histogram.saturating_record_n(value, count);
    }
}

fn each_of_band(band: i32, histogram: &Histogram<u64>, visit: &mut dyn FnMut(i32, u64) -> bool) -> bool {
    let one = |value: u64, count: u64, visit: &mut dyn FnMut(i32, u64) -> bool| visit(bucket_at(band, value), count);
    if band >= 0 {
        return histogram.iter_recorded().all(|at| one(at.value_iterated_to(), at.count_at_value(), visit));
    }
    // Magnitudes of negative values ascend as the values descend.
    let mut recorded: Vec<(u64, u64)> =
        histogram.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())).collect();
    recorded.reverse();
    recorded.into_iter().all(|(value, count)| one(value, count, visit))
}

/// Returns the bucket of a finite value; buckets are ordered as their values are, zero is bucket 0.
fn bucket_of(value: f64) -> i32 {
    if value == 0.0 {
        return 0;
    }
    let magnitude = (value.abs().to_bits() >> DROPPED_BITS) as i32 + 1;
    if value < 0.0 { -magnitude } else { magnitude }
}

/// Returns the middle of a bucket.
fn midpoint_of(bucket: i32) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let low = u64::from(bucket.unsigned_abs() - 1) << DROPPED_BITS;
    let middle = f64::from_bits(low | (1 << (DROPPED_BITS - 1)));
    if bucket < 0 { -middle } else { middle }
}

/// Returns where a bucket is counted: its band, negative for negative values, and the integer that stands for it there,
/// in `[SUB_BUCKETS, BAND_VALUE_MAX]`, where HDR's counters are one for one with our buckets.
fn place_of(bucket: i32) -> (i32, u64) {
    if bucket == 0 {
        return (0, 1);
    }
    let index = bucket.unsigned_abs() - 1;
    let octave = (index >> SUB_BUCKET_BITS) as i32;
    let sub = u64::from(index) & (SUB_BUCKETS - 1);
    let band = octave / OCTAVES_PER_BAND + 1;
    (band * bucket.signum(), (sub | SUB_BUCKETS) << (octave % OCTAVES_PER_BAND))
}

/// The inverse of [`place_of`], for any integer of the same HDR counter.
fn bucket_at(band: i32, value: u64) -> i32 {
    if band == 0 {
        return 0;
    }
    let octave_in_band = value.ilog2().saturating_sub(SUB_BUCKET_BITS);
    let sub = ((value >> octave_in_band) & (SUB_BUCKETS - 1)) as i32;
    let octave = (band.abs() - 1) * OCTAVES_PER_BAND + octave_in_band as i32;
    ((octave << SUB_BUCKET_BITS) + sub + 1) * band.signum()
}

fn decode_exact(mut from: Reader<'_>) -> Result<Sketch, DecodeError> {
    if from.rest.len() > EXACT_MAX * size_of::<f64>() {
        return Err(DecodeError::Malformed { what: "number of values" });
    }
    let mut sketch = Sketch(Form::Exact(Vec::with_capacity(from.rest.len() / size_of::<f64>())));
    while !from.rest.is_empty() {
        sketch.add(from.finite()?);
    }
    Ok(sketch)
}

fn decode_buckets(mut from: Reader<'_>) -> Result<Sketch, DecodeError> {
    let (min, max) = (from.finite()?, from.finite()?);
    let len = from.varint()?;
    if min > max || len == 0 || len > BUCKETS_MAX {
        return Err(DecodeError::Malformed { what: "bounds" });
    }
    let (mut list, mut count) = (Vec::with_capacity(len.min(from.rest.len() as u64) as usize), 0u64);
    let (first, last) = (i64::from(bucket_of(min)), i64::from(bucket_of(max)));
    let mut previous = -(BUCKETS_MAX as i64);
    for _ in 0..len {
        let (step, times) = (from.varint()?, from.varint()?);
        let bucket = i64::try_from(step).ok().and_then(|step| previous.checked_add(step)).unwrap_or(i64::MAX);
        if bucket <= previous || bucket < first || bucket > last || times == 0 {
            return Err(DecodeError::Malformed { what: "buckets" });
        }
        list.push((bucket as i32, times));
        count = count.saturating_add(times);
        previous = bucket;
    }
    if !from.rest.is_empty() || count <= EXACT_MAX as u64 {
        return Err(DecodeError::Malformed { what: "length" });
    }
    Ok(Sketch(Form::Buckets(Box::new(Buckets { min, max, count, store: Store::Sparse(list) }))))
}

struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated { len: self.len })?;
        self.rest = rest;
        Ok(byte)
    }

    fn finite(&mut self) -> Result<f64, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { len: self.len })?;
        self.rest = rest;
        let value = f64::from_le_bytes(*bytes);
        if value.is_finite() { Ok(value) } else { Err(DecodeError::Malformed { what: "values" }) }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed { what: "numbers" })
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests;
