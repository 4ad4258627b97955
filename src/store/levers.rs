//! An operator's controls: an account's pause, and the next probe of an open circuit.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use sqlx::{Connection, Row};
use std::time::Duration;

/// The result of requesting a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The next one is sent now.
    Asked {
        /// Why the circuit is open.
        reason: Option<String>,
        /// An operator has paused the account: nothing is sent, not even a probe.
        paused: bool,
        /// A living replica serves the account.
        served: bool,
    },
    /// The circuit is closed: the account is polled anyway.
    Closed,
    /// No daemon has ever served the account.
    Unknown,
}

impl Store {
    /// The accounts of a provider that daemons have served or that have transactions, in the order
    /// of their names.
    pub async fn accounts_of(&self, provider: &str) -> Result<Vec<String>, StoreError> {
        let sql = "
            with recursive known as (
                (select account from paypoll.transactions where provider = $1 order by account limit 1)
                union all
                select n.account from known k cross join lateral (
                    select account from paypoll.transactions where provider = $1 and account > k.account order by account limit 1) n
            )
            select account from known union select account from paypoll.accounts where provider = $1 order by account";
        Ok(sqlx::query_scalar(sql).bind(provider).fetch_all(&self.pool).await?)
    }

    /// The names of all providers that the database knows.
    pub async fn provider_names(&self) -> Result<Vec<String>, StoreError> {
        Ok(sqlx::query_scalar("select name from paypoll.providers order by registered_at, name").fetch_all(&self.pool).await?)
    }

    /// Pauses accounts of a provider, all at once. Returns until when; `None`: until they are
    /// resumed.
    pub async fn pause(
        &self,
        provider: &str,
        accounts: &[String],
        because: &str,
        length: Option<Duration>,
        actor: &str,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sign(&mut tx, actor).await?;
        let until: Option<DateTime<Utc>> = sqlx::query_scalar("select clock_timestamp() + make_interval(secs => $1)")
            .bind(length.map(|length| length.as_secs_f64()))
            .fetch_one(&mut *tx)
            .await?;
        for account in accounts {
            sqlx::query("select paypoll.pause($1, $2, $3, $4)")
                .bind(provider)
                .bind(account)
                .bind(because)
                .bind(until)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(until)
    }

    /// Resumes accounts of a provider, all at once. Returns for each whether it was paused.
    pub async fn resume(&self, provider: &str, accounts: &[String], actor: &str) -> Result<Vec<bool>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut tx = connection.begin().await?;
        sign(&mut tx, actor).await?;
        let mut were = Vec::with_capacity(accounts.len());
        for account in accounts {
            let query = sqlx::query_scalar("select paypoll.resume($1, $2)").bind(provider).bind(account);
            were.push(query.fetch_one(&mut *tx).await?);
        }
        tx.commit().await?;
        Ok(were)
    }

    /// Has the next probe of an open circuit sent at once. The account's budget and the provider's
    /// own pause still hold.
    pub async fn probe_now(&self, provider: &str, account: &str) -> Result<Probe, StoreError> {
        let row = sqlx::query(
            "update paypoll.accounts a
                set probe_at = case when a.circuit_since is not null then least(a.probe_at, clock_timestamp()) end
              where a.provider = $1 and a.account = $2
             returning a.circuit_since is not null as open, a.circuit_reason,
                       a.paused_at is not null and coalesce(a.paused_until > clock_timestamp(), true) as paused,
                       exists (select from paypoll.replicas r where r.accounts @> jsonb_build_array(jsonb_build_array($1::text, $2::text))
                                                                and r.heartbeat_at > clock_timestamp() - r.lease) as served",
        )
        .bind(provider)
        .bind(account)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(Probe::Unknown) };
        if !row.try_get::<bool, _>("open")? {
            return Ok(Probe::Closed);
        }
        Ok(Probe::Asked { reason: row.try_get("circuit_reason")?, paused: row.try_get("paused")?, served: row.try_get("served")? })
    }
}

/// Records who makes the transaction's changes; the database adds the login, which cannot be
/// forged.
pub(super) async fn sign(tx: &mut sqlx::PgConnection, actor: &str) -> Result<(), StoreError> {
    sqlx::query("select set_config('paypoll.actor', $1, true)").bind(actor).execute(tx).await?;
    Ok(())
}
