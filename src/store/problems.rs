//! Problems: why transactions are parked, which errors are frequent, who serves the accounts, what
//! happened lately.
//!
//! The ops port may be queried at any rate, so every statement here is bounded, whatever the tables
//! contain.

use super::{AccountOverview, Store, StoreError, Unroutable};
use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Everything that an operator on call needs first.
#[derive(Clone, Debug, Serialize)]
pub struct Situation {
    /// The database's clock at that time.
    pub as_of: DateTime<Utc>,
    /// Every account that has a polled or parked transaction or was ever served.
    #[serde(rename = "providers")]
    pub accounts: Vec<AccountOverview>,
    /// Accounts with polled transactions that no replica serves.
    pub unroutable: Vec<Unroutable>,
    /// Parked transactions by reason, the most frequent first.
    pub parked: Vec<Parked>,
    /// The living replicas.
    pub replicas: Vec<Replica>,
    /// The most frequent errors of each account within the last hour.
    pub errors: Vec<FrequentError>,
    /// What happened within the last hour, the latest first.
    pub events: Vec<RecentEvent>,
}

/// Parked transactions that have the same reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parked {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// `unresolved` or `invalid`.
    pub state: String,
    /// Why: the first hundred characters.
    pub reason: Option<String>,
    /// How many, counted up to [`EXACT`].
    pub count: i64,
    /// There are that many or more.
    #[serde(skip_serializing_if = "is_false")]
    pub at_least: bool,
    /// When the last of them was parked.
    pub latest_at: DateTime<Utc>,
    /// The last of them.
    pub example: Uuid,
    /// The last error of that one's polls.
    pub last_error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A living replica.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replica {
    /// Its number.
    pub id: i64,
    /// Where it runs, by its own account.
    pub host: String,
    /// When it registered.
    pub started_at: DateTime<Utc>,
    /// Its last sign of life.
    pub heartbeat_at: DateTime<Utc>,
    /// What it serves: provider and account.
    #[serde(serialize_with = "names")]
    pub accounts: Vec<(String, String)>,
}

/// `provider/account`, as people and `--accounts` write it.
fn names<S: Serializer>(accounts: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(accounts.iter().map(|(provider, account)| format!("{provider}/{account}")))
}

/// An error that an account's polls met often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrequentError {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// What came of the polls.
    pub outcome: String,
    /// What was wrong.
    pub error: String,
    /// How many polls, of the last [`ERRORS`] of the account that met an error.
    pub count: i64,
    /// The last one's time.
    pub latest_at: DateTime<Utc>,
    /// The last one's transaction.
    pub example: Uuid,
}

/// Something that happened lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecentEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// What kind: `circuit_opened`, `account_paused`, `replica_started`, `operator`.
    pub kind: String,
    /// What it concerns: `provider/account`, a replica; nothing where it is several.
    pub subject: Option<String>,
    /// Who did it, where it was somebody.
    pub who: Option<String>,
    /// What happened.
    pub what: String,
}

/// A transaction that has not been polled although it is due.
#[derive(Clone, Debug)]
pub struct Overdue {
    /// The transaction.
    pub id: Uuid,
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// The key that the provider looks up.
    pub reference: String,
    /// For how long, in seconds.
    pub due_s: f64,
}

/// Parked transactions are counted exactly up to this, for each reason.
pub const EXACT: i64 = 10_000;
/// Reasons may be free text: at most this many different ones are told apart.
const KINDS: i64 = 300;
/// At most this many of an account's failed polls within the last hour are read.
pub const ERRORS: i64 = 5_000;
/// At most this many of the last changes not made by the daemon are searched for operators'
/// actions.
const CHANGES: i64 = 5_000;

/// How the index `transactions_by_reason` names a reason.
pub(super) const WHY: &str = "coalesce(left(reason, 100), '')";

/// First half: one step through the index for each account and reason, apart for both states.
/// Second half: each counted, from the latest on, and the last poll of the latest.
fn parked() -> String {
    let kinds = |state: &str| {
        format!(
            "{state}_kinds as (
                (select provider, account, '{state}' as state, {WHY} as why from paypoll.transactions
                  where state = '{state}' order by state, provider, account, {WHY} limit 1)
                union all
                select n.* from {state}_kinds k cross join lateral (
                    select provider, account, '{state}', {WHY} from paypoll.transactions
                     where state = '{state}' and (provider, account, {WHY}) > (k.provider, k.account, k.why)
                     order by state, provider, account, {WHY} limit 1) n
            )"
        )
    };
    let counted = |state: &str| {
        let rows = format!(
            "from paypoll.transactions t
              where t.state = '{state}' and t.provider = k.provider and t.account = k.account and coalesce(left(t.reason, 100), '') = k.why"
        );
        format!(
            "select k.provider, k.account, k.state, nullif(k.why, '') as reason, c.count, e.latest, e.example
               from (select * from {state}_kinds limit {KINDS}) k
              cross join lateral (select t.updated_at as latest, t.id as example {rows} order by t.updated_at desc, t.id desc limit 1) e
              cross join lateral (select count(*) as count from (select {rows} limit {EXACT}) x) c"
        )
    };
    let [unresolved, invalid] = ["unresolved", "invalid"];
    format!(
        "with recursive {}, {}, counted as ({} union all {})
         select c.*, left(p.error, 200) as last_error
           from counted c
           left join lateral (select error from paypoll.polls p where p.transaction_id = c.example order by p.sent_at desc limit 1) p on true
          order by c.count desc, c.provider, c.account, c.state, c.reason",
        kinds(unresolved),
        kinds(invalid),
        counted(unresolved),
        counted(invalid)
    )
}

const REPLICAS: &str = "
    select id, host, started_at, heartbeat_at, accounts
      from paypoll.replicas where heartbeat_at > clock_timestamp() - lease order by id limit 1000";

/// For each account, by the journal's index of errors: the last polls that met one, together by what it was.
const FREQUENT: &str = "
    select k.provider, k.account, e.outcome, e.error, e.count, e.latest, e.example
      from unnest($1::text[], $2::text[]) as k (provider, account)
     cross join lateral (
           select p.outcome, left(p.error, 200) as error, count(*) as count, max(p.sent_at) as latest,
                  (array_agg(p.transaction_id order by p.sent_at desc))[1] as example
             from (select outcome, error, sent_at, transaction_id from paypoll.polls
                    where provider = k.provider and account = k.account and error is not null and sent_at > now() - interval '1 hour'
                    order by sent_at desc limit $3) p
            group by p.outcome, left(p.error, 200)
            order by count(*) desc, max(p.sent_at) desc limit 3) e
     order by k.provider, k.account, e.count desc";

/// What the tables still show of the last hour. A circuit that has closed again leaves a trace only
/// in the daemon's log.
const EVENTS: &str = "
    select circuit_since as at, 'circuit_opened' as kind, provider || '/' || account as subject, null as who,
           left(coalesce(circuit_reason, ''), 300) as what
      from paypoll.accounts where circuit_since > now() - interval '1 hour'
    union all
    select paused_at, 'account_paused', provider || '/' || account, left(paused_by, 300), left(paused_because, 300)
      from paypoll.accounts where paused_at > now() - interval '1 hour'
    union all
    select started_at, 'replica_started', 'replica ' || id, null, case host when '' then 'registered' else 'registered on ' || left(host, 100) end
      from paypoll.replicas where started_at > now() - interval '1 hour'
    union all
    select max(x.at), 'operator', case when count(distinct x.transaction_id) = 1 then 'transaction ' || min(x.transaction_id::text) end,
           left(x.actor, 300), format('%s × %s → %s%s', count(*), x.from_state, x.to_state, case when x.why <> '' then ': ' || x.why end)
      from (select at, transaction_id, from_state, to_state, actor, source, coalesce(left(reason, 100), '') as why
              from paypoll.transitions where source in ('external', 'operator') order by id desc limit $1) x
     where x.source = 'operator' and x.at > now() - interval '1 hour'
     group by x.actor, x.from_state, x.to_state, x.why, date_trunc('minute', x.at)
     order by at desc limit 50";

const OVERDUE: &str = "
    select c.id, k.provider, k.account, c.reference, extract(epoch from clock_timestamp() - c.next_poll_at)::float8 as due_s
      from paypoll.accounts k
     cross join lateral (
           select t.id, t.reference, t.next_poll_at from paypoll.transactions t
            where t.provider = k.provider and t.account = k.account
              and t.next_poll_at < clock_timestamp() - make_interval(secs => $1)
            order by t.next_poll_at limit 5) c
     order by c.next_poll_at limit 50";

impl Store {
    /// How everything stands. `budgets` says how many requests a second a provider's account may send.
    pub async fn situation(&self, budgets: &BTreeMap<String, f64>) -> Result<Situation, StoreError> {
        let as_of = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?;
        let mut accounts = self.overview().await?;
        for account in &mut accounts {
            if let Some(per_second) = budgets.get(&account.provider) {
                account.set_budget(*per_second);
            }
        }
        Ok(Situation {
            as_of,
            unroutable: self.unroutable(&[]).await?,
            parked: self.parked_by_reason().await?,
            replicas: self.replicas().await?,
            errors: self.frequent_errors(&accounts).await?,
            events: self.recent_events().await?,
            accounts,
        })
    }

    /// Parked transactions by reason, the most frequent first.
    pub async fn parked_by_reason(&self) -> Result<Vec<Parked>, StoreError> {
        sqlx::query(AssertSqlSafe(parked())).fetch_all(&self.pool).await?.iter().map(parked_kind).collect()
    }

    /// The replicas that live.
    pub async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        sqlx::query(REPLICAS).fetch_all(&self.pool).await?.iter().map(replica).collect()
    }

    /// The three most frequent errors of each of these accounts within the last hour.
    pub async fn frequent_errors(&self, accounts: &[AccountOverview]) -> Result<Vec<FrequentError>, StoreError> {
        let (providers, names): (Vec<&str>, Vec<&str>) = accounts.iter().map(|a| (a.provider.as_str(), a.account.as_str())).unzip();
        let rows = sqlx::query(FREQUENT).bind(providers).bind(names).bind(ERRORS).fetch_all(&self.pool).await?;
        rows.iter().map(frequent).collect()
    }

    /// What happened within the last hour, the latest first.
    pub async fn recent_events(&self) -> Result<Vec<RecentEvent>, StoreError> {
        sqlx::query(EVENTS).bind(CHANGES).fetch_all(&self.pool).await?.iter().map(recent).collect()
    }

    /// The transactions that have been due for longer than `seconds`, some for each account, the
    /// longest first.
    pub async fn overdue(&self, seconds: f64) -> Result<Vec<Overdue>, StoreError> {
        sqlx::query(OVERDUE).bind(seconds).fetch_all(&self.pool).await?.iter().map(overdue).collect()
    }
}

fn parked_kind(row: &PgRow) -> Result<Parked, StoreError> {
    let count: i64 = row.try_get("count")?;
    Ok(Parked {
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        count,
        at_least: count >= EXACT,
        latest_at: row.try_get("latest")?,
        example: row.try_get("example")?,
        last_error: row.try_get("last_error")?,
    })
}

fn replica(row: &PgRow) -> Result<Replica, StoreError> {
    let Json(accounts) = row.try_get("accounts")?;
    Ok(Replica {
        id: row.try_get("id")?,
        host: row.try_get("host")?,
        started_at: row.try_get("started_at")?,
        heartbeat_at: row.try_get("heartbeat_at")?,
        accounts,
    })
}

fn frequent(row: &PgRow) -> Result<FrequentError, StoreError> {
    Ok(FrequentError {
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        outcome: row.try_get("outcome")?,
        error: row.try_get("error")?,
        count: row.try_get("count")?,
        latest_at: row.try_get("latest")?,
        example: row.try_get("example")?,
    })
}

fn recent(row: &PgRow) -> Result<RecentEvent, StoreError> {
    Ok(RecentEvent {
        at: row.try_get("at")?,
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        who: row.try_get("who")?,
        what: row.try_get("what")?,
    })
}

fn overdue(row: &PgRow) -> Result<Overdue, StoreError> {
    Ok(Overdue {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        due_s: row.try_get("due_s")?,
    })
}
