//! Which replicas are alive: registration, heartbeat, and other writers' changes to what they own.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::types::Json;
use sqlx::{Connection, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A replica's number. Given anew at every start and after every lost lease; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaId(pub i64);

/// The living replicas, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Their numbers, rising.
    pub living: Vec<i64>,
    /// The highest number known by then: a replica with a higher one registered later.
    pub newest: i64,
    /// Every living replica that registered before this one leaves room for all replicas up to this number.
    pub complied: i64,
    /// For every other living replica all before it leave room: none of them is new.
    pub settled: bool,
    /// The accounts of those that do not serve the same ones as we do.
    pub others: Arc<BTreeMap<i64, BTreeSet<(String, String)>>>,
    /// How many transactions each other living replica that serves the same accounts has in memory.
    pub peers: Vec<i64>,
}

impl Membership {
    /// What the replica `own` concludes from the living, in rising order, each with the newest
    /// replica that it leaves room for. Replicas that registered later have known the earlier ones
    /// from the start, and left them room.
    #[must_use]
    pub fn new(own: i64, living: &[(i64, i64)]) -> Self {
        let earlier = |than: i64| living.iter().filter(move |(id, _)| *id < than).map(|(_, complied)| *complied);
        let has_room = |id: i64| earlier(id).all(|complied| complied >= id);
        Self {
            living: living.iter().map(|(id, _)| *id).collect(),
            newest: living.last().map_or(0, |(id, _)| *id),
            complied: earlier(own).min().unwrap_or(i64::MAX),
            settled: living.iter().all(|(id, _)| *id == own || has_room(*id)),
            others: Arc::default(),
            peers: Vec::new(),
        }
    }

    /// The living replicas that serve an account of ours, rising.
    pub fn serving(&self, provider: &str, account: &str) -> impl Iterator<Item = i64> {
        let own = (provider.to_owned(), account.to_owned());
        let serves = move |id: &i64| self.others.get(id).is_none_or(|accounts| accounts.contains(&own));
        self.living.iter().copied().filter(serves)
    }
}

/// The answer to a heartbeat.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whether this replica still holds its lease.
    pub alive: bool,
    /// The living.
    pub members: Membership,
    /// The database's clock during the statement.
    pub clock: DateTime<Utc>,
    /// The number of the last batch that this process recorded, as far as the database's history
    /// goes; 0: none.
    pub recorded: i64,
    /// The same for its claims.
    pub claimed: i64,
    /// When a replica first noticed that the server was restarted or is another one, if ever: what
    /// was committed just before may be gone.
    pub cut_at: Option<DateTime<Utc>>,
    /// Another living replica has not been heard of since then: it may still poll what it claimed
    /// in a history that is gone.
    pub unaware: bool,
}

/// A transaction that another writer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The transaction.
    pub id: Uuid,
    /// Its fence now: a claim under a lower one may not write it any more.
    pub fence: i64,
}

/// Registration takes its turn against other registrations, so that numbers become visible in their order.
const REGISTER: &str = "
    insert into paypoll.replicas (lease, complied, accounts, host, process) values (make_interval(secs => $1), 0, $2, $3, $4) returning id";

/// Removes processes that are long gone.
const FORGET: &str = "delete from paypoll.commits where at < clock_timestamp() - interval '7 days'";

/// Renews the lease; then, where this replica may expire others, deletes those whose lease has run
/// out, both by the database's clock and by this replica's reckoning of it; then lists the living.
/// A replica that is just recording has its row locked and is not expired (`skip locked`): should
/// it stand still in the middle of that, the server ends its session, and until then no other
/// heartbeat waits for it. Only accounts that differ from this replica's own are returned: usually
/// none do.
const BEAT: &str = "
    with beat as (
        update paypoll.replicas set heartbeat_at = clock_timestamp(), complied = $2, held = $5 where id = $1 and process = $4 returning id
    ), noticed as (
        update paypoll.server set started_at = pg_postmaster_start_time(), cut_at = clock_timestamp()
         where started_at <> pg_postmaster_start_time() returning cut_at
    ), dead as (
        delete from paypoll.replicas
         where id in (select id from paypoll.replicas
                       where $3::timestamptz is not null and id <> $1 and heartbeat_at < least(clock_timestamp(), $3) - lease
                         for update skip locked)
        returning id
    )
    select r.id, r.complied, clock_timestamp() as clock, exists (select from beat) as alive,
           case when r.accounts <> own.accounts then r.accounts end as others, r.held,
           coalesce((select number from paypoll.commits where process = $4 and stream = 0), 0) as recorded,
           coalesce((select number from paypoll.commits where process = $4 and stream = 1), 0) as claimed,
           cut.at as cut_at, coalesce(r.id <> $1 and r.heartbeat_at < cut.at, false) as unaware
      from (select coalesce((select cut_at from noticed), (select cut_at from paypoll.server)) as at) cut
      left join paypoll.replicas r on r.id not in (select id from dead)
      left join paypoll.replicas own on own.id = $1
     order by r.id";

/// Other writers' changes to what a replica owns. A row leaves this list when its owner releases
/// it; what exceeds the limit is returned next time.
const OVERRIDES: &str = "
    select id, fence from paypoll.transactions where owner = $1 and superseded_fence = fence order by id limit 1000";

impl Store {
    /// Registers this process as a replica that serves `accounts` under a lease of that length.
    pub async fn register(
        &self,
        process: Uuid,
        lease: Duration,
        accounts: &[(&'static str, Arc<str>)],
        host: &str,
    ) -> Result<ReplicaId, StoreError> {
        let accounts: Vec<_> = accounts.iter().map(|(provider, account)| json!([provider, account])).collect();
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sqlx::query("lock table paypoll.replicas in share row exclusive mode").execute(&mut *tx).await?;
        let id = sqlx::query_scalar(REGISTER)
            .bind(lease.as_secs_f64())
            .bind(json!(accounts))
            .bind(host)
            .bind(process)
            .fetch_one(&mut *tx)
            .await?;
        sqlx::query(FORGET).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(ReplicaId(id))
    }

    /// Renews the lease. `complied` is the newest replica that this one leaves room for, `held` how
    /// many transactions it has in memory. `judge` says whether it may expire others (a replica
    /// whose own heartbeat is stale must not): it is the database's time as this replica reckons
    /// it, so that no replica is expired because that clock was set forward.
    pub async fn beat(
        &self,
        replica: ReplicaId,
        process: Uuid,
        complied: i64,
        held: i64,
        judge: Option<DateTime<Utc>>,
    ) -> Result<Beat, StoreError> {
        let rows =
            sqlx::query(BEAT).bind(replica.0).bind(complied).bind(judge).bind(process).bind(held).fetch_all(&self.pool).await?;
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        let members = Membership::default();
        let mut beat = Beat { alive: false, members, clock: epoch, recorded: 0, claimed: 0, cut_at: None, unaware: false };
        let (mut living, mut others, mut peers) = (Vec::with_capacity(rows.len()), BTreeMap::new(), Vec::new());
        for row in &rows {
            // Null where no replica is registered at all. The statement lists its own row as it was
            // before the update.
            let own = |(id, before): (i64, i64)| (id, if id == replica.0 { complied } else { before });
            living.extend(row.try_get::<Option<i64>, _>("id")?.zip(row.try_get("complied")?).map(own));
            beat.alive = row.try_get("alive")?;
            beat.clock = row.try_get("clock")?;
            beat.recorded = row.try_get("recorded")?;
            beat.claimed = row.try_get("claimed")?;
            beat.cut_at = row.try_get("cut_at")?;
            beat.unaware |= row.try_get::<bool, _>("unaware")?;
            if let Some(Json(accounts)) = row.try_get("others")? {
                others.insert(row.try_get("id")?, accounts);
            } else if row.try_get::<Option<i64>, _>("id")?.is_some_and(|id| id != replica.0) {
                peers.extend(row.try_get::<Option<i64>, _>("held")?);
            }
        }
        beat.members = Membership { others: Arc::new(others), peers, ..Membership::new(replica.0, &living) };
        Ok(beat)
    }

    /// Deregisters the replica.
    pub async fn deregister(&self, replica: ReplicaId, process: Uuid) -> Result<(), StoreError> {
        sqlx::query("delete from paypoll.replicas where id = $1 and process = $2")
            .bind(replica.0)
            .bind(process)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Transactions of this replica that a callback handler, an operator or a feeder has changed
    /// since it claimed them.
    pub async fn overrides(&self, replica: ReplicaId) -> Result<Vec<Override>, StoreError> {
        let rows = sqlx::query(OVERRIDES).bind(replica.0).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(Override { id: row.try_get("id")?, fence: row.try_get("fence")? })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_is_alone_until_another_one_is_there_that_not_everybody_has_heard_of() {
        // The replica itself and the living, each with the newest one that it leaves room for.
        for (own, living, complied, settled) in [
            (1, &[(1, 0)][..], i64::MAX, true),
            // A new replica takes no share from those that it found.
            (1, &[(1, 1), (2, 0)], i64::MAX, false),
            (2, &[(1, 2), (2, 2), (3, 0)], 2, false),
            // The first one was killed, or has not heard of it yet.
            (2, &[(1, 1), (2, 0)], 1, true),
            (2, &[(1, 2), (2, 0)], 2, true),
            // The second one was killed too before any other heard of it: the reserve goes to the
            // new replica.
            (3, &[(1, 1), (2, 2), (3, 0)], 1, false),
            (3, &[(1, 2), (2, 2), (3, 0)], 2, true),
            (3, &[(1, 3), (2, 3), (3, 3)], 3, true),
        ] {
            let members = Membership::new(own, living);
            assert_eq!((members.complied, members.settled), (complied, settled), "{own} among {living:?}");
        }
    }
}
