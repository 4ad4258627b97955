//! Housekeeping beside the loop: the journal's partitions, and rows that nobody serves.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::store::{MOST, Store, Unroutable};
use crate::telemetry::event;
use crate::text::counted;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Partitions are made a week ahead, so an hour lost does no harm.
const JOURNAL_EVERY: Duration = Duration::from_secs(3600);
/// How soon after the start, and how often then, rows that nobody serves are looked for.
const UNROUTABLE_EVERY: Duration = Duration::from_secs(10);
/// What takes longer is left to the next time.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same finding is told again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(600);

/// An account.
type Account = (String, String);

/// What keeping house needs.
pub struct Upkeep {
    store: Store,
    metrics: Arc<Metrics>,
    retention: Duration,
    /// The accounts that this daemon serves.
    own: Vec<Account>,
    /// The accounts that it is told to leave to others.
    left: BTreeSet<Account>,
    /// Accounts that nobody served when they were last looked for.
    unserved: BTreeSet<Account>,
    /// When an account was told of.
    told: BTreeMap<Account, Instant>,
}

impl Upkeep {
    /// Nothing is told yet.
    #[must_use]
    pub fn new(config: &Config, store: Store, metrics: Arc<Metrics>) -> Self {
        let own = metrics.accounts.iter().map(|own| (own.provider.to_owned(), own.account.clone())).collect();
        let left = config.left.iter().map(|(provider, account)| ((*provider).to_owned(), account.to_string())).collect();
        Self { store, metrics, retention: config.journal.retention, own, left, unserved: BTreeSet::new(), told: BTreeMap::new() }
    }
}

/// Keeps house until `stop`. Errors are left to the next time: the loop itself tells when the database is lost.
pub async fn keep(mut upkeep: Upkeep, stop: CancellationToken) {
    let mut journal = interval(JOURNAL_EVERY);
    let mut unroutable = interval_at(Instant::now() + Duration::from_secs(2), UNROUTABLE_EVERY);
    journal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    unroutable.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = journal.tick() => upkeep.keep_journal().await,
            _ = unroutable.tick() => upkeep.look_for_unroutable().await,
        }
    }
}

impl Upkeep {
    async fn keep_journal(&self) {
        let kept = async {
            self.store.make_journal(None).await?;
            self.store.prune_journal(self.retention).await
        };
        if let Err(error) = self.store.within(PATIENCE, kept).await {
            debug!(%error, "the journal's partitions could not be kept");
        }
    }

    async fn look_for_unroutable(&mut self) {
        let Ok(found) = self.store.within(PATIENCE, self.store.unroutable(&self.own)).await else { return };
        for row in self.news(&found, Instant::now()) {
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
        self.metrics.set_unroutable(found);
    }

    /// What is to be told of what was found: every account once in a while. Of an account that is left to others only when it was
    /// found twice in a row: its daemon may just be starting anew.
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
