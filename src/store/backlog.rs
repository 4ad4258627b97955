//! What is pending, due, late and parked, account by account, without ever counting everything.
//!
//! A transaction is due by its row's due time alone, not by what its owner believes. There is one
//! exception. While a living replica polls a transaction fast, its row may lag behind by up to
//! [`ROW_LAG`], and then its due time is that of a poll that was already sent. So the row of a
//! living owner counts once it is overdue by more than that lag and the owner's lease together;
//! until then the owner's own metrics show what it is late with.

use super::{Store, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::time::Duration;

/// How far a row may lag behind what its living owner knows: see `docs/reference.md`, `next_poll_at`.
pub const ROW_LAG: Duration = Duration::from_secs(60);
/// A transaction is late when it has been due for longer than this. What is due for less waits for its turn.
pub const LATE_AFTER: Duration = Duration::from_secs(5);

/// No count goes beyond this: no answer about the whole table may cost as much as the table is
/// long. At 10,000,000 pending rows the five providers together take 0.2 s with it, and 3.4 s
/// without.
pub const MOST: i64 = 100_000;
/// At most this many of the transactions that fell due within the lag are read: for these the index
/// does not suffice.
const RECENT: i64 = 100_000;

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

/// One account: its transactions, and whether it is polled. The public names of `status --json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AccountOverview {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// In state `pending`, counted up to [`MOST`].
    pub pending: i64,
    /// Polled transactions whose time has come, counted up to [`MOST`].
    pub due: i64,
    /// Those of them that have waited for more than a minute.
    pub overdue: i64,
    /// Those of them that have waited for more than [`LATE_AFTER`].
    pub late: i64,
    /// How long the one has waited that has waited longest, in seconds.
    pub oldest_due_s: Option<f64>,
    /// In how many seconds all that is due will have been polled, at the account's budget and with
    /// what falls due meanwhile, once the account is polled; `None`: nothing is late, or the budget
    /// does not suffice.
    pub clears_in_s: Option<f64>,
    /// In state `action_required`.
    pub action_required: i64,
    /// In state `unresolved`.
    pub unresolved: i64,
    /// In state `invalid`.
    pub invalid: i64,
    /// `closed`; `open`: nothing is sent but probes; `paused`: nothing is sent, because an operator
    /// wants it so.
    pub circuit: String,
    /// Since when the circuit is open.
    pub circuit_since: Option<DateTime<Utc>>,
    /// Why it is open.
    pub circuit_reason: Option<String>,
    /// When the next probe of an open circuit may be sent.
    pub next_probe_at: Option<DateTime<Utc>>,
    /// The provider asked for a pause (`Retry-After`) that lasts until then.
    pub held_until: Option<DateTime<Utc>>,
    /// Since when an operator has paused the account.
    pub paused_since: Option<DateTime<Utc>>,
    /// When that pause ends by itself.
    pub paused_until: Option<DateTime<Utc>>,
    /// Why the operator paused it.
    pub paused_because: Option<String>,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// How many fall due within the next minute.
    #[serde(skip)]
    pub soon: i64,
}

impl AccountOverview {
    /// An operator has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.circuit == PAUSED
    }

    /// Its circuit is open, whether an operator has paused it besides or not.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.circuit_since.is_some()
    }

    /// Nothing is sent, except perhaps probes.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.is_open() || self.is_paused() || self.held_until.is_some()
    }

    /// Nothing waits, nothing is parked, nothing is wrong.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending + self.action_required + self.due + self.unresolved + self.invalid == 0 && !self.is_silent()
    }

    /// Estimates when the backlog will be worked off at this many requests a second.
    pub fn set_budget(&mut self, per_second: f64) {
        let spare = per_second - self.soon as f64 / 60.0;
        self.clears_in_s = (self.late > 0 && spare > 0.0).then(|| self.due as f64 / spare);
    }
}

const PAUSED: &str = "paused";

/// How late an account's transactions are, by their rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Unclaimed {
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
    /// For how long the first of them has been due, in seconds; `None` where none is due.
    pub oldest_s: Option<f64>,
    /// Nothing is sent but probes.
    pub circuit_open: bool,
    /// The provider asked for a pause that still lasts, or an operator did.
    pub paused: bool,
    /// For how long an operator has paused it, in seconds; `None`: it is not paused.
    pub paused_s: Option<f64>,
}

/// One provider's transactions that are not final, each counted up to [`MOST`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The provider.
    pub provider: String,
    /// In state `pending`.
    pub pending: i64,
    /// In state `action_required`.
    pub action_required: i64,
    /// In state `unresolved`.
    pub unresolved: i64,
    /// In state `invalid`.
    pub invalid: i64,
}

/// The accounts that have such rows: one step through an index for each account, however many rows
/// lie between. The name of a common table expression in a `with recursive`, and its text. Empty:
/// all rows.
pub(super) fn accounts_with(name: &str, rows: &str) -> String {
    accounts_up_to(name, rows, i32::MAX)
}

/// At most this many accounts that no daemon ever served are shown: a feeder can invent any number.
pub const MOST_ACCOUNTS: i32 = 1000;
/// Accounts that are not served are searched among this many, in the order of their names.
const SEARCHED: i32 = 20_000;

/// As [`accounts_with`], the first ones in the order of their names, and no more than `most`.
fn accounts_up_to(name: &str, rows: &str, most: i32) -> String {
    let (filter, more) =
        if rows.is_empty() { (String::new(), String::new()) } else { (format!("where {rows}"), format!("and {rows}")) };
    format!(
        "{name} as (
            (select provider, account, 1 as number from paypoll.transactions {filter} order by provider, account limit 1)
            union all
            select n.provider, n.account, p.number + 1 from {name} p cross join lateral (
                select provider, account from paypoll.transactions
                 where (provider, account) > (p.provider, p.account) {more}
                 order by provider, account limit 1) n
             where p.number < {most}
        )"
    )
}

/// Rows that are polled, and rows that are parked, as their indexes are defined.
const POLLED: &str = "next_poll_at is not null";
const PARKED: &str = "state in ('unresolved', 'invalid')";
/// An operator's pause lasts.
pub(super) const IS_PAUSED: &str = "(a.paused_at is not null and coalesce(a.paused_until > now(), true))";

/// Rows of a living owner count up to the lag that they may have. Of those that fell due since,
/// only an account's first 1000 are read: all after them became due later.
const UNCLAIMED: &str = "
    select k.provider, k.account, d.oldest, a.circuit_since is not null as circuit_open,
           coalesce(a.held_until > now(), false) or {paused} as paused,
           case when {paused} then extract(epoch from clock_timestamp() - a.paused_at)::float8 end as paused_s
      from unnest($1::text[], $2::text[]) as k (provider, account)
      left join paypoll.accounts a on a.provider = k.provider and a.account = k.account
     cross join lateral (
           select extract(epoch from clock_timestamp() - min(c.next_poll_at))::float8 as oldest
             from (select t.next_poll_at, t.owner from paypoll.transactions t
                    where t.provider = k.provider and t.account = k.account and t.next_poll_at <= now()
                    order by t.next_poll_at limit 1000) c
            where c.owner is null or not exists (
                  select from paypoll.replicas r
                   where r.id = c.owner and r.heartbeat_at > clock_timestamp() - r.lease
                     and c.next_poll_at >= now() - make_interval(secs => $3) - r.lease)) d";

/// By provider and not by account: the cost must not grow with the number of accounts.
const COUNTS: &str = "
    select k.provider, least($2, greatest(0, p.polled - case when p.polled < $2 then w.waiting else 0 end)) as pending,
           w.waiting as action_required, u.unresolved, u.invalid
      from unnest($1::text[]) as k (provider)
     cross join lateral (select count(*) as polled from (
           select from paypoll.transactions t where t.provider = k.provider and t.next_poll_at is not null limit $2) c) p
     cross join lateral (select count(*) as waiting from (
           select from paypoll.transactions t where t.provider = k.provider and t.state = 'action_required' limit $2) c) w
     cross join lateral (select count(*) filter (where c.state = 'unresolved') as unresolved, count(*) filter (where c.state = 'invalid') as invalid
           from (select t.state from paypoll.transactions t
                  where t.provider = k.provider and t.state in ('unresolved', 'invalid') limit $2) c) u";

/// What is due is counted in two halves. `d`: in the order in which they fall due, all polled
/// transactions, from the index alone; those before the border are due, whether they are owned or
/// not. `r`: the few that fell due since and that no living replica owns. Where nothing is sent the
/// border is now: there even an owner does not poll its rows.
fn overview() -> String {
    let [polled, parked] = [("polled", POLLED), ("parked", PARKED)].map(|(name, rows)| accounts_up_to(name, rows, MOST_ACCOUNTS));
    format!(
        "with recursive {polled}, {parked}, known as (
            select provider, account from polled union select provider, account from parked union
            select provider, account from paypoll.accounts
        ), living as (
            select id, lease from paypoll.replicas where heartbeat_at > clock_timestamp() - lease
        ), lanes as materialized (
            select k.provider, k.account, a.circuit_since, a.circuit_reason, a.probe_at,
                   case when a.held_until > now() then a.held_until end as held_until, coalesce({IS_PAUSED}, false) as is_paused,
                   a.paused_at, a.paused_until, a.paused_because, a.paused_by,
                   case when a.circuit_since is not null or a.held_until > now() or {IS_PAUSED} then now()
                        else coalesce((select now() - make_interval(secs => $1) - max(lease) from living), now()) end as border
              from known k
              left join paypoll.accounts a on a.provider = k.provider and a.account = k.account
        )
        select k.provider, k.account, w.action_required, u.unresolved, u.invalid,
               least(d.due + r.due, {MOST}) as due, least(d.overdue + r.overdue, {MOST}) as overdue, least(d.late + r.late, {MOST}) as late,
               extract(epoch from now() - least(d.oldest, r.oldest))::float8 as oldest, d.soon,
               greatest(d.polled - w.action_required, 0) as pending,
               case when k.is_paused then 'paused' when k.circuit_since is not null then 'open' else 'closed' end as circuit,
               k.circuit_since, left(k.circuit_reason, 500) as circuit_reason, k.probe_at, k.held_until,
               case when k.is_paused then k.paused_at end as paused_at, case when k.is_paused then k.paused_until end as paused_until,
               case when k.is_paused then left(k.paused_because, 500) end as paused_because,
               case when k.is_paused then left(k.paused_by, 300) end as paused_by
          from lanes k
         cross join lateral (select count(*) as action_required
               from (select from paypoll.transactions t
                      where t.state = 'action_required' and t.provider = k.provider and t.account = k.account limit {MOST}) c) w
         cross join lateral (select count(*) filter (where state = 'unresolved') as unresolved, count(*) filter (where state = 'invalid') as invalid
               from (select state from paypoll.transactions t
                      where t.state in ('unresolved', 'invalid') and t.provider = k.provider and t.account = k.account limit {MOST}) c) u
         cross join lateral (select count(*) as polled, count(*) filter (where next_poll_at <= k.border) as due,
                      count(*) filter (where next_poll_at <= k.border and next_poll_at < now() - interval '1 minute') as overdue,
                      count(*) filter (where next_poll_at <= k.border and next_poll_at < now() - make_interval(secs => $2)) as late,
                      min(next_poll_at) filter (where next_poll_at <= k.border) as oldest,
                      count(*) filter (where next_poll_at > now() and next_poll_at <= now() + interval '1 minute') as soon
               from (select next_poll_at from paypoll.transactions t
                      where t.provider = k.provider and t.account = k.account and t.next_poll_at is not null
                      order by t.next_poll_at limit {MOST}) c) d
         cross join lateral (select count(*) as due, count(*) filter (where next_poll_at < now() - interval '1 minute') as overdue,
                      count(*) filter (where next_poll_at < now() - make_interval(secs => $2)) as late, min(next_poll_at) as oldest
               from (select t.next_poll_at from paypoll.transactions t
                      where t.provider = k.provider and t.account = k.account and t.next_poll_at > k.border and t.next_poll_at <= now()
                        and not exists (select from living l where l.id = t.owner)
                      limit {RECENT}) c) r
         order by k.provider, k.account"
    )
}

impl Store {
    /// Accounts with polled transactions that neither `own` nor any living replica serves,
    /// [`MOST_ACCOUNTS`] at most.
    pub async fn unroutable(&self, own: &[(String, String)]) -> Result<Vec<Unroutable>, StoreError> {
        let polled = accounts_up_to("polled", POLLED, SEARCHED);
        let sql = format!(
            "with recursive {polled}, unserved as materialized (
                select p.provider, p.account from polled p
                 where not exists (select from unnest($1::text[], $2::text[]) as own (provider, account)
                                    where own.provider = p.provider and own.account = p.account)
                   and not exists (select from paypoll.replicas r
                                    where r.accounts @> jsonb_build_array(jsonb_build_array(p.provider, p.account))
                                      and r.heartbeat_at > clock_timestamp() - r.lease)
                 order by p.provider, p.account limit {MOST_ACCOUNTS}
            )
            select u.provider, u.account, c.count from unserved u
             cross join lateral (select count(*) from (
                   select from paypoll.transactions t
                    where t.next_poll_at is not null and t.provider = u.provider and t.account = u.account limit {MOST}) c) c
             order by u.provider, u.account"
        );
        let (providers, accounts): (Vec<&str>, Vec<&str>) = own.iter().map(|(p, a)| (p.as_str(), a.as_str())).unzip();
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(providers).bind(accounts).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Ok(Unroutable { provider: row.try_get(0)?, account: row.try_get(1)?, count: row.try_get(2)? }))
            .collect()
    }

    /// Every account that has a polled or parked transaction or is served.
    pub async fn overview(&self) -> Result<Vec<AccountOverview>, StoreError> {
        let query = sqlx::query(sqlx::AssertSqlSafe(overview()));
        let rows = query.bind(ROW_LAG.as_secs_f64()).bind(LATE_AFTER.as_secs_f64()).fetch_all(&self.pool).await?;
        rows.iter().map(account).collect()
    }

    /// How late these accounts are by their rows, counting only transactions that no living replica
    /// can have in memory.
    pub async fn unclaimed(&self, accounts: &[(&str, &str)]) -> Result<Vec<Unclaimed>, StoreError> {
        let (providers, names): (Vec<&str>, Vec<&str>) = accounts.iter().copied().unzip();
        let query = sqlx::query(sqlx::AssertSqlSafe(UNCLAIMED.replace("{paused}", IS_PAUSED)));
        let rows = query.bind(providers).bind(names).bind(ROW_LAG.as_secs_f64()).fetch_all(&self.pool).await?;
        let unclaimed = |row: &PgRow| {
            Ok(Unclaimed {
                provider: row.try_get("provider")?,
                account: row.try_get("account")?,
                oldest_s: row.try_get("oldest")?,
                circuit_open: row.try_get("circuit_open")?,
                paused: row.try_get::<Option<bool>, _>("paused")?.unwrap_or(false),
                paused_s: row.try_get("paused_s")?,
            })
        };
        rows.iter().map(unclaimed).collect()
    }

    /// What is not final, by provider.
    pub async fn counts(&self, providers: &[&str]) -> Result<Vec<Counts>, StoreError> {
        let rows = sqlx::query(COUNTS).bind(providers).bind(MOST).fetch_all(&self.pool).await?;
        let counts = |row: &PgRow| {
            Ok(Counts {
                provider: row.try_get("provider")?,
                pending: row.try_get("pending")?,
                action_required: row.try_get("action_required")?,
                unresolved: row.try_get("unresolved")?,
                invalid: row.try_get("invalid")?,
            })
        };
        rows.iter().map(counts).collect()
    }
}

fn account(row: &PgRow) -> Result<AccountOverview, StoreError> {
    Ok(AccountOverview {
        provider: row.try_get("provider")?,
        account: row.try_get("account")?,
        pending: row.try_get("pending")?,
        due: row.try_get("due")?,
        overdue: row.try_get("overdue")?,
        late: row.try_get("late")?,
        oldest_due_s: row.try_get("oldest")?,
        clears_in_s: None,
        action_required: row.try_get("action_required")?,
        unresolved: row.try_get("unresolved")?,
        invalid: row.try_get("invalid")?,
        circuit: row.try_get("circuit")?,
        circuit_since: row.try_get("circuit_since")?,
        circuit_reason: row.try_get("circuit_reason")?,
        next_probe_at: row.try_get("probe_at")?,
        held_until: row.try_get("held_until")?,
        paused_since: row.try_get("paused_at")?,
        paused_until: row.try_get("paused_until")?,
        paused_because: row.try_get("paused_because")?,
        paused_by: row.try_get("paused_by")?,
        soon: row.try_get("soon")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_clears_at_the_budget_less_what_falls_due_meanwhile() {
        let mut account = AccountOverview { due: 9_411, late: 9_411, ..AccountOverview::default() };
        account.set_budget(10.0);
        assert_eq!(account.clears_in_s, Some(941.1));
        account.soon = 300;
        account.set_budget(10.0);
        assert_eq!(account.clears_in_s.map(f64::round), Some(1882.0));
        account.soon = 600;
        account.set_budget(10.0);
        assert_eq!(account.clears_in_s, None, "the budget does not suffice");
        account.late = 0;
        account.soon = 0;
        account.set_budget(10.0);
        assert_eq!(account.clears_in_s, None, "nothing is late");
    }
}
