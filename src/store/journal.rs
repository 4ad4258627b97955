//! The journal of polls: appending to it, and keeping its partitions.

use super::record::{Poll, copy_number, copy_text};
use super::{Store, StoreError};
use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::postgres::PgConnection;
use std::fmt::Write as _;

const APPEND: &str =
    "copy paypoll.polls (transaction_id, provider, account, due_at, sent_at, latency_ms, http_status, outcome, error) from stdin";

/// How many days ahead partitions are made: long enough to survive a long weekend without anybody.
const DAYS_AHEAD: u64 = 7;

/// Appends journal rows within the caller's transaction.
pub(super) async fn append(tx: &mut PgConnection, polls: &[Poll]) -> Result<(), StoreError> {
    if polls.is_empty() {
        return Ok(());
    }
    let mut lines = String::with_capacity(polls.len() * 160);
    for poll in polls {
        write_line(&mut lines, poll);
    }
    let mut copy = tx.copy_in_raw(APPEND).await?;
    copy.send(lines.into_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

fn write_line(line: &mut String, poll: &Poll) {
    // Writing to a string cannot fail.
    _ = write!(line, "{}\t{}\t", poll.transaction_id, poll.provider);
    copy_text(line, &poll.account);
    _ = write!(line, "\t{}\t{}\t", stamp(poll.due_at), stamp(poll.sent_at));
    copy_number(line, poll.latency_ms);
    line.push('\t');
    copy_number(line, poll.http_status.map(u32::from));
    line.push('\t');
    line.push_str(poll.outcome);
    line.push('\t');
    match &poll.error {
        Some(error) => copy_text(line, error),
        None => line.push_str("\\N"),
    }
    line.push('\n');
}

fn stamp(at: DateTime<Utc>) -> impl std::fmt::Display {
    at.format("%Y-%m-%d %H:%M:%S%.6f+00")
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
