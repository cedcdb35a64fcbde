//! Content negotiation: which of the media types we offer a client's `Accept` header likes best (RFC 9110, 12.5.1).

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// Most ranges of a header that are read; what follows is ignored.
const RANGES_MAX: usize = 32;

/// Returns the first of the best-liked among `offers`, none where the client refuses all of them.
///
/// A client without the header takes anything, hence gets the first offer. Parameters other than `q` are not compared.
pub(super) fn best<'a, T>(headers: &HeaderMap, offers: &'a [T], media_type: impl Fn(&T) -> &str) -> Option<&'a T> {
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return offers.first();
    }
    let mut best: Option<(&T, u16)> = None;
    for offer in offers {
        let weight = weight(&ranges, media_type(offer));
        if weight > best.map_or(0, |(_, highest)| highest) {
            best = Some((offer, weight));
        }
    }
    best.map(|(offer, _)| offer)
}

/// One range of the header, such as `text/*;q=0.5`, its weight in thousandths.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    kind: String,
    subtype: String,
    weight: u16,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let q =
            parts.filter_map(|parameter| parameter.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("q"));
        let weight = q.map_or(Some(1.0), |(_, q)| q.trim().parse::<f64>().ok()).unwrap_or(0.0);
        let weight = (weight.clamp(0.0, 1.0) * 1000.0) as u16;
        Some(Range { kind: kind.to_ascii_lowercase(), subtype: subtype.to_ascii_lowercase(), weight })
    }

    /// Returns how exactly the range names the type; none where it does not cover it.
    fn exactness(&self, kind: &str, subtype: &str) -> Option<u8> {
        match (self.kind == kind, self.subtype == subtype) {
            (true, true) => Some(2),
            (true, false) if self.subtype == "*" => Some(1),
            _ if self.kind == "*" && self.subtype == "*" => Some(0),
            _ => None,
        }
    }
}

fn ranges(headers: &HeaderMap) -> Vec<Range> {
    let texts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).take(RANGES_MAX).filter_map(Range::parse).collect()
}

/// Returns the weight that the most exact range gives the type; 0 where none covers it.
fn weight(ranges: &[Range], media_type: &str) -> u16 {
    let essence = media_type.split(';').next().unwrap_or(media_type).trim();
    let (kind, subtype) = essence.split_once('/').unwrap_or((essence, ""));
    let covering = ranges.iter().filter_map(|range| Some((range.exactness(kind, subtype)?, range.weight)));
    // The same type may stand in the header several times, by version; the highest weight of the most exact counts.
    covering.max().map_or(0, |(_, weight)| weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERS: [&str; 3] = ["text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0", "text/csv"];

    fn chosen(accept: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        best(&headers, &OFFERS, |offer| offer).copied()
    }

    #[test]
    fn the_highest_weight_wins_and_the_first_offer_among_equals() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;\
                          q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        let cases = [
            (prometheus, Some(OFFERS[1])),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Some(OFFERS[0])),
            ("application/openmetrics-text", Some(OFFERS[1])),
            ("*/*", Some(OFFERS[0])),
            ("text/*;q=0.2, text/csv", Some(OFFERS[2])),
            ("TEXT/CSV;Q=0.3", Some(OFFERS[2])),
            ("text/plain;q=0, */*", Some(OFFERS[1])),
            ("image/png", None),
            ("*/*;q=0", None),
            ("text/csv;q=loud", None),
        ];
        for (accept, expected) in cases {
            assert_eq!(chosen(accept), expected, "{accept}");
        }
    }

    #[test]
    fn without_a_readable_header_the_first_offer_is_made() {
        assert_eq!(best(&HeaderMap::new(), &OFFERS, |offer| offer), Some(&OFFERS[0]));
        assert_eq!(chosen("nonsense"), Some(OFFERS[0]));
    }
}
