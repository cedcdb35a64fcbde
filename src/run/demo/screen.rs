//! What a person sees of the demo: a line for everything that happens, a bar for how far it is, an account at the end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::account::{Account, News, Topic};
use crate::model::time::EventTime;

pub struct Screen {
    bar: ProgressBar,
    records: AtomicU64,
}

impl Screen {
    pub fn new(story: Duration, seconds: Option<u64>) -> Screen {
        let bar = ProgressBar::new(story.as_secs());
        let style = "{wide_bar:.cyan/dim} {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        let screen = Screen { bar, records: AtomicU64::new(0) };
        let took = seconds.map_or_else(
            || "one minute a second, until Ctrl-C".to_owned(),
            |seconds| format!("{} minutes in {seconds} s", story.as_secs() / 60),
        );
        screen.say("Bellwether demo: a simulated fleet, its incidents, and what the service makes of them.");
        screen.say(&format!("The fleet's clock runs fast: {took}. The first ten minutes are quiet, to learn from."));
        screen
    }

    fn say(&self, line: &str) {
        // A bar that is not on a terminal swallows lines; then they go out by themselves.
        match self.bar.is_hidden() {
            true => println!("{line}"),
            false => self.bar.println(line),
        }
    }

    pub fn serving(&self, address: SocketAddr, postgres: Option<SocketAddr>) {
        self.say(&format!("\n  metrics   http://{address}/metrics"));
        self.say(&format!("  page      http://{address}/"));
        if let Some(postgres) = postgres {
            let (host, port) = (postgres.ip(), postgres.port());
            self.say(&format!("  psql      psql -h {host} -p {port} bellwether"));
        }
        self.say(&format!(
            "  sql       bellwether sql --url http://{address} \"SELECT * FROM service_latency_1m ORDER BY window_end DESC LIMIT 6\"\n"
        ));
    }

    pub fn sent(&self, records: usize) {
        self.records.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Tells what happened, and how far the story is.
    pub fn tell(&self, start: EventTime, now: EventTime, news: &[News]) {
        for one in news {
            let word = match one.what {
                Topic::Injected => "INJECTED",
                Topic::Found => "found   ",
                Topic::Resolved => "resolved",
                Topic::Decided => "decided ",
                Topic::Stray => "stray   ",
            };
            self.say(&format!("{}  {word}  {}", clock(one.at), one.text));
        }
        let passed = now.since(start).as_secs();
        if passed > self.bar.position() {
            self.bar.set_position(passed.min(self.bar.length().unwrap_or(passed)));
            self.bar.set_message(format!("{}  {} records", clock(now), self.records.load(Ordering::Relaxed)));
        }
    }

    /// Prints the account without ending.
    pub fn summary(&self, account: &Account) {
        account_lines(account).iter().for_each(|line| self.say(line));
        self.say("The fleet goes on. Try the URLs above; Ctrl-C ends it.");
    }

    pub fn finish(&self, account: &Account, data: Option<&Path>) {
        self.bar.finish_and_clear();
        account_lines(account).iter().for_each(|line| println!("{line}"));
        println!("{} records sent.", self.records.load(Ordering::Relaxed));
        if let Some(data) = data {
            println!(
                "\nStored in {0}. Ask it: bellwether sql --data {0} \"SELECT rule, state, count(*) FROM alerts GROUP BY 1, 2\"",
                data.display()
            );
        }
    }
}

fn clock(at: EventTime) -> String {
    let text = at.to_string();
    text.get(11..19).unwrap_or(&text).to_owned()
}

fn account_lines(account: &Account) -> Vec<String> {
    let mut lines = vec![String::new(), "Injected                                 found after  by".to_owned()];
    for incident in account.injected() {
        let name = format!("{} at {}", incident.kind, incident.target);
        let found = match account.first_found(incident) {
            Some(found) => {
                let after = found.at.since(incident.start).as_secs();
                format!("{:>2} min {:02} s  {}", after / 60, after % 60, found.by)
            }
            None if account.at() < incident.end => "still going on".to_owned(),
            None => "NOT FOUND".to_owned(),
        };
        lines.push(format!("{name:<40} {found}"));
    }
    lines.push(String::new());
    lines.push(format!(
        "{} windows closed, {} forecasts, {} scaling decisions, {} false alarms.",
        account.windows,
        account.forecasts,
        account.decisions(),
        account.strays().len()
    ));
    lines
}
