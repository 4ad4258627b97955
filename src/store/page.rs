//! What the ops port shows: lateness for probes, counts for scrapes, what is stuck, and one payment's life.
//!
//! Anybody who reaches the port may ask as often as he likes, so every statement here is bounded, whatever the tables hold.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Counts go no further than this. At 10,000,000 pending rows the five providers together take 0.2 s with it, and 3.4 s without.
pub const ENOUGH: i64 = 100_000;

/// How late an account's transactions are that no living replica holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Unheld {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// For how long the first of them has been due, in seconds; `None` where none is due.
    pub oldest_s: Option<f64>,
    /// Nothing is asked but probes.
    pub circuit_open: bool,
    /// The provider asked for a pause that still lasts.
    pub paused: bool,
}

/// One provider's transactions that are not final, each counted up to [`ENOUGH`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The provider.
    pub provider: String,
    /// In state `pending`.
    pub pending: i64,
    /// In state `action_required`.
    pub action_required: i64,
    /// In state `unresolved`.
    pub unresolved: i64,
    /// In state `invalid`.
    pub invalid: i64,
}

/// What hangs, and why.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    /// Accounts that are not asked.
    pub silent: Vec<Silent>,
    /// The transactions that have been due for longest, some for each account.
    pub overdue: Vec<Overdue>,
    /// Parked transactions by reason.
    pub parked: Vec<Parked>,
    /// The living replicas.
    pub replicas: Vec<Replica>,
}

/// An account that is not asked, but perhaps for probes.
#[derive(Clone, Debug)]
pub struct Silent {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// For how long the circuit has been open, in seconds; `None`: it is closed.
    pub open_s: Option<f64>,
    /// Why it is open.
    pub reason: Option<String>,
    /// How long the pause still lasts that the provider asked for, in seconds.
    pub pause_s: Option<f64>,
}

/// A transaction that nobody has asked about although it is due.
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

/// Parked transactions that have the same reason.
#[derive(Clone, Debug)]
pub struct Parked {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// `unresolved` or `invalid`.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// How many, of the first [`PARKED`] of the provider.
    pub count: i64,
    /// How long ago the last of them was parked, in seconds.
    pub latest_s: f64,
    /// The last of them.
    pub example: Uuid,
}

/// A living replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its number.
    pub id: i64,
    /// Where it runs, by its own account.
    pub host: String,
    /// For how long, in seconds.
    pub up_s: f64,
    /// How many accounts it serves.
    pub accounts: i64,
}

/// A transaction as the page names it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The transaction.
    pub id: Uuid,
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// The key that the provider looks up.
    pub reference: String,
    /// Where it stands.
    pub state: String,
}

/// One payment's life. Nothing in it is secret: what the lookup needs (`params`) is never read.
#[derive(Clone, Debug)]
pub struct Life {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Which transaction, and where it stands.
    pub found: Found,
    /// The provider's own last word.
    pub provider_state: Option<String>,
    /// Why it stands there.
    pub reason: Option<String>,
    /// The amount and the currency that the feeder expects.
    pub amount: Option<String>,
    /// When the payment was initiated, by the feeder's clock.
    pub initiated_at: DateTime<Utc>,
    /// When the row was inserted.
    pub created_at: DateTime<Utc>,
    /// Polls sent.
    pub attempts: i32,
    /// Polls in a row without a usable answer.
    pub failures: i32,
    /// When the next poll is due; `None` when final or parked.
    pub next_poll_at: Option<DateTime<Utc>>,
    /// The living replica that holds it.
    pub owner: Option<i64>,
    /// Whether a living replica serves its account.
    pub served: bool,
    /// Why the account's circuit is open; `None`: it is closed.
    pub circuit: Option<String>,
    /// Until when the account pauses because the provider said so.
    pub paused_until: Option<DateTime<Utc>>,
    /// The last [`EVENTS`] changes of state, oldest first.
    pub changes: Vec<LifeChange>,
    /// The last [`EVENTS`] polls, oldest first.
    pub polls: Vec<LifePoll>,
}

/// A change of state.
#[derive(Clone, Debug)]
pub struct LifeChange {
    /// When.
    pub at: DateTime<Utc>,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// The provider's word.
    pub provider_state: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Who or what changed it.
    pub source: String,
    /// What stands behind it, redacted when it was written.
    pub evidence: Option<Value>,
}

/// A poll.
#[derive(Clone, Debug)]
pub struct LifePoll {
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// How long the answer took.
    pub latency_ms: Option<i32>,
    /// The answer's status.
    pub http_status: Option<i16>,
    /// What came of it.
    pub outcome: String,
    /// What was wrong with the answer.
    pub error: Option<String>,
}

/// So many polls and so many changes of a transaction are read.
pub const EVENTS: i64 = 200;
/// So many parked rows of a provider are grouped by reason.
pub const PARKED: i64 = 5000;

/// Rows that a living replica holds are told by that replica, and their `next_poll_at` lags: they are passed over. Of those, no more
/// than the first 1000 of an account are read. What stands behind more of them than that has been due for a shorter time than they
/// have, and so their own replica is late with them, by up to a lease.
const UNHELD: &str = "
    select k.provider, k.account, d.oldest, a.circuit_since is not null as circuit_open,
           coalesce(a.held_until > clock_timestamp(), false) as paused
      from unnest($1::text[], $2::text[]) as k (provider, account)
      left join paypoll.accounts a on a.provider = k.provider and a.account = k.account
     cross join lateral (
           select extract(epoch from clock_timestamp() - min(c.next_poll_at))::float8 as oldest
             from (select t.next_poll_at, t.owner from paypoll.transactions t
                    where t.provider = k.provider and t.account = k.account and t.next_poll_at <= now()
                    order by t.next_poll_at limit 1000) c
            where c.owner is null or not exists (
                  select from paypoll.replicas r where r.id = c.owner and r.heartbeat_at > clock_timestamp() - r.lease)) d";

/// By provider and not by account: the cost must not grow with the number of accounts.
const COUNTS: &str = "
    select k.provider, least($2, greatest(0, p.polled - case when p.polled < $2 then w.waiting else 0 end)) as pending,
           w.waiting as action_required, u.unresolved, u.invalid
      from unnest($1::text[]) as k (provider)
     cross join lateral (select count(*) as polled from (
           select from paypoll.transactions t where t.provider = k.provider and t.next_poll_at is not null limit $2) c) p
     cross join lateral (select count(*) as waiting from (
           select from paypoll.transactions t where t.provider = k.provider and t.state = 'action_required' limit $2) c) w
     cross join lateral (select count(*) filter (where c.state = 'unresolved') as unresolved, count(*) filter (where c.state = 'invalid') as invalid
           from (select t.state from paypoll.transactions t
                  where t.provider = k.provider and t.state in ('unresolved', 'invalid') limit $2) c) u";

const SILENT: &str = "
    select provider, account, circuit_reason, extract(epoch from clock_timestamp() - circuit_since)::float8 as open_s,
           case when held_until > clock_timestamp() then extract(epoch from held_until - clock_timestamp())::float8 end as pause_s
      from paypoll.accounts
     where circuit_since is not null or held_until > clock_timestamp()
     order by provider, account limit 100";

const OVERDUE: &str = "
    select c.id, k.provider, k.account, c.reference, extract(epoch from clock_timestamp() - c.next_poll_at)::float8 as due_s
      from paypoll.accounts k
     cross join lateral (
           select t.id, t.reference, t.next_poll_at, t.owner from paypoll.transactions t
            where t.provider = k.provider and t.account = k.account
              and t.next_poll_at < clock_timestamp() - make_interval(secs => $1)
            order by t.next_poll_at limit 5) c
     order by c.next_poll_at limit 50";

const PARKED_ROWS: &str = "
    select c.provider, c.account, c.state, c.reason, count(*) as count,
           extract(epoch from clock_timestamp() - max(c.updated_at))::float8 as latest_s,
           (array_agg(c.id order by c.updated_at desc))[1] as example
      from unnest($1::text[]) as k (provider)
     cross join lateral (
           select t.provider, t.account, t.state, left(t.reason, 200) as reason, t.updated_at, t.id from paypoll.transactions t
            where t.provider = k.provider and t.state in ('unresolved', 'invalid') limit $2) c
     group by c.provider, c.account, c.state, c.reason
     order by count(*) desc, c.provider, c.account limit 50";

const REPLICAS: &str = "
    select id, host, extract(epoch from clock_timestamp() - started_at)::float8 as up_s, jsonb_array_length(accounts)::bigint as accounts
      from paypoll.replicas where heartbeat_at > clock_timestamp() - lease order by id limit 100";

/// First half: the accounts that have transactions, one step through the unique index for each. Second half: the reference in each.
const BY_REFERENCE: &str = "
    with recursive known as (
        (select provider, account from paypoll.transactions order by provider, account limit 1)
        union all
        select n.provider, n.account from known k cross join lateral (
            select provider, account from paypoll.transactions
             where (provider, account) > (k.provider, k.account) order by provider, account limit 1) n
    )
    select t.id, t.provider, t.account, t.reference, t.state
      from (select * from known limit 10000) k
      join paypoll.transactions t on t.provider = k.provider and t.account = k.account and t.reference = $1
     order by t.provider, t.account limit 50";

const LIFE: &str = "
    select clock_timestamp() as now, t.id, t.provider, t.account, t.reference, t.state, t.provider_state, t.reason,
           case when t.amount is not null then concat_ws(' ', t.amount, t.currency) end as amount,
           t.initiated_at, t.created_at, t.attempts, t.failures, t.next_poll_at,
           (select r.id from paypoll.replicas r where r.id = t.owner and r.heartbeat_at > clock_timestamp() - r.lease) as owner,
           exists (select from paypoll.replicas r
                    where r.accounts @> jsonb_build_array(jsonb_build_array(t.provider, t.account))
                      and r.heartbeat_at > clock_timestamp() - r.lease) as served,
           case when a.circuit_since is not null then coalesce(a.circuit_reason, '') end as circuit,
           case when a.held_until > clock_timestamp() then a.held_until end as paused_until
      from paypoll.transactions t
      left join paypoll.accounts a on a.provider = t.provider and a.account = t.account
     where t.id = $1";

const CHANGES: &str = "
    select at, from_state, to_state, provider_state, reason, source, evidence
      from paypoll.transitions where transaction_id = $1 order by id desc limit $2";

const POLLS: &str = "
    select sent_at, due_at, latency_ms, http_status, outcome, error
      from paypoll.polls where transaction_id = $1 order by sent_at desc limit $2";

impl Store {
    /// How late these accounts are with what no living replica holds.
    pub async fn unheld(&self, accounts: &[(&str, &str)]) -> Result<Vec<Unheld>, StoreError> {
        let (providers, names): (Vec<&str>, Vec<&str>) = accounts.iter().copied().unzip();
        let rows = sqlx::query(UNHELD).bind(providers).bind(names).fetch_all(&self.pool).await?;
        let unheld = |row: &PgRow| {
            Ok(Unheld {
                provider: row.try_get("provider")?,
                account: row.try_get("account")?,
                oldest_s: row.try_get("oldest")?,
                circuit_open: row.try_get("circuit_open")?,
                paused: row.try_get("paused")?,
            })
        };
        rows.iter().map(unheld).collect()
    }

    /// What is not final, by provider.
    pub async fn counts(&self, providers: &[&str]) -> Result<Vec<Counts>, StoreError> {
        let rows = sqlx::query(COUNTS).bind(providers).bind(ENOUGH).fetch_all(&self.pool).await?;
        let counts = |row: &PgRow| {
            Ok(Counts {
                provider: row.try_get("provider")?,
                pending: row.try_get("pending")?,
                action_required: row.try_get("action_required")?,
                unresolved: row.try_get("unresolved")?,
                invalid: row.try_get("invalid")?,
            })
        };
        rows.iter().map(counts).collect()
    }

    /// What hangs: accounts that are not asked, transactions due for longer than `overdue_s`, parked ones of these providers.
    pub async fn stuck(&self, providers: &[&str], overdue_s: f64) -> Result<Stuck, StoreError> {
        let silent = sqlx::query(SILENT).fetch_all(&self.pool).await?;
        let overdue = sqlx::query(OVERDUE).bind(overdue_s).fetch_all(&self.pool).await?;
        let parked = self.parked_by_reason(providers).await?;
        let replicas = sqlx::query(REPLICAS).fetch_all(&self.pool).await?;
        Ok(Stuck {
            silent: silent.iter().map(silent_account).collect::<Result<_, StoreError>>()?,
            overdue: overdue.iter().map(overdue_row).collect::<Result<_, StoreError>>()?,
            parked,
            replicas: replicas.iter().map(replica).collect::<Result<_, StoreError>>()?,
        })
    }

    /// Parked transactions by reason, the most frequent first; at most 50 lines, of the first [`PARKED`] of each provider.
    pub async fn parked_by_reason(&self, providers: &[&str]) -> Result<Vec<Parked>, StoreError> {
        let rows = sqlx::query(PARKED_ROWS).bind(providers).bind(PARKED).fetch_all(&self.pool).await?;
        rows.iter().map(parked_rows).collect()
    }

    /// The transactions with that reference, whatever their provider and account; at most 50.
    pub async fn by_reference(&self, reference: &str) -> Result<Vec<Found>, StoreError> {
        let rows = sqlx::query(BY_REFERENCE).bind(reference).fetch_all(&self.pool).await?;
        rows.iter().map(found).collect()
    }

    /// One transaction's life; `None` when there is no such transaction.
    pub async fn life(&self, id: Uuid) -> Result<Option<Life>, StoreError> {
        let Some(row) = sqlx::query(LIFE).bind(id).fetch_optional(&self.pool).await? else { return Ok(None) };
        let changes = sqlx::query(CHANGES).bind(id).bind(EVENTS).fetch_all(&self.pool).await?;
        let polls = sqlx::query(POLLS).bind(id).bind(EVENTS).fetch_all(&self.pool).await?;
        Ok(Some(Life {
            now: row.try_get("now")?,
            found: found(&row)?,
            provider_state: row.try_get("provider_state")?,
            reason: row.try_get("reason")?,
            amount: row.try_get("amount")?,
            initiated_at: row.try_get("initiated_at")?,
            created_at: row.try_get("created_at")?,
            attempts: row.try_get("attempts")?,
            failures: row.try_get("failures")?,
            next_poll_at: row.try_get("next_poll_at")?,
            owner: row.try_get("owner")?,
            served: row.try_get("served")?,
            circuit: row.try_get("circuit")?,
            paused_until: row.try_get("paused_until")?,
            changes: changes.iter().rev().map(change).collect::<Result<_, StoreError>>()?,
            polls: polls.iter().rev().map(poll).collect::<Result<_, StoreError>>()?,
        }))
    }
}

fn silent_account(row: &PgRow) -> Result<Silent, StoreError> {
    Ok(Silent {
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        open_s: row.try_get("open_s")?,
        reason: row.try_get("circuit_reason")?,
        pause_s: row.try_get("pause_s")?,
    })
}

fn overdue_row(row: &PgRow) -> Result<Overdue, StoreError> {
    Ok(Overdue {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        due_s: row.try_get("due_s")?,
    })
}

fn parked_rows(row: &PgRow) -> Result<Parked, StoreError> {
    Ok(Parked {
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        count: row.try_get("count")?,
        latest_s: row.try_get("latest_s")?,
        example: row.try_get("example")?,
    })
}

fn replica(row: &PgRow) -> Result<Replica, StoreError> {
    Ok(Replica {
        id: row.try_get("id")?,
        host: row.try_get("host")?,
        up_s: row.try_get("up_s")?,
        accounts: row.try_get("accounts")?,
    })
}

fn found(row: &PgRow) -> Result<Found, StoreError> {
    Ok(Found {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        state: row.try_get("state")?,
    })
}

fn change(row: &PgRow) -> Result<LifeChange, StoreError> {
    Ok(LifeChange {
        at: row.try_get("at")?,
        from: row.try_get("from_state")?,
        to: row.try_get("to_state")?,
        provider_state: row.try_get("provider_state")?,
        reason: row.try_get("reason")?,
        source: row.try_get("source")?,
        evidence: row.try_get("evidence")?,
    })
}

fn poll(row: &PgRow) -> Result<LifePoll, StoreError> {
    Ok(LifePoll {
        sent_at: row.try_get("sent_at")?,
        due_at: row.try_get("due_at")?,
        latency_ms: row.try_get("latency_ms")?,
        http_status: row.try_get("http_status")?,
        outcome: row.try_get("outcome")?,
        error: row.try_get("error")?,
    })
}
