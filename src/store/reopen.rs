//! Reopening parked transactions for an operator: a new polling window starts.

use super::levers::sign;
use super::{Store, StoreError};
use sqlx::postgres::PgRow;
use sqlx::{Connection, Row};
use std::time::Duration;
use uuid::Uuid;

/// Which parked transactions are meant: what is `None` is any.
#[derive(Clone, Debug, Default)]
pub struct Meant {
    /// Of this provider.
    pub provider: Option<String>,
    /// Of this account.
    pub account: Option<String>,
    /// Parked with exactly this reason.
    pub reason: Option<String>,
    /// Parked, or corrected since, within this time.
    pub since: Option<Duration>,
    /// At most this many, those first that have been parked for longest.
    pub limit: Option<u64>,
}

/// Parked transactions of one account that have the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// Why they are parked.
    pub reason: Option<String>,
    /// How many.
    pub count: i64,
    /// The last error of one of them.
    pub last_error: Option<String>,
}

/// What became of one transaction that was to be reopened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reopened {
    /// The requested id.
    pub id: Uuid,
    /// Provider, account, reference; `None` where there is no such transaction.
    pub name: Option<(String, String, String)>,
    /// The state before.
    pub state: Option<String>,
    /// The reason before.
    pub reason: Option<String>,
    /// Why it was not reopened; `None` when it was.
    pub obstacle: Option<String>,
}

const PARKED: &str = "
    select id from paypoll.transactions
     where state in ('unresolved', 'invalid')
       and ($1::text is null or provider = $1) and ($2::text is null or account = $2) and ($3::text is null or reason = $3)
       and ($4::float8 is null or updated_at > now() - make_interval(secs => $4))
     order by updated_at, id
     limit $5";

/// What is about to be reopened, by account and reason, each with the last error of its latest.
const GROUPS: &str = "
    select g.*, left(p.error, 200) as last_error
      from (select t.provider, t.account, t.reason, count(*) as count, (array_agg(t.id order by t.updated_at desc))[1] as example
              from paypoll.transactions t
             where t.id = any ($1) and t.state in ('unresolved', 'invalid')
             group by t.provider, t.account, t.reason) g
      left join lateral (select error from paypoll.polls p where p.transaction_id = g.example order by p.sent_at desc limit 1) p on true
     order by g.count desc, g.provider, g.account";

/// The requested rows, locked, each with the reason why it may not be reopened.
const ASKED: &str = r#"
    with asked as (
        select * from unnest($1::uuid[]) with ordinality as x (id, number)
    ), found as (
        select t.id, t.provider, t.account, t.reference, t.state, t.reason, t.provider_state, t.owner, t.last_polled_at, t.created_at,
               case when t.state not in ('unresolved', 'invalid') then
                        format('it is %s: only unresolved and invalid transactions are reopened', t.state)
                    when t.initiated_at not between timestamptz '2000-01-01' and now() + interval '5 minutes' then
                        format('its initiated_at is %s: correct that first', to_char(t.initiated_at, 'YYYY-MM-DD"T"HH24:MI:SSTZH'))
               end as obstacle
          from paypoll.transactions t
         where t.id = any ($1)
         order by t.id
           for no key update
    )"#;

/// A new window: it counts from now, and of the old one only the number of polls is kept. Polls
/// that only the journal has, because their sender died or was superseded, are counted here, so
/// that the floor since the last one holds. An owner stays: it may have a poll in flight and has
/// not released the row yet, or it is dead and the replica that takes over reads the journal.
const REOPEN: &str = "
    , counted as (
        select f.*, j.polls, j.polled_at
          from found f
         cross join lateral (
               select count(*)::int as polls, max(p.sent_at) as polled_at from paypoll.polls p
                where p.transaction_id = f.id and p.sent_at > coalesce(f.last_polled_at, f.created_at - interval '1 day')) j
         where f.obstacle is null
    ), reopened as (
        update paypoll.transactions t
           set fence = t.fence + 1, state = 'pending', reason = null, action = null,
               failures = 0, not_found = 0, attempts = t.attempts + c.polls, last_polled_at = greatest(t.last_polled_at, c.polled_at),
               next_poll_at = clock_timestamp(), reopened_at = clock_timestamp(), action_at = null,
               opened_at = null, phase = 0, phase_since = null, gaps = 0, answered = false
          from counted c
         where t.id = c.id
        returning t.id, c.state as from_state, t.provider_state
    ), journaled as (
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source)
        select id, from_state, 'pending', provider_state, $2, 'operator' from reopened
    )";

/// In the requested order.
const ANSWER: &str = "
    select a.id, f.provider, f.account, f.reference, f.state, f.reason,
           case when f.id is null then 'there is no such transaction' else f.obstacle end as obstacle
      from asked a left join found f on f.id = a.id
     order by a.number";

impl Store {
    /// The ids of the parked transactions that are meant.
    pub async fn parked(&self, meant: &Meant) -> Result<Vec<Uuid>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        // However many there are, the operator asked for all of them.
        sqlx::query("set local statement_timeout = 0").execute(&mut *tx).await?;
        let ids = sqlx::query_scalar(PARKED)
            .bind(&meant.provider)
            .bind(&meant.account)
            .bind(&meant.reason)
            .bind(meant.since.map(|since| since.as_secs_f64()))
            .bind(meant.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)))
            .fetch_all(&mut *tx)
            .await?;
        tx.rollback().await?;
        Ok(ids)
    }

    /// What these transactions are parked for, the most frequent first.
    pub async fn parked_groups(&self, ids: &[Uuid]) -> Result<Vec<Group>, StoreError> {
        let rows = sqlx::query(GROUPS).bind(ids).fetch_all(&self.pool).await?;
        let group = |row: &PgRow| {
            Ok(Group {
                provider: row.try_get("provider")?,
                account: row.try_get("account")?,
                reason: row.try_get("reason")?,
                count: row.try_get("count")?,
                last_error: row.try_get("last_error")?,
            })
        };
        rows.iter().map(group).collect()
    }

    /// Says of each of `ids` what would become of it. No id may be given twice.
    pub async fn would_reopen(&self, ids: &[Uuid]) -> Result<Vec<Reopened>, StoreError> {
        let sql = format!("{ASKED} {ANSWER}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids).fetch_all(&self.pool).await?;
        rows.iter().map(reopened).collect()
    }

    /// Reopens what may be reopened of `ids`, all in one statement, and says of each what became of
    /// it. `because` and `actor` stand in the transitions. No id may be given twice.
    pub async fn reopen(&self, ids: &[Uuid], because: Option<&str>, actor: &str) -> Result<Vec<Reopened>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sign(&mut tx, actor).await?;
        let sql = format!("{ASKED} {REOPEN} {ANSWER}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids).bind(because).fetch_all(&mut *tx).await?;
        let answer = rows.iter().map(reopened).collect();
        tx.commit().await?;
        answer
    }
}

fn reopened(row: &PgRow) -> Result<Reopened, StoreError> {
    let provider: Option<String> = row.try_get("provider")?;
    let name = match provider {
        Some(provider) => Some((provider, row.try_get("account")?, row.try_get("reference")?)),
        None => None,
    };
    Ok(Reopened {
        id: row.try_get("id")?,
        name,
        state: row.try_get("state")?,
        reason: row.try_get("reason")?,
        obstacle: row.try_get("obstacle")?,
    })
}
