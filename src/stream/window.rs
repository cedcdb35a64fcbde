//! How a view cuts time: windows of equal width, or sessions of activity. Holds the arithmetic and its reading from SQL;
//! holds no rows.

use std::ops::ControlFlow;
use std::time::Duration;

use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Query, SetExpr, TableFactor,
    Value, visit_expressions,
};

use crate::model::time::{EventTime, Span, micros};

/// A session that never pauses is cut where it has lasted this long.
const LONGEST_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Closed sessions are emitted this many times per gap, so that closing costs little however many are open.
const CLOSINGS_PER_GAP: i64 = 10;
const CLOSING_STEP_MIN: i64 = 1_000_000;

/// How rows are put into windows by their event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Windows `width` wide, half-open, one starting every `slide`, aligned to the Unix epoch. Tumbling where the two
    /// are equal.
    Hop { width: Duration, slide: Duration },
    /// Rows of one key while the pause between neighbours is at most `gap`.
    Session { gap: Duration, longest: Duration },
}

impl Window {
    /// Returns how far apart in event time emissions are.
    pub fn slide(&self) -> Duration {
        match self {
            Window::Hop { slide, .. } => *slide,
            Window::Session { .. } => Duration::from_micros(self.closing_step() as u64),
        }
    }

    /// Returns how far before its end the oldest row lies that can bear on a window.
    pub fn reach(&self) -> Duration {
        match self {
            Window::Hop { width, .. } => *width,
            // The last piece is shorter than two cells; whether it was cut is told by the cell before it.
            Window::Session { gap, .. } => Duration::from_micros((3 * self.cell()) as u64) + *gap,
        }
    }

    /// Returns the windows of equal width that hold a time, in order; none of sessions, which depend on their rows.
    pub fn holding(&self, ts: EventTime) -> impl Iterator<Item = Span> + use<> {
        let (width, slide) = match *self {
            Window::Hop { width, slide } => (micros(width), micros(slide)),
            Window::Session { .. } => (0, 1),
        };
        let last = ts.as_micros().div_euclid(slide);
        let first = ts.as_micros().saturating_sub(width).div_euclid(slide) + 1;
        let at = move |start: i64| Span::new(EventTime::from_micros(start), EventTime::from_micros(start + width));
        (first..=last).filter(move |_| width > 0).map(move |number| at(number * slide))
    }

    /// Returns the pause that ends a session, microseconds; zero for windows of equal width.
    pub(super) fn gap(&self) -> i64 {
        match self {
            Window::Hop { .. } => 0,
            Window::Session { gap, .. } => micros(*gap),
        }
    }

    /// Returns the emission that ends at a time.
    pub(super) fn ending(&self, end: EventTime) -> Span {
        match self {
            Window::Hop { width, .. } => Span::new(end - *width, end),
            Window::Session { .. } => Span::new(end - self.slide(), end),
        }
    }

    /// Returns the emission that brings the rows with this `window_end`.
    pub fn emission(&self, window_end: EventTime) -> Span {
        match self {
            Window::Hop { .. } => self.ending(window_end),
            Window::Session { .. } => {
                let step = self.closing_step();
                self.ending(EventTime::from_micros((window_end.as_micros().div_euclid(step) + 1) * step))
            }
        }
    }

    /// Returns the grid on which closed sessions are emitted, microseconds.
    pub(super) fn closing_step(&self) -> i64 {
        match self {
            Window::Hop { slide, .. } => micros(*slide),
            Window::Session { gap, .. } => (micros(*gap) / CLOSINGS_PER_GAP).max(CLOSING_STEP_MIN.min(micros(*gap))),
        }
    }

    /// Returns the grid on which an endless session is cut, microseconds: half the longest, in whole gaps.
    pub(super) fn cell(&self) -> i64 {
        match self {
            Window::Hop { width, .. } => micros(*width),
            Window::Session { gap, longest } => {
                let gap = micros(*gap);
                gap * (micros(*longest) / 2 + gap - 1).div_euclid(gap).max(1)
            }
        }
    }
}

/// A window function found in a query's GROUP BY.
pub(super) struct Found {
    pub window: Window,
    /// The column it is over.
    pub on: String,
}

/// Finds the one window function among the group keys, in the query or in a subquery it selects from, and puts the
/// window's two bounds in its place; none where there is no such function.
pub(super) fn take(query: &mut Query) -> Result<Option<Found>, String> {
    let found = take_from(query)?;
    if mentions_window(query) {
        return Err(
            "tumble, hop and session belong in GROUP BY alone (hint: select window_start, window_end)".to_owned()
        );
    }
    Ok(found)
}

fn take_from(query: &mut Query) -> Result<Option<Found>, String> {
    let mut found = None;
    let mut note = |one: Option<Found>| match (one, &found) {
        (None, _) => Ok(()),
        (Some(_), Some(_)) => Err("the query has more than one window".to_owned()),
        (Some(one), None) => {
            found = Some(one);
            Ok(())
        }
    };
    for table in query.with.iter_mut().flat_map(|with| &mut with.cte_tables) {
        note(take_from(&mut table.query)?)?;
    }
    let select = match query.body.as_mut() {
        SetExpr::Select(select) => select,
        SetExpr::Query(query) => return take_from(query),
        _ => return Err("expected a plain SELECT (hint: UNION and VALUES cannot be continuous)".to_owned()),
    };
    for table in &mut select.from {
        for relation in
            std::iter::once(&mut table.relation).chain(table.joins.iter_mut().map(|join| &mut join.relation))
        {
            if let TableFactor::Derived { subquery, .. } = relation {
                note(take_from(subquery)?)?;
            }
        }
    }
    if let GroupByExpr::Expressions(keys, _) = &mut select.group_by {
        let mut rewritten = Vec::with_capacity(keys.len() + 1);
        for key in keys.drain(..) {
            match read(&key)? {
                None => rewritten.push(key),
                Some(one) => {
                    note(Some(one))?;
                    rewritten.push(Expr::Identifier(Ident::new("window_start")));
                    rewritten.push(Expr::Identifier(Ident::new("window_end")));
                }
            }
        }
        *keys = rewritten;
    }
    Ok(found)
}

fn read(expr: &Expr) -> Result<Option<Found>, String> {
    let Expr::Function(function) = expr else { return Ok(None) };
    let name = function.name.to_string().to_ascii_lowercase();
    if !matches!(name.as_str(), "tumble" | "hop" | "session") {
        return Ok(None);
    }
    let arguments = arguments(function);
    let Some((on, intervals)) = arguments.split_first().filter(|(_, intervals)| !intervals.is_empty()) else {
        return Err(format!("expected {name}(ts, INTERVAL '…'), got {function}"));
    };
    let on = match on {
        Expr::Identifier(on) => on.value.clone(),
        Expr::CompoundIdentifier(parts) => parts.last().map(|on| on.value.clone()).unwrap_or_default(),
        _ => return Err(format!("expected {name}(ts, INTERVAL '…'), got {function}")),
    };
    let lengths = intervals.iter().map(interval).collect::<Result<Vec<_>, _>>()?;
    if lengths.iter().any(Duration::is_zero) {
        return Err(format!("expected lengths above zero, got {function}"));
    }
    let window = match (name.as_str(), lengths.as_slice()) {
        ("tumble", &[width]) => Window::Hop { width, slide: width },
        ("hop", &[slide, width]) if slide <= width => Window::Hop { width, slide },
        ("hop", &[..]) if lengths.len() == 2 => {
            return Err(format!("expected a slide at most the width, got {function}"));
        }
        ("session", &[gap]) => Window::Session { gap, longest: LONGEST_DEFAULT.max(gap * 2) },
        ("session", &[gap, longest]) if longest >= gap => Window::Session { gap, longest },
        _ => {
            return Err(format!(
                "expected tumble(ts, width), hop(ts, slide, width) or session(ts, gap[, longest]), got {function}"
            ));
        }
    };
    Ok(Some(Found { window, on }))
}

fn arguments(function: &Function) -> Vec<Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    let unnamed = list.args.iter().filter_map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    unnamed.collect()
}

fn interval(expr: &Expr) -> Result<Duration, String> {
    let Expr::Interval(interval) = expr else {
        return Err(format!("expected INTERVAL '1 minute' or the like, got {expr}"));
    };
    let number = text_of(&interval.value).ok_or_else(|| format!("expected a text in {expr}"))?;
    let unit = interval.leading_field.as_ref().map(|unit| unit.to_string().to_ascii_lowercase());
    let length = duration(&format!("{number} {}", unit.unwrap_or_default()))?;
    match length.subsec_nanos() % 1_000_000 {
        0 => Ok(length),
        _ => Err(format!("expected whole milliseconds, got {expr}")),
    }
}

pub(super) fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            Value::Number(number, _) => Some(number.clone()),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|e| format!("expected a duration like '10s' or '5 minutes', got {text:?}: {e}"))
}

fn mentions_window(query: &Query) -> bool {
    let found = visit_expressions(query, |expr| match expr {
        Expr::Function(f)
            if matches!(f.name.to_string().to_ascii_lowercase().as_str(), "tumble" | "hop" | "session") =>
        {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_emitted_on_a_grid_after_their_end() {
        let window = Window::Session { gap: Duration::from_secs(100), longest: Duration::from_secs(1000) };
        assert_eq!((window.slide(), window.cell()), (Duration::from_secs(10), 500_000_000));
        let at = |seconds: i64| EventTime::from_micros(seconds * 1_000_000);
        assert_eq!(window.emission(at(199)), Span::new(at(190), at(200)));
        assert_eq!(window.emission(at(200)), Span::new(at(200), at(210)), "a row at the very end would still join");
    }
}
