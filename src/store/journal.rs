//! The journal of polls: appending to it, and keeping its partitions.

use super::claim::int;
use super::record::Poll;
use super::{Store, StoreError};
use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::postgres::PgConnection;

/// In binary: neither side spends time on writing and reading time stamps as text.
const APPEND: &str =
    "copy paypoll.polls (transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error)
                      from stdin (format binary)";

/// What begins a binary `COPY`: its signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What ends it.
const TRAILER: i16 = -1;
/// The fields of a row.
const FIELDS: i16 = 9;
/// PostgreSQL counts time from 2000-01-01, in microseconds from 1970-01-01.
const EPOCH: i64 = 946_684_800_000_000;

/// How many days ahead partitions are made: long enough to survive a long weekend without anybody.
const DAYS_AHEAD: u64 = 7;

/// Appends journal rows within the caller's transaction.
pub(super) async fn append(tx: &mut PgConnection, polls: &[Poll]) -> Result<(), StoreError> {
    if polls.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(HEADER.len() + polls.len() * 128);
    rows.extend_from_slice(HEADER);
    for poll in polls {
        write_row(&mut rows, poll);
    }
    rows.extend_from_slice(&TRAILER.to_be_bytes());
    let mut copy = tx.copy_in_raw(APPEND).await?;
    copy.send(rows).await?;
    copy.finish().await?;
    Ok(())
}

fn write_row(rows: &mut Vec<u8>, poll: &Poll) {
    rows.extend_from_slice(&FIELDS.to_be_bytes());
    write_field(rows, poll.transaction_id.as_bytes());
    write_field(rows, poll.provider.as_bytes());
    write_field(rows, poll.account.as_bytes());
    write_field(rows, &micros(poll.due_at));
    write_field(rows, &micros(poll.sent_at));
    write_optional(rows, poll.latency_ms.map(|latency| int(latency).to_be_bytes()));
    write_optional(rows, poll.http_status.map(|status| i16::try_from(status).unwrap_or(i16::MAX).to_be_bytes()));
    write_field(rows, poll.outcome.as_bytes());
    write_optional(rows, poll.error.as_deref());
}

fn write_field(rows: &mut Vec<u8>, value: &[u8]) {
    // No field is longer than an answer may be.
    rows.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
    rows.extend_from_slice(value);
}

fn write_optional(rows: &mut Vec<u8>, value: Option<impl AsRef<[u8]>>) {
    match value {
        Some(value) => write_field(rows, value.as_ref()),
        None => rows.extend_from_slice(&(-1_i32).to_be_bytes()),
    }
}

fn micros(at: DateTime<Utc>) -> [u8; 8] {
    (at.timestamp_micros() - EPOCH).to_be_bytes()
}

impl Store {
    /// Makes the journal's partitions for the days to come and, if need be, for `oldest`: a poll that was sent before a long
    /// outage of the database is still to be recorded.
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

    async fn today(&self) -> Result<NaiveDate, StoreError> {
        Ok(sqlx::query_scalar("select (now() at time zone 'UTC')::date").fetch_one(&self.pool).await?)
    }
}
