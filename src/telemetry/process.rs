//! The process itself as Linux accounts for it: memory, processor time, start, open files. Read from `/proc` at each scrape.
//!
//! Where `/proc` is absent or reads differently, the values are left out; they are never guessed.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Collects the `process_*` metrics that exporters of all languages share.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(stat) = Stat::read() {
            let mut put = |name, help, unit, metric: &dyn EncodeMetric| {
                metric.encode(encoder.encode_descriptor(name, help, Some(unit), metric.metric_type())?)
            };
            let cpu = ConstCounter::new(stat.cpu_seconds);
            put("process_cpu", "User and system processor time spent.", &Unit::Seconds, &cpu)?;
            let resident = ConstGauge::new(stat.resident_bytes);
            put("process_resident_memory", "Memory that is resident.", &Unit::Bytes, &resident)?;
            if let Some(start) = stat.start_seconds {
                let help = "Start of the process since the Unix epoch.";
                put("process_start_time", help, &Unit::Seconds, &ConstGauge::new(start))?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let gauge = ConstGauge::new(i64::try_from(open.count()).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor("process_open_fds", "Open files.", None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// What `/proc/self/stat` says, in base units.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    resident_bytes: u64,
    start_seconds: Option<f64>,
}

impl Stat {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text));
        Stat::parse(&stat, boot, sysconf(libc::_SC_CLK_TCK)?, sysconf(libc::_SC_PAGESIZE)?)
    }

    /// Reads the line of proc(5): `pid (comm) state …`. The command may hold spaces and brackets, so fields are counted
    /// from the last closing one; the first after it is field 3.
    fn parse(stat: &str, boot_seconds: Option<f64>, ticks_per_second: u64, page_bytes: u64) -> Option<Self> {
        let (_, after_command) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = after_command.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
        let (user, system, start, resident_pages) = (field(14)?, field(15)?, field(22)?, field(24)?);
        Some(Stat {
            cpu_seconds: seconds(user + system),
            resident_bytes: resident_pages.saturating_mul(page_bytes),
            start_seconds: boot_seconds.map(|boot| boot + seconds(start)),
        })
    }
}

/// Returns the `btime` of `/proc/stat`: when the machine started, in seconds since the Unix epoch.
fn boot_seconds(proc_stat: &str) -> Option<f64> {
    proc_stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Returns a positive system constant.
fn sysconf(name: libc::c_int) -> Option<u64> {
    // SAFETY: sysconf takes an integer, touches no memory of ours and may be called from any thread.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|&value| value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 300 9000000 25 18446744073709551615";
        let parsed = Stat::parse(stat, Some(1000.0), 100, 4096);
        let expected = Stat { cpu_seconds: 2.0, resident_bytes: 25 * 4096, start_seconds: Some(1003.0) };
        assert_eq!(parsed, Some(expected));
    }

    #[test]
    fn a_short_line_gives_nothing() {
        for stat in ["", "7 (a)", "7 (a) S 1 2 3", "no brackets at all"] {
            assert_eq!(Stat::parse(stat, None, 100, 4096), None, "{stat:?}");
        }
        assert_eq!(boot_seconds("cpu 1 2\nbtime 12\n"), Some(12.0));
        assert_eq!(boot_seconds("cpu 1 2\n"), None);
    }
}
