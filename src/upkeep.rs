//! Housekeeping beside the loop: the journal's partitions, and rows that nobody serves.

use crate::metrics::Metrics;
use crate::scheduler::lane::LaneSpec;
use crate::store::Store;
use crate::telemetry::event;
use std::collections::BTreeMap;
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

/// Keeps house until `stop`. Errors are left to the next time: the loop itself tells when the database is lost.
pub async fn keep(store: Store, lanes: Vec<Arc<LaneSpec>>, metrics: Arc<Metrics>, retention: Duration, stop: CancellationToken) {
    let mut journal = interval(JOURNAL_EVERY);
    let mut unroutable = interval_at(Instant::now() + Duration::from_secs(2), UNROUTABLE_EVERY);
    journal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    unroutable.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = journal.tick() => keep_journal(&store, retention).await,
            _ = unroutable.tick() => tell_unroutable(&store, &lanes, &metrics, &mut told).await,
        }
    }
}

async fn keep_journal(store: &Store, retention: Duration) {
    let kept = async {
        store.make_journal(None).await?;
        store.prune_journal(retention).await
    };
    if let Err(error) = store.within(PATIENCE, kept).await {
        debug!(%error, "the journal's partitions could not be kept");
    }
}

async fn tell_unroutable(
    store: &Store,
    lanes: &[Arc<LaneSpec>],
    metrics: &Metrics,
    told: &mut BTreeMap<(String, String), Instant>,
) {
    let own: Vec<(String, String)> = lanes.iter().map(|spec| (spec.provider.to_owned(), spec.account.to_string())).collect();
    let Ok(found) = store.within(PATIENCE, store.unroutable(&own)).await else { return };
    metrics.set_unroutable(found.clone());
    told.retain(|key, at| at.elapsed() < TELL_AGAIN && found.iter().any(|row| (&row.provider, &row.account) == (&key.0, &key.1)));
    for row in found {
        let key = (row.provider.clone(), row.account.clone());
        if told.contains_key(&key) {
            continue;
        }
        warn!(
            event = event::UNROUTABLE,
            provider = row.provider,
            account = row.account,
            count = row.count,
            "{} transactions of {}/{} wait: no running daemon serves this account. Configure providers.{}.accounts.{}",
            row.count,
            row.provider,
            row.account,
            row.provider,
            row.account,
        );
        told.insert(key, Instant::now());
    }
}
