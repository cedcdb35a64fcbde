//! The composition root: reads the command line, builds the rooms, wires them, and shuts them down in order.

mod about;
mod admission;
mod check;
mod client;
mod clock;
pub mod closed_loop;
mod conductor;
pub mod core;
pub mod corrector;
pub mod demo;
pub mod dimensions;
pub mod effects;
mod feed;
mod idleness;
mod import;
pub mod incoming;
mod instances;
mod latest;
mod memory;
mod outlet;
pub mod partition;
mod prompt;
mod reload;
mod replica;
mod resume;
mod retention;
mod rows;
pub mod rules;
pub mod service;
pub mod settings;
pub mod shipped;
mod sql;
mod store;
mod stored;
pub mod tables;
#[cfg(test)]
mod tests;
mod upkeep;
mod user;
mod views;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use futures::FutureExt as _;
use tracing::warn;

use crate::config::{self, Loaded};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::{LogFormat, init_logs};

/// Watches the metric and event streams of orchestrators, and says what they need next.
#[derive(Parser)]
#[command(name = "bellwether", version, propagate_version = true, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service: consume, store, find, alert, decide, serve.
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Watch it all happen on a simulated fleet and a broker of its own; needs nothing else.
    Demo(demo::Options),
    /// Ask SQL of a running service, or of a folder it wrote.
    Sql(sql::Options),
    /// Answer questions about a store that others write, without reading Kafka.
    Serve {
        #[command(flatten)]
        config: ConfigFile,
        /// The store's folder or URL; without it the one of the configuration.
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
    },
    /// Make a password and a token for somebody who may ask the service.
    User(user::Options),
    /// Show what a store holds, whether it is sound, and merge or delete its files by hand.
    Store(store::Options),
    /// Read what other systems have kept into a store: Prometheus and OpenMetrics text, line protocol, CSV, Parquet, JSON.
    Import(import::Options),
    /// Show what the views of a running service do, and why one has emitted nothing.
    Views(views::Options),
    /// Check the configuration, the views and the alert rules; exits non-zero where something is wrong.
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Also see whether the brokers answer and the store can be opened.
        #[arg(long)]
        reachable: bool,
    },
    /// Show the configuration, or its schema.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every effective value and where it came from.
    Show {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Print a commented configuration with every key at its default.
    Reference,
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration, TOML; without it ./bellwether.toml where there is one, else defaults and the environment.
    #[arg(short, long, value_name = "FILE", env = "BELLWETHER_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Loaded> {
        let here = PathBuf::from("bellwether.toml");
        let path = self.config.clone().or_else(|| here.exists().then_some(here));
        Ok(config::load(path.as_deref(), std::env::vars())?)
    }
}

/// Carries out the command line.
pub fn run(arguments: Arguments) -> Result<()> {
    if !matches!(arguments.command, Command::Run { .. } | Command::Serve { .. } | Command::Demo(_)) {
        end_with_the_reader();
    }
    match arguments.command {
        Command::Run { config } => run_service(config),
        Command::Demo(options) => runtime()?.block_on(demo::run(options)),
        Command::Sql(options) => runtime()?.block_on(sql::run(options)),
        Command::Serve { config, data } => serve_store(&config, data),
        Command::User(options) => user::run(options),
        Command::Store(options) => runtime()?.block_on(store::run(options)),
        Command::Import(options) => runtime()?.block_on(import::run(options)),
        Command::Views(options) => runtime()?.block_on(views::run(options)),
        Command::Check { config, reachable } => runtime()?.block_on(check::run(config.load()?, reachable)),
        Command::Config(ConfigCommand::Show { config }) => {
            print!("{}", config.load()?.show());
            Ok(())
        }
        Command::Config(ConfigCommand::Schema) => {
            println!("{}", serde_json::to_string_pretty(&config::schema())?);
            Ok(())
        }
        Command::Config(ConfigCommand::Reference) => {
            print!("{}", config::reference::toml());
            Ok(())
        }
    }
}

/// Lets the program end without a word where whoever reads its output does, such as `head`.
fn end_with_the_reader() {
    // SAFETY: sets the default action of a signal, before any thread is started.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// How long a thread for blocking work waits for more. A checkpoint reads a hundred files at once, each on such a thread;
/// what comes after would keep all of them busy in turns, with the memory that each holds on to.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_millis(100);

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("bellwether")
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .context("failed to start the runtime")
}

/// How long an instance waits before it starts anew in place.
const ANEW_AFTER: Duration = Duration::from_millis(500);

fn run_service(file: ConfigFile) -> Result<()> {
    let loaded = file.load()?;
    write_logs(&loaded.config.log)?;
    let settings = settings::Settings::of(&loaded)?;
    anyhow::ensure!(!settings.inputs.is_empty(), "no input is configured (hint: add [[inputs]] with topic and format)");
    let reread: reload::Reread = Arc::new(move || settings::Settings::of(&file.load()?));
    runtime()?.block_on(async {
        let (telemetry, interrupted) = (Telemetry::default(), interrupted().shared());
        // A store that could never be opened is a mistake in the settings; one that could will be again.
        let has_begun = Arc::new(AtomicBool::new(false));
        loop {
            let begun = has_begun.clone();
            let hooks = service::Hooks {
                reread: Some(reread.clone()),
                bound: Box::new(move |_| begun.store(true, Ordering::SeqCst)),
                ..Default::default()
            };
            let done = service::run(settings.clone(), telemetry.clone(), hooks, interrupted.clone()).await;
            let shares = settings.partials_topic.is_some() && has_begun.load(Ordering::SeqCst);
            match done {
                Err(error) if shares && interrupted.peek().is_none() && instances::may_start_anew(&error) => {
                    warn!(error = format!("{error:#}"), "this instance starts anew");
                    tokio::time::sleep(ANEW_AFTER).await;
                }
                done => return done,
            }
        }
    })
}

fn serve_store(file: &ConfigFile, data: Option<String>) -> Result<()> {
    let mut config = file.load()?.config;
    write_logs(&config.log)?;
    if let Some(data) = data {
        config.store.url = data;
    }
    runtime()?.block_on(replica::run(&config))
}

fn write_logs(log: &config::raw::Log) -> Result<()> {
    let format = match log.format {
        config::raw::LogFormat::Text => LogFormat::Text,
        config::raw::LogFormat::Json => LogFormat::Json,
    };
    let level = std::env::var("BELLWETHER_LOG").unwrap_or_else(|_| quiet(&format!("{:?}", log.level)));
    Ok(init_logs(&level, format)?)
}

/// The libraries below are heard from `warn` on; what they say at `info` is about every single commit. The consumer's
/// wrapper says an error whenever a client that left its group is dropped.
fn quiet(level: &str) -> String {
    format!("warn,rdkafka::consumer::base_consumer=off,bellwether={0},audit={0}", level.to_ascii_lowercase())
}

/// Is done at the first SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
