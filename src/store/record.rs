//! Recording: polls, decisions and transitions, in one database transaction.

use super::rows::{column, int};
use super::{ReplicaId, Store, StoreError, Trouble};
use crate::domain::{Progress, Source, State};
use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// One poll that was sent: a row of the journal.
#[derive(Clone, Debug)]
pub struct Poll {
    /// The transaction.
    pub transaction_id: Uuid,
    /// The provider.
    pub provider: &'static str,
    /// The account.
    pub account: Arc<str>,
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// How long the answer took; `None` when nothing came back.
    pub latency_ms: Option<u32>,
    /// The answer's status; `None` when nothing came back.
    pub http_status: Option<u16>,
    /// [`crate::domain::Outcome::name`].
    pub outcome: &'static str,
    /// What was wrong, scrubbed of secrets.
    pub error: Option<String>,
    /// SHA-256 of the file that declares the provider; `None` for a compiled one.
    pub declaration: Option<[u8; 32]>,
}

/// What is to be written into a transaction's row.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The transaction.
    pub id: Uuid,
    /// The fence of the claim; the write raises it by one.
    pub fence: i64,
    /// Whether this replica keeps it.
    pub hold: bool,
    /// Its state from now on.
    pub state: State,
    /// The change of state, if there is one.
    pub transition: Option<Transition>,
    /// The provider's status, if an answer had one since the last write.
    pub provider_state: Option<String>,
    /// The explanation, if there is a new one; `Some(None)` takes the old one away.
    pub reason: Option<Option<String>>,
    /// What payer or merchant must do, if an answer said so since the last write.
    pub action: Option<Value>,
    /// The last meaningful answer since the last write, redacted: JSON.
    pub details: Option<Box<str>>,
    /// Polls sent since the last write.
    pub polls: u32,
    /// Polls in a row without a usable answer.
    pub failures: u32,
    /// Answers in a row that said "not found".
    pub not_found: u32,
    /// When the last poll was sent.
    pub last_polled_at: Option<DateTime<Utc>>,
    /// When it is due next; `None` when final or parked.
    pub next: Option<DateTime<Utc>>,
    /// When it last came into `action_required` or left it.
    pub action_at: Option<DateTime<Utc>>,
    /// How far the plan has come.
    pub progress: Progress,
}

/// A change of state, with what stands behind it.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// Who or what changed it.
    pub source: Source,
    /// HTTP status, redacted body, times of the request and of the answer; `None` where no answer
    /// stands behind it.
    pub evidence: Option<Value>,
}

/// What is written together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Journal rows. They are kept even when the transaction now belongs to another owner.
    pub polls: Vec<Poll>,
    /// Rows to write.
    pub entries: Vec<Entry>,
    /// Transactions that another replica or writer has taken over: their polls so far are counted
    /// in their rows.
    pub dropped: Vec<Uuid>,
    /// Rows that another session keeps locked are left out at once, without waiting for them first.
    pub skip_locked: bool,
}

impl Batch {
    /// Splits off everything about the transactions that `of` selects.
    #[must_use]
    pub fn split_off(&mut self, of: impl Fn(Uuid) -> bool) -> Self {
        Self {
            polls: self.polls.extract_if(.., |poll| of(poll.transaction_id)).collect(),
            entries: self.entries.extract_if(.., |entry| of(entry.id)).collect(),
            dropped: self.dropped.extract_if(.., |dropped| of(*dropped)).collect(),
            skip_locked: self.skip_locked,
        }
    }
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Entries that were refused: another writer has changed the transaction since it was claimed.
    pub refused: HashSet<Uuid>,
    /// Another session keeps their rows locked: nothing about them was written.
    pub locked: HashSet<Uuid>,
    /// The replica has lost its lease: only the journal was written.
    pub lease_lost: bool,
    /// The database has lost batches that were acknowledged as committed; this is the last one that
    /// it has. Only the journal was written: after the loss, another replica's write may have the
    /// fence that this process believes is its own.
    pub history_cut: Option<i64>,
}

impl Recorded {
    /// Whether nothing but the journal was written.
    #[must_use]
    pub fn is_journal_only(&self) -> bool {
        self.lease_lost || self.history_cut.is_some()
    }
}

/// Raises the number that proves the commit; where it is that high already, an earlier attempt was
/// committed. An attempt that is still committing is waited for. Changes made here are signed with
/// the replica's number. The lease is held while the replica's row is there; the lock keeps it
/// there until this transaction has ended.
const LEASE: &str = "
    with numbered as (
        insert into paypoll.commits as c (process, stream, number) values ($3, 0, $4)
            on conflict (process, stream) do update set number = excluded.number, at = clock_timestamp() where c.number < excluded.number
        returning number)
    select exists (select from numbered) as fresh,
           coalesce((select number from paypoll.commits where process = $3 and stream = 0), 0) as before,
           (select id from paypoll.replicas where id = $1 and process = $3 for key share) is not null as held,
           set_config('lock_timeout', $2, true), set_config('paypoll.actor', concat('replica ', $1::text), true)";

/// How long the first attempt waits for a lock: a row that a console keeps locked must not hold up
/// everything that is recorded with it. When such rows are left out, only a table's lock is still
/// waited for.
const LOCK_TIMEOUT: &str = "250ms";

/// Locks the rows to be written and returns those that cannot be: rows that exist and that another
/// session has locked.
const LOCKED: &str = "
    with free as materialized (
        select id from paypoll.transactions where id = any ($1) order by id for no key update skip locked)
    select id from paypoll.transactions where id = any ($1) except select id from free";

/// First half: the rows that still carry the owner and the fence of their claim (after a failover
/// that lost the claim, another claim may have the same fence); a poll of an earlier owner that was
/// counted since the claim may be younger than the claim's last poll. Second half: one transition
/// for each change of state.
const ENTRIES: &str = "
    with x as (
        select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bool[], $8::text[], $9::text[],
                             $10::text[], $11::int[], $12::int[], $13::int[], $14::timestamptz[], $15::timestamptz[], $16::timestamptz[],
                             $17::timestamptz[], $18::smallint[], $19::timestamptz[], $20::int[], $21::text[], $22::text[], $23::bool[])
            as x (id, fence, owner, state, word, reason, explains, action, details,
                  source, polls, failures, not_found, polled_at, next, action_at,
                  opened_at, phase, phase_since, gaps, from_state, evidence, answered)
    ), written as (
        update paypoll.transactions t
           set fence = t.fence + 1, owner = x.owner, state = x.state,
               provider_state = coalesce(x.word, t.provider_state),
               reason = case when x.explains then x.reason else t.reason end,
               action = coalesce(x.action::jsonb, t.action),
               details = coalesce(x.details::jsonb, t.details),
               attempts = t.attempts + x.polls, failures = x.failures, not_found = x.not_found,
               last_polled_at = greatest(t.last_polled_at, x.polled_at), next_poll_at = x.next, action_at = x.action_at,
               opened_at = x.opened_at, phase = x.phase, phase_since = x.phase_since, gaps = x.gaps, answered = x.answered,
               updated_at = now()
          from x
         where t.id = x.id and t.fence = x.fence and t.owner = $24
        returning t.id, t.provider_state, t.reason, x.from_state, t.state, x.source, x.evidence
    ), changed as (
        insert into paypoll.transitions (transaction_id, from_state, to_state, provider_state, reason, source, evidence)
        select id, from_state, state, provider_state, reason, source, evidence::jsonb from written where source is not null
    )
    select id from written";

/// Before [`LATE`], in a statement of its own: a claim of one of these that is under way is waited
/// for, and [`LATE`] then sees its owner.
const LOCK: &str = "select from paypoll.transactions where id = any ($1) order by id for no key update";

/// Releases transactions that this replica may no longer write, and counts their polls. Where
/// another living replica owns one, it has counted all but the polls of this batch. Where none
/// does, polls older than the row's last one are counted here. The rest is in the journal: the next
/// claim reads it there (owner 0), and where there will be none, it is counted here too.
const LATE: &str = "
    with lost as (
        select t.id, t.created_at, t.last_polled_at, r.id is not null and r.id <> $4 as held, t.next_poll_at is null as settled
          from paypoll.transactions t
          left join paypoll.replicas r on r.id = t.owner
         where t.id = any ($1)
    ), mine as (
        select l.id, count(*)::int as polls, max(m.sent_at) as polled_at
          from unnest($2::uuid[], $3::timestamptz[]) as m (id, sent_at)
          join lost l on l.id = m.id
         where l.held or m.sent_at <= l.last_polled_at
         group by l.id
    ), journaled as (
        select l.id, count(*)::int as polls, max(p.sent_at) as polled_at
          from lost l
          join paypoll.polls p on p.transaction_id = l.id and p.sent_at > coalesce(l.last_polled_at, l.created_at - interval '1 day')
         where l.settled and not l.held
         group by l.id
    )
    update paypoll.transactions t
       set attempts = t.attempts + coalesce(m.polls, 0) + coalesce(j.polls, 0),
           last_polled_at = greatest(t.last_polled_at, m.polled_at, j.polled_at),
           owner = case when l.held then t.owner when l.settled then null else coalesce(nullif(t.owner, $4), 0) end
      from lost l
      left join mine m on m.id = l.id
      left join journaled j on j.id = l.id
     where t.id = l.id";

impl Store {
    /// Writes a batch. Each of its parts is written exactly once, also when the connection breaks
    /// during the commit: `attempt` remembers what became of it if it was committed, and the same
    /// batch is given again with it and with the same `number`. A number rises from batch to batch
    /// of one process, and none is given while an earlier one is in doubt.
    pub async fn record(&self, writer: Writer, batch: &Batch, attempt: &mut Attempt) -> Result<Recorded, StoreError> {
        let mut connection = self.pool.acquire().await?;
        match write_all(&mut connection, writer, batch, batch.skip_locked, attempt).await {
            Err(error) if !batch.skip_locked && error.is_lock_timeout() => {
                write_all(&mut connection, writer, batch, true, attempt).await
            }
            written => written,
        }
    }
}

/// Who writes a batch.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// Under this registration; 0: none.
    pub replica: ReplicaId,
    /// In this process.
    pub process: Uuid,
    /// The batch's number.
    pub number: i64,
    /// The last one that is known to be committed.
    pub acknowledged: i64,
}

/// What an attempt to write a batch must remember until it is known whether it was committed: its
/// result in that case.
#[derive(Debug, Default)]
pub struct Attempt(pub Option<Recorded>);

async fn write_all(
    connection: &mut PgConnection,
    writer: Writer,
    batch: &Batch,
    skip_locked: bool,
    attempt: &mut Attempt,
) -> Result<Recorded, StoreError> {
    let mut tx = connection.begin().await?;
    let lock_timeout = if skip_locked { "0" } else { LOCK_TIMEOUT };
    let lease = sqlx::query(LEASE)
        .bind(writer.replica.0)
        .bind(lock_timeout)
        .bind(writer.process)
        .bind(writer.number)
        .fetch_one(&mut *tx)
        .await?;
    match (lease.try_get("fresh")?, attempt.0.take()) {
        (true, _) => {}
        (false, Some(recorded)) => return Ok(recorded),
        (false, None) => return Err(StoreError::Database(sqlx::Error::Protocol("a batch's number was given before".into()))),
    }
    let before: i64 = lease.try_get("before")?;
    let history_cut = (before < writer.acknowledged).then_some(before);
    let mut recorded = Recorded { lease_lost: !lease.try_get::<bool, _>("held")?, history_cut, ..Recorded::default() };
    // Without a lease this replica owns nothing, even if its number was issued again.
    let own = if recorded.lease_lost { ReplicaId(0) } else { writer.replica };
    let journal_only = recorded.is_journal_only();
    let mut free = Cow::Borrowed(batch);
    if skip_locked {
        recorded.locked = locked(&mut tx, batch, journal_only).await?;
        drop(free.to_mut().split_off(|id| recorded.locked.contains(&id)));
    }
    super::journal::append(&mut tx, &free.polls).await?;
    if !journal_only && !free.entries.is_empty() {
        let written = write(&mut tx, own, &free.entries).await?;
        recorded.refused = free.entries.iter().map(|entry| entry.id).filter(|id| !written.contains(id)).collect();
    }
    let mut late: HashSet<Uuid> = free.dropped.iter().chain(&recorded.refused).copied().collect();
    if journal_only {
        late.extend(free.polls.iter().map(|poll| poll.transaction_id));
        // Their polls are in the journal already.
        late.extend(free.entries.iter().filter(|entry| entry.polls > 0).map(|entry| entry.id));
    }
    if !late.is_empty() {
        count_late(&mut tx, own, &late, &free.polls).await?;
    }
    attempt.0 = Some(recorded.clone());
    let committed = tx.commit().await.map_err(StoreError::from);
    if committed.as_ref().is_err_and(|error| error.trouble() != Trouble::Unavailable) {
        // The server itself said that it was rolled back.
        attempt.0 = None;
    }
    committed.map(|()| recorded)
}

/// The transactions of the batch whose rows cannot be written, because another session has locked them.
async fn locked(tx: &mut PgConnection, batch: &Batch, journal_only: bool) -> Result<HashSet<Uuid>, StoreError> {
    let mut written: Vec<Uuid> = batch.entries.iter().map(|entry| entry.id).chain(batch.dropped.iter().copied()).collect();
    if journal_only {
        written.extend(batch.polls.iter().map(|poll| poll.transaction_id));
    }
    Ok(sqlx::query_scalar(LOCKED).bind(written).fetch_all(tx).await?.into_iter().collect())
}

async fn write(tx: &mut PgConnection, replica: ReplicaId, entries: &[Entry]) -> Result<HashSet<Uuid>, StoreError> {
    let json = |value: &Option<Value>| value.as_ref().map(Value::to_string);
    let transition = |entry: &Entry| entry.transition.as_ref().map(|change| (change.from.as_str(), change.source.as_str()));
    let rows = sqlx::query(ENTRIES)
        .bind(column(entries, |e| e.id))
        .bind(column(entries, |e| e.fence))
        .bind(column(entries, |e| e.hold.then_some(replica.0)))
        .bind(column(entries, |e| e.state.as_str()))
        .bind(column(entries, |e| e.provider_state.as_deref()))
        .bind(column(entries, |e| e.reason.as_ref().and_then(Option::as_deref)))
        .bind(column(entries, |e| e.reason.is_some()))
        .bind(column(entries, |e| json(&e.action)))
        .bind(column(entries, |e| e.details.as_deref()))
        .bind(column(entries, |e| transition(e).map(|(_, source)| source)))
        .bind(column(entries, |e| int(e.polls)))
        .bind(column(entries, |e| int(e.failures)))
        .bind(column(entries, |e| int(e.not_found)))
        .bind(column(entries, |e| e.last_polled_at))
        .bind(column(entries, |e| e.next))
        .bind(column(entries, |e| e.action_at))
        .bind(column(entries, |e| e.progress.opened_at))
        .bind(column(entries, |e| i16::try_from(e.progress.phase).unwrap_or(i16::MAX)))
        .bind(column(entries, |e| e.progress.phase_since))
        .bind(column(entries, |e| int(e.progress.gaps)))
        .bind(column(entries, |e| transition(e).map(|(from, _)| from)))
        .bind(column(entries, |e| e.transition.as_ref().and_then(|change| json(&change.evidence))))
        .bind(column(entries, |e| e.progress.answered))
        .bind(replica.0)
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

async fn count_late(tx: &mut PgConnection, replica: ReplicaId, late: &HashSet<Uuid>, polls: &[Poll]) -> Result<(), StoreError> {
    let mine = || polls.iter().filter(|poll| late.contains(&poll.transaction_id));
    let late: Vec<Uuid> = late.iter().copied().collect();
    sqlx::query(LOCK).bind(&late).execute(&mut *tx).await?;
    sqlx::query(LATE)
        .bind(&late)
        .bind(mine().map(|poll| poll.transaction_id).collect::<Vec<_>>())
        .bind(mine().map(|poll| poll.sent_at).collect::<Vec<_>>())
        .bind(replica.0)
        .execute(tx)
        .await?;
    Ok(())
}
