//! `time_bucket(width, ts [, origin])`: the start of the bucket of a width that holds a time.
//!
//! Another name for `date_bin` with another origin: buckets of weeks begin on a Monday, as people expect of them, where
//! `date_bin` counts weeks from the Thursday on which 1970 began. `date_bin` does the work.

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::{Result, ScalarValue, internal_err, plan_err};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::args;

/// 2000-01-03, a Monday, in nanoseconds.
const MONDAY: i64 = 946_857_600_000_000_000;
/// 2000-01-01, where months and years begin.
const NEW_YEAR: i64 = 946_684_800_000_000_000;

#[derive(Debug, PartialEq, Eq, Hash)]
pub struct TimeBucket {
    signature: Signature,
}

impl Default for TimeBucket {
    fn default() -> Self {
        TimeBucket { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        args::arity("time_bucket(width, ts [, origin])", given, 2..=3)?;
        let [width, ts, ..] = given else { return internal_err!("expected two arguments") };
        // A parameter is of no type until it is known.
        if !(width.is_null() || width.is_string() || matches!(width, DataType::Interval(_))) {
            return plan_err!(
                "time_bucket expects an interval as width, got {width}; write it as INTERVAL '5 minutes'"
            );
        }
        let ts = args::time(self.name(), ts)?;
        let DataType::Timestamp(_, zone) = &ts else { return internal_err!("expected a timestamp, got {ts}") };
        let origin = DataType::Timestamp(TimeUnit::Nanosecond, zone.clone());
        let all = [DataType::Interval(IntervalUnit::MonthDayNano), ts, origin];
        Ok(all.into_iter().take(given.len()).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        match given {
            [_, ts, ..] => Ok(ts.clone()),
            _ => plan_err!("expected time_bucket(width, ts [, origin]), got {} arguments", given.len()),
        }
    }

    /// As `date_bin` has it: buckets come in the order of their times.
    fn output_ordering(&self, given: &[ExprProperties]) -> Result<SortProperties> {
        Ok(match given {
            [width, ts, rest @ ..] => {
                let is_constant = |one: &ExprProperties| one.sort_properties == SortProperties::Singleton;
                let ordered = is_constant(width) && rest.iter().all(is_constant);
                if ordered { ts.sort_properties } else { SortProperties::Unordered }
            }
            _ => SortProperties::Unordered,
        })
    }

    fn invoke_with_args(&self, mut given: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let [width, ts] = given.args.as_slice() {
            let ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(width))) = width else {
                return plan_err!("time_bucket expects a literal interval as width; write it as INTERVAL '5 minutes'");
            };
            let DataType::Timestamp(_, zone) = ts.data_type() else { return internal_err!("expected a timestamp") };
            let origin = if width.months == 0 { MONDAY } else { NEW_YEAR };
            given.args.push(ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(Some(origin), zone)));
        }
        date_bin().invoke_with_args(given)
    }
}
