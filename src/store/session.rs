//! A session with the database: how it is opened, and whether what was opened is fit to work with.

use super::{Store, StoreError};
use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Row};
use std::fs::File;
use std::str::FromStr;

/// What every session sets, whatever the defaults of database and role are. A statement that
/// exceeds its time-out is cancelled: the daemon then reports the database as unavailable, and
/// tries again.
///
/// `search_path`: a login that may create a function or an operator in a schema that comes before
/// `pg_catalog`, or one that fits better than PostgreSQL's own, would have it run with our rights.
/// `enable_nestloop`, `enable_indexscan`: without them every statement reads whole tables. `jit`:
/// every statement with a high estimated cost would be compiled, each time. The isolation: each
/// statement sees what is committed when it begins; fences and feed rest on that.
const SETTINGS: [(&str, &str); 8] = [
    ("search_path", "pg_catalog"),
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("default_transaction_isolation", "read committed"),
    ("enable_nestloop", "on"),
    ("enable_indexscan", "on"),
    ("jit", "off"),
    ("timezone", "UTC"),
];

/// The parameters of a connection string that are honoured.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// The connection string, with paypoll's own session settings.
pub(super) fn connect_options(url: &str) -> Result<PgConnectOptions, StoreError> {
    let parameters = parameters(url);
    check_parameters(&parameters)?;
    let mut options = PgConnectOptions::from_str(url).map_err(|error| StoreError::Url(without_url(&error)))?;
    if !parameters.iter().any(|(key, _)| key == "application_name") {
        options = options.application_name("paypoll");
    }
    Ok(options.options(SETTINGS))
}

/// The part after the question mark, decoded.
fn parameters(url: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}

/// Errors and names a parameter that would not be honoured, or a file that cannot be read: later
/// errors do not say which.
fn check_parameters(parameters: &[(String, String)]) -> Result<(), StoreError> {
    for (key, value) in parameters {
        if !PARAMETERS.contains(&&**key) && !key.starts_with("options[") && key != "statement-cache-capacity" {
            // Behind a question mark in an unescaped password stands the rest of it.
            let is_name = key.len() <= 40 && key.chars().all(|char| char.is_ascii_alphabetic() || "_-".contains(char));
            let key = if is_name { key.clone() } else { "that is not quoted here".to_owned() };
            let mend = match &*key {
                "connect_timeout" => "set database.connect_timeout instead".to_owned(),
                // paypoll does not support it; turning it off is what happens anyway.
                "channel_binding" if ["disable", "prefer"].contains(&&**value) => continue,
                _ => format!("take it out. Known are {}", PARAMETERS.join(", ")),
            };
            return Err(StoreError::Url(format!("the parameter {key} is not one that paypoll obeys: {mend}")));
        }
        if ["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"].contains(&&**key) {
            let told = crate::text::quotable_path(value);
            File::open(value).map_err(|error| StoreError::Url(format!("{key} = {told:?} cannot be read ({error})")))?;
        }
    }
    Ok(())
}

/// The parser's complaint without the string itself: it holds a password.
fn without_url(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Configuration(_) => "it is not a connection string like postgres://user:password@host:5432/database".into(),
        other => other.to_string(),
    }
}

/// Errors unless the database keeps text in UTF-8: in another encoding an invalid byte makes every
/// read fail.
pub(super) async fn check_encoding(connection: &mut PgConnection) -> Result<(), StoreError> {
    let encoding: String = sqlx::query_scalar("select current_setting('server_encoding')").fetch_one(connection).await?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Unfit(format!(
        "the database keeps text in {encoding}, paypoll needs UTF8: make one with `create database NAME encoding 'UTF8' template template0`"
    )))
}

/// The settings without which the daemon's promises do not hold, as the session has them. Time-outs
/// may be others than ours.
const SESSION: &str = "
    select s.name, s.setting,
           case s.name when 'search_path' then s.setting in ('pg_catalog', 'pg_catalog, pg_temp')
                       when 'session_replication_role' then s.setting = 'origin'
                       when 'default_transaction_isolation' then s.setting = 'read committed'
                       when 'jit' then s.setting = 'off'
                       when 'enable_nestloop' then s.setting = 'on'
                       else s.setting <> '0' end as fit
      from pg_catalog.pg_settings s
     where s.name in ('search_path', 'session_replication_role', 'default_transaction_isolation', 'jit', 'enable_nestloop',
                      'statement_timeout', 'idle_in_transaction_session_timeout')
     order by s.name";

/// Tables whose rows this role does not see: row security holds for it, and no policy does.
const HIDDEN: &str = "
    select format('paypoll.%I', c.relname)
      from pg_catalog.pg_class c
     where c.relnamespace = 'paypoll'::regnamespace and c.relkind in ('r', 'p') and c.relrowsecurity and row_security_active(c.oid)
       and not exists (select from pg_catalog.pg_policy p
                        where p.polrelid = c.oid
                          and (0::oid = any (p.polroles)
                               or exists (select from unnest(p.polroles) as r (role) where pg_has_role(r.role, 'member'))))
     order by c.relname";

/// What `paypoll run` does, tried without a row: what it is, and the statement.
const WORK: &[(&str, &str)] = &[
    (
        "read and write the daemon's columns of paypoll.transactions",
        "update paypoll.transactions
            set fence = fence + 1, owner = 0, state = state, provider_state = provider_state, reason = reason, action = action,
                details = details, attempts = attempts, failures = failures, not_found = not_found, last_polled_at = last_polled_at,
                next_poll_at = next_poll_at, reopened_at = reopened_at, action_at = action_at, not_before = not_before,
                opened_at = opened_at, phase = phase, phase_since = phase_since, gaps = gaps, updated_at = updated_at
          where false",
    ),
    (
        "read transactions with their params and lock them",
        "select id, reference, params, amount, currency, initiated_at, created_at, finalized_at from paypoll.transactions
          where false for no key update skip locked",
    ),
    (
        "read and write paypoll.transitions",
        "insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source, evidence)
         select transaction_id, from_state, to_state, provider_state, reason, source, evidence from paypoll.transitions where false",
    ),
    (
        "read and write paypoll.polls",
        "insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error)
         select transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error from paypoll.polls where false",
    ),
    (
        "write paypoll.replicas",
        "insert into paypoll.replicas (lease, complied) select lease, complied from paypoll.replicas where false",
    ),
    ("write paypoll.replicas", "update paypoll.replicas set heartbeat_at = heartbeat_at, complied = complied, held = held where false"),
    ("delete from paypoll.replicas", "delete from paypoll.replicas where false"),
    (
        "write paypoll.commits",
        "insert into paypoll.commits (process, stream, number) select process, stream, number from paypoll.commits where false",
    ),
    ("write paypoll.commits", "update paypoll.commits set number = number, at = at where false"),
    ("delete from paypoll.commits", "delete from paypoll.commits where false"),
    (
        "write paypoll.exclusive_keys",
        "insert into paypoll.exclusive_keys (key, process, until) select key, process, until from paypoll.exclusive_keys where false",
    ),
    ("write paypoll.exclusive_keys", "update paypoll.exclusive_keys set process = process, until = until where false"),
    ("delete from paypoll.exclusive_keys", "delete from paypoll.exclusive_keys where false"),
    ("write paypoll.server", "update paypoll.server set started_at = started_at, cut_at = cut_at where false"),
    (
        "write paypoll.accounts",
        "insert into paypoll.accounts (provider, account) select provider, account from paypoll.accounts where false",
    ),
    ("write paypoll.accounts", "update paypoll.accounts set arrival_at = arrival_at where false"),
    ("read paypoll.providers", "select name from paypoll.providers where false"),
    (
        "make the journal's partitions",
        "select paypoll.make_journal((now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 7)",
    ),
];

/// Functions that `paypoll run` and the other commands call, but that are not to be tried.
const FUNCTIONS: &[&str] = &["paypoll.prune_journal(date)", "paypoll.shown_params(uuid)"];

/// How long the trial waits for a lock: other sessions are at work.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '5s'";

impl Store {
    /// Errors and names what is missing, unless `paypoll run` could work in such a session: its
    /// settings, the rows it sees, the rights of its role. Tries what it does in a transaction that
    /// is rolled back. Needs the schema.
    pub async fn check_session(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        check_settings(&mut tx).await?;
        let hidden: Vec<String> = sqlx::query_scalar(HIDDEN).fetch_all(&mut *tx).await?;
        let role: String = sqlx::query_scalar("select format('%I', current_user)").fetch_one(&mut *tx).await?;
        if !hidden.is_empty() {
            return Err(StoreError::Unfit(format!(
                "row security hides the rows of {} from the role {role}, because no policy there is for it: `create policy paypoll on {} to {role} \
                 using (true) with check (true)`, or `alter table … disable row level security`",
                hidden.join(", "),
                hidden[0],
            )));
        }
        check_rights(&mut tx, &role).await?;
        Ok(tx.rollback().await?)
    }
}

async fn check_settings(tx: &mut PgConnection) -> Result<(), StoreError> {
    let rows = sqlx::query(SESSION).fetch_all(tx).await?;
    let mut unfit = Vec::new();
    for row in &rows {
        if !row.try_get::<bool, _>("fit")? {
            let (name, setting): (String, String) = (row.try_get("name")?, row.try_get("setting")?);
            unfit.push(format!("{name} = {setting}"));
        }
    }
    if unfit.is_empty() {
        return Ok(());
    }
    let wanted: Vec<String> = SETTINGS[..7].iter().map(|(name, value)| format!("set {name} = '{value}'")).collect();
    Err(StoreError::Unfit(format!(
        "the session has {}: something between paypoll and the database (PgBouncer with ignore_startup_parameters = options) keeps back \
         the settings that paypoll asks for. Give them there: connect_query = \"{}\", or to the role, with `alter role … set …`",
        unfit.join(", "),
        wanted.join("; "),
    )))
}

async fn check_rights(tx: &mut PgConnection, role: &str) -> Result<(), StoreError> {
    sqlx::query(LOCK_TIMEOUT).execute(&mut *tx).await?;
    let mend = "run deploy/roles.sql again and give its login the role paypoll_daemon";
    for (work, statement) in WORK {
        let Err(error) = sqlx::query(AssertSqlSafe(*statement)).execute(&mut *tx).await else { continue };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default();
        return Err(match &*code {
            "42501" => StoreError::Unfit(format!("the role {role} may not {work} ({}): {mend}", super::errors::words(&error))),
            "25006" => StoreError::Unfit(format!(
                "the role {role} cannot {work} ({}): is this a standby, or is default_transaction_read_only set for role or database?",
                super::errors::words(&error)
            )),
            _ => error.into(),
        });
    }
    for function in FUNCTIONS {
        let may: bool =
            sqlx::query_scalar("select has_function_privilege($1, 'execute')").bind(function).fetch_one(&mut *tx).await?;
        if !may {
            return Err(StoreError::Unfit(format!("the role {role} may not execute {function}: {mend}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(parameters: &str) -> String {
        connect_options(&format!("postgres://u:canary@db/payments?{parameters}"))
            .map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn parameters_of_the_address_are_obeyed_or_refused_by_name() {
        for known in
            ["sslmode=require", "application_name=x", "options=-c%20geqo%3Doff", "options[geqo]=off", "channel_binding=prefer", ""]
        {
            assert_eq!(refused(known), "");
        }
        for unknown in ["channel_binding=require", "sslmode=require&gssencmode=disable", "keepalives", "Sslmode=require"] {
            let name = unknown.split('&').next_back().and_then(|pair| pair.split('=').next()).unwrap_or_default();
            let said = refused(unknown);
            assert!(
                said.starts_with(&format!("database.url: the parameter {name} is not one")) && !said.contains("canary"),
                "{said}"
            );
        }
        assert!(refused("connect_timeout=5").ends_with("set database.connect_timeout instead"));
        assert!(refused("ssl-ca=/no/such/file").contains("ssl-ca = \"/no/such/file\" cannot be read"));
    }

    #[test]
    fn what_paypoll_sets_for_its_sessions_comes_last() {
        let options =
            connect_options("postgres://db/payments?options=-c%20search_path%3Devil&application_name=mine").expect("valid");
        let set = options.get_options().expect("some");
        assert!(set.find("search_path=evil") < set.find("search_path=pg_catalog"), "{set}");
        assert_eq!(options.get_application_name(), Some("mine"));
    }
}
