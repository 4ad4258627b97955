//! Claiming: taking due transactions for this replica.

use super::rows::{Named, column, int};
use super::{Membership, ReplicaId, Store, StoreError, Trouble};
use crate::domain::{Progress, State, Transaction, outcome};
use crate::wire;
use chrono::{DateTime, Days, TimeDelta, Utc};
use serde_json::Value;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Acquire, Row};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// What to claim, and for whom.
#[derive(Clone, Debug)]
pub struct ClaimOrder {
    /// This replica.
    pub replica: ReplicaId,
    /// This process.
    pub process: Uuid,
    /// Raised by every claim of the process: proves whether it was committed.
    pub number: i64,
    /// The living.
    pub members: Membership,
    /// How many of which account.
    pub lanes: Vec<LaneRoom>,
    /// Due until then.
    pub horizon: DateTime<Utc>,
    /// Rows that were refused not long ago: left alone for now.
    pub avoid: Vec<Uuid>,
    /// Rows that this replica owns without having them in memory: released first.
    pub abandoned: Vec<Uuid>,
}

/// How many transactions of one account may be claimed.
#[derive(Clone, Debug)]
pub struct LaneRoom {
    /// The provider.
    pub provider: &'static str,
    /// The account.
    pub account: Arc<str>,
    /// What fell due before this was claimed by an earlier cycle, so this one need not read past
    /// it.
    pub since: DateTime<Utc>,
    /// At most so many that are new or have been polled all along.
    pub room: usize,
    /// The same for what was reopened by an operator or inserted long after its initiation.
    pub backlog_since: DateTime<Utc>,
    /// At most this many of those.
    pub backlog_room: usize,
    /// Survey the due rows that this replica owns, from this due time on, as many as keep the
    /// statement short; `None`: no survey.
    pub survey: Option<DateTime<Utc>>,
}

impl LaneRoom {
    /// Room for `room` transactions of either kind, however long ago they fell due.
    #[must_use]
    pub fn new(provider: &'static str, account: Arc<str>, room: usize) -> Self {
        let since = DateTime::UNIX_EPOCH;
        Self { provider, account, since, room, backlog_since: since, backlog_room: room, survey: None }
    }
}

/// A due transaction, locked while its placement is decided.
#[derive(Debug)]
pub struct Candidate {
    /// The transaction, with the counts and the progress that its row and its journal give.
    pub transaction: Transaction,
    /// Which of the requested lanes it belongs to.
    pub lane: usize,
    /// Its due time.
    pub due: DateTime<Utc>,
    /// It was never claimed before.
    pub fresh: bool,
    /// It was taken from a dead owner, which may have sent a poll without recording it.
    pub orphan: bool,
    /// No poll before this: an earlier owner may have sent one without recording it.
    pub not_before: Option<DateTime<Utc>>,
    /// Polls that were in the journal but not in the row: already counted, but the plan has not
    /// advanced for them yet.
    pub unplanned: Vec<DateTime<Utc>>,
    /// Why no request can be made of the row.
    pub flaw: Option<String>,
    /// Reopened, or inserted long after its initiation: it waits behind what is new.
    pub backlog: bool,
    /// The fence before it is placed.
    pub fence: i64,
}

/// What to do with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Keep it in memory: its poll is due then, soon.
    Hold(DateTime<Utc>),
    /// Leave it in the table until then.
    Later(DateTime<Utc>),
    /// Leave it as it is: there is no room for it.
    Leave,
}

/// A transaction that this replica has claimed and keeps in memory.
#[derive(Debug)]
pub struct Claimed {
    /// Which of the requested lanes it belongs to.
    pub lane: usize,
    /// The transaction.
    pub transaction: Transaction,
    /// The fence under which it may be written.
    pub fence: i64,
    /// When its poll is due.
    pub due: DateTime<Utc>,
    /// Why no request can be made of the row.
    pub flaw: Option<String>,
    /// See [`Candidate::backlog`].
    pub backlog: bool,
}

/// What a claim cycle found in one account.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneFound {
    /// How many that are new or have been polled all along.
    pub ordinary: usize,
    /// When the last of them was due.
    pub last: Option<DateTime<Utc>>,
    /// How many of the backlog.
    pub backlog: usize,
    /// When the last of them was due.
    pub backlog_last: Option<DateTime<Utc>>,
    /// From where to survey on; `None` when the end was reached.
    pub survey: Option<DateTime<Utc>>,
}

/// What a claim cycle found.
#[derive(Debug, Default)]
pub struct Claim {
    /// The transactions that are now in memory.
    pub held: Vec<Claimed>,
    /// For each requested lane.
    pub found: Vec<LaneFound>,
    /// The surveyed due rows that this replica owned before the claim: the transaction and its
    /// fence.
    pub own: Vec<(Uuid, i64)>,
    /// Rows that could not be read or taken, and why. All others were.
    pub refused: Vec<(Uuid, String)>,
    /// The database's clock during the statement, if any were found.
    pub clock: Option<DateTime<Utc>>,
}

/// First half: one account after the other, in the order in which transactions fall due, those that
/// no living replica owns; what is new or has been polled all along apart from the backlog, so that
/// none of it waits behind a bulk retry. Second half (`for … skip locked`): rows that another
/// replica is just claiming are left to it.
///
/// An owner absent from the alive list as of `$6` is permanently expired; replicas that registered
/// later have an id above `$5`. So an owner that this replica has not heard of yet is never
/// mistaken for a dead one, and neither is one whose number was issued again after a failover.
///
/// A state that only a newer version polls is left to it.
///
/// Owner 0: its last owner released it without writing the row. Free to claim, but its journal has
/// polls that the row does not.
///
/// No value is read without a bound: a row from before the bounds were enforced is set aside, and
/// its values are not read.
macro_rules! free {
    ($class:literal, $since:literal, $room:literal) => {
        concat!(
            "select * from (select * from paypoll.transactions t
              where t.provider = lane.provider and t.account = lane.account
                and t.next_poll_at >= ",
            $since,
            " and t.next_poll_at <= $9 and t.state in ('pending', 'action_required')
                and (t.owner is null or (t.owner <= $7 and t.owner <> all ($8)
                                         and not exists (select from paypoll.replicas r where r.id = t.owner)))
                and t.id <> all ($10)
                and ",
            $class,
            "(t.reopened_at is not null or t.created_at - t.initiated_at >= interval '10 minutes')
              order by t.next_poll_at
              limit ",
            $room,
            "
                for no key update skip locked) t"
        )
    };
}

const SELECT: &str = concat!(
    "
    select lane.number, t.id, left(t.reference, 512) as reference,
           case when pg_column_size(t.params) <= 65536 and octet_length(t.params::text) <= 65536 then t.params end as params,
           case when octet_length(t.amount::text) <= 100 then t.amount::text end as amount,
           case when length(t.reference) > 512 then 'reference has more than 512 characters'
                when pg_column_size(t.params) > 65536 or octet_length(t.params::text) > 65536 then 'params has more than 65536 bytes'
                when octet_length(t.amount::text) > 100 then 'amount has more than 100 digits' end as oversized,
           left(t.currency, 20) as currency, t.initiated_at, t.reopened_at, t.action_at,
           t.state, left(t.provider_state, 256) as provider_state, t.attempts, t.failures, t.not_found, t.last_polled_at, t.next_poll_at,
           t.opened_at, t.phase, t.phase_since, t.gaps, t.answered, t.not_before, t.fence, t.owner, clock_timestamp() as clock,
           t.reopened_at is not null or t.created_at - t.initiated_at >= interval '10 minutes' as backlog
      from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::bigint[])
           with ordinality as lane (provider, account, since, room, backlog_since, backlog_room, number)
     cross join lateral (",
    free!("not ", "lane.since", "lane.room"),
    " union all ",
    free!("", "lane.backlog_since", "lane.backlog_room"),
    ") t
     order by lane.number, t.next_poll_at"
);

/// Of each account the rows that fell due from a moment on, a bounded number, whether owned or not.
const SURVEY: &str = "
    select lane.number, t.id, t.fence, t.next_poll_at, t.owner = $4 as own
      from unnest($1::text[], $2::text[], $3::timestamptz[]) with ordinality as lane (provider, account, since, number)
     cross join lateral (
           select id, fence, owner, next_poll_at from paypoll.transactions t
            where t.provider = lane.provider and t.account = lane.account
              and t.next_poll_at >= lane.since and t.next_poll_at <= clock_timestamp()
            order by t.next_poll_at
            limit $5) t
     where lane.since is not null
     order by lane.number, t.next_poll_at";

/// At most this many rows are surveyed at once.
const SURVEYED: usize = 5000;

/// The journal's polls of transactions whose owner died, as far as their rows do not count them.
const JOURNAL: &str = "
    select p.transaction_id, p.sent_at, p.outcome
      from unnest($1::uuid[], $2::timestamptz[]) as t (id, polled_at)
      join paypoll.polls p on p.transaction_id = t.id and p.sent_at > t.polled_at
     where p.sent_at > $3
     order by p.transaction_id, p.sent_at";

/// Claims what is to be kept in memory, and plans the rest for later, all under a new fence. The
/// number proves whether it was committed.
const UPDATE: &str = "
    with numbered as (
        insert into paypoll.commits as c (process, stream, number) values ($13, 1, $14)
            on conflict (process, stream) do update set number = excluded.number, at = clock_timestamp() where c.number < excluded.number)
    update paypoll.transactions t
       set fence = t.fence + 1, owner = x.owner, next_poll_at = x.due,
           attempts = x.attempts, failures = x.failures, not_found = x.not_found, last_polled_at = x.polled_at,
           opened_at = x.opened_at, phase = x.phase, phase_since = x.phase_since, gaps = x.gaps, answered = x.answered,
           not_before = x.not_before
      from unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::int[], $5::int[], $6::int[], $7::timestamptz[],
                  $8::timestamptz[], $9::smallint[], $10::timestamptz[], $11::int[], $12::timestamptz[], $15::bigint[], $16::bool[])
           as x (id, owner, due, attempts, failures, not_found, polled_at, opened_at, phase, phase_since, gaps, not_before, fence, answered)
     where t.id = x.id and t.fence = x.fence";

/// Releases what an earlier claim may have taken although its answer got lost. Waits for a commit
/// that is still under way.
const RELEASE: &str = "update paypoll.transactions set owner = null, fence = fence + 1 where id = any ($1) and owner = $2";

/// Releases what this replica owns and does not have in memory, whatever the cause. The journal may
/// have polls that the row does not.
const ABANDON: &str = "
    update paypoll.transactions set owner = 0, fence = fence + 1 where id = any ($1) and owner = $2 and next_poll_at is not null";

impl Store {
    /// Which of these transactions the replica owns and still polls, each with its fence.
    pub async fn owned(&self, replica: ReplicaId, ids: &[Uuid]) -> Result<Vec<(Uuid, i64)>, StoreError> {
        let owned = "select id, fence from paypoll.transactions where id = any ($1) and owner = $2 and next_poll_at is not null";
        let rows = sqlx::query(owned).bind(ids).bind(replica.0).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("fence")?))).collect()
    }

    /// Claims due transactions of the accounts in `order` up to its horizon. `place` decides what
    /// to do with each.
    ///
    /// When it fails, `unsure` names the transactions that may have been claimed nevertheless: this
    /// replica does not have them in memory, and as their living owner it keeps them from all
    /// others. Passed to the next claim, they are released first.
    pub async fn claim(
        &self,
        order: &ClaimOrder,
        place: &mut (dyn FnMut(&mut Candidate) -> Placement + Send),
        unsure: &mut Vec<Uuid>,
    ) -> Result<Claim, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut claim = Claim { found: vec![LaneFound::default(); order.lanes.len()], ..Claim::default() };
        let mut tx = connection.begin().await?;
        free(&mut tx, order, unsure).await?;
        survey(&mut tx, order, &mut claim).await?;
        let mut candidates = select(&mut tx, order, &mut claim).await?;
        add_journal(&mut tx, &mut candidates).await?;
        let mut placed = Vec::with_capacity(candidates.len());
        for mut candidate in candidates {
            let placement = place(&mut candidate);
            if placement != Placement::Leave {
                placed.push((candidate, placement));
            }
        }
        if !placed.is_empty() {
            match update(&mut tx, order, &placed).await {
                Ok(_) => {}
                Err(error) if error.trouble() == Trouble::Refused => {
                    tx.rollback().await?;
                    tx = connection.begin().await?;
                    free(&mut tx, order, unsure).await?;
                    placed = take_singly(&mut tx, order, placed, &mut claim.refused).await?;
                }
                Err(error) => return Err(error),
            }
        }
        unsure.extend(placed.iter().map(|(candidate, _)| candidate.transaction.id));
        tx.commit().await?;
        unsure.clear();
        claim.held = placed.into_iter().filter_map(|(candidate, placement)| candidate.held(placement)).collect();
        Ok(claim)
    }
}

/// A transaction with what to do with it.
type Placed = (Candidate, Placement);

/// Releases what this replica owns in the database without having it in memory.
async fn free(tx: &mut PgConnection, order: &ClaimOrder, unsure: &[Uuid]) -> Result<(), StoreError> {
    for (statement, ids) in [(RELEASE, unsure), (ABANDON, &order.abandoned)] {
        if !ids.is_empty() {
            sqlx::query(statement).bind(ids).bind(order.replica.0).execute(&mut *tx).await?;
        }
    }
    Ok(())
}

/// The database refuses the write, and one row is to blame: each is written by itself, unless
/// another replica has claimed it meanwhile. Refused rows are left as they are and reported.
async fn take_singly(
    tx: &mut PgConnection,
    order: &ClaimOrder,
    placed: Vec<Placed>,
    refused: &mut Vec<(Uuid, String)>,
) -> Result<Vec<Placed>, StoreError> {
    let mut taken = Vec::with_capacity(placed.len());
    for one in placed {
        let mut alone = tx.begin().await?;
        match update(&mut alone, order, std::slice::from_ref(&one)).await {
            Ok(written) => {
                alone.commit().await?;
                taken.extend((written > 0).then_some(one));
            }
            Err(error) if error.trouble() == Trouble::Refused => {
                alone.rollback().await?;
                refused.push((one.0.transaction.id, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

impl Candidate {
    fn held(self, placement: Placement) -> Option<Claimed> {
        match placement {
            Placement::Hold(due) => Some(Claimed {
                lane: self.lane,
                transaction: self.transaction,
                fence: self.fence + 1,
                due,
                flaw: self.flaw,
                backlog: self.backlog,
            }),
            Placement::Later(_) | Placement::Leave => None,
        }
    }
}

async fn survey(tx: &mut PgConnection, order: &ClaimOrder, claim: &mut Claim) -> Result<(), StoreError> {
    if order.lanes.iter().all(|lane| lane.survey.is_none()) {
        return Ok(());
    }
    let most = (SURVEYED / order.lanes.len().max(1)).max(100);
    let rows = sqlx::query(SURVEY)
        .bind(column(&order.lanes, |lane| lane.provider))
        .bind(column(&order.lanes, |lane| &*lane.account))
        .bind(column(&order.lanes, |lane| lane.survey))
        .bind(order.replica.0)
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(tx)
        .await?;
    let mut seen = vec![(0, DateTime::UNIX_EPOCH); order.lanes.len()];
    for row in &rows {
        let number = usize::try_from(row.try_get::<i64, _>("number")? - 1).unwrap_or(0);
        if let Some(seen) = seen.get_mut(number) {
            *seen = (seen.0 + 1, row.try_get("next_poll_at")?);
        }
        if row.try_get::<Option<bool>, _>("own")? == Some(true) {
            claim.own.push((row.try_get("id")?, row.try_get("fence")?));
        }
    }
    for ((count, last), (lane, found)) in seen.into_iter().zip(order.lanes.iter().zip(&mut claim.found)) {
        // More rows fell due at this one moment than are surveyed at once: skip the rest of them,
        // this time.
        let stuck = lane.survey.is_some_and(|from| from >= last);
        found.survey = (count >= most).then(|| if stuck { last + TimeDelta::microseconds(1) } else { last });
    }
    Ok(())
}

async fn select(tx: &mut PgConnection, order: &ClaimOrder, claim: &mut Claim) -> Result<Vec<Candidate>, StoreError> {
    let lanes = &order.lanes;
    let room = |room: usize| i64::try_from(room).unwrap_or(i64::MAX);
    let rows = sqlx::query(SELECT)
        .bind(column(lanes, |lane| lane.provider))
        .bind(column(lanes, |lane| &*lane.account))
        .bind(column(lanes, |lane| lane.since))
        .bind(column(lanes, |lane| room(lane.room)))
        .bind(column(lanes, |lane| lane.backlog_since))
        .bind(column(lanes, |lane| room(lane.backlog_room)))
        .bind(order.members.newest)
        .bind(&order.members.living)
        .bind(order.horizon)
        .bind(&order.avoid)
        .fetch_all(tx)
        .await?;
    let mut candidates = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = usize::try_from(row.try_get::<i64, _>("number")? - 1).unwrap_or(0);
        let (Some(lane), Some(found)) = (lanes.get(number), claim.found.get_mut(number)) else { continue };
        let (due, backlog): (DateTime<Utc>, bool) = (row.try_get("next_poll_at")?, row.try_get("backlog")?);
        if backlog {
            (found.backlog, found.backlog_last) = (found.backlog + 1, Some(due));
        } else {
            (found.ordinary, found.last) = (found.ordinary + 1, Some(due));
        }
        claim.clock = Some(row.try_get("clock")?);
        // A row that cannot be read does not affect the others.
        match candidate(row, lane, number, due, backlog) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => claim.refused.push((row.try_get("id")?, error.to_string())),
        }
    }
    Ok(candidates)
}

/// Counts the polls that the dead owner wrote into the journal but not into the row.
async fn add_journal(tx: &mut PgConnection, candidates: &mut [Candidate]) -> Result<(), StoreError> {
    let orphans: HashMap<Uuid, usize> =
        candidates.iter().enumerate().filter(|(_, candidate)| candidate.orphan).map(|(at, c)| (c.transaction.id, at)).collect();
    if orphans.is_empty() {
        return Ok(());
    }
    let polled_at = |at: &usize| counted_until(&candidates[*at].transaction);
    let ids: Vec<Uuid> = orphans.keys().copied().collect();
    let polled: Vec<DateTime<Utc>> = orphans.values().map(polled_at).collect();
    let oldest = polled.iter().min().copied();
    let rows = sqlx::query(JOURNAL).bind(ids).bind(polled).bind(oldest).fetch_all(tx).await?;
    for row in &rows {
        let Some(at) = orphans.get(&row.try_get::<Uuid, _>("transaction_id")?) else { continue };
        let transaction = &mut candidates[*at].transaction;
        transaction.attempts = transaction.attempts.saturating_add(1);
        transaction.last_polled_at = Some(row.try_get("sent_at")?);
        let name: String = row.try_get("outcome")?;
        (transaction.failures, transaction.not_found) = outcome::count(&name, transaction.failures, transaction.not_found);
        transaction.progress.answered |= outcome::is_usable(&name);
        candidates[*at].unplanned.push(row.try_get("sent_at")?);
    }
    Ok(())
}

/// Polls that were sent later than this are not in the transaction's row. Before its first one,
/// also those from before its initiation: the database's clock may have been set back meanwhile.
fn counted_until(transaction: &Transaction) -> DateTime<Utc> {
    let initiated = transaction.initiated_at;
    transaction.last_polled_at.unwrap_or(initiated.checked_sub_days(Days::new(1)).unwrap_or(initiated))
}

/// How many were written.
async fn update(tx: &mut PgConnection, order: &ClaimOrder, placed: &[Placed]) -> Result<u64, StoreError> {
    let all = || placed.iter().map(|(candidate, _)| &candidate.transaction);
    let (owners, due): (Vec<Option<i64>>, Vec<DateTime<Utc>>) = placed
        .iter()
        .map(|(_, placement)| match placement {
            Placement::Hold(due) => (Some(order.replica.0), *due),
            Placement::Later(due) => (None, *due),
            Placement::Leave => (None, DateTime::<Utc>::MAX_UTC),
        })
        .unzip();
    let done = sqlx::query(UPDATE)
        .bind(all().map(|t| t.id).collect::<Vec<_>>())
        .bind(owners)
        .bind(due)
        .bind(all().map(|t| int(t.attempts)).collect::<Vec<_>>())
        .bind(all().map(|t| int(t.failures)).collect::<Vec<_>>())
        .bind(all().map(|t| int(t.not_found)).collect::<Vec<_>>())
        .bind(all().map(|t| t.last_polled_at).collect::<Vec<_>>())
        .bind(all().map(|t| t.progress.opened_at).collect::<Vec<_>>())
        .bind(all().map(|t| i16::try_from(t.progress.phase).unwrap_or(i16::MAX)).collect::<Vec<_>>())
        .bind(all().map(|t| t.progress.phase_since).collect::<Vec<_>>())
        .bind(all().map(|t| int(t.progress.gaps)).collect::<Vec<_>>())
        .bind(placed.iter().map(|(candidate, _)| candidate.not_before).collect::<Vec<_>>())
        .bind(order.process)
        .bind(order.number)
        .bind(column(placed, |(candidate, _)| candidate.fence))
        .bind(all().map(|t| t.progress.answered).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(done.rows_affected())
}

/// The row as a transaction. Errors name the column that cannot be read.
fn candidate(row: &PgRow, lane: &LaneRoom, number: usize, due: DateTime<Utc>, backlog: bool) -> Result<Candidate, StoreError> {
    let row = Named::new(row, "paypoll.transactions")?;
    let state: String = row.get("state")?;
    let state = State::from_name(&state).ok_or_else(|| row.corrupt("state", format!("{state:?} is no state")))?;
    let fence: i64 = row.get("fence")?;
    // A check constraint keeps them from being negative.
    let count = |column| -> Result<u32, StoreError> { Ok(u32::try_from(row.get::<i32>(column)?).unwrap_or(0)) };
    let mut flaw = None;
    let amount: Option<String> = row.get("amount")?;
    let amount = amount.as_deref().map(wire::decimal).transpose().unwrap_or_else(|_| {
        flaw = Some("amount is no number that an answer could be compared with");
        None
    });
    // The one column whose values PostgreSQL accepts but this code cannot always read.
    let params = row.get::<Option<Value>>("params").unwrap_or_else(|_| {
        flaw = Some("params cannot be read: they are nested too deeply");
        None
    });
    let oversized: Option<String> = row.get("oversized")?;
    Ok(Candidate {
        transaction: Transaction {
            id: row.id,
            provider: lane.provider,
            account: lane.account.clone(),
            reference: row.get::<String>("reference")?.into(),
            params: params.unwrap_or_default(),
            amount,
            currency: row.get::<Option<String>>("currency")?.map(Into::into),
            initiated_at: row.get("initiated_at")?,
            reopened_at: row.get("reopened_at")?,
            action_at: row.get("action_at")?,
            state,
            provider_state: row.get::<Option<String>>("provider_state")?.map(Into::into),
            attempts: count("attempts")?,
            failures: count("failures")?,
            not_found: count("not_found")?,
            last_polled_at: row.get("last_polled_at")?,
            progress: Progress {
                opened_at: row.get("opened_at")?,
                phase: u16::try_from(row.get::<i16>("phase")?).unwrap_or(0),
                phase_since: row.get("phase_since")?,
                gaps: count("gaps")?,
                answered: row.get("answered")?,
            },
        },
        lane: number,
        due,
        fresh: fence == 0,
        orphan: row.get::<Option<i64>>("owner")?.is_some(),
        not_before: row.get("not_before")?,
        unplanned: Vec::new(),
        flaw: oversized.or_else(|| flaw.map(str::to_owned)),
        backlog,
        fence,
    })
}
