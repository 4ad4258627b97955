//! `paypoll check`: whether the configuration, the database and the providers' hosts are as the
//! daemon needs them.
//!
//! A host is only connected to: a request, even one without credentials, would count at the provider.

use crate::config::{Config, ProviderConfig, duration};
use crate::domain::{Floors, Origin, Phase, Plan, Until};
use crate::providers;
use crate::store::{Store, StoreError};
use crate::text::{plain, span};
use crate::transport::Tls;
use anyhow::bail;
// No lookup: the address is read as it will be when requests are sent.
use reqwest::Url;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Prints what is configured and whether it can be reached. Errors when database, schema or a
/// provider's host is not as it must be.
pub async fn run(config: &Config, warnings: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    config.database.url()?;
    let hosts: Vec<JoinHandle<Result<Duration, String>>> =
        config.providers.iter().map(|provider| tokio::spawn(connect(provider.base_url.clone(), provider.timeout))).collect();
    let mut problems = Vec::new();
    for warning in warnings {
        field(out, "warning", warning)?;
    }
    write_summary(out, config)?;
    write_database(out, config, &mut problems).await?;
    for (provider, host) in config.providers.iter().zip(hosts) {
        writeln!(out)?;
        write_provider(out, provider)?;
        match host.await? {
            Ok(took) => field(out, "host", &format!("connected in {} ms, nothing sent", took.as_millis()))?,
            Err(why) => {
                field(out, "host", &format!("not reachable: {why}"))?;
                problems.push(format!("{} cannot be reached: {why}", provider.descriptor.name));
            }
        }
    }
    out.flush()?;
    if config.providers.is_empty() {
        problems.push("no provider is enabled: set providers.NAME.enabled = true and give it an account".into());
    }
    if let Err(problem) = Tls::for_hosts(config.providers.iter().map(|provider| &*provider.base_url)) {
        problems.push(problem);
    }
    if !problems.is_empty() {
        bail!(problems.join("\n"));
    }
    Ok(())
}

fn write_summary(out: &mut impl Write, config: &Config) -> io::Result<()> {
    let enabled: Vec<&str> = config.providers.iter().map(|provider| provider.descriptor.name).collect();
    let known = providers::all().into_iter().map(|descriptor| descriptor.name);
    let off: Vec<&str> = known.filter(|name| !enabled.contains(name)).collect();
    field(out, "enabled", if enabled.is_empty() { "–".into() } else { enabled.join(", ") }.as_str())?;
    field(out, "not enabled", if off.is_empty() { "–".into() } else { off.join(", ") }.as_str())
}

fn field(out: &mut impl Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "{name:<13} {}", plain(value))
}

async fn write_database(out: &mut impl Write, config: &Config, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let store = match super::open_store(config).await {
        Ok(store) => store,
        Err(error) if matches!(error.downcast_ref(), Some(StoreError::Url(_))) => return Err(error),
        Err(error) => {
            let error = super::told(&error);
            field(out, "database", &error)?;
            problems.push(error);
            return Ok(());
        }
    };
    let server = store.server().await?;
    field(out, "database", &format!("reached, PostgreSQL {}, schema version {}", server.version, server.schema))?;
    field(out, "clock", &clock(&store).await?)?;
    match store.check_session().await {
        Ok(()) => field(out, "rights", "tried, without changing anything: what `paypoll run` does is allowed")?,
        Err(error) => {
            field(out, "rights", &error.to_string())?;
            problems.push(error.to_string());
        }
    }
    store.close().await;
    Ok(())
}

/// How far this host's clock is from the database's. Nothing depends on it: what is due is decided
/// by the database's clock alone.
async fn clock(store: &Store) -> anyhow::Result<String> {
    let (asked, began) = (SystemTime::now(), Instant::now());
    let database = SystemTime::from(store.server().await?.clock);
    let error = began.elapsed() / 2;
    let here = asked + error;
    let (distance, word) = match here.duration_since(database) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    Ok(if distance <= error {
        format!("this host's is the database's, to within {} ms", error.as_millis().max(1))
    } else {
        format!("this host's is {} {word} the database's, which decides what is due", duration::text(distance))
    })
}

fn write_provider(out: &mut impl Write, provider: &ProviderConfig) -> io::Result<()> {
    let accounts: Vec<&str> = provider.accounts.iter().map(|account| &*account.name).collect();
    let (rules, rate) = (&provider.rules, provider.rate);
    field(out, provider.descriptor.name, &provider.base_url)?;
    if let Some(declaration) = provider.descriptor.declaration() {
        super::provider::write_meaning(out, declaration)?;
    }
    field(out, "accounts", &accounts.join(", "))?;
    field(out, "plan", &plan(&rules.plan))?;
    if let Some(floors) = floors(&rules.floors) {
        field(out, "documented", &floors)?;
    }
    let budget = format!("{} a second and account, {} at once; {} in flight", rate.per_second, rate.burst, provider.max_in_flight);
    field(out, "budget", &budget)?;
    field(out, "time-out", &duration::text(provider.timeout))?;
    let retry = (rules.retry.wait(1, 0.0), rules.retry.wait(u32::MAX, 0.0));
    field(out, "retry", &format!("after {}, then longer up to {}", duration::text(retry.0), duration::text(retry.1)))?;
    let circuit = provider.circuit;
    let probe = duration::text(circuit.probe_after);
    field(out, "circuit", &format!("opens after {} failures in a row, then one probe every {probe}", circuit.failures))?;
    let lost = rules.not_found;
    field(out, "not found", &format!("believed after {} times and {}", lost.limit, duration::text(lost.min_age)))
}

/// A plan in one line.
pub(super) fn plan(plan: &Plan) -> String {
    let margin = if plan.margin.is_zero() { String::new() } else { format!(" plus {}", duration::text(plan.margin)) };
    let mut text = format!("first poll after {}{margin}, then {}", duration::range_text(plan.first), phases(&plan.phases));
    match plan.from {
        Origin::FirstPoll => {}
        Origin::Initiation => text += ", counted from initiation",
        Origin::Action => text += ", counted from the last action",
    }
    if let Some(age) = plan.give_up_after {
        text += &format!("; gives up at {}", duration::text(age));
    }
    for (word, list) in &plan.by_state {
        text += &format!("; while {word}: {}", phases(list));
    }
    text
}

fn phases(list: &[Phase]) -> String {
    let text = list.iter().map(|phase| {
        let every = duration::range_text(phase.every);
        match phase.until {
            Until::For(long) => format!("every {every} for {}", duration::text(long)),
            Until::Count(count) => format!("every {every} {count} times"),
            Until::Open => format!("every {every}"),
        }
    });
    let text: Vec<String> = text.collect();
    if text.is_empty() { "none".into() } else { text.join(", ") }
}

/// What the provider's documentation forbids; `None` where it forbids nothing.
pub(super) fn floors(floors: &Floors) -> Option<String> {
    let text = |duration: Duration, words: &str| (!duration.is_zero()).then(|| format!("{words} {}", duration::text(duration)));
    let rules = [
        text(floors.first, "no poll before"),
        text(floors.every, "no gap under"),
        floors.window.and_then(|window| text(window, "no window over")),
        floors.rate.map(|rate| format!("at most {rate} requests in any second")),
    ];
    let rules: Vec<String> = rules.into_iter().flatten().collect();
    (!rules.is_empty()).then(|| rules.join(", "))
}

/// How long it took to connect. The error says why it could not be done.
async fn connect(base_url: String, timeout: Duration) -> Result<Duration, String> {
    let url = Url::parse(&base_url).map_err(|error| error.to_string())?;
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err("the address has no host".into());
    };
    let began = Instant::now();
    match tokio::time::timeout(timeout, TcpStream::connect(format!("{host}:{port}"))).await {
        Ok(Ok(_connection)) => Ok(began.elapsed()),
        Ok(Err(error)) => Err(format!("{host}:{port}: {error}")),
        Err(_) => Err(format!("{host}:{port}: no connection within {}", span(timeout))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_plan_is_told_in_one_line() {
        let told = |provider| plan(&config::default_plan(provider).expect("known"));
        assert_eq!(told("dusupay"), "first poll after 2m10s, then every 5m; gives up at 72h");
        assert_eq!(told("dropayment"), "first poll after 3s–5s, then every 3s–5s for 3m");
    }
}
