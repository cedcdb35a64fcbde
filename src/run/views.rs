//! `bellwether views`: what the views of a running service do, and why one has emitted nothing.

use anyhow::{Context, Result};
use serde_json::Value;
use url::Url;

use super::{ConfigFile, client, sql};

#[derive(clap::Args)]
pub struct Options {
    /// The view to explain; without it every view in a line.
    view: Option<String>,
    /// The service to ask; without it the one that the configuration describes.
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    #[command(flatten)]
    config: ConfigFile,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<()> {
    let url = options.url.map_or_else(|| sql::url_of(&options.config), Ok)?;
    let path = options.view.as_ref().map_or("/views".to_owned(), |view| format!("/views/{view}"));
    let answer = tokio::task::spawn_blocking(move || client::get(&url, &path)).await??;
    let answer: Value = serde_json::from_slice(&answer).context("the answer is no JSON")?;
    match answer {
        Value::Array(views) if views.is_empty() => anyhow::bail!(
            "no view runs here (hint: where instances share the work, one of them closes the windows of all: ask that one)"
        ),
        Value::Array(views) => print!("{}", list(&views)),
        view => print!("{}", explanation(&view)),
    }
    Ok(())
}

fn text<'a>(view: &'a Value, name: &str) -> &'a str {
    view[name].as_str().unwrap_or("-")
}

fn list(views: &[Value]) -> String {
    let width = views.iter().map(|view| text(view, "view").len()).max().unwrap_or_default();
    let line = |view: &Value| {
        let (name, closed) = (text(view, "view"), text(view, "closed_through"));
        format!("{name:width$}  closed through {closed:27}  {}\n", text(view, "state"))
    };
    views.iter().map(line).collect()
}

fn explanation(view: &Value) -> String {
    let mut out = format!("{}: {}\n{}\n\n", text(view, "view"), text(view, "state"), text(view, "description"));
    let words = |name: &str| {
        let list = view[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.collect::<Vec<_>>().join(", ")
    };
    for (name, value) in [
        ("file", text(view, "file").to_owned()),
        ("reads", words("reads")),
        ("window", text(view, "window").to_owned()),
        ("shares its pass with", words("shares_with")),
        ("watermark", text(view, "watermark").to_owned()),
        ("closed through", text(view, "closed_through").to_owned()),
    ] {
        if !value.is_empty() {
            out += &format!("  {name:20} {value}\n");
        }
    }
    let counts =
        ["offered", "rows", "late", "refused", "emitted_windows", "emitted_rows", "open", "keys", "state_bytes"];
    for name in counts {
        out += &format!("  {:20} {}\n", name.replace('_', " "), view[name]);
    }
    out += "\nplan\n";
    view["plan"].as_array().into_iter().flatten().filter_map(Value::as_str).for_each(|step| {
        out += &format!("  {step}\n");
    });
    out
}
