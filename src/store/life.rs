//! One transaction's life: its row, its transitions, its polls, and what its next poll waits for.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Everything that is known of one transaction.
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
    /// A living replica has the transaction in memory: its row may lag behind by up to a lease.
    pub held: bool,
    /// Why the account's circuit is open; `None`: it is closed.
    pub circuit: Option<String>,
    /// When the next probe of an open circuit may be sent.
    pub probe_at: Option<DateTime<Utc>>,
    /// The provider asked the account for a pause until then.
    pub held_until: Option<DateTime<Utc>>,
}

/// First half: every account there is, one step through the unique index for each; in each account the reference, one more step.
/// So no index on the reference alone is needed. Second half: the rows, with what the daemons know of their accounts.
const ROWS: &str = "
    with recursive accounts as (
        (select provider, account from paypoll.transactions order by provider, account limit 1)
        union all
        select n.provider, n.account from accounts a cross join lateral (
            select provider, account from paypoll.transactions
             where (provider, account) > (a.provider, a.account)
             order by provider, account limit 1) n
    ), found as (
        select r.id from accounts a cross join lateral (
            select id from paypoll.transactions t
             where t.provider = a.provider and t.account = a.account and t.reference = $2 limit 1) r
        union
        select id from paypoll.transactions where id = $1
    )
    select t.id, t.provider, t.account, t.reference, paypoll.shown_params(t.id) as params, to_jsonb(t.amount) as amount, t.currency,
           t.initiated_at, t.state, t.provider_state, t.reason, t.action, t.details, t.attempts, t.failures, t.last_polled_at,
           t.next_poll_at, t.finalized_at, t.created_at, t.updated_at,
           clock_timestamp() as now, a.probe_at, a.held_until,
           case when a.circuit_since is not null then coalesce(a.circuit_reason, '') end as circuit,
           exists (select from paypoll.replicas r where r.accounts @> jsonb_build_array(jsonb_build_array(t.provider, t.account))
                                                    and r.heartbeat_at > clock_timestamp() - r.lease) as served,
           exists (select from paypoll.replicas r where r.id = t.owner and r.heartbeat_at > clock_timestamp() - r.lease) as held
      from found f
      join paypoll.transactions t on t.id = f.id
      left join paypoll.accounts a on a.provider = t.provider and a.account = t.account
     order by t.provider, t.account, t.id";

const TRANSITIONS: &str = "
    select id, from_state, to_state, provider_state, reason, source, evidence, at
      from paypoll.transitions where transaction_id = $1 order by id";

const POLLS: &str = "
    select due_at, sent_at, latency_ms, http_status, outcome, error
      from paypoll.polls where transaction_id = $1 order by sent_at";

impl Store {
    /// The lives of the transactions that have this id or this reference: none, one, or several where accounts share a reference.
    pub async fn lives(&self, id_or_reference: &str) -> Result<Vec<Life>, StoreError> {
        let id = Uuid::try_parse(id_or_reference).ok();
        let rows = sqlx::query(ROWS).bind(id).bind(id_or_reference).fetch_all(&self.pool).await?;
        let mut lives = Vec::with_capacity(rows.len());
        for row in &rows {
            let transaction = transaction(row)?;
            let transitions = sqlx::query(TRANSITIONS).bind(transaction.id).fetch_all(&self.pool).await?;
            let polls = sqlx::query(POLLS).bind(transaction.id).fetch_all(&self.pool).await?;
            lives.push(Life {
                transaction,
                transitions: transitions.iter().map(transition).collect::<Result<_, _>>()?,
                polls: polls.iter().map(poll).collect::<Result<_, _>>()?,
                surroundings: surroundings(row)?,
            });
        }
        Ok(lives)
    }
}

fn transaction(row: &PgRow) -> Result<LifeRow, StoreError> {
    Ok(LifeRow {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        params: row.try_get("params")?,
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
    Ok(Surroundings {
        now: row.try_get("now")?,
        served: row.try_get("served")?,
        held: row.try_get("held")?,
        circuit: row.try_get("circuit")?,
        probe_at: row.try_get("probe_at")?,
        held_until: row.try_get("held_until")?,
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
