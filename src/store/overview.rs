//! What is pending, due and parked, without ever counting everything.

use super::{Store, StoreError};
use serde::Serialize;
use sqlx::Row;

/// Transactions of an account that no running daemon serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unroutable {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// How many, counted up to [`MOST`].
    pub count: i64,
}

/// One account's transactions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccountOverview {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// In state `pending`, counted up to [`MOST`].
    pub pending: i64,
    /// Polled transactions whose time has come and that no living replica is about to poll, counted up to [`MOST`].
    ///
    /// While a replica holds a transaction in memory its row may lag: it still names a poll that was sent long ago. Such a row is
    /// written again within a lease, so it counts once it lies further back than its owner's lease.
    pub due: i64,
    /// Those that have waited for more than a minute, counted up to [`MOST`].
    pub overdue: i64,
    /// How long the one has waited that has waited longest, in seconds.
    pub oldest_due_s: Option<f64>,
    /// In state `action_required`.
    pub action_required: i64,
    /// In state `unresolved`.
    pub unresolved: i64,
    /// In state `invalid`.
    pub invalid: i64,
    /// `open` or `closed`.
    pub circuit: String,
    /// Why it is open.
    #[serde(skip)]
    pub circuit_reason: Option<String>,
    /// For how long it has been open, in seconds.
    #[serde(skip)]
    pub circuit_open_s: Option<f64>,
}

/// No count goes beyond this: no answer about the whole table may cost as much as the table is long.
pub const MOST: i64 = 100_000;

/// A count for people, with a plus where counting has stopped.
#[must_use]
pub fn counted(count: i64) -> String {
    format!("{count}{}", if count >= MOST { "+" } else { "" })
}

/// Of the transactions that fell due within a lease so many are looked at: their rows must be read for it.
const RECENT: i64 = 100_000;

/// The accounts that have transactions: one step through each index per account, whatever lies between.
const ACCOUNTS: &str = "
    with recursive polled as (
        (select provider, account from paypoll.transactions where next_poll_at is not null order by provider, account limit 1)
        union all
        select n.provider, n.account from polled p cross join lateral (
            select provider, account from paypoll.transactions
             where next_poll_at is not null and (provider, account) > (p.provider, p.account)
             order by provider, account limit 1) n
    ), parked as (
        (select provider, account from paypoll.transactions where state in ('unresolved', 'invalid') order by provider, account limit 1)
        union all
        select n.provider, n.account from parked p cross join lateral (
            select provider, account from paypoll.transactions
             where state in ('unresolved', 'invalid') and (provider, account) > (p.provider, p.account)
             order by provider, account limit 1) n
    )";

impl Store {
    /// Accounts with polled transactions that neither `own` nor any living replica serves.
    pub async fn unroutable(&self, own: &[(String, String)]) -> Result<Vec<Unroutable>, StoreError> {
        let sql = format!(
            "{ACCOUNTS}
            select p.provider, p.account, c.count from polled p
             cross join lateral (select count(*) from (
                   select from paypoll.transactions t
                    where t.next_poll_at is not null and t.provider = p.provider and t.account = p.account limit {MOST}) c) c
             where not exists (select from unnest($1::text[], $2::text[]) as own (provider, account)
                                where own.provider = p.provider and own.account = p.account)
               and not exists (select from paypoll.replicas r
                                where r.accounts @> jsonb_build_array(jsonb_build_array(p.provider, p.account))
                                  and r.heartbeat_at > clock_timestamp() - r.lease)
             order by p.provider, p.account"
        );
        let (providers, accounts): (Vec<&str>, Vec<&str>) = own.iter().map(|(p, a)| (p.as_str(), a.as_str())).unzip();
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(providers).bind(accounts).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Ok(Unroutable { provider: row.try_get(0)?, account: row.try_get(1)?, count: row.try_get(2)? }))
            .collect()
    }

    /// Every account that has a polled or parked transaction or is served by somebody.
    ///
    /// What is due is counted in two halves. `d`: in the order in which they fall due, all polled transactions, from the index alone;
    /// those further back than the longest lease are due, whoever holds them. `r`: the few that fell due since, each with its owner.
    pub async fn overview(&self) -> Result<Vec<AccountOverview>, StoreError> {
        let sql = format!(
            "{ACCOUNTS}, known as (
                select provider, account from polled union select provider, account from parked union
                select provider, account from paypoll.accounts
            ), living as (
                select id, lease from paypoll.replicas where heartbeat_at > clock_timestamp() - lease
            ), border as materialized (
                select now() - coalesce(max(lease), interval '0') as at from living
            )
            select k.provider, k.account, w.action_required, u.unresolved, u.invalid,
                   least(d.due + r.due, {MOST}) as due, least(d.overdue + r.overdue, {MOST}) as overdue,
                   extract(epoch from now() - least(d.oldest, r.oldest))::float8 as oldest,
                   greatest(d.polled - w.action_required, 0) as pending,
                   case when a.circuit_since is null then 'closed' else 'open' end as circuit, a.circuit_reason,
                   extract(epoch from clock_timestamp() - a.circuit_since)::float8 as circuit_open_s
              from known k
             cross join border b
              left join paypoll.accounts a on a.provider = k.provider and a.account = k.account
             cross join lateral (select count(*) as action_required
                   from (select from paypoll.transactions t
                          where t.state = 'action_required' and t.provider = k.provider and t.account = k.account limit {MOST}) c) w
             cross join lateral (select count(*) filter (where state = 'unresolved') as unresolved, count(*) filter (where state = 'invalid') as invalid
                   from (select state from paypoll.transactions t
                          where t.state in ('unresolved', 'invalid') and t.provider = k.provider and t.account = k.account limit {MOST}) c) u
             cross join lateral (select count(*) as polled, count(*) filter (where next_poll_at <= b.at) as due,
                          count(*) filter (where next_poll_at <= b.at and next_poll_at < now() - interval '1 minute') as overdue,
                          min(next_poll_at) filter (where next_poll_at <= b.at) as oldest
                   from (select next_poll_at from paypoll.transactions t
                          where t.provider = k.provider and t.account = k.account and t.next_poll_at is not null
                          order by t.next_poll_at limit {MOST}) c) d
             cross join lateral (select count(*) as due, count(*) filter (where next_poll_at < now() - interval '1 minute') as overdue,
                          min(next_poll_at) as oldest
                   from (select t.next_poll_at from paypoll.transactions t
                           left join living l on l.id = t.owner
                          where t.provider = k.provider and t.account = k.account and t.next_poll_at > b.at and t.next_poll_at <= now()
                            and t.next_poll_at <= now() - coalesce(l.lease, interval '0')
                          limit {RECENT}) c) r
             order by k.provider, k.account"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(AccountOverview {
                    provider: row.try_get("provider")?,
                    account: row.try_get("account")?,
                    pending: row.try_get("pending")?,
                    due: row.try_get("due")?,
                    overdue: row.try_get("overdue")?,
                    oldest_due_s: row.try_get("oldest")?,
                    action_required: row.try_get("action_required")?,
                    unresolved: row.try_get("unresolved")?,
                    invalid: row.try_get("invalid")?,
                    circuit: row.try_get("circuit")?,
                    circuit_reason: row.try_get("circuit_reason")?,
                    circuit_open_s: row.try_get("circuit_open_s")?,
                })
            })
            .collect()
    }
}
