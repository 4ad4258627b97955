//! The log: one event a line, as JSON for machines or as text for people, always under the same field names.
//!
//! Every line at `info` and above carries an `event` out of [`event::ALL`]. Two rules for what libraries log:
//! - Libraries that carry requests see credentials: their lines never pass, whatever the filter
//!   says ([`SILENCED`]).
//! - Other libraries' lines have no `event`. They pass only where the filter asks for `debug` or
//!   `trace`, and then at `debug` or below, whatever level the library gave them: a library does
//!   not know what is an incident here.
//!
//! The daemon never waits for the reader of the log: see `queue`.

mod queue;

pub use queue::{flows, lines_dropped};

use crate::config::{Log, LogFormat};
use crate::incidents::Noting;
use crate::text::is_steering;
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The names of the events: the values of the field `event`.
pub mod event {
    /// The daemon works (info).
    pub const DAEMON_STARTED: &str = "daemon_started";
    /// The daemon was told to stop (info).
    pub const DAEMON_STOPPING: &str = "daemon_stopping";
    /// The daemon has given back what it held (info).
    pub const DAEMON_STOPPED: &str = "daemon_stopped";
    /// A transaction changed its state (info).
    pub const TRANSITION: &str = "transition";
    /// A poll was answered (debug).
    pub const POLL: &str = "poll";
    /// A poll got no usable answer (warn).
    pub const POLL_FAILED: &str = "poll_failed";
    /// A provider says that an account is polled too often (warn).
    pub const RATE_LIMITED: &str = "rate_limited";
    /// An account is not polled any more, except for probes (error).
    pub const CIRCUIT_OPENED: &str = "circuit_opened";
    /// An account is polled again (info).
    pub const CIRCUIT_CLOSED: &str = "circuit_closed";
    /// A row cannot be polled until it is fixed (warn).
    pub const ROW_INVALID: &str = "row_invalid";
    /// Rows wait for an account that no running daemon knows (warn).
    pub const UNROUTABLE: &str = "unroutable";
    /// The database cannot be reached (error).
    pub const DATABASE_LOST: &str = "database_lost";
    /// The database can be reached again (info).
    pub const DATABASE_BACK: &str = "database_back";
    /// How the work goes, at regular times (info).
    pub const SUMMARY: &str = "summary";
    /// The schema has more than this binary knows of (warn).
    pub const SCHEMA_NEWER: &str = "schema_newer";
    /// Housekeeping failed (warn).
    pub const MAINTENANCE_FAILED: &str = "maintenance_failed";
    /// Everybody may read a configuration file that holds secrets (warn).
    pub const CONFIG_EXPOSED: &str = "config_exposed";
    /// The configuration was read anew, and what has changed is applied (info).
    pub const CONFIG_RELOADED: &str = "config_reloaded";
    /// The configuration was read anew and refused: nothing has changed (error).
    pub const CONFIG_REJECTED: &str = "config_rejected";
    /// Lines of the log were dropped, because it was not read fast enough (warn).
    pub const LOG_LINES_DROPPED: &str = "log_lines_dropped";

    /// A declared provider is not served here, because a living replica has read another file (error).
    pub const DECLARATION_DIFFERS: &str = "declaration_differs";
    /// No living replica has another file any more: the declared provider is served (info).
    pub const DECLARATION_SERVED: &str = "declaration_served";

    /// An operator paused an account.
    pub const ACCOUNT_PAUSED: &str = "account_paused";
    /// An operator resumed it, or the pause is over.
    pub const ACCOUNT_RESUMED: &str = "account_resumed";
    /// What the database had acknowledged is gone after a failover or a restore.
    pub const COMMITS_LOST: &str = "commits_lost";
    /// The database refuses one transaction's record for what it says.
    pub const RECORD_REFUSED: &str = "record_refused";

    /// Every event.
    pub const ALL: [&str; 26] = [
        ACCOUNT_PAUSED,
        ACCOUNT_RESUMED,
        COMMITS_LOST,
        RECORD_REFUSED,
        DAEMON_STARTED,
        DAEMON_STOPPING,
        DAEMON_STOPPED,
        TRANSITION,
        POLL,
        POLL_FAILED,
        RATE_LIMITED,
        CIRCUIT_OPENED,
        CIRCUIT_CLOSED,
        ROW_INVALID,
        UNROUTABLE,
        DATABASE_LOST,
        DATABASE_BACK,
        SUMMARY,
        SCHEMA_NEWER,
        MAINTENANCE_FAILED,
        CONFIG_EXPOSED,
        CONFIG_RELOADED,
        CONFIG_REJECTED,
        LOG_LINES_DROPPED,
        DECLARATION_DIFFERS,
        DECLARATION_SERVED,
    ];
}

/// The fields that stand first in every line, in this order.
const HEAD: [&str; 4] = ["timestamp", "level", "event", "message"];

/// Libraries whose lines never pass: requests, headers and connections go through them.
pub const SILENCED: [&str; 5] = ["reqwest", "hyper", "hyper_util", "h2", "rustls"];

/// The filter of that text. The error says what is wrong with it.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| format!("no filter ({error}); write it like \"info\" or \"info,paypoll=debug\""))
}

/// The log on standard output. What it has still to write is written when this is dropped, unless
/// nobody reads.
#[must_use]
pub struct Output {
    queue: queue::Queue,
    filter: Filter,
}

/// Which lines pass; it may be changed while lines are written.
#[derive(Clone)]
struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// Whether lines of libraries pass.
    libraries: Arc<AtomicBool>,
}

impl Output {
    /// Other lines pass from now on. The error says what is wrong with the filter.
    pub fn set_filter(&self, text: &str) -> Result<(), String> {
        let filter = filter(text)?;
        self.filter.libraries.store(wants_libraries(&filter), Relaxed);
        self.filter.handle.reload(filter).map_err(|error| error.to_string())
    }
}

/// A stop waits this long for the reader of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Drop for Output {
    fn drop(&mut self) {
        self.queue.flush(LAST_LINES);
    }
}

/// Sends the log to standard output from now on. Errors when the filter cannot be read or a log has
/// been set up before.
pub fn init(log: &Log) -> Result<Output, String> {
    let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let queue = queue::Queue::new(io::stdout()).map_err(|error| format!("no thread for the log: {error}"))?;
    let writer = queue.clone();
    let (subscriber, filter) = reloadable(log, move || writer.clone(), color)?;
    subscriber.try_init().map_err(|error| error.to_string())?;
    Ok(Output { queue, filter })
}

/// A log that goes to `writer`. A line that cannot be written is dropped: the log has no reader any
/// more.
pub fn subscriber<W>(log: &Log, writer: W, color: bool) -> Result<impl Subscriber + Send + Sync + use<W>, String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    Ok(reloadable(log, writer, color)?.0)
}

fn reloadable<W>(log: &Log, writer: W, color: bool) -> Result<(impl Subscriber + Send + Sync + use<W>, Filter), String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = filter(&log.filter)?;
    let libraries = Arc::new(AtomicBool::new(wants_libraries(&filter)));
    let (filter, handle) = reload::Layer::new(filter);
    let change = Filter { handle, libraries: libraries.clone() };
    let lines = Lines { format: log.format, color };
    let layer = tracing_subscriber::fmt::layer().event_format(lines).with_writer(writer).log_internal_errors(false);
    let passes = filter_fn(move |line| line.is_span() || passes(line, libraries.load(Relaxed)));
    Ok((tracing_subscriber::registry().with(filter).with(layer.with_filter(passes)).with(Noting), change))
}

fn wants_libraries(filter: &EnvFilter) -> bool {
    filter.max_level_hint().is_none_or(|level| level >= LevelFilter::DEBUG)
}

fn passes(line: &Metadata<'_>, libraries: bool) -> bool {
    let source = line.target().split("::").next().unwrap_or_default();
    let named = line.fields().field("event").is_some();
    !SILENCED.contains(&source) && (named || *line.level() > Level::INFO || libraries)
}

/// Writes an event as one line.
struct Lines {
    format: LogFormat,
    color: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        let mut level = *metadata.level();
        if line.event.is_none() {
            level = level.max(Level::DEBUG);
            line.fields.insert("target".into(), metadata.target().into());
        }
        let now = DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Micros, true);
        match self.format {
            LogFormat::Json => line.write_json(&mut writer, &now, level),
            LogFormat::Text => line.write_text(&mut writer, &now, level, self.color),
        }
    }
}

/// The fields of one event.
#[derive(Default)]
struct Line {
    event: Option<String>,
    message: String,
    fields: Map<String, Value>,
}

impl Line {
    fn write_json(self, writer: &mut Writer<'_>, now: &str, level: Level) -> fmt::Result {
        let event = self.event.map(Value::from);
        let values = [Some(now.into()), Some(level_name(level).into()), event, Some(self.message.into())];
        let head = HEAD.iter().zip(values).filter_map(|(name, value)| Some((*name, value?)));
        let rest = self.fields.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let mut before = '{';
        for (name, value) in head.chain(rest) {
            write!(writer, "{before}{}:{value}", Value::from(name))?;
            before = ',';
        }
        writeln!(writer, "}}")
    }

    fn write_text(self, writer: &mut Writer<'_>, now: &str, level: Level, color: bool) -> fmt::Result {
        let (on, off) = if color { (color_of(level), "\x1b[0m") } else { ("", "") };
        let name = level_name(level);
        write!(writer, "{now} {on}{name:<5}{off} {:<15} {}", self.event.unwrap_or_default(), printable(&self.message))?;
        for (name, value) in &self.fields {
            match value {
                Value::String(text) if is_word(text) => write!(writer, " {name}={text}")?,
                value => write!(writer, " {name}={}", printable(&value.to_string()))?,
            }
        }
        writeln!(writer)
    }

    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("event", Value::String(event)) => self.event = Some(event),
            ("message", Value::String(message)) => self.message = message,
            // A library's field must not pass for one of ours.
            (name, value) if HEAD.contains(&name) => drop(self.fields.insert(format!("{name}_"), value)),
            (name, value) => drop(self.fields.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, value.to_string().into());
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn color_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG | Level::TRACE => "\x1b[2m",
    }
}

/// Text that needs no quotes.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !is_steering(c) && !matches!(c, '"' | '='))
}

/// The text on one line, without anything that would steer its reader.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if is_steering(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while locked").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, act: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let log = Log { format, filter: filter.into() };
        tracing::subscriber::with_default(subscriber(&log, move || writer.clone(), false).expect("valid filter"), act);
        let bytes = written.0.lock().expect("no panic while locked").clone();
        String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_one_json_object_with_flat_fields_and_nothing_that_does_not_apply() {
        let lines = logged(LogFormat::Json, "info", || {
            let nothing: Option<&str> = None;
            tracing::info!(
                event = event::TRANSITION,
                provider = "dusupay",
                attempt = 3_u64,
                ok = true,
                reason = nothing,
                "a \"b\"\nc"
            );
        });
        let line: Map<String, Value> = serde_json::from_str(&lines[0]).expect("JSON");
        let keys: Vec<&str> = line.keys().map(String::as_str).collect();
        assert_eq!(keys, ["attempt", "event", "level", "message", "ok", "provider", "timestamp"]);
        assert!(lines[0].starts_with("{\"timestamp\":\""), "{}", lines[0]);
        assert_eq!((line["level"].as_str(), line["event"].as_str()), (Some("info"), Some("transition")));
        assert_eq!((line["message"].as_str(), line["attempt"].as_u64()), (Some("a \"b\"\nc"), Some(3)));
        let time = line["timestamp"].as_str().expect("text");
        assert!(time.len() == "2026-11-21T22:39:01.123456Z".len() && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_line_without_an_event_never_stands_at_info_or_above() {
        let act = || {
            tracing::error!(target: "some_library", "a slow statement");
            tracing::debug!(target: "some_library", level = 7, "a detail");
            tracing::info!(event = event::SUMMARY, "ours");
        };
        assert_eq!(logged(LogFormat::Json, "info", act).len(), 1);
        let lines = logged(LogFormat::Json, "info,some_library=debug", act);
        let levels: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["level"].clone()).collect();
        assert_eq!(levels, ["debug", "debug", "info"]);
        assert!(lines[0].contains("\"target\":\"some_library\"") && lines[1].contains("\"level_\":7"), "{lines:?}");
    }

    #[test]
    fn libraries_that_carry_requests_are_never_heard() {
        let lines = logged(LogFormat::Json, "trace", || {
            tracing::trace!(target: "hyper::proto", "authorization: Bearer s3cret");
            tracing::debug!(target: "reqwest::connect", "https://host/s3cret");
            tracing::debug!(target: "sqlx::query", "select 1");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
    }

    #[test]
    fn text_lines_are_aligned_and_never_break_or_color_the_terminal() {
        let lines = logged(LogFormat::Text, "info", || {
            tracing::warn!(
                event = event::POLL_FAILED,
                reference = "A B\x1b[31m\u{202e}",
                http_status = 500_u64,
                "no\x1b[2J answer\n"
            );
        });
        assert_eq!(lines.len(), 1);
        let shown = lines[0].split_once(' ').expect("a time stamp first").1;
        assert_eq!(shown, "warn  poll_failed     no\\u{1b}[2J answer\\n http_status=500 reference=\"A B\\u001b[31m\\u{202e}\"");
    }

    #[test]
    fn a_closed_pipe_does_no_harm() {
        struct Closed;
        impl io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let log = Log { format: LogFormat::Json, filter: "info".into() };
        let subscriber = subscriber(&log, || Closed, false).expect("valid filter");
        tracing::subscriber::with_default(subscriber, || tracing::info!(event = event::SUMMARY, "nobody reads"));
    }

    #[test]
    fn a_broken_filter_is_refused() {
        assert!(filter("info,paypoll=debug").is_ok());
        assert!(filter("paypoll=loud").is_err());
    }
}
