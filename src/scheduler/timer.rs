//! Waking up at a moment, not up to a millisecond after it as the runtime's own timers do.

use std::time::Instant;

#[cfg(target_os = "linux")]
pub(super) use exact::Timer;
#[cfg(not(target_os = "linux"))]
pub(super) use plain::Timer;

#[cfg(target_os = "linux")]
mod exact {
    use super::Instant;
    use rustix::io::{Errno, read};
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;
    use tokio::io::unix::AsyncFd;
    use tokio::task::coop::consume_budget;

    /// A timer of the kernel's.
    pub(in super::super) struct Timer {
        descriptor: AsyncFd<OwnedFd>,
    }

    /// Setting a timer to nothing would stop it.
    const AT_ONCE: Duration = Duration::from_nanos(1);

    impl Timer {
        /// Errors when the process has no file descriptor left.
        #[expect(deprecated, reason = "unsound for descriptors that somebody else may close; this one is owned")]
        pub(in super::super) fn new() -> io::Result<Self> {
            let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            Ok(Self { descriptor: AsyncFd::new(descriptor)? })
        }

        /// Waits until then.
        pub(in super::super) async fn until(&self, at: Instant) {
            if self.expire(at).await.is_err() {
                // Not known to happen. The runtime's timer is late by up to a millisecond, and
                // never early.
                tokio::time::sleep_until(at.into()).await;
            }
        }

        async fn expire(&self, at: Instant) -> io::Result<()> {
            let wait = at.saturating_duration_since(Instant::now()).max(AT_ONCE);
            let value = Timespec::try_from(wait).map_err(|_| Errno::INVAL)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
            timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once)?;
            loop {
                // Reading the timer costs none of the runtime's budget: a loop that is always due
                // would let no other task run.
                consume_budget().await;
                let mut ready = self.descriptor.readable().await?;
                match read(self.descriptor.get_ref(), &mut [0; 8]) {
                    Ok(_) => return Ok(()),
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod plain {
    use super::Instant;
    use std::io;

    /// The runtime's timer.
    pub(in super::super) struct Timer;

    impl Timer {
        /// Does not fail.
        pub(in super::super) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        /// Waits until then.
        pub(in super::super) async fn until(&self, at: Instant) {
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn whoever_is_always_due_lets_others_run() {
        let timer = Timer::new().expect("a descriptor");
        let other = tokio::spawn(async {});
        for _ in 0..10_000 {
            timer.until(Instant::now()).await;
        }
        assert!(other.is_finished());
    }

    #[tokio::test]
    async fn a_timer_is_never_early_and_can_be_set_again_before_it_expires() {
        let timer = Timer::new().expect("a descriptor");
        let begun = Instant::now();
        timer.until(begun).await;
        let far = begun + Duration::from_secs(3600);
        let near = Instant::now() + Duration::from_millis(3);
        tokio::select! {
            biased;
            () = timer.until(far) => panic!("an hour too early"),
            () = std::future::ready(()) => {}
        }
        timer.until(near).await;
        assert!(Instant::now() >= near);
        timer.until(begun).await;
    }
}
