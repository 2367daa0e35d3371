//! Timers that wake an idle member once, and the engine's own clock, which does not run here.
//!
//! A timer of tokio's that is further away than some milliseconds wakes its thread two or three
//! times: it wanders down a wheel of coarse slots. For the two rhythms an idle member lives by, the
//! signs of life and the patience with a silent leader, that is most of what it costs; so these two
//! are kernel timers. They count on CLOCK_BOOTTIME, as everything else that is said about leases.

use hathi_dcs::{Deadline, Millis, boottime};
use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer, for one task.
pub(crate) struct Alarm {
    fd: AsyncFd<OwnedFd>,
    set: Option<Millis>,
}

impl Alarm {
    /// # Errors
    /// The process has no file descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Boottime, flags)?;
        // SAFETY: the registration owns the descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd, set: None })
    }

    /// Returns once that moment has come. May be dropped; asked again for the same moment it costs
    /// no system call.
    pub(crate) async fn at(&mut self, at: Millis) {
        while boottime() < at {
            if self.wait(at).await.is_err() {
                // Cannot be, as far as the manual says; a late or a doubled waking harms nobody.
                tokio::time::sleep(Deadline(at).left()).await;
            }
        }
    }

    async fn wait(&mut self, at: Millis) -> io::Result<()> {
        if self.set != Some(at) {
            let value = Timespec {
                tv_sec: i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX),
                tv_nsec: (at.0 % 1_000 * 1_000_000) as _,
            };
            let once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let when = Itimerspec { it_interval: once, it_value: value };
            timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &when)?;
            self.set = Some(at);
        }
        let mut ready = self.fd.readable().await?;
        // Reading makes it silent again; nothing to read: the waking belonged to an earlier moment.
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)) {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

/// tokio, with the engine's clock standing still.
///
/// openraft 0.9 waits for its next tick whether ticks are wanted or not, and theirs are not
/// (`enable_tick`): it would wake every idle member for nothing. The tick is the only one that
/// waits by `sleep_until`; Cargo.toml pins the version that this was read in.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unticked;

impl AsyncRuntime for Unticked {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(_deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep(Duration::from_secs(24 * 3_600))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        TokioRuntime::oneshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-196.
    #[tokio::test]
    async fn an_alarm_rings_at_its_moment_also_when_it_was_moved() {
        let mut alarm = Alarm::new().expect("a timer");
        let began = boottime();
        let far = began.plus(60_000);
        let waited = tokio::time::timeout(Duration::from_millis(20), alarm.at(far)).await;
        assert!(waited.is_err(), "it rang a minute early");
        for _ in 0..2 {
            let at = boottime().plus(30);
            alarm.at(at).await;
            assert!(boottime() >= at, "early");
            // Nothing of the past ringing is left over.
            let next = boottime().plus(60_000);
            let early = tokio::time::timeout(Duration::from_millis(20), alarm.at(next)).await;
            assert!(early.is_err(), "it rang again");
        }
        alarm.at(began).await;
        assert!(boottime() < far, "late");
    }
}
