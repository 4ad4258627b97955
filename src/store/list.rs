//! Lists of transactions: filtered, in pages, and cheap however many transactions there are.
//!
//! Every page is put together from small pieces of an index: for each account and state the next
//! few, then the first of all of them. Two orders, one after the other: what is polled, the most
//! overdue first; then what has ended, the latest change first. Where only the row itself tells
//! whether a filter fits, no more than [`LOOKED_AT`] rows of each account and state are read, and
//! the answer says so.

use super::backlog::accounts_with;
use super::problems::WHY;
use super::{Store, StoreError};
use crate::domain::State;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{QueryBuilder, Row};
use std::time::Duration;
use uuid::Uuid;

/// Which transactions are meant: what is `None` or empty is any.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this provider.
    pub provider: Option<String>,
    /// Of this account.
    pub account: Option<String>,
    /// In one of these states.
    pub states: Vec<State>,
    /// With this reason; of longer ones the first hundred characters count.
    pub reason: Option<String>,
    /// Whose reference begins like this.
    pub reference: Option<String>,
    /// In their state for longer than this; what is polled: there for longer.
    pub older: Option<Duration>,
    /// In their state for no longer than this; what is polled: there for no longer.
    pub since: Option<Duration>,
}

/// A place between two rows of a list. Its text is public, but only to be handed back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// After this one of those that are polled.
    Polled(DateTime<Utc>, Uuid),
    /// After this one of those that have ended.
    Ended(DateTime<Utc>, Uuid),
    /// After this account's reference.
    Reference(String, String, String),
}

impl Cursor {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let at = |at: &DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        match self {
            Self::Polled(due, id) => format!("p~{}~{id}", at(due)),
            Self::Ended(changed, id) => format!("e~{}~{id}", at(changed)),
            Self::Reference(provider, account, reference) => format!("r~{}", serde_json::json!([provider, account, reference])),
        }
    }

    /// What [`Cursor::text`] has written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('~')?;
        if kind == "r" {
            let (provider, account, reference) = serde_json::from_str(rest).ok()?;
            return Some(Self::Reference(provider, account, reference));
        }
        let (at, id) = rest.split_once('~')?;
        let (at, id) = (DateTime::parse_from_rfc3339(at).ok()?.to_utc(), id.parse().ok()?);
        match kind {
            "p" => Some(Self::Polled(at, id)),
            "e" => Some(Self::Ended(at, id)),
            _ => None,
        }
    }
}

/// A transaction in a list.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the column of that name; texts are cut after 300 characters")]
pub struct Listed {
    pub id: Uuid,
    pub provider: String,
    pub account: String,
    pub reference: String,
    pub state: String,
    pub provider_state: Option<String>,
    pub reason: Option<String>,
    /// An exact decimal.
    pub amount: Option<Value>,
    pub currency: Option<String>,
    pub attempts: i32,
    pub failures: i32,
    pub initiated_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub last_polled_at: Option<DateTime<Utc>>,
    pub next_poll_at: Option<DateTime<Utc>>,
    pub finalized_at: Option<DateTime<Utc>>,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The database's clock.
    pub as_of: DateTime<Utc>,
    /// The transactions.
    pub rows: Vec<Listed>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<Cursor>,
    /// Not all rows could be read for a filter that no index answers: there may be more.
    pub is_cut: bool,
    /// Where no reference begins like that: the nearest ones, in the order of the index.
    pub near: Vec<Listed>,
}

/// How many of an account's rows in a state are read for a filter that no index answers.
pub const LOOKED_AT: i64 = 20_000;
/// How many of an account's references are read, from the first one on that could begin with a
/// prefix.
const PREFIXED: i64 = 2_000;
/// At most this many accounts are searched.
const ACCOUNTS: i64 = 5_000;

const COLUMNS: &str = "t.id, t.provider, t.account, t.reference, t.state, left(t.provider_state, 300) as provider_state,
    left(t.reason, 300) as reason, to_jsonb(t.amount) as amount, t.currency, t.attempts, t.failures, t.initiated_at, t.updated_at,
    t.last_polled_at, t.next_poll_at, t.finalized_at";

impl Store {
    /// At most `limit` of the transactions that are meant, after `cursor`.
    pub async fn list(&self, filter: &Filter, cursor: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let as_of = sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?;
        let mut page = Page { as_of, rows: Vec::new(), next: None, is_cut: false, near: Vec::new() };
        let fetched = limit.saturating_add(1);
        if let Some(prefix) = &filter.reference {
            let after = match cursor {
                Some(Cursor::Reference(provider, account, reference)) => Some((&**provider, &**account, &**reference)),
                _ => None,
            };
            self.by_prefix(filter, prefix, after, fetched, &mut page).await?;
            if page.rows.is_empty() && after.is_none() && !page.is_cut {
                page.near = self.near(filter, prefix).await?;
            }
        } else {
            if !matches!(cursor, Some(Cursor::Ended(..))) {
                self.group(filter, true, cursor, fetched, &mut page).await?;
            }
            if page.rows.len() < fetched {
                let left = fetched - page.rows.len();
                self.group(filter, false, cursor, left, &mut page).await?;
            }
        }
        if page.rows.len() > limit {
            page.rows.truncate(limit);
            page.next = page.rows.last().map(|last| place(last, filter.reference.is_some()));
        }
        Ok(page)
    }

    /// The next ones that are polled, or that have ended.
    async fn group(
        &self,
        filter: &Filter,
        polled: bool,
        cursor: Option<&Cursor>,
        limit: usize,
        page: &mut Page,
    ) -> Result<(), StoreError> {
        let all = State::ALL.into_iter().filter(|state| state.is_polled() == polled);
        let states: Vec<State> = all.filter(|state| filter.states.is_empty() || filter.states.contains(state)).collect();
        if states.is_empty() {
            return Ok(());
        }
        let mut query = self.start(filter);
        let after = match cursor {
            Some(Cursor::Polled(at, id)) if polled => Some((*at, *id)),
            Some(Cursor::Ended(at, id)) if !polled => Some((*at, *id)),
            _ => None,
        };
        query.push(", x as (");
        for (at, state) in states.iter().enumerate() {
            if at > 0 {
                query.push(" union all ");
            }
            lane(&mut query, filter, *state, after, limit);
        }
        let order = if polled { "at, id" } else { "at desc, id desc" };
        query.push(format!(
            "), hits as (select id, at from x where fits order by {order} limit {limit})
             select {COLUMNS}, (select count(*) from x where not fits) as cut
               from hits join paypoll.transactions t on t.id = hits.id order by {}",
            if polled { "hits.at, hits.id" } else { "hits.at desc, hits.id desc" }
        ));
        let rows = query.build().fetch_all(&self.pool).await?;
        for row in &rows {
            page.is_cut |= row.try_get::<i64, _>("cut")? > 0;
            page.rows.push(listed(row)?);
        }
        if rows.is_empty() && is_looked_at(filter, polled) {
            page.is_cut |= self.has_many(filter).await?;
        }
        Ok(())
    }

    /// Whether an account has so many polled rows that not all were read: checked where none of
    /// those that were fits.
    async fn has_many(&self, filter: &Filter) -> Result<bool, StoreError> {
        let mut query = self.start(filter);
        query.push(format!(
            " select exists (select from known k where (select count(*) from (select from paypoll.transactions t
                where t.provider = k.provider and t.account = k.account and t.next_poll_at is not null limit {LOOKED_AT} + 1) c) > {LOOKED_AT})"
        ));
        Ok(query.build_query_scalar().fetch_one(&self.pool).await?)
    }

    /// The accounts that are meant: the beginning of a statement.
    #[expect(clippy::unused_self, reason = "it begins a statement of the store")]
    fn start(&self, filter: &Filter) -> QueryBuilder<Postgres> {
        let mut query = QueryBuilder::new("with recursive ");
        if let (Some(provider), Some(account)) = (&filter.provider, &filter.account) {
            query.push("known as (select ").push_bind(provider.clone()).push("::text as provider, ");
            query.push_bind(account.clone()).push("::text as account)");
            return query;
        }
        query.push(accounts_with("every", ""));
        query.push(format!(", known as (select * from (select * from every limit {ACCOUNTS}) e where true"));
        if let Some(provider) = &filter.provider {
            query.push(" and provider = ").push_bind(provider.clone());
        }
        if let Some(account) = &filter.account {
            query.push(" and account = ").push_bind(account.clone());
        }
        query.push(")");
        query
    }

    /// What begins with `prefix`, in the order of the references, account by account. Where the
    /// database's collation mixes other references in between, those are read and left out.
    async fn by_prefix(
        &self,
        filter: &Filter,
        prefix: &str,
        after: Option<(&str, &str, &str)>,
        limit: usize,
        page: &mut Page,
    ) -> Result<(), StoreError> {
        let mut query = self.start(filter);
        query.push(
            ", x as (select h.* from known k cross join lateral (select r.id, r.fits from (
                select t.id, row_number() over () as n, starts_with(t.reference, ",
        );
        query.push_bind(prefix.to_owned()).push(")");
        push_row_filters(&mut query, filter);
        query.push(" as fits, left(t.reference, length(").push_bind(prefix.to_owned()).push(")) > ").push_bind(prefix.to_owned());
        query.push(
            " as past from (select * from paypoll.transactions t
                             where t.provider = k.provider and t.account = k.account and t.reference >= ",
        );
        query.push_bind(prefix.to_owned());
        if let Some((provider, account, reference)) = after {
            query.push(" and (t.provider, t.account, t.reference) > (").push_bind(provider.to_owned()).push(", ");
            query.push_bind(account.to_owned()).push(", ").push_bind(reference.to_owned()).push(")");
        }
        query.push(format!(
            " order by t.reference limit {PREFIXED}) t) r where r.fits or (r.n = {PREFIXED} and not r.past) order by r.n limit {limit}) h)
             select {COLUMNS}, (select count(*) from x where not fits) as cut
               from x join paypoll.transactions t on t.id = x.id where x.fits order by t.provider, t.account, t.reference limit {limit}"
        ));
        let rows = query.build().fetch_all(&self.pool).await?;
        for row in &rows {
            page.is_cut |= row.try_get::<i64, _>("cut")? > 0;
            page.rows.push(listed(row)?);
        }
        Ok(())
    }

    /// The references on both sides of where one would stand that begins with `prefix`.
    async fn near(&self, filter: &Filter, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut query = self.start(filter);
        query.push(", x as (select h.id from (select * from known limit 50) k cross join lateral (");
        for (at, (sign, order)) in [(">=", ""), ("<", " desc")].into_iter().enumerate() {
            query.push(if at > 0 { " union all (" } else { "(" });
            query.push(format!(
                "select t.id from paypoll.transactions t where t.provider = k.provider and t.account = k.account and t.reference {sign} "
            ));
            query.push_bind(prefix.to_owned()).push(format!(" order by t.reference{order} limit 3)"));
        }
        query.push(format!(
            ") h) select {COLUMNS} from x join paypoll.transactions t on t.id = x.id order by t.provider, t.account, t.reference limit 20"
        ));
        query.build().fetch_all(&self.pool).await?.iter().map(listed).collect()
    }
}

/// Whether a filter is answered by the rows alone.
fn is_looked_at(filter: &Filter, polled: bool) -> bool {
    polled && filter.reason.is_none() && (filter.older.is_some() || filter.since.is_some())
}

/// The next few of an account in a state: `id`, `at`, and whether it fits; one that does not says
/// that there are more than were read.
fn lane(query: &mut QueryBuilder<Postgres>, filter: &Filter, state: State, after: Option<(DateTime<Utc>, Uuid)>, limit: usize) {
    let polled = state.is_polled();
    let is_by_reason = filter.reason.is_some();
    let at = if polled { "t.next_poll_at" } else { "t.updated_at" };
    // Which index answers: each is partial, and named here by what stands in its own condition.
    let rows = match state {
        _ if is_by_reason => "t.reason is not null",
        State::Pending | State::ActionRequired => "t.next_poll_at is not null",
        State::Unresolved | State::Invalid => "t.state in ('unresolved', 'invalid')",
        _ => "t.finalized_at is not null",
    };
    query.push(format!(
        "select h.* from known k cross join lateral (select * from (select y.id, y.at, y.fits, row_number() over () as n from (
            select t.id, {at} as at, true"
    ));
    if is_looked_at(filter, polled) {
        push_since(query, filter, "t.created_at");
    }
    query.push(format!(
        " as fits from paypoll.transactions t where t.state = '{state}' and t.provider = k.provider and t.account = k.account and {rows}"
    ));
    if let Some(reason) = &filter.reason {
        let why = WHY.replace("reason", "t.reason");
        query.push(format!(" and {why} = left(")).push_bind(reason.clone()).push(", 100)");
        if reason.chars().count() > 100 {
            query.push(" and t.reason = ").push_bind(reason.clone());
        }
    }
    if !polled {
        push_since(query, filter, "t.updated_at");
    } else if is_by_reason {
        push_since(query, filter, "t.created_at");
    }
    if let Some((moment, id)) = after {
        let sign = if polled { ">" } else { "<" };
        query.push(format!(" and ({at}, t.id) {sign} (")).push_bind(moment).push(", ").push_bind(id).push(")");
    }
    let order = if polled { format!("{at}, t.id") } else { format!("{at} desc, t.id desc") };
    let most = if is_looked_at(filter, polled) { LOOKED_AT } else { i64::try_from(limit).unwrap_or(i64::MAX) };
    query.push(format!(" order by {order} limit {most}) y) z where z.fits or z.n >= {LOOKED_AT} order by z.n limit {limit}) h"));
}

fn push_since(query: &mut QueryBuilder<Postgres>, filter: &Filter, column: &str) {
    for (sign, length) in [("<", filter.older), (">=", filter.since)] {
        if let Some(length) = length {
            query.push(format!(" and {column} {sign} now() - make_interval(secs => ")).push_bind(length.as_secs_f64()).push(")");
        }
    }
}

/// The filters that are looked up in the rows which a prefix has found.
fn push_row_filters(query: &mut QueryBuilder<Postgres>, filter: &Filter) {
    if !filter.states.is_empty() {
        let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
        query.push(" and t.state = any (").push_bind(states.into_iter().map(str::to_owned).collect::<Vec<_>>()).push(")");
    }
    if let Some(reason) = &filter.reason {
        query.push(" and coalesce(left(t.reason, 100), '') = left(").push_bind(reason.clone()).push(", 100)");
    }
    let age = "case when t.next_poll_at is null then t.updated_at else t.created_at end";
    push_since(query, filter, age);
}

fn place(row: &Listed, is_by_reference: bool) -> Cursor {
    if is_by_reference {
        return Cursor::Reference(row.provider.clone(), row.account.clone(), row.reference.clone());
    }
    match row.next_poll_at {
        Some(due) => Cursor::Polled(due, row.id),
        None => Cursor::Ended(row.updated_at, row.id),
    }
}

fn listed(row: &PgRow) -> Result<Listed, StoreError> {
    Ok(Listed {
        id: row.try_get("id")?,
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        reference: row.try_get("reference")?,
        state: row.try_get("state")?,
        provider_state: row.try_get("provider_state")?,
        reason: row.try_get("reason")?,
        amount: row.try_get("amount")?,
        currency: row.try_get("currency")?,
        attempts: row.try_get("attempts")?,
        failures: row.try_get("failures")?,
        initiated_at: row.try_get("initiated_at")?,
        updated_at: row.try_get("updated_at")?,
        last_polled_at: row.try_get("last_polled_at")?,
        next_poll_at: row.try_get("next_poll_at")?,
        finalized_at: row.try_get("finalized_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_list_is_text_that_can_be_handed_back() {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("in range");
        let references = Cursor::Reference("khalti".into(), "a~b".into(), "R \"1\"/~".into());
        for cursor in [Cursor::Polled(at, Uuid::max()), Cursor::Ended(at, Uuid::nil()), references] {
            assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        }
        for text in ["", "x", "p~", "p~now~x", "q~2026-01-01T00:00:00Z~00000000-0000-0000-0000-000000000000", "r~[1]"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
