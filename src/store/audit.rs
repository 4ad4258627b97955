//! Reading the whole journal for the audit: in pieces of bounded size, whatever its length.
//!
//! No statement reads the journal and another table at once: the journal may be distributed over other machines, which could not join
//! it with what stays here. What belongs together is put together piece by piece.

use super::{Store, StoreError};
use crate::domain::audit::{History, HistoryRow};
use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{AssertSqlSafe, Row, Transaction};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// Transactions that are in memory at once.
const TRANSACTIONS: usize = 500;
/// Busy seconds of accounts that are in memory at once.
const SECONDS: usize = 1000;

/// A transaction and its polls.
#[derive(Clone, Debug)]
pub struct PolledTransaction {
    /// `transactions.id`.
    pub id: Uuid,
    /// The provider.
    pub provider: String,
    /// The key that the provider looks up; `None` when the row was deleted.
    pub reference: Option<String>,
    /// What the audit judges; what became of its polls is not known yet: see
    /// [`JournalReader::failed`] and [`JournalReader::too_early`].
    pub history: History,
}

/// The polls of one account within one second, in the order of time.
#[derive(Clone, Debug)]
pub struct BusySecond {
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
    /// What was polled since then has been read.
    rest: bool,
}

/// The view and the clock. A reading takes as long as it takes; `cursor_tuple_fraction` says that a cursor's rows are wanted to the
/// last one.
const BEGIN: [&str; 5] = [
    "set transaction isolation level repeatable read read only",
    "set local statement_timeout = 0",
    "set local jit = off",
    "set local work_mem = '64MB'",
    "set local cursor_tuple_fraction = 1.0",
];

const VIEW: &str = "
    select now() as now,
           (select min(to_date(right(c.relname, 8), 'YYYYMMDD'))::timestamp at time zone 'UTC'
              from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = 'paypoll.polls'::regclass) as begins";

/// What the histories say of transactions' rows and of their reopenings.
const FACTS: &str = "
    select t.id, t.provider, t.reference, t.initiated_at, t.created_at,
           case when t.finalized_at is not null then t.finalized_at
                when t.next_poll_at is not null then now()
                else (select coalesce(max(x.at), t.updated_at) from paypoll.transitions x where x.transaction_id = t.id) end as until,
           (select array_agg(x.at order by x.at) from paypoll.transitions x
             where x.transaction_id = t.id and x.source = 'operator' and x.to_state = 'pending') as reopened
      from paypoll.transactions t";

const SENT_BEFORE: &str = "
    select transaction_id as id, array_agg(sent_at) as sent from paypoll.polls where transaction_id = any ($1)
     group by transaction_id having max(sent_at) < $2";

/// Whose row is gone has its provider in the journal.
const PROVIDERS: &str = "
    select transaction_id, min(provider) as provider from paypoll.polls where transaction_id = any ($1) group by transaction_id";

const POLLED: &str = "select distinct transaction_id from paypoll.polls where transaction_id = any ($1)";

/// An answer with another outcome was not usable: a back-off follows it.
const FAILED: &str = "
    select distinct transaction_id from paypoll.polls
     where transaction_id = any ($1)
       and outcome <> all ('{pending,action_required,succeeded,failed,cancelled,refunded,too_early}')";

/// What the provider itself called too early.
const TOO_EARLY: &str = "
    select transaction_id, array_agg(sent_at order by sent_at) as sent from paypoll.polls
     where transaction_id = any ($1) and outcome = 'too_early'
     group by transaction_id";

const DECLARED: &str = "
    select transaction_id, sent_at, declaration from paypoll.polls
     where transaction_id = any ($1) and declaration is not null order by sent_at";

/// First half: how many polls each account sent in each second. Second half: the polls of those seconds that, with the one before or
/// the one after, have more than the budget allows in any second. So only what may be too much is sorted and looked at.
const BUSY: &str = r#"
    with seconds as materialized (
        select provider, account, date_trunc('second', sent_at) as second, count(*) as polls
          from paypoll.polls {range} group by 1, 2, 3
    ), paired as (
        select *, case when lag(second) over w = second - interval '1 second' then lag(polls) over w else 0 end as before,
                  case when lead(second) over w = second + interval '1 second' then lead(polls) over w else 0 end as after
          from seconds window w as (partition by provider, account order by second)
    ), busy as materialized (
        select p.provider, p.account, p.second
          from paired p join (values {budgets}) as budget (provider, most) on budget.provider = p.provider
         where p.polls + greatest(p.before, p.after) > budget.most
    )
    select p.provider, p.account, array_agg(p.sent_at) as sent
      from paypoll.polls p
      join busy b on b.provider = p.provider and b.account = p.account and b.second = date_trunc('second', p.sent_at)
     {range}
     group by p.provider, p.account, b.second
     order by p.provider, p.account, b.second"#;

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
        Ok(JournalReader { tx, now, complete_since: begins.unwrap_or(now), since, rest: false })
    }
}

impl JournalReader {
    /// Begins to read every transaction that was polled, with all its polls, also those before `since`: the rules look back.
    ///
    /// Of the journal only the index is read, as far as the database has vacuumed it.
    pub async fn open_polled(&mut self) -> Result<(), StoreError> {
        // Grouping by sorting, which the index gives for nothing, where a hash would hold the whole journal.
        sqlx::query("set local enable_hashagg = off").execute(&mut *self.tx).await?;
        let since = self.since.map(literal);
        let polled = since.as_ref().map_or_else(String::new, |since| {
            format!("where transaction_id in (select transaction_id from paypoll.polls where sent_at >= {since})")
        });
        let sql =
            format!("select transaction_id as id, array_agg(sent_at) as sent from paypoll.polls {polled} group by transaction_id");
        self.declare("polled", &sql).await?;
        if let Some(since) = since {
            // Whatever was to be polled in this time. A row knows of no later poll than the journal does.
            let planned = format!(
                "select id from paypoll.transactions where next_poll_at is not null and (last_polled_at < {since} or last_polled_at is null)
                 union select id from paypoll.transactions where state in ('unresolved', 'invalid') and updated_at >= {since}"
            );
            self.declare("planned", &planned).await?;
        }
        Ok(())
    }

    /// The next of the transactions that were polled; none when all have been read.
    pub async fn next_polled(&mut self) -> Result<Vec<PolledTransaction>, StoreError> {
        let mut polls = Vec::new();
        if !self.rest {
            polls = self.fetch("polled", TRANSACTIONS).await?;
            self.rest = polls.is_empty();
        }
        if let Some(since) = self.since.filter(|_| self.rest) {
            // Of those that were to be polled none may ever have been.
            while polls.is_empty() {
                let planned = self.fetch("planned", TRANSACTIONS).await?;
                if planned.is_empty() {
                    break;
                }
                let ids = planned.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
                polls = sqlx::query(SENT_BEFORE).bind(&ids).bind(since).fetch_all(&mut *self.tx).await?;
            }
        }
        let ids = polls.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
        let rows = sqlx::query(AssertSqlSafe(format!("{FACTS} where t.id = any ($1)"))).bind(&ids).fetch_all(&mut *self.tx).await?;
        let mut found = HashMap::new();
        for row in &rows {
            found.insert(row.try_get::<Uuid, _>("id")?, row);
        }
        let gone: Vec<Uuid> = ids.iter().filter(|id| !found.contains_key(id)).copied().collect();
        let mut providers: HashMap<Uuid, String> = HashMap::new();
        if !gone.is_empty() {
            providers.extend(sqlx::query_as::<_, (Uuid, String)>(PROVIDERS).bind(&gone).fetch_all(&mut *self.tx).await?);
        }
        let mut polled = Vec::with_capacity(ids.len());
        for (id, polls) in ids.into_iter().zip(&polls) {
            let mut one = match found.get(&id) {
                Some(row) => unpolled(row)?,
                None => without_row(id, providers.remove(&id).unwrap_or_default()),
            };
            one.history.sent = sent(polls)?;
            polled.push(one);
        }
        Ok(polled)
    }

    /// Which of these transactions had a poll without a usable answer.
    pub async fn failed(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
        let failed: Vec<Uuid> = sqlx::query_scalar(FAILED).bind(ids).fetch_all(&mut *self.tx).await?;
        Ok(failed.into_iter().collect())
    }

    /// The polls of these transactions that the provider called too early.
    pub async fn too_early(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Vec<DateTime<Utc>>>, StoreError> {
        let rows = sqlx::query(TOO_EARLY).bind(ids).fetch_all(&mut *self.tx).await?;
        rows.iter().map(|row| Ok((row.try_get("transaction_id")?, sent(row)?))).collect()
    }

    /// Under which file each poll of these transactions was sent, as far as it was a declared provider's: time and hash, rising.
    pub async fn declarations(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Vec<(DateTime<Utc>, Vec<u8>)>>, StoreError> {
        let rows = sqlx::query(DECLARED).bind(ids).fetch_all(&mut *self.tx).await?;
        let mut found: HashMap<Uuid, Vec<_>> = HashMap::new();
        for row in &rows {
            found.entry(row.try_get("transaction_id")?).or_default().push((row.try_get("sent_at")?, row.try_get("declaration")?));
        }
        Ok(found)
    }

    /// Every transaction that ought to have been polled and of which the journal has no poll.
    pub async fn never_polled(&mut self, visit: &mut impl FnMut(&PolledTransaction)) -> Result<(), StoreError> {
        let sql = format!(
            "{FACTS} where (t.next_poll_at is not null or t.state = 'unresolved') and t.created_at >= {}",
            literal(self.complete_since)
        );
        self.declare("to_be_polled", &sql).await?;
        loop {
            let rows = self.fetch("to_be_polled", TRANSACTIONS).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
            let polled: HashSet<Uuid> = sqlx::query_scalar(POLLED).bind(&ids).fetch_all(&mut *self.tx).await?.into_iter().collect();
            for (row, _) in rows.iter().zip(&ids).filter(|(_, id)| !polled.contains(id)) {
                visit(&unpolled(row)?);
            }
        }
    }

    /// The seconds in which an account may have sent more polls than its budget, account by account in the order of time. `budgets`:
    /// for each provider, how many polls any second may have.
    pub async fn busy_seconds(&mut self, budgets: &[(&str, usize)], visit: &mut impl FnMut(&BusySecond)) -> Result<(), StoreError> {
        if budgets.is_empty() {
            return Ok(());
        }
        let range = self.since.map_or_else(String::new, |since| format!("where sent_at >= {}", literal(since)));
        // The names are those of the registry: nothing to quote.
        let budgets: Vec<String> = budgets.iter().map(|(provider, most)| format!("('{provider}', {most}::bigint)")).collect();
        // How few seconds are busy cannot be foreseen: not to sort the whole journal in order to join it with them.
        sqlx::query("set local enable_mergejoin = off").execute(&mut *self.tx).await?;
        let sql = BUSY.replace("{range}", &range).replace("{budgets}", &budgets.join(", "));
        self.declare("busy", &sql).await?;
        loop {
            let rows = self.fetch("busy", SECONDS).await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                visit(&BusySecond { provider: row.try_get("provider")?, account: row.try_get("account")?, sent: sent(row)? });
            }
        }
        sqlx::query("set local enable_mergejoin = on").execute(&mut *self.tx).await?;
        Ok(())
    }

    /// Each query needs a name of its own: a connection remembers the columns of the statement that fetches from it.
    async fn declare(&mut self, name: &str, sql: &str) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(format!("declare {name} no scroll cursor for {sql}"))).execute(&mut *self.tx).await?;
        Ok(())
    }

    async fn fetch(&mut self, name: &str, at_once: usize) -> Result<Vec<PgRow>, StoreError> {
        Ok(sqlx::query(AssertSqlSafe(format!("fetch {at_once} from {name}"))).fetch_all(&mut *self.tx).await?)
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

/// A transaction, without its polls.
fn unpolled(row: &PgRow) -> Result<PolledTransaction, StoreError> {
    let facts = HistoryRow {
        initiated_at: row.try_get("initiated_at")?,
        created_at: row.try_get("created_at")?,
        until: row.try_get("until")?,
    };
    let mut one = without_row(row.try_get("id")?, row.try_get("provider")?);
    one.reference = row.try_get("reference")?;
    one.history.row = Some(facts);
    one.history.reopened = row.try_get::<Option<_>, _>("reopened")?.unwrap_or_default();
    Ok(one)
}

/// What the journal alone says of a transaction, without its polls.
fn without_row(id: Uuid, provider: String) -> PolledTransaction {
    let history =
        History { row: None, reopened: Vec::new(), sent: Vec::new(), too_early: Vec::new(), floors: Vec::new(), failed: false };
    PolledTransaction { id, provider, reference: None, history }
}
