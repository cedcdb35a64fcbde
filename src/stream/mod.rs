//! Continuous queries: watermarks, panes, partial and final aggregation.
