//! What an account may send and when: slots of the budget that all replicas share, and this
//! process's own pace.

use crate::config::Rate;
use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Send slots that this process has reserved from the account's shared budget.
pub(super) struct Slots {
    grants: VecDeque<Grant>,
    /// How late a slot may be used. After that it is void: unused slots must not pile up into a
    /// burst beyond the budget.
    grace: Duration,
    /// The burst, less the grace.
    pub(super) tolerance: Duration,
    pub(super) gap: Duration,
}

pub(super) struct Grant {
    pub(super) base: Instant,
    /// By how much a slot's moment may be overestimated.
    pub(super) slack: Duration,
    pub(super) ahead: f64,
    pub(super) gap: f64,
    pub(super) used: u32,
    pub(super) count: u32,
}

/// However old its slot is, a request has this long to get on its way.
pub(super) const MIN_SEND_WINDOW: Duration = Duration::from_millis(20);
/// The longest time by which a slot may be used late.
const GRACE: Duration = Duration::from_millis(250);

impl Slots {
    pub(super) fn new(rate: Rate) -> Self {
        let gap = 1.0 / rate.per_second;
        let grace = GRACE.as_secs_f64().min(f64::from(rate.burst) * gap / 2.0);
        let tolerance = (f64::from(rate.burst.saturating_sub(1)) * gap - grace).max(0.0);
        Self {
            grants: VecDeque::new(),
            grace: Duration::from_secs_f64(grace),
            tolerance: Duration::from_secs_f64(tolerance),
            gap: Duration::from_secs_f64(gap),
        }
    }

    pub(super) fn add(&mut self, grant: Grant) {
        if grant.count > 0 {
            self.grants.push_back(grant);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.grants.clear();
    }

    /// Slots that are not void yet.
    pub(super) fn left(&self, now: Instant) -> u32 {
        self.grants.iter().map(|grant| grant.count - grant.first_valid(now, self.grace).min(grant.count)).sum()
    }

    /// `Ok` when the next slot may be used, with its end; else when it may, or `None` when there is
    /// none.
    pub(super) fn ready(&mut self, now: Instant) -> Result<Instant, Option<Instant>> {
        while let Some(grant) = self.grants.front_mut() {
            grant.used = grant.first_valid(now, self.grace);
            if grant.used >= grant.count {
                self.grants.pop_front();
                continue;
            }
            let at = grant.slot(grant.used);
            return if at <= now { Ok(at + self.grace) } else { Err(Some(at)) };
        }
        Err(None)
    }

    pub(super) fn take(&mut self) {
        if let Some(grant) = self.grants.front_mut() {
            grant.used += 1;
        }
    }
}

impl Grant {
    fn slot(&self, number: u32) -> Instant {
        self.base + Duration::from_secs_f64((self.ahead + f64::from(number) * self.gap).clamp(0.0, 3600.0))
    }

    /// The first slot, used ones left out, that is not void.
    fn first_valid(&self, now: Instant, grace: Duration) -> u32 {
        let late = (now + self.slack).saturating_duration_since(self.base).as_secs_f64() - grace.as_secs_f64();
        if late <= 0.0 {
            return self.used;
        }
        // Slots before the base count as at the base; those at or after `late` are still good.
        let void = ((late - self.ahead) / self.gap).ceil().clamp(0.0, f64::from(self.count));
        self.used.max(void as u32)
    }
}

/// `governor` with a clock that is given the time: this process alone never exceeds the account's
/// rate either.
pub(super) struct Pace {
    limiter: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    clock: FakeRelativeClock,
    now: Instant,
}

impl Pace {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let gap = Duration::from_secs_f64((1.0 / rate.per_second).max(1e-9));
        let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(gap).unwrap_or(Quota::per_second(NonZeroU32::MIN)).allow_burst(burst);
        let clock = FakeRelativeClock::default();
        Self { limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, now }
    }

    pub(super) fn check(&mut self, now: Instant) -> Result<(), Instant> {
        self.clock.advance(now.saturating_duration_since(self.now));
        self.now = self.now.max(now);
        self.limiter.check().map_err(|not_until| now + not_until.wait_time_from(self.clock.now()))
    }
}
