//! One transaction's life, for `paypoll show` and for the page: its row, its changes of state, its
//! polls, and what its next poll waits for.

use super::backlog::{IS_PAUSED, accounts_with};
use super::{Store, StoreError};
use crate::domain::{Anchors, Progress};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

/// How much of a life is read.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// At most this many polls and changes of state, the latest.
    pub events: i64,
    /// Longer texts, and JSON of more characters, are cut by the database.
    pub text: i32,
    /// Whether `params` are read, without the values of the known secrets.
    pub params: bool,
}

impl Extent {
    /// Everything.
    pub const ALL: Self = Self { events: i64::MAX, text: 1_000_000, params: true };
    /// What the page shows: what the lookup needs is never read for it.
    pub const PAGE: Self = Self { events: 200, text: 4_000, params: false };
}

/// Everything known about one transaction.
#[derive(Clone, Debug, Serialize)]
pub struct Life {
    /// Its row.
    pub transaction: LifeRow,
    /// Its changes of state, in their order.
    pub transitions: Vec<LifeTransition>,
    /// Its polls, in their order, as far as the journal reaches back.
    pub polls: Vec<LifePoll>,
    /// What stands between it and its next poll.
    #[serde(skip)]
    pub surroundings: Surroundings,
}

/// The public columns of a transaction's row; `params` without the values of the known secrets.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the column of that name, documented in the migration")]
pub struct LifeRow {
    pub id: Uuid,
    pub provider: String,
    pub account: String,
    pub reference: String,
    pub params: Value,
    /// An exact decimal.
    pub amount: Option<Value>,
    pub currency: Option<String>,
    pub initiated_at: DateTime<Utc>,
    pub state: String,
    pub provider_state: Option<String>,
    pub reason: Option<String>,
    pub action: Option<Value>,
    pub details: Option<Value>,
    pub attempts: i32,
    pub failures: i32,
    pub last_polled_at: Option<DateTime<Utc>>,
    pub next_poll_at: Option<DateTime<Utc>>,
    pub finalized_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A change of state.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the column of that name, documented in the migration")]
pub struct LifeTransition {
    pub id: i64,
    pub from_state: String,
    pub to_state: String,
    pub provider_state: Option<String>,
    pub reason: Option<String>,
    pub source: String,
    pub actor: Option<String>,
    pub evidence: Option<Value>,
    pub at: DateTime<Utc>,
}

/// A poll that was sent.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the column of that name, documented in the migration")]
pub struct LifePoll {
    pub due_at: DateTime<Utc>,
    pub sent_at: DateTime<Utc>,
    pub latency_ms: Option<i32>,
    pub http_status: Option<i16>,
    pub outcome: String,
    pub error: Option<String>,
}

/// What stands between a transaction and its next poll.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// A living replica serves the account.
    pub served: bool,
    /// The living replica that has the transaction in memory: its row may lag behind by up to
    /// [`super::ROW_LAG`].
    pub owner: Option<i64>,
    /// Why the account's circuit is open; `None`: it is closed.
    pub circuit: Option<String>,
    /// Since when it is open.
    pub circuit_since: Option<DateTime<Utc>>,
    /// When the next probe of an open circuit may be sent.
    pub probe_at: Option<DateTime<Utc>>,
    /// The provider asked the account for a pause until then.
    pub held_until: Option<DateTime<Utc>>,
    /// An operator has paused the account: why, who, since when and until when.
    pub pause: Option<Pause>,
    /// How many transactions of the account were due before it, and how many are due; `None` where
    /// it is not due.
    pub queue: Option<(i64, i64)>,
    /// From when its plan counts, and how far it has come in it.
    pub anchors: Option<(Anchors, Progress)>,
}

/// An operator's pause.
#[derive(Clone, Debug)]
pub struct Pause {
    /// Why.
    pub because: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Until when; `None`: until the account is resumed.
    pub until: Option<DateTime<Utc>>,
}

/// A transaction as a list of hits names it.
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

/// At most this many transactions with the same reference are told apart.
const MOST_HITS: i64 = 50;
/// A transaction's place in the queue is counted up to this.
pub const QUEUE: i64 = 100_000;

/// First half: every account there is, one step through the unique index for each; in each account
/// the reference, one more step. So no index on the reference alone is needed.
fn by_reference() -> String {
    let known = accounts_with("known", "");
    format!(
        "with recursive {known}
         select t.id, t.provider, t.account, t.reference, t.state
           from (select * from known limit 10000) k
           join paypoll.transactions t on t.provider = k.provider and t.account = k.account and t.reference = $1
          order by t.provider, t.account limit {MOST_HITS}"
    )
}

/// The row, with what the daemons know of its account, and its place among what is due.
const ROW: &str = "
    select t.id, t.provider, t.account, t.reference, case when $3 then paypoll.shown_params(t.id) end as params,
           to_jsonb(t.amount) as amount, left(t.currency, 20) as currency, t.initiated_at, t.state,
           left(t.provider_state, 300) as provider_state, left(t.reason, $2) as reason,
           {action} as action, {details} as details, t.attempts, t.failures, t.last_polled_at,
           t.next_poll_at, t.finalized_at, t.created_at, t.updated_at,
           clock_timestamp() as now, a.probe_at, a.circuit_since,
           case when a.held_until > clock_timestamp() then a.held_until end as held_until,
           case when a.circuit_since is not null then left(coalesce(a.circuit_reason, ''), 500) end as circuit,
           case when {paused} then a.paused_at end as paused_at, a.paused_until, left(a.paused_because, 500) as paused_because,
           left(a.paused_by, 300) as paused_by,
           exists (select from paypoll.replicas r where r.accounts @> jsonb_build_array(jsonb_build_array(t.provider, t.account))
                                                    and r.heartbeat_at > clock_timestamp() - r.lease) as served,
           (select r.id from paypoll.replicas r where r.id = t.owner and r.heartbeat_at > clock_timestamp() - r.lease) as owner,
           q.before, q.due, t.reopened_at, t.action_at, t.opened_at, t.phase, t.phase_since, t.gaps, t.answered
      from paypoll.transactions t
      left join paypoll.accounts a on a.provider = t.provider and a.account = t.account
      left join lateral (
           select count(*) filter (where d.next_poll_at < t.next_poll_at) as before, count(*) as due
             from (select o.next_poll_at from paypoll.transactions o
                    where o.provider = t.provider and o.account = t.account and o.next_poll_at <= now()
                    order by o.next_poll_at limit 100000) d) q on t.next_poll_at <= now()
     where t.id = $1";

const TRANSITIONS: &str = "
    select id, from_state, to_state, left(provider_state, 300) as provider_state, left(reason, $3) as reason, source, left(actor, 300) as actor, {evidence} as evidence, at
      from (select * from paypoll.transitions where transaction_id = $1 order by id desc limit $2) x order by id";

const POLLS: &str = "
    select due_at, sent_at, latency_ms, http_status, outcome, left(error, $3) as error
      from (select * from paypoll.polls where transaction_id = $1 order by sent_at desc limit $2) x order by sent_at";

/// A column of JSON, or the beginning of its text where that is longer than the parameter says.
/// What no version of paypoll writes (it may be a gigabyte) is not even unpacked.
fn cut(column: &str, parameter: &str) -> String {
    format!(
        "case when pg_column_size({column}) > 200000 then jsonb_build_object('too long to be shown', pg_column_size({column}))
              when {column} is null or length({column}::text) <= {parameter} then {column}
              else jsonb_build_object('cut after ' || {parameter} || ' characters', left({column}::text, {parameter})) end"
    )
}

impl Store {
    /// The lives of the transactions that have this id or this reference: none, one, or several
    /// where accounts share a reference.
    pub async fn lives(&self, id_or_reference: &str, extent: Extent) -> Result<Vec<Life>, StoreError> {
        let mut ids: Vec<Uuid> = self.by_reference(id_or_reference).await?.into_iter().map(|found| found.id).collect();
        if let Ok(id) = Uuid::try_parse(id_or_reference)
            && !ids.contains(&id)
        {
            ids.push(id);
        }
        let mut lives = Vec::with_capacity(ids.len());
        for id in ids {
            lives.extend(self.life(id, extent).await?);
        }
        Ok(lives)
    }

    /// The transactions that a person may mean: with that reference, with that id, or with an id
    /// that begins like it.
    pub async fn named(&self, name: &str) -> Result<Vec<Found>, StoreError> {
        let mut found = self.by_reference(name).await?;
        if let Some((first, last)) = ids_like(name) {
            let rows = sqlx::query(
                "select t.id, t.provider, t.account, t.reference, t.state from paypoll.transactions t
                  where t.id between $1 and $2 order by t.id limit 50",
            );
            for row in rows.bind(first).bind(last).fetch_all(&self.pool).await? {
                found.push(self::found(&row)?);
            }
        }
        Ok(found)
    }

    /// The transactions with that reference, whatever their provider and account; at most 50.
    pub async fn by_reference(&self, reference: &str) -> Result<Vec<Found>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(by_reference())).bind(reference).fetch_all(&self.pool).await?;
        rows.iter().map(found).collect()
    }

    /// One transaction's life; `None` when there is no such transaction.
    pub async fn life(&self, id: Uuid, extent: Extent) -> Result<Option<Life>, StoreError> {
        let sql = ROW
            .replace("{action}", &cut("t.action", "$2"))
            .replace("{details}", &cut("t.details", "$2"))
            .replace("{paused}", IS_PAUSED);
        let row = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(extent.text).bind(extent.params);
        let Some(row) = row.fetch_optional(&self.pool).await? else { return Ok(None) };
        let sql = TRANSITIONS.replace("{evidence}", &cut("evidence", "$3"));
        let transitions = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(extent.events).bind(extent.text);
        let transitions = transitions.fetch_all(&self.pool).await?;
        let polls = sqlx::query(POLLS).bind(id).bind(extent.events).bind(extent.text).fetch_all(&self.pool).await?;
        Ok(Some(Life {
            transaction: transaction(&row)?,
            transitions: transitions.iter().map(transition).collect::<Result<_, _>>()?,
            polls: polls.iter().map(poll).collect::<Result<_, _>>()?,
            surroundings: surroundings(&row)?,
        }))
    }
}

/// The first and the last id that begin like a text; `None` where it is none of at least six digits.
fn ids_like(text: &str) -> Option<(Uuid, Uuid)> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if !(6..=32).contains(&digits.len()) || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let filled = |with: &str| Uuid::try_parse(&format!("{digits}{}", with.repeat(32 - digits.len()))).ok();
    Some((filled("0")?, filled("f")?))
}

fn transaction(row: &PgRow) -> Result<LifeRow, StoreError> {
    Ok(LifeRow {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        params: row.try_get::<Option<Value>, _>("params")?.unwrap_or_default(),
        amount: row.try_get("amount")?,
        currency: row.try_get("currency")?,
        initiated_at: row.try_get("initiated_at")?,
        state: row.try_get("state")?,
        provider_state: row.try_get("provider_state")?,
        reason: row.try_get("reason")?,
        action: row.try_get("action")?,
        details: row.try_get("details")?,
        attempts: row.try_get("attempts")?,
        failures: row.try_get("failures")?,
        last_polled_at: row.try_get("last_polled_at")?,
        next_poll_at: row.try_get("next_poll_at")?,
        finalized_at: row.try_get("finalized_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

fn surroundings(row: &PgRow) -> Result<Surroundings, StoreError> {
    let queue: (Option<i64>, Option<i64>) = (row.try_get("before")?, row.try_get("due")?);
    let reopened_at: Option<DateTime<Utc>> = row.try_get("reopened_at")?;
    let start = match reopened_at {
        Some(at) => at,
        None => row.try_get("initiated_at")?,
    };
    let progress = Progress {
        opened_at: row.try_get("opened_at")?,
        phase: u16::try_from(row.try_get::<i16, _>("phase")?).unwrap_or(0),
        phase_since: row.try_get("phase_since")?,
        gaps: u32::try_from(row.try_get::<i32, _>("gaps")?).unwrap_or(0),
        answered: row.try_get("answered")?,
    };
    Ok(Surroundings {
        now: row.try_get("now")?,
        served: row.try_get("served")?,
        owner: row.try_get("owner")?,
        circuit: row.try_get("circuit")?,
        circuit_since: row.try_get("circuit_since")?,
        probe_at: row.try_get("probe_at")?,
        held_until: row.try_get("held_until")?,
        pause: pause(row)?,
        queue: queue.0.zip(queue.1),
        anchors: Some((Anchors { start, action: row.try_get("action_at")? }, progress)),
    })
}

fn pause(row: &PgRow) -> Result<Option<Pause>, StoreError> {
    let Some(since) = row.try_get("paused_at")? else { return Ok(None) };
    Ok(Some(Pause {
        because: row.try_get::<Option<String>, _>("paused_because")?.unwrap_or_default(),
        by: row.try_get::<Option<String>, _>("paused_by")?.unwrap_or_default(),
        since,
        until: row.try_get("paused_until")?,
    }))
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

fn transition(row: &PgRow) -> Result<LifeTransition, StoreError> {
    Ok(LifeTransition {
        id: row.try_get("id")?,
        from_state: row.try_get("from_state")?,
        to_state: row.try_get("to_state")?,
        provider_state: row.try_get("provider_state")?,
        reason: row.try_get("reason")?,
        source: row.try_get("source")?,
        actor: row.try_get("actor")?,
        evidence: row.try_get("evidence")?,
        at: row.try_get("at")?,
    })
}

fn poll(row: &PgRow) -> Result<LifePoll, StoreError> {
    Ok(LifePoll {
        due_at: row.try_get("due_at")?,
        sent_at: row.try_get("sent_at")?,
        latency_ms: row.try_get("latency_ms")?,
        http_status: row.try_get("http_status")?,
        outcome: row.try_get("outcome")?,
        error: row.try_get("error")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_how_it_begins() {
        let like = |text| ids_like(text).map(|(first, last)| (first.to_string(), last.to_string()));
        let expected = ("0199f5b2-7000-0000-0000-000000000000", "0199f5b2-7fff-ffff-ffff-ffffffffffff");
        assert_eq!(like("0199F5B2-7"), Some((expected.0.to_owned(), expected.1.to_owned())));
        let whole = "0199f5b2-0000-7000-8000-000000000000";
        assert_eq!(like(whole), Some((whole.to_owned(), whole.to_owned())));
        for text in ["0199f", "ORDER-1001", "", "0199f5b2-0000-7000-8000-0000000000000"] {
            assert_eq!(like(text), None, "{text}");
        }
    }
}
