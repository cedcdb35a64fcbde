//! DataFusion sessions: functions, limits, result formats.
