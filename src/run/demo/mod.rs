//! `bellwether demo`: the real service on a simulated fleet, with a broker in the same process; and an account of what
//! was injected beside what was found.

pub mod account;
pub mod fleet;
mod screen;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::service::{self, Hooks};
use super::settings::Settings;
use crate::config;
use crate::kafka::broker::EmbeddedBroker;
use crate::kafka::producer::Producer;
use crate::model::time::EventTime;
use crate::serve::Bound;
use crate::telemetry::Telemetry;
use crate::telemetry::logs::{LogFormat, init_logs};
use account::Account;
use fleet::{Fleet, Shape};
use screen::Screen;

/// Event time at which the fleet starts: fixed, so that one seed is one run, down to the ids.
const START: &str = "2026-01-05T08:00:00Z";
/// How long the story is, in event time: quiet at first, then each kind of incident once.
const STORY: Duration = Duration::from_secs(75 * 60);
/// How many seconds of event time pass in one second, unless `--seconds` says how long the story may take.
const SPEED: f64 = 60.0;
/// Requests sampled per service and second: enough that a minute of a replica is no guess.
const REQUESTS_PER_SECOND: f64 = 12.0;
/// Event time sent in one go.
const STEP: Duration = Duration::from_secs(2);
/// The fleet sends this much ahead of what is on its way through at most, in event time.
const LEAD_MAX: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    /// End after about this many seconds, with the whole story told in that time; without it, run until Ctrl-C.
    #[arg(long, value_parser = clap::value_parser!(u64).range(10..))]
    seconds: Option<u64>,
    /// The seed of the fleet: the same seed is the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep what is stored in this folder; without it everything is gone at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write what was injected, found and decided to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where to serve HTTP.
    #[arg(long, default_value = "127.0.0.1:9464", value_name = "ADDRESS")]
    listen: String,
    /// Where to serve clients of Postgres; where this is taken, any free port.
    #[arg(long, default_value = "127.0.0.1:5433", value_name = "ADDRESS")]
    postgres: SocketAddr,
}

/// Runs the demo.
pub async fn run(options: Options) -> Result<()> {
    let level =
        std::env::var("BELLWETHER_LOG").unwrap_or_else(|_| "error,rdkafka::consumer::base_consumer=off".to_owned());
    init_logs(&level, LogFormat::Text)?;
    let start = EventTime::parse_rfc3339(START).context("the start is a constant time")?;
    let shape = Shape { requests_per_second: REQUESTS_PER_SECOND, ..Shape::default() };
    let fleet = Fleet::new(options.seed, shape, start);
    let broker = EmbeddedBroker::start(&TOPICS.map(|topic| (topic, 1)))?;
    let folder = Folder::of(options.data.as_deref())?;
    let loaded = config::load(None, environment(&broker, &folder, &options, &fleet).into_iter())?;
    let settings = Settings::of(&loaded)?;

    let account = Arc::new(Mutex::new(Account::new(start)));
    let screen = Arc::new(Screen::new(STORY, options.seconds));
    let on_tick = {
        let (account, screen) = (account.clone(), screen.clone());
        Box::new(move |tick: &super::closed_loop::Tick| {
            let news = account.lock().unwrap_or_else(PoisonError::into_inner).take(tick);
            screen.tell(start, tick.at, &news);
        })
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = Arc::new(AtomicBool::new(false));
    let sender = {
        let (settings, account, screen, ended) =
            (settings.kafka.clone(), account.clone(), screen.clone(), ended.clone());
        let speed = options.seconds.map_or(SPEED, |seconds| STORY.as_secs_f64() / (seconds as f64));
        let pace = Pace { speed, ends: options.seconds.is_some(), start };
        std::thread::Builder::new().name("fleet".to_owned()).spawn(move || {
            let sent = play(fleet, &settings, pace, &account, &screen, &ended);
            let _ = stop.send(());
            sent
        })?
    };
    let shutdown = async {
        tokio::select! {
            _ = stopped => {}
            () = super::interrupted() => {}
        }
    };
    let served = {
        let screen = screen.clone();
        let bound = Box::new(move |bound: &Bound| screen.serving(bound.address(), bound.postgres()));
        service::run(settings, Telemetry::default(), Hooks { on_tick, bound, reread: None }, shutdown).await
    };
    ended.store(true, Ordering::SeqCst);
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the fleet's thread panicked"))?;
    served?;
    sent?;
    let account = account.lock().unwrap_or_else(PoisonError::into_inner);
    screen.finish(&account, options.data.as_deref());
    if let Some(path) = &options.report {
        let report = serde_json::to_vec_pretty(&account.report())?;
        std::fs::write(path, report).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

const TOPICS: [&str; 5] = [fleet::METRICS, fleet::EVENTS, fleet::CLOUDEVENTS, fleet::OTLP, fleet::INFLUX];

/// The folder of the demo's store: the user's, or one that goes with the demo.
struct Folder {
    path: PathBuf,
    ours: bool,
}

impl Folder {
    fn of(given: Option<&std::path::Path>) -> Result<Folder> {
        match given {
            Some(path) => {
                let empty = std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
                anyhow::ensure!(empty, "{} is not empty (hint: the demo wants a folder of its own)", path.display());
                Ok(Folder { path: path.to_owned(), ours: false })
            }
            None => {
                let path = std::env::temp_dir().join(format!("bellwether-demo-{}", std::process::id()));
                Ok(Folder { path, ours: true })
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Returns an address to listen on: the one that is wished, or where it is taken one with another port.
fn free(wished: SocketAddr) -> SocketAddr {
    match std::net::TcpListener::bind(wished) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => SocketAddr::new(wished.ip(), 0),
        _ => wished,
    }
}

/// The demo's configuration, said the way a user would say it in the environment.
fn environment(broker: &EmbeddedBroker, folder: &Folder, options: &Options, fleet: &Fleet) -> Vec<(String, String)> {
    let inputs = [
        (fleet::METRICS, "json_metrics"),
        (fleet::EVENTS, "json_events"),
        (fleet::CLOUDEVENTS, "cloudevents"),
        (fleet::OTLP, "otlp_metrics"),
        (fleet::INFLUX, "influx_line"),
    ];
    let inputs = inputs.map(|(topic, format)| format!("{{topic = {topic:?}, format = {format:?}}}"));
    let scaling: Vec<String> = fleet
        .services()
        .map(|service| {
            format!(
                "{{target = {service:?}, view = \"service_throughput_1m\", column = \"per_second\", \
                 key = {{service = {service:?}}}, capacity_per_replica = 5.0, replicas_max = 30, startup = \"1m\", \
                 cooldown = \"5m\", cost_per_replica_hour = 0.12}}"
            )
        })
        .collect();
    let set = |name: &str, value: String| (format!("BELLWETHER_{name}"), value);
    vec![
        set("KAFKA__BROKERS", broker.bootstrap_servers().to_owned()),
        set("STORE__URL", folder.path.display().to_string()),
        set("SERVE__LISTEN", options.listen.clone()),
        set("SERVE__POSTGRES", free(options.postgres).to_string()),
        set("INPUTS", format!("[{}]", inputs.join(", "))),
        set("SCALING", format!("[{}]", scaling.join(", "))),
        // The fleet's time is its own: it may be years from ours.
        set("LIMITS__AGE_MAX", "36500d".to_owned()),
        set("LIMITS__AHEAD_MAX", "36500d".to_owned()),
        // Every topic is kept busy, so nothing ever has to step aside, and the order of arrival does not matter.
        set("STREAM__IDLE_TIMEOUT", "1h".to_owned()),
        set("TOPICS__CREATE", "false".to_owned()),
        set("INSIGHT__ANOMALY", "[{view = \"service_latency_1m\", column = \"p95\", by = [\"service\"]}]".to_owned()),
        set(
            "INSIGHT__OUTLIER",
            "[{view = \"replica_latency_30s\", column = \"p50\", group = [\"service\"], member = \"replica\"}]"
                .to_owned(),
        ),
        set(
            "INSIGHT__FORECAST",
            "[{view = \"service_throughput_1m\", column = \"per_second\", by = [\"service\"], season = \"10m\", \
             horizon = \"6m\", level = 0.95}]"
                .to_owned(),
        ),
    ]
}

#[derive(Clone, Copy)]
struct Pace {
    speed: f64,
    /// Whether the demo ends with its story.
    ends: bool,
    start: EventTime,
}

/// Plays the fleet onto the broker, in step with the clock but never far ahead of what was dealt with.
fn play(
    mut fleet: Fleet,
    kafka: &crate::kafka::settings::Settings,
    pace: Pace,
    account: &Mutex<Account>,
    screen: &Screen,
    ended: &AtomicBool,
) -> Result<()> {
    let producer = Producer::open(kafka)?;
    let began = Instant::now();
    let mut at = pace.start;
    let mut told = false;
    while !ended.load(Ordering::SeqCst) {
        let dealt_with = account.lock().unwrap_or_else(PoisonError::into_inner).at();
        let due = pace.start + Duration::from_secs_f64(began.elapsed().as_secs_f64() * pace.speed);
        let story_over = dealt_with >= pace.start + STORY;
        if story_over && pace.ends {
            break;
        }
        if story_over && !told {
            told = true;
            let account = account.lock().unwrap_or_else(PoisonError::into_inner);
            screen.summary(&account);
        }
        if at >= due || at.since(dealt_with) > LEAD_MAX + STEP {
            std::thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        at = at + STEP;
        let emissions = fleet.advance(at);
        screen.sent(emissions.len());
        for emission in emissions {
            let headers: Vec<(&str, &[u8])> =
                emission.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            let ms = emission.at.as_micros() / 1000;
            producer.send(emission.topic, None, Some(&emission.key), Some(&emission.payload), &headers, Some(ms))?;
        }
        heartbeat(&producer, at)?;
        let news = account.lock().unwrap_or_else(PoisonError::into_inner).inject(fleet.injected(), at);
        screen.tell(pace.start, at, &news);
    }
    producer.flush(Duration::from_secs(5))?;
    Ok(())
}

/// Deployments are rare; a heartbeat keeps their topic from holding up the clock of all events.
fn heartbeat(producer: &Producer, at: EventTime) -> Result<()> {
    let id = format!("heartbeat-{}", at.as_micros());
    let time = at.to_string();
    let headers: [(&str, &[u8]); 5] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", id.as_bytes()),
        ("ce_source", b"fleet/deployer"),
        ("ce_type", b"fleet.heartbeat"),
        ("ce_time", time.as_bytes()),
    ];
    let ms = at.as_micros() / 1000;
    Ok(producer.send(fleet::CLOUDEVENTS, None, None, Some(b"{}"), &headers, Some(ms))?)
}
