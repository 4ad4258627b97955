//! Something that may take long to look up: looked up at most once in a while, and for no more than
//! a share of the time, however many callers there are. A caller waits a little; after that it gets
//! the previous result.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
pub(super) struct Slow<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    found: Option<T>,
    /// When it may be looked up again; `None` while it is being looked up.
    next: Option<Instant>,
}

impl<T> Default for Slow<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { found: None, next: Some(Instant::now()) })))
    }
}

impl<T: Clone + Send + 'static> Slow<T> {
    /// What was found last: within `every`, or within `share` times as long as it took; looked up
    /// now where that is over, and waited for no longer than `patience`. The lookup goes on when
    /// its caller stops waiting.
    pub(super) async fn get<F>(&self, every: Duration, share: u32, patience: Duration, look: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let begins = {
            let mut state = lock(&self.0);
            let begins = state.next.is_some_and(|next| next <= Instant::now());
            if begins {
                state.next = None;
            }
            begins
        };
        if begins {
            let (state, look) = (self.0.clone(), look());
            let task = tokio::spawn(async move {
                // Also when the look panics: it is looked up again.
                let mut done = Done { state, begun: Instant::now(), every, share, found: None };
                done.found = look.await;
            });
            drop(tokio::time::timeout(patience, task).await);
        }
        lock(&self.0).found.clone()
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores the result, however the lookup ends.
struct Done<T> {
    state: Arc<Mutex<State<T>>>,
    begun: Instant,
    every: Duration,
    share: u32,
    found: Option<T>,
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.next = Some(self.begun + self.every.max(self.begun.elapsed() * self.share));
        state.found = self.found.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    #[tokio::test]
    async fn it_is_looked_up_once_in_a_while_and_not_waited_for_for_long() {
        let (slow, looks) = (Slow::default(), Arc::new(AtomicU32::new(0)));
        let look = || {
            let looks = looks.clone();
            || async move { Some(looks.fetch_add(1, Relaxed)) }
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(slow.get(hour, 1, hour, look()).await, Some(0));
        assert_eq!(slow.get(hour, 1, hour, look()).await, Some(0), "not again within the hour");
        let never: Slow<u32> = Slow::default();
        let found = never.get(hour, 1, Duration::ZERO, std::future::pending).await;
        assert_eq!(found, None, "whoever asks goes on");
    }

    #[tokio::test]
    async fn a_look_that_panics_is_not_the_last_one() {
        let slow: Slow<u32> = Slow::default();
        let found = slow.get(Duration::ZERO, 0, Duration::from_secs(60), || async { panic!("as it happens") }).await;
        assert_eq!(found, None);
        assert_eq!(slow.get(Duration::ZERO, 0, Duration::from_secs(60), || async { Some(7) }).await, Some(7));
    }
}
