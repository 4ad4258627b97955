//! Claiming: taking due transactions for this replica.

use super::{Membership, ReplicaId, Store, StoreError};
use crate::domain::{Progress, State, Transaction, outcome};
use crate::wire;
use chrono::{DateTime, Days, Utc};
use serde_json::Value;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Acquire, Row};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// How many transactions of one account may be claimed.
#[derive(Clone, Debug)]
pub struct LaneRoom {
    /// The provider.
    pub provider: &'static str,
    /// The account.
    pub account: Arc<str>,
    /// What fell due before this was claimed by an earlier look, so that this one need not read past it.
    pub since: DateTime<Utc>,
    /// At most so many.
    pub room: usize,
}

/// A due transaction, locked while its placement is decided.
#[derive(Debug)]
pub struct Candidate {
    /// The transaction, with the counts and the progress that its row and its journal give.
    pub transaction: Transaction,
    /// Which of the lanes asked for it belongs to.
    pub lane: usize,
    /// When it was to be looked at.
    pub due: DateTime<Utc>,
    /// No daemon has seen it before.
    pub fresh: bool,
    /// It was taken from an owner who may have sent a poll that nobody recorded.
    pub orphan: bool,
    /// No poll before this: an owner before may have sent one that nobody recorded.
    pub not_before: Option<DateTime<Utc>>,
    /// Polls that the journal knows and the row did not: already counted, but not yet moved over in the plan.
    pub unplanned: Vec<DateTime<Utc>>,
    /// Why the row cannot be asked about.
    pub flaw: Option<String>,
    /// The fence before it is placed.
    pub fence: i64,
}

/// What to do with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Hold it: its poll is due then, soon.
    Hold(DateTime<Utc>),
    /// Leave it in the table until then.
    Later(DateTime<Utc>),
    /// Leave it as it is: there is no room for it.
    Leave,
}

/// A transaction that this replica holds.
#[derive(Debug)]
pub struct Claimed {
    /// Which of the lanes asked for it belongs to.
    pub lane: usize,
    /// The transaction.
    pub transaction: Transaction,
    /// The fence under which it may be written.
    pub fence: i64,
    /// When its poll is due.
    pub due: DateTime<Utc>,
    /// Why the row cannot be asked about.
    pub flaw: Option<String>,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Claim {
    /// The transactions that are now held.
    pub held: Vec<Claimed>,
    /// For each lane asked for: how many were found, and when the last of them was due.
    pub found: Vec<(usize, Option<DateTime<Utc>>)>,
    /// The database's clock during the statement, if any were found.
    pub clock: Option<DateTime<Utc>>,
}

/// First half: one account after the other, in the order in which transactions fall due, what nobody alive holds.
/// Second half (`for … skip locked`): rows that another replica is just taking are his.
///
/// Somebody who is not among the living as of `$6` is dead for good; whoever registered later has an id above `$5`. So an owner
/// that this replica has not heard of yet is never mistaken for a dead one.
///
/// A state that only a newer version polls is left to it.
///
/// Owner 0: its last owner let it go without writing it. Free to take, but with what its journal knows.
///
/// No value is read without a bound: a row from before the bounds is set aside, and its values stay where they are.
const SELECT: &str = "
    select lane.number, t.id, left(t.reference, 512) as reference,
           case when pg_column_size(t.params) <= 65536 and octet_length(t.params::text) <= 65536 then t.params end as params,
           case when octet_length(t.amount::text) <= 100 then t.amount::text end as amount,
           case when length(t.reference) > 512 then 'reference has more than 512 characters'
                when pg_column_size(t.params) > 65536 or octet_length(t.params::text) > 65536 then 'params has more than 65536 bytes'
                when octet_length(t.amount::text) > 100 then 'amount has more than 100 digits' end as oversized,
           left(t.currency, 20) as currency, t.initiated_at, t.reopened_at, t.action_at,
           t.state, left(t.provider_state, 256) as provider_state, t.attempts, t.failures, t.not_found, t.last_polled_at, t.next_poll_at,
           t.opened_at, t.phase, t.phase_since, t.gaps, t.answered, t.not_before, t.fence, t.owner, clock_timestamp() as clock
      from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[]) with ordinality as lane (provider, account, since, room, number)
     cross join lateral (
           select * from paypoll.transactions t
            where t.provider = lane.provider and t.account = lane.account
              and t.next_poll_at >= lane.since and t.next_poll_at <= $7 and t.state in ('pending', 'action_required')
              and (t.owner is null or (t.owner <= $5 and t.owner <> all ($6)))
            order by t.next_poll_at
            limit lane.room
              for no key update skip locked) t";

/// What the journal knows of transactions whose owner died: polls that are not counted in their rows.
const JOURNAL: &str = "
    select p.transaction_id, p.sent_at, p.outcome
      from unnest($1::uuid[], $2::timestamptz[]) as t (id, polled_at)
      join paypoll.polls p on p.transaction_id = t.id and p.sent_at > t.polled_at
     where p.sent_at > $3
     order by p.transaction_id, p.sent_at";

/// Takes what is to be held, and leaves the rest for later, all under a new fence.
const UPDATE: &str = "
    update paypoll.transactions t
       set fence = t.fence + 1, owner = x.owner, next_poll_at = x.due,
           attempts = x.attempts, failures = x.failures, not_found = x.not_found, last_polled_at = x.polled_at,
           opened_at = x.opened_at, phase = x.phase, phase_since = x.phase_since, gaps = x.gaps, answered = x.answered,
           not_before = x.not_before
      from unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::int[], $5::int[], $6::int[], $7::timestamptz[],
                  $8::timestamptz[], $9::smallint[], $10::timestamptz[], $11::int[], $12::timestamptz[], $13::bool[])
           as x (id, owner, due, attempts, failures, not_found, polled_at, opened_at, phase, phase_since, gaps, not_before, answered)
     where t.id = x.id";

/// Frees what this replica owns without knowing. Waits for a commit that is still under way.
const RELEASE: &str = "update paypoll.transactions set owner = null, fence = fence + 1 where id = any ($1) and owner = $2";

impl Store {
    /// Takes due transactions of the accounts in `lanes` until `horizon`. `place` says of each what to do with it.
    ///
    /// When it fails, `unsure` says which transactions may have been taken nevertheless: this replica does not hold them, and as their
    /// living owner keeps them from all others. Given again with the next claim, they are released first.
    pub async fn claim(
        &self,
        replica: ReplicaId,
        members: &Membership,
        lanes: &[LaneRoom],
        horizon: DateTime<Utc>,
        place: &mut (dyn FnMut(&mut Candidate) -> Placement + Send),
        unsure: &mut Vec<Uuid>,
    ) -> Result<Claim, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        if !unsure.is_empty() {
            sqlx::query(RELEASE).bind(&*unsure).bind(replica.0).execute(&mut *tx).await?;
        }
        let mut claim = Claim { held: Vec::new(), found: vec![(0, None); lanes.len()], clock: None };
        let mut candidates = select(&mut tx, members, lanes, horizon, &mut claim).await?;
        add_journal(&mut tx, &mut candidates).await?;
        if candidates.is_empty() {
            tx.commit().await?;
            unsure.clear();
            return Ok(claim);
        }
        let mut placed = Vec::with_capacity(candidates.len());
        for mut candidate in candidates {
            let placement = place(&mut candidate);
            if placement != Placement::Leave {
                placed.push((candidate, placement));
            }
        }
        update(&mut tx, replica, &placed).await?;
        unsure.extend(placed.iter().map(|(candidate, _)| candidate.transaction.id));
        tx.commit().await?;
        unsure.clear();
        claim.held = placed.into_iter().filter_map(|(candidate, placement)| candidate.held(placement)).collect();
        Ok(claim)
    }
}

impl Candidate {
    fn held(self, placement: Placement) -> Option<Claimed> {
        match placement {
            Placement::Hold(due) => {
                Some(Claimed { lane: self.lane, transaction: self.transaction, fence: self.fence + 1, due, flaw: self.flaw })
            }
            Placement::Later(_) | Placement::Leave => None,
        }
    }
}

async fn select(
    tx: &mut PgConnection,
    members: &Membership,
    lanes: &[LaneRoom],
    horizon: DateTime<Utc>,
    claim: &mut Claim,
) -> Result<Vec<Candidate>, StoreError> {
    let rows = sqlx::query(SELECT)
        .bind(lanes.iter().map(|lane| lane.provider).collect::<Vec<_>>())
        .bind(lanes.iter().map(|lane| &*lane.account).collect::<Vec<_>>())
        .bind(lanes.iter().map(|lane| lane.since).collect::<Vec<_>>())
        .bind(lanes.iter().map(|lane| i64::try_from(lane.room).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(members.newest)
        .bind(&members.living)
        .bind(horizon)
        .fetch_all(tx)
        .await?;
    let mut candidates = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = usize::try_from(row.try_get::<i64, _>("number")? - 1).unwrap_or(0);
        let (Some(lane), Some(found)) = (lanes.get(number), claim.found.get_mut(number)) else { continue };
        let candidate = candidate(row, lane, number)?;
        *found = (found.0 + 1, Some(candidate.due));
        claim.clock = Some(row.try_get("clock")?);
        candidates.push(candidate);
    }
    Ok(candidates)
}

/// Counts the polls that the dead owner journaled but did not write into the row.
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

/// Polls that were sent later than this are not in the transaction's row. Before its first one, also those from before its initiation:
/// the database's clock may have been set back meanwhile.
fn counted_until(transaction: &Transaction) -> DateTime<Utc> {
    let initiated = transaction.initiated_at;
    transaction.last_polled_at.unwrap_or(initiated.checked_sub_days(Days::new(1)).unwrap_or(initiated))
}

async fn update(tx: &mut PgConnection, replica: ReplicaId, placed: &[(Candidate, Placement)]) -> Result<(), StoreError> {
    let all = || placed.iter().map(|(candidate, _)| &candidate.transaction);
    let (owners, due): (Vec<Option<i64>>, Vec<DateTime<Utc>>) = placed
        .iter()
        .map(|(_, placement)| match placement {
            Placement::Hold(due) => (Some(replica.0), *due),
            Placement::Later(due) => (None, *due),
            Placement::Leave => (None, DateTime::<Utc>::MAX_UTC),
        })
        .unzip();
    sqlx::query(UPDATE)
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
        .bind(all().map(|t| t.progress.answered).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(())
}

/// A count as PostgreSQL's integer; one that does not fit stays at the largest.
pub(super) fn int(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn candidate(row: &PgRow, lane: &LaneRoom, number: usize) -> Result<Candidate, StoreError> {
    let state = State::from_name(row.try_get("state")?).ok_or_else(|| sqlx::Error::Decode("no state".into()))?;
    let fence: i64 = row.try_get("fence")?;
    // A check constraint keeps them from being negative.
    let count = |column| -> Result<u32, StoreError> { Ok(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0)) };
    let mut flaw = None;
    let amount: Option<String> = row.try_get("amount")?;
    let amount = amount.as_deref().map(wire::decimal).transpose().unwrap_or_else(|_| {
        flaw = Some("amount is no number that an answer could be compared with");
        None
    });
    // The one column that PostgreSQL takes and this cannot always read.
    let params = row.try_get::<Option<Value>, _>("params").unwrap_or_else(|_| {
        flaw = Some("params cannot be read: they are nested too deeply");
        None
    });
    let oversized: Option<String> = row.try_get("oversized")?;
    Ok(Candidate {
        transaction: Transaction {
            id: row.try_get("id")?,
            provider: lane.provider,
            account: lane.account.clone(),
            reference: row.try_get::<String, _>("reference")?.into(),
            params: params.unwrap_or_default(),
            amount,
            currency: row.try_get::<Option<String>, _>("currency")?.map(Into::into),
            initiated_at: row.try_get("initiated_at")?,
            reopened_at: row.try_get("reopened_at")?,
            action_at: row.try_get("action_at")?,
            state,
            provider_state: row.try_get::<Option<String>, _>("provider_state")?.map(Into::into),
            attempts: count("attempts")?,
            failures: count("failures")?,
            not_found: count("not_found")?,
            last_polled_at: row.try_get("last_polled_at")?,
            progress: Progress {
                opened_at: row.try_get("opened_at")?,
                phase: u16::try_from(row.try_get::<i16, _>("phase")?).unwrap_or(0),
                phase_since: row.try_get("phase_since")?,
                gaps: count("gaps")?,
                answered: row.try_get("answered")?,
            },
        },
        lane: number,
        due: row.try_get("next_poll_at")?,
        fresh: fence == 0,
        orphan: row.try_get::<Option<i64>, _>("owner")?.is_some(),
        not_before: row.try_get("not_before")?,
        unplanned: Vec::new(),
        flaw: oversized.or_else(|| flaw.map(str::to_owned)),
        fence,
    })
}
