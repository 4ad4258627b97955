//! The budget and the circuit of a provider account, shared by all replicas in one small row.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A request for send slots.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The provider.
    pub provider: &'static str,
    /// The account.
    pub account: Arc<str>,
    /// At most this many slots.
    pub wanted: u32,
    /// The gap between requests at the account's rate.
    pub gap: Duration,
    /// How far requests may run ahead of that pace: the burst, less the time by which a slot may be
    /// used late.
    pub tolerance: Duration,
}

/// Send slots: the n-th, counted from 0, may be used from `clock + max(0, ahead + n * gap)` on, all
/// in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Which request it answers.
    pub lane: usize,
    /// The database's clock during the statement.
    pub clock: DateTime<Utc>,
    /// How far ahead of the clock the first slot lies; negative where the burst is not used up.
    pub ahead: f64,
    /// The gap between slots; longer than asked for while the account is slowed down.
    pub gap: f64,
    /// How many slots.
    pub slots: u32,
}

/// The state of an account that all replicas share.
#[derive(Clone, Debug, PartialEq)]
pub struct AccountState {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// The provider asked for a pause until then.
    pub held_until: Option<DateTime<Utc>>,
    /// The circuit is open: when the next probe may be sent.
    pub probe_at: Option<DateTime<Utc>>,
    /// Why the circuit is open.
    pub reason: Option<String>,
    /// An operator wants nothing sent, for this reason.
    pub paused: Option<String>,
}

/// How far ahead of need slots are granted.
pub const AHEAD: Duration = Duration::from_millis(300);
/// A slowed account regains half of its lost pace in this time.
const RECOVERY_S: f64 = 20.0;
/// However often an account is slowed down, it keeps at least this share of its rate.
const SLOWEST: f64 = 32.0;

/// A virtual-scheduling rate limit (GCRA): `arrival_at` is when the next request would be due if
/// requests came at the account's rate; one may be sent `tolerance` earlier. First half: the row is
/// locked and the slots counted, none beyond `$6` seconds ahead. Second half: what was given away
/// is booked. A slowdown is halved again and again, but no more than 64 times: PostgreSQL calls a
/// power that is too small an error. Nothing is ever booked farther ahead than `farthest`, with
/// whatever slowdown: a booking farther ahead means that the clock was set back, and is not waited
/// for.
const DRAW: &str = "
    with locked as (
        select x.number, x.wanted, x.tolerance, a.provider, a.account, clock_timestamp() as clock, a.arrival_at, a.held_until,
               $6::float8 + x.tolerance + (1 + $8::float8) * x.gap as farthest, x.gap * greatest(1, a.slowdown * power(0.5::float8, least(64,
                   greatest(0, extract(epoch from clock_timestamp() - a.slowed_at))::float8 / $7))) as gap
          from unnest($1::text[], $2::text[], $3::bigint[], $4::float8[], $5::float8[])
               with ordinality as x (provider, account, wanted, gap, tolerance, number)
          join paypoll.accounts a on a.provider = x.provider and a.account = x.account
           for update of a
    ), timed as (
        select *, least(farthest, greatest(0, extract(epoch from arrival_at - clock)))::float8 as lead from locked
    ), given as (
        select *, case when held_until > clock then 0
                       else least(wanted, greatest(0, floor(($6::float8 + tolerance - lead) / gap) + 1)) end::bigint as slots
          from timed
    ), booked as (
        update paypoll.accounts a
           set arrival_at = g.clock + make_interval(secs => g.lead + g.slots * g.gap)
          from given g
         where a.provider = g.provider and a.account = g.account
           and (g.slots > 0 or g.lead = g.farthest)
    )
    select number, clock, gap, lead - tolerance as ahead, slots from given";

impl Store {
    /// Makes the accounts' rows where they are missing.
    pub async fn make_accounts(&self, accounts: &[(&'static str, Arc<str>)]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into paypoll.accounts (provider, account) select * from unnest($1::text[], $2::text[]) on conflict do nothing",
        )
        .bind(accounts.iter().map(|(provider, _)| *provider).collect::<Vec<_>>())
        .bind(accounts.iter().map(|(_, account)| &**account).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Grants send slots to several accounts.
    pub async fn draw(&self, draws: &[Draw]) -> Result<Vec<Drawn>, StoreError> {
        let rows = sqlx::query(DRAW)
            .bind(draws.iter().map(|draw| draw.provider).collect::<Vec<_>>())
            .bind(draws.iter().map(|draw| &*draw.account).collect::<Vec<_>>())
            .bind(draws.iter().map(|draw| i64::from(draw.wanted)).collect::<Vec<_>>())
            .bind(draws.iter().map(|draw| draw.gap.as_secs_f64()).collect::<Vec<_>>())
            .bind(draws.iter().map(|draw| draw.tolerance.as_secs_f64()).collect::<Vec<_>>())
            .bind(AHEAD.as_secs_f64())
            .bind(RECOVERY_S)
            .bind(SLOWEST)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(drawn).collect()
    }

    /// The provider asked for fewer requests: no replica sends for `wait`, and the pace is halved
    /// and recovers gradually.
    pub async fn slow_down(&self, provider: &str, account: &str, wait: Duration) -> Result<(), StoreError> {
        sqlx::query(
            "update paypoll.accounts
                set held_until = greatest(held_until, clock_timestamp() + make_interval(secs => $3)),
                    slowdown = case when slowed_at > clock_timestamp() - interval '1 second' then slowdown
                                    else least($5, 2 * greatest(1, slowdown * power(0.5::float8, least(64,
                                             extract(epoch from clock_timestamp() - slowed_at)::float8 / $4))))
                               end,
                    slowed_at = greatest(slowed_at, clock_timestamp() + make_interval(secs => $3))
              where provider = $1 and account = $2",
        )
        .bind(provider)
        .bind(account)
        .bind(wait.as_secs_f64())
        .bind(RECOVERY_S)
        .bind(SLOWEST)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Opens the account's circuit. True when it was closed: then this replica logs the change.
    pub async fn open_circuit(
        &self,
        provider: &str,
        account: &str,
        reason: &str,
        probe_after: Duration,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update paypoll.accounts
                set circuit_since = clock_timestamp(), circuit_reason = $3, probe_at = clock_timestamp() + make_interval(secs => $4)
              where provider = $1 and account = $2 and circuit_since is null",
        )
        .bind(provider)
        .bind(account)
        .bind(reason)
        .bind(probe_after.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Closes the account's circuit. True when it was open: then this replica logs the change.
    pub async fn close_circuit(&self, provider: &str, account: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update paypoll.accounts set circuit_since = null, circuit_reason = null, probe_at = null
              where provider = $1 and account = $2 and circuit_since is not null",
        )
        .bind(provider)
        .bind(account)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Closes the account's circuit where there is nothing left to probe with. True when it was open.
    pub async fn abandon_circuit(&self, provider: &str, account: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update paypoll.accounts set circuit_since = null, circuit_reason = null, probe_at = null
              where provider = $1 and account = $2 and circuit_since < clock_timestamp() - interval '10 minutes'
                and not exists (select from paypoll.transactions t
                                 where t.provider = $1 and t.account = $2 and t.next_poll_at is not null)",
        )
        .bind(provider)
        .bind(account)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes a key of which at most one request may be in flight, over all replicas; it is free
    /// again after `longest`. False when another process holds it.
    pub async fn take_key(&self, key: &[u8], process: Uuid, longest: Duration) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "insert into paypoll.exclusive_keys as k (key, process, until) values ($1, $2, clock_timestamp() + make_interval(secs => $3))
                 on conflict (key) do update set process = excluded.process, until = excluded.until
              where k.until < clock_timestamp() or k.process = excluded.process",
        )
        .bind(key)
        .bind(process)
        .bind(longest.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The request for which the key was taken has ended.
    pub async fn give_key_back(&self, key: &[u8], process: Uuid) -> Result<(), StoreError> {
        sqlx::query("delete from paypoll.exclusive_keys where key = $1 and process = $2")
            .bind(key)
            .bind(process)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Takes the right to send the one probe of this interval. False when another replica has it,
    /// or the circuit is closed.
    pub async fn take_probe(&self, provider: &str, account: &str, probe_after: Duration) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "update paypoll.accounts set probe_at = clock_timestamp() + make_interval(secs => $3)
              where provider = $1 and account = $2 and circuit_since is not null and probe_at <= clock_timestamp()",
        )
        .bind(provider)
        .bind(account)
        .bind(probe_after.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Every account that is paused or whose circuit is open.
    pub async fn account_states(&self) -> Result<Vec<AccountState>, StoreError> {
        let rows = sqlx::query(
            "select provider, account, held_until, probe_at, circuit_reason,
                    case when paused_until is null or paused_until > clock_timestamp() then paused_because end as paused
               from paypoll.accounts
              where circuit_since is not null or held_until > clock_timestamp()
                 or paused_at is not null and (paused_until is null or paused_until > clock_timestamp())",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(AccountState {
                    provider: row.try_get("provider")?,
                    account: row.try_get("account")?,
                    held_until: row.try_get("held_until")?,
                    probe_at: row.try_get("probe_at")?,
                    reason: row.try_get("circuit_reason")?,
                    paused: row.try_get("paused")?,
                })
            })
            .collect()
    }
}

fn drawn(row: &PgRow) -> Result<Drawn, StoreError> {
    Ok(Drawn {
        lane: usize::try_from(row.try_get::<i64, _>("number")? - 1).unwrap_or(usize::MAX),
        clock: row.try_get("clock")?,
        ahead: row.try_get("ahead")?,
        gap: row.try_get("gap")?,
        slots: u32::try_from(row.try_get::<i64, _>("slots")?).unwrap_or(u32::MAX),
    })
}
