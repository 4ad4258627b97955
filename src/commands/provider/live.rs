//! `paypoll provider test FILE --live --reference R`: one real request with an account's
//! credentials. Prints request and answer redacted and what the answer would mean, and writes
//! nothing.

use super::inspect;
use crate::cli::ProviderTest;
use crate::config::{AccountConfig, Config, ConfigError, ProviderConfig};
use crate::domain::{Amount, Outcome};
use crate::providers::{Ask, Provider};
use crate::text::plain;
use crate::transport::{Connections, Tls, Transport};
use crate::wire::{Failure, Method, Redaction, Request};
use anyhow::{anyhow, bail};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// Polls once. Errors where the provider is not configured, or nothing came back.
pub(super) fn run(asked: &ProviderTest, config: Config, out: &mut impl Write) -> anyhow::Result<()> {
    let [file] = asked.files.as_slice() else {
        return Err(ConfigError::one("--live: asks one provider; name one file".into()).into());
    };
    let reference = asked.reference.as_deref().unwrap_or_default();
    let params: Value = serde_json::from_str(asked.params.as_deref().unwrap_or("{}"))
        .map_err(|error| ConfigError::one(format!("--params: is no JSON object ({error})")))?;
    let declaration = inspect(file)?.accept().map_err(ConfigError::all)?;
    let name = declaration.name();
    let provider = config.providers.iter().find(|provider| provider.descriptor.name == name).ok_or_else(|| {
        let mend = format!("set providers.{name}.declaration, enabled = true and an account in a --config file");
        ConfigError::one(format!("--live: {name} is not enabled; {mend}"))
    })?;
    if provider.descriptor.declaration().is_none_or(|known| known.sha256() != declaration.sha256()) {
        let file = file.display();
        return Err(ConfigError::one(format!("--live: {file} is not the file that providers.{name}.declaration names")).into());
    }
    let account = provider.accounts.iter().find(|account| *account.name == asked.account).ok_or_else(|| {
        let known: Vec<&str> = provider.accounts.iter().map(|account| &*account.name).collect();
        ConfigError::one(format!("--account {:?}: is not configured; there are {}", asked.account, known.join(", ")))
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask(provider, account, reference, &params, out))
}

async fn ask(
    provider: &ProviderConfig,
    account: &AccountConfig,
    reference: &str,
    params: &Value,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let tls = Tls::for_hosts([&*provider.base_url]).map_err(|error| anyhow!(error))?;
    let transport = Transport::new(&tls, Connections::OneRequestEach).map_err(|error| anyhow!(error))?;
    let token = match account.provider.token_flow() {
        None => None,
        Some(flow) => {
            writeln!(out, "a token is fetched first")?;
            let now = now();
            let request = Transport::prepare(flow.request(now)).map_err(|error| anyhow!(error))?;
            let response = transport.send(request, provider.timeout).await.map_err(failed)?;
            let token =
                flow.read(&response, now).map_err(|outcome| anyhow!("no token: HTTP {}, {}", response.status, told(&outcome)))?;
            Some(token.value)
        }
    };
    let ask = Ask { reference, params, now: now(), token: token.as_ref().map(SecretString::expose_secret), amount: None };
    let request = account.provider.request(ask).map_err(|why| anyhow!("the row cannot be asked about: {why}"))?;
    let redaction = Redaction::new(account.provider.secrets(ask), account.provider.kept(ask));
    write_request(out, &request, &redaction)?;
    let begun = std::time::Instant::now();
    let request = Transport::prepare(request).map_err(|error| anyhow!(error))?;
    let response = transport.send(request, provider.timeout).await.map_err(failed)?;
    write_answer(out, &*account.provider, ask, &response, begun.elapsed(), &redaction)
}

fn write_request(out: &mut impl Write, request: &Request, redaction: &Redaction<'_>) -> anyhow::Result<()> {
    let method = match request.method {
        Method::Get => "GET",
        Method::Post => "POST",
    };
    writeln!(out, "{method} {}", plain(&redaction.text(&request.url)))?;
    for (name, value) in &request.headers {
        writeln!(out, "{name}: {}", plain(&redaction.text(value)))?;
    }
    if let Some(body) = &request.body {
        writeln!(out, "{}", plain(&redaction.text(body)))?;
    }
    Ok(())
}

fn write_answer(
    out: &mut impl Write,
    provider: &dyn Provider,
    ask: Ask<'_>,
    response: &crate::wire::Response,
    took: Duration,
    redaction: &Redaction<'_>,
) -> anyhow::Result<()> {
    writeln!(out, "\nHTTP {} after {} ms", response.status, took.as_millis())?;
    writeln!(out, "{}", plain(&redaction.body(&response.body).to_string()))?;
    let outcome = provider.read(ask, response).cleaned(|text| redaction.line(text));
    writeln!(out, "\nit would mean {}; nothing was written", told(&outcome))?;
    out.flush()?;
    match outcome {
        Outcome::Status(_) => Ok(()),
        _ => bail!("the answer is not about a payment in a documented word"),
    }
}

fn told(outcome: &Outcome) -> String {
    let error = outcome.error().map(|error| format!(": {error}")).unwrap_or_default();
    let word = match outcome {
        Outcome::Status(status) => {
            let amount = match status.amount {
                Amount::Told(amount) => format!(", amount {amount}"),
                Amount::Untold | Amount::Unreadable => String::new(),
            };
            format!(" (word {:?}{amount})", status.word)
        }
        _ => String::new(),
    };
    plain(&format!("{}{word}{error}", outcome.name()))
}

fn failed(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Timeout => anyhow!("no complete answer within the time-out"),
        Failure::Connection(how) | Failure::NotSent(how) => anyhow!(how),
        Failure::TooLong => anyhow!("the answer is longer than 1 MiB"),
    }
}

fn now() -> DateTime<Utc> {
    SystemTime::now().into()
}
