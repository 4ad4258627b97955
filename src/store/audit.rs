//! Reading the whole journal for the audit: in pieces of bounded size, whatever its length.

use super::{Store, StoreError};
use crate::domain::audit::{History, HistoryRow};
use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{AssertSqlSafe, Row, Transaction};
use std::time::Duration;
use uuid::Uuid;

/// Transactions that are in memory at once.
const TRANSACTIONS: usize = 100;
/// Minutes of an account that are in memory at once.
const MINUTES: usize = 20;

/// A transaction and its polls.
#[derive(Clone, Debug)]
pub struct PolledTransaction {
    /// `transactions.id`.
    pub id: Uuid,
    /// The provider.
    pub provider: String,
    /// The key that the provider looks up; `None` when the row was deleted.
    pub reference: Option<String>,
    /// What the audit judges.
    pub history: History,
}

/// The polls of one account within one minute, in the order of time.
#[derive(Clone, Debug)]
pub struct Minute {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// When they were sent.
    pub sent: Vec<DateTime<Utc>>,
}

/// One view of the journal: what is written while it is read is not in it.
pub struct JournalReader {
    tx: Transaction<'static, Postgres>,
    /// The database's clock when the reading began.
    pub now: DateTime<Utc>,
    /// When the oldest day of the journal begins.
    pub complete_since: DateTime<Utc>,
    /// Only polls from then on are meant.
    pub since: Option<DateTime<Utc>>,
}

/// The view and the clock. A reading takes as long as it takes. Grouping sorts, because a sort goes to disk where a hash would
/// grow; `cursor_tuple_fraction` says that a cursor's rows are wanted to the last one.
const BEGIN: [&str; 6] = [
    "set transaction isolation level repeatable read read only",
    "set local statement_timeout = 0",
    "set local enable_hashagg = off",
    "set local jit = off",
    "set local work_mem = '64MB'",
    "set local cursor_tuple_fraction = 1.0",
];

const VIEW: &str = "
    select now() as now,
           (select min(to_date(right(c.relname, 8), 'YYYYMMDD'))::timestamp at time zone 'UTC'
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = 'paypoll.polls'::regclass) as begins";

/// What both halves of the histories say of a transaction's row and of its reopenings.
const FACTS: &str = "
           t.reference, t.initiated_at, t.created_at, r.reopened,
           case when t.finalized_at is not null then t.finalized_at
                when t.next_poll_at is not null then now()
                else (select coalesce(max(x.at), t.updated_at) from paypoll.transitions x where x.transaction_id = t.id) end as until";

const REOPENED: &str = "
      left join (select transaction_id, array_agg(at order by at) as reopened from paypoll.transitions
                  where source = 'operator' and to_state = 'pending' group by transaction_id) r";

/// An answer in one of these outcomes was usable: no back-off follows it.
const USABLE: &str = "'{pending,action_required,succeeded,failed,cancelled,refunded,too_early}'";

impl Store {
    /// Begins to read the journal; with `since`, only what was sent within this time.
    pub async fn journal(&self, since: Option<Duration>) -> Result<JournalReader, StoreError> {
        let mut tx = self.pool.begin().await?;
        for setting in BEGIN {
            sqlx::query(setting).execute(&mut *tx).await?;
        }
        let row = sqlx::query(VIEW).fetch_one(&mut *tx).await?;
        let now: DateTime<Utc> = row.try_get("now")?;
        let begins: Option<DateTime<Utc>> = row.try_get("begins")?;
        let since = since.map(|since| chrono::TimeDelta::from_std(since).ok().and_then(|since| now.checked_sub_signed(since)));
        let since = since.map(|since| since.unwrap_or(DateTime::UNIX_EPOCH));
        Ok(JournalReader { tx, now, complete_since: begins.unwrap_or(now), since })
    }
}

impl JournalReader {
    /// Every transaction that was polled, with all its polls, also those before `since`: the rules look back.
    pub async fn polled(&mut self, visit: &mut impl FnMut(PolledTransaction)) -> Result<(), StoreError> {
        let touched = self.since.map_or_else(String::new, |since| {
            format!(
                "where transaction_id in (select distinct transaction_id from paypoll.polls where sent_at >= {})",
                literal(since)
            )
        });
        let sql = format!(
            "select g.transaction_id as id, {FACTS}, g.sent, g.failed,
                    coalesce(t.provider, (select p.provider from paypoll.polls p where p.transaction_id = g.transaction_id limit 1)) as provider
               from (select transaction_id, array_agg(sent_at) as sent, bool_or(outcome <> all ({USABLE})) as failed
                       from paypoll.polls {touched} group by transaction_id) g
               left join paypoll.transactions t on t.id = g.transaction_id
              {REOPENED} on r.transaction_id = g.transaction_id"
        );
        self.read("polled", &sql, TRANSACTIONS, &mut |row| {
            visit(polled(row)?);
            Ok(())
        })
        .await
    }

    /// Every transaction that ought to have been polled and of which the journal has no poll.
    pub async fn never_polled(&mut self, visit: &mut impl FnMut(PolledTransaction)) -> Result<(), StoreError> {
        let sql = format!(
            "select t.id, t.provider, {FACTS}, '{{}}'::timestamptz[] as sent, false as failed
               from paypoll.transactions t {REOPENED} on r.transaction_id = t.id
              where (t.next_poll_at is not null or t.state = 'unresolved') and t.created_at >= {}
                and not exists (select from paypoll.polls p where p.transaction_id = t.id)",
            literal(self.complete_since)
        );
        self.read("never_polled", &sql, TRANSACTIONS, &mut |row| {
            visit(polled(row)?);
            Ok(())
        })
        .await
    }

    /// The polls account by account in the order of time.
    pub async fn minutes(&mut self, visit: &mut impl FnMut(Minute)) -> Result<(), StoreError> {
        let range = self.since.map_or_else(String::new, |since| format!("where sent_at >= {}", literal(since)));
        // In plain byte order: nobody reads the order, and comparing words of a language takes its time.
        let sql = format!(
            r#"select provider, account, array_agg(sent_at) as sent from paypoll.polls {range}
                group by provider, account, date_trunc('minute', sent_at)
                order by provider collate "C", account collate "C", date_trunc('minute', sent_at)"#
        );
        self.read("minutes", &sql, MINUTES, &mut |row| {
            visit(Minute { provider: row.try_get("provider")?, account: row.try_get("account")?, sent: sent(row)? });
            Ok(())
        })
        .await
    }

    /// Reads a query's rows, `at_once` of them at a time. Each query needs a name of its own: a connection remembers the columns of
    /// the statement that fetches from it.
    async fn read(
        &mut self,
        name: &str,
        sql: &str,
        at_once: usize,
        visit: &mut impl FnMut(&PgRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(format!("declare {name} no scroll cursor for {sql}"))).execute(&mut *self.tx).await?;
        let fetch = format!("fetch {at_once} from {name}");
        loop {
            let rows = sqlx::query(AssertSqlSafe(fetch.clone())).fetch_all(&mut *self.tx).await?;
            for row in &rows {
                visit(row)?;
            }
            if rows.len() < at_once {
                break;
            }
        }
        sqlx::query(AssertSqlSafe(format!("close {name}"))).execute(&mut *self.tx).await?;
        Ok(())
    }
}

/// A cursor takes no parameters: the moment is written into the statement, by us alone.
fn literal(at: DateTime<Utc>) -> String {
    format!("timestamptz '{}'", at.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn sent(row: &PgRow) -> Result<Vec<DateTime<Utc>>, StoreError> {
    let mut sent: Vec<DateTime<Utc>> = row.try_get("sent")?;
    sent.sort_unstable();
    Ok(sent)
}

fn polled(row: &PgRow) -> Result<PolledTransaction, StoreError> {
    let initiated_at: Option<DateTime<Utc>> = row.try_get("initiated_at")?;
    let facts = match initiated_at {
        Some(initiated_at) => {
            Some(HistoryRow { initiated_at, created_at: row.try_get("created_at")?, until: row.try_get("until")? })
        }
        None => None,
    };
    let reopened: Option<Vec<DateTime<Utc>>> = row.try_get("reopened")?;
    Ok(PolledTransaction {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        reference: row.try_get("reference")?,
        history: History { row: facts, reopened: reopened.unwrap_or_default(), sent: sent(row)?, failed: row.try_get("failed")? },
    })
}
