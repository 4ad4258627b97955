//! Which replicas are alive: registration, heartbeat, and the verdicts that others wrote.

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
    /// The highest number known by then: whoever has a higher one registered later.
    pub newest: i64,
    /// Every other living replica leaves room for all replicas up to this one.
    pub complied: i64,
    /// The accounts of those that do not serve the same ones as we do.
    pub others: Arc<BTreeMap<i64, BTreeSet<(String, String)>>>,
}

impl Membership {
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
}

/// Registration takes its turn against other registrations, so that numbers become visible in their order.
const REGISTER: &str = "
    insert into paypoll.replicas (lease, complied, accounts, host) values (make_interval(secs => $1), 0, $2, $3) returning id";

/// Renews the lease; then, where this replica may judge, deletes those whose lease has run out, by the database's clock and by the
/// judge's idea of it; then lists the living. Only accounts that differ from our own are told: mostly none do.
const BEAT: &str = "
    with beat as (
        update paypoll.replicas set heartbeat_at = clock_timestamp(), complied = $2 where id = $1 returning id
    ), dead as (
        delete from paypoll.replicas
         where $3::timestamptz is not null and id <> $1 and heartbeat_at < least(clock_timestamp(), $3) - lease returning id
    )
    select r.id, r.complied, clock_timestamp() as clock, exists (select from beat) as alive,
           case when r.accounts <> own.accounts then r.accounts end as others
      from paypoll.replicas r
      left join paypoll.replicas own on own.id = $1
     where r.id not in (select id from dead)
     order by r.id";

const VERDICTS: &str = "
    select x.id as transition, t.id, t.fence
      from paypoll.transitions x
      join paypoll.transactions t on t.id = x.transaction_id
     where x.source in ('external', 'operator') and x.id > $1
     order by x.id
     limit 1000";

impl Store {
    /// Registers a replica that serves `accounts` under a lease of that length.
    pub async fn register(
        &self,
        lease: Duration,
        accounts: &[(&'static str, Arc<str>)],
        host: &str,
    ) -> Result<ReplicaId, StoreError> {
        let accounts: Vec<_> = accounts.iter().map(|(provider, account)| json!([provider, account])).collect();
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sqlx::query("lock table paypoll.replicas in share row exclusive mode").execute(&mut *tx).await?;
        let id =
            sqlx::query_scalar(REGISTER).bind(lease.as_secs_f64()).bind(json!(accounts)).bind(host).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(ReplicaId(id))
    }

    /// Renews the lease. `complied` is the newest replica that this one leaves room for; `judge` says whether it may declare others
    /// dead: whoever could not beat himself for a while cannot tell who else is dead. It is what the judge takes the database's clock
    /// to show, so that nobody dies because that clock was set forward.
    pub async fn beat(&self, replica: ReplicaId, complied: i64, judge: Option<DateTime<Utc>>) -> Result<Beat, StoreError> {
        let rows = sqlx::query(BEAT).bind(replica.0).bind(complied).bind(judge).fetch_all(&self.pool).await?;
        let mut beat = Beat { alive: false, members: Membership::default(), clock: DateTime::<Utc>::UNIX_EPOCH };
        let (mut leaves_room, mut others) = (i64::MAX, BTreeMap::new());
        for row in &rows {
            let id: i64 = row.try_get("id")?;
            beat.members.living.push(id);
            beat.members.newest = id;
            beat.alive = row.try_get("alive")?;
            beat.clock = row.try_get("clock")?;
            if let Some(Json(accounts)) = row.try_get("others")? {
                others.insert(id, accounts);
            }
            if id != replica.0 {
                leaves_room = leaves_room.min(row.try_get("complied")?);
            }
        }
        beat.members.complied = leaves_room;
        beat.members.others = Arc::new(others);
        Ok(beat)
    }

    /// Gives the lease back.
    pub async fn deregister(&self, replica: ReplicaId) -> Result<(), StoreError> {
        sqlx::query("delete from paypoll.replicas where id = $1").bind(replica.0).execute(&self.pool).await?;
        Ok(())
    }

    /// The highest transition there is.
    pub async fn last_transition(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("select coalesce(max(id), 0) from paypoll.transitions").fetch_one(&self.pool).await?)
    }

    /// What callback handlers and operators wrote after the transition `after`: the transition, the transaction, and its fence now.
    pub async fn verdicts(&self, after: i64) -> Result<Vec<(i64, Uuid, i64)>, StoreError> {
        let rows = sqlx::query(VERDICTS).bind(after).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("transition")?, row.try_get("id")?, row.try_get("fence")?))).collect()
    }
}
