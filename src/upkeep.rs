//! Maintenance beside the loop: the journal's partitions, and rows that no replica serves.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{MOST, MOST_ACCOUNTS, Store, StoreError, Unroutable};
use crate::telemetry::event;
use crate::text::counted;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Partitions are made a week ahead, so an hour lost does no harm.
const JOURNAL_EVERY: Duration = Duration::from_secs(3600);
/// How soon after the start, and how often after that, rows that no replica serves are searched
/// for.
const UNROUTABLE_EVERY: Duration = Duration::from_secs(10);
/// What takes longer is left to the next time.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
/// The same finding is reported again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(600);
/// Up to this many accounts that no replica serves are reported by name, more of them in sum: a
/// feeder can invent any number.
const NAMED: usize = 10;
/// After a failure the journal is kept again so much sooner.
const JOURNAL_AGAIN: Duration = Duration::from_secs(60);
/// The same failure is reported again after this long.
const TELL_FAILURE_AGAIN: Duration = Duration::from_secs(3600);
/// A database that cannot be reached is reported by the loop; here only when it lasts.
const LASTS: u32 = 3;

/// An account.
type Account = (String, String);

/// What keeping house needs.
pub struct Upkeep {
    store: Store,
    metrics: Arc<Metrics>,
    retention: Duration,
    /// The accounts that this daemon serves.
    own: Vec<Account>,
    /// The accounts that are left to other replicas.
    left: BTreeSet<Account>,
    /// Accounts that no replica served when they were last searched for.
    unserved: BTreeSet<Account>,
    /// When an account was reported.
    told: BTreeMap<Account, Instant>,
    failures: Failures,
}

impl Upkeep {
    /// Nothing is reported yet.
    #[must_use]
    pub fn new(config: &Config, store: Store, metrics: Arc<Metrics>) -> Self {
        let own = metrics.accounts.iter().map(|own| (own.provider.to_owned(), own.account.clone())).collect();
        let left = config.left.iter().map(|(provider, account)| ((*provider).to_owned(), account.to_string())).collect();
        Self {
            store,
            metrics,
            retention: config.journal.retention,
            own,
            left,
            unserved: BTreeSet::new(),
            told: BTreeMap::new(),
            failures: Failures::default(),
        }
    }
}

/// Keeps house until `stop`, which ends whatever is being done.
pub async fn keep(mut upkeep: Upkeep, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = upkeep.work() => {}
    }
}

/// Failures of the journal's maintenance, and which of them were reported.
#[derive(Default)]
struct Failures {
    in_a_row: u32,
    told: Option<(String, Instant)>,
}

impl Failures {
    /// Whether to report a failure: each cause once, and again after a while.
    fn news(&mut self, why: &str, refused: bool, now: Instant) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let is_told = self.told.as_ref().is_some_and(|(told, at)| told == why && now - *at < TELL_FAILURE_AGAIN);
        let tells = (refused || self.in_a_row >= LASTS) && !is_told;
        if tells {
            self.told = Some((why.to_owned(), now));
        }
        tells
    }
}

impl Upkeep {
    async fn work(&mut self) {
        let mut journal = Instant::now();
        let mut unroutable = interval_at(Instant::now() + Duration::from_secs(2), UNROUTABLE_EVERY);
        unroutable.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = sleep_until(journal) => {
                    let kept = self.keep_journal().await;
                    journal = Instant::now() + if kept { JOURNAL_EVERY } else { JOURNAL_AGAIN };
                }
                _ = unroutable.tick() => self.look_for_unroutable().await,
            }
        }
    }

    /// True when the journal has its partitions and no old ones.
    async fn keep_journal(&mut self) -> bool {
        let kept = async {
            self.store.make_journal(None).await?;
            self.store.prune_journal(self.retention).await
        };
        let kept = self.store.within(STEP_TIMEOUT, kept).await;
        let ahead = self.store.within(STEP_TIMEOUT, self.store.journal_days_ahead()).await.ok();
        self.metrics.set_journal_days_ahead(ahead);
        let Err(error) = kept else {
            self.failures = Failures::default();
            return true;
        };
        let why = error.to_string();
        let refused = matches!(error, StoreError::Database(sqlx::Error::Database(_)));
        if self.failures.news(&why, refused, Instant::now()) {
            let left = match ahead {
                Some(days) => format!("there are partitions for {} more days", days.max(0)),
                None => "how many days have partitions is not known".to_owned(),
            };
            warn!(
                event = event::MAINTENANCE_FAILED,
                error = why,
                "the journal's partitions could not be kept, and without one for its day no poll can be recorded; {left}: {why}"
            );
        }
        false
    }

    async fn look_for_unroutable(&mut self) {
        let Ok(found) = self.store.within(STEP_TIMEOUT, self.store.unroutable(&self.own)).await else { return };
        let news = self.news(&found, Instant::now());
        let (named, rest) = news.split_at(news.len().min(NAMED));
        for row in named {
            let left = self.left.contains(&(row.provider.clone(), row.account.clone()));
            let mend = if left {
                format!("Start a daemon whose --accounts includes {}/{}", row.provider, row.account)
            } else {
                format!("Configure providers.{}.accounts.{}", row.provider, row.account)
            };
            warn!(
                event = event::UNROUTABLE,
                provider = row.provider,
                account = row.account,
                count = row.count,
                "{} transactions of {}/{} wait: no running daemon serves this account. {mend}",
                counted(row.count, MOST),
                row.provider,
                row.account,
            );
        }
        if !rest.is_empty() {
            let count: i64 = rest.iter().map(|row| row.count).sum();
            let accounts = counted(rest.len() as i64, (MOST_ACCOUNTS as usize - NAMED) as i64);
            warn!(
                event = event::UNROUTABLE,
                count,
                "{} transactions of {accounts} more accounts wait: no running daemon serves these accounts. `paypoll status` names them",
                counted(count, MOST),
            );
        }
        self.metrics.set_unroutable(found);
    }

    /// Which findings are to be reported: every account once in a while. Of an account that is left
    /// to others only when it was found twice in a row: its daemon may just be starting anew.
    fn news<'a>(&mut self, found: &'a [Unroutable], now: Instant) -> Vec<&'a Unroutable> {
        let account = |row: &Unroutable| (row.provider.clone(), row.account.clone());
        let before = std::mem::replace(&mut self.unserved, found.iter().map(account).collect());
        self.told.retain(|key, at| now - *at < TELL_AGAIN && self.unserved.contains(key));
        let mut news = Vec::new();
        for row in found {
            let key = account(row);
            if !self.told.contains_key(&key) && (!self.left.contains(&key) || before.contains(&key)) {
                self.told.insert(key, now);
                news.push(row);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_failure_is_told_once_for_each_cause_and_again_while_it_lasts() {
        let begun = Instant::now();
        let at = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        let mut failures = Failures::default();
        assert!(failures.news("no right", true, at(0)));
        assert!(!failures.news("no right", true, at(1)));
        assert!(failures.news("disk full", true, at(2)), "another cause");
        assert!(!failures.news("disk full", true, at(61)));
        assert!(failures.news("disk full", true, at(62)), "an hour later");
    }

    #[test]
    fn a_database_that_is_away_is_told_of_here_only_when_it_lasts() {
        let begun = Instant::now();
        let mut failures = Failures::default();
        let told = [0, 1, 2, 3].map(|minute| failures.news("no connection", false, begun + Duration::from_secs(60 * minute)));
        assert_eq!(told, [false, false, true, false]);
    }

    #[tokio::test]
    async fn an_account_is_told_of_once_in_a_while_and_one_that_is_left_to_others_only_when_it_lasts() {
        let environment =
            [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing"), ("PAYPOLL__PROVIDERS__DROPAYMENT__ENABLED", "true")];
        let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = config::Config::load(&[], environment.into_iter(), 1.0).expect("valid");
        let store = Store::open(&config.database).expect("valid");
        let mut upkeep = Upkeep::new(&config, store, Arc::new(Metrics::new([].into_iter())));
        upkeep.left.insert(("khalti".into(), "left".into()));
        let row = |account: &str| Unroutable { provider: "khalti".into(), account: account.into(), count: 1 };
        let found = [row("left"), row("unknown")];
        let begun = Instant::now();
        let mut told = |found: &[Unroutable], seconds| {
            let news = upkeep.news(found, begun + Duration::from_secs(seconds));
            news.into_iter().map(|row| row.account.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told(&found, 0), ["unknown"]);
        assert_eq!(told(&found[1..], 10), [""; 0], "the other one's daemon is back");
        assert_eq!(told(&found, 20), [""; 0]);
        assert_eq!(told(&found, 30), ["left"]);
        assert_eq!(told(&found, 40), [""; 0]);
        assert_eq!(told(&found, 601), ["unknown"]);
    }
}
