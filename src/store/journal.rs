//! The journal of polls: appending to it, and keeping its partitions.

use super::record::Poll;
use super::rows::{column, int};
use super::{Store, StoreError};
use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::postgres::PgConnection;

/// Not `COPY`: the library sends the end of the copy in a packet of its own, and where the server
/// delays its acknowledgement that costs 40 ms a batch.
const APPEND: &str = "
    insert into paypoll.polls (transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error,
                               declaration)
    select * from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::int[], $7::smallint[],
                         $8::text[], $9::text[], $10::bytea[])";

/// How many days ahead partitions are made: long enough to survive a long weekend without an
/// operator.
const DAYS_AHEAD: u64 = 7;

/// Appends journal rows within the caller's transaction.
pub(super) async fn append(tx: &mut PgConnection, polls: &[Poll]) -> Result<(), StoreError> {
    if polls.is_empty() {
        return Ok(());
    }
    sqlx::query(APPEND)
        .bind(column(polls, |poll| poll.transaction_id))
        .bind(column(polls, |poll| poll.provider))
        .bind(column(polls, |poll| &*poll.account))
        .bind(column(polls, |poll| poll.due_at))
        .bind(column(polls, |poll| poll.sent_at))
        .bind(column(polls, |poll| poll.latency_ms.map(int)))
        .bind(column(polls, |poll| poll.http_status.map(|status| i16::try_from(status).unwrap_or(i16::MAX))))
        .bind(column(polls, |poll| poll.outcome))
        .bind(column(polls, |poll| poll.error.as_deref()))
        .bind(column(polls, |poll| poll.declaration.as_ref().map(<[u8; 32]>::as_slice)))
        .execute(tx)
        .await?;
    Ok(())
}

impl Store {
    /// Makes the journal's partitions for the days to come and, if need be, for `oldest`: a poll
    /// that was sent before a long outage of the database is still to be recorded.
    pub async fn make_journal(&self, oldest: Option<DateTime<Utc>>) -> Result<(), StoreError> {
        let today = self.today().await?;
        let first = oldest.map_or(today, |oldest| oldest.date_naive().min(today));
        sqlx::query("select paypoll.make_journal($1, $2)")
            .bind(first)
            .bind(today + Days::new(DAYS_AHEAD))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Drops the journal's partitions of days that ended more than `retention` ago. Returns how many.
    pub async fn prune_journal(&self, retention: std::time::Duration) -> Result<i32, StoreError> {
        let days = retention.as_secs().div_ceil(24 * 3600);
        let Some(first) = self.today().await?.checked_sub_days(Days::new(days)) else { return Ok(0) };
        Ok(sqlx::query_scalar("select paypoll.prune_journal($1)").bind(first).fetch_one(&self.pool).await?)
    }

    /// For how many days after today the journal has partitions without a gap; -1 when it has none for today.
    pub async fn journal_days_ahead(&self) -> Result<i64, StoreError> {
        let days = sqlx::query_scalar(
            "select coalesce(min(n) filter (where to_regclass('paypoll.polls_' || to_char((now() at time zone 'UTC')::date + n, 'YYYYMMDD'))
                                                  is null), 32)::int8 - 1
               from generate_series(0, 31) n",
        );
        Ok(days.fetch_one(&self.pool).await?)
    }

    async fn today(&self) -> Result<NaiveDate, StoreError> {
        Ok(sqlx::query_scalar("select (now() at time zone 'UTC')::date").fetch_one(&self.pool).await?)
    }
}
