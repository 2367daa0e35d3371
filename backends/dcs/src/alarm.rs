//! Timers that wake an idle agent once.
//!
//! A timer of tokio's that is further away than some milliseconds wakes its thread two or three
//! times: it wanders down a wheel of coarse slots. For the few rhythms an idle agent lives by (turns,
//! renewals, the embedded store's signs of life and its patience with a silent leader) that is much
//! of what it costs; so these are kernel timers. They count on `CLOCK_BOOTTIME`, as everything else that
//! is said about leases.

use crate::{Deadline, Millis, boottime};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer, for one task.
#[derive(Debug)]
pub struct Alarm {
    fd: AsyncFd<Arc<OwnedFd>>,
    bell: Bell,
}

/// What moves an [`Alarm`] that a task is waiting for, without waking that task.
#[derive(Clone, Debug)]
pub struct Bell {
    fd: Arc<OwnedFd>,
    set: Arc<Mutex<Option<Millis>>>,
}

impl Alarm {
    /// Must be called on the runtime that will wait for it.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = Arc::new(timerfd_create(TimerfdClockId::Boottime, flags)?);
        let bell = Bell { fd: fd.clone(), set: Arc::default() };
        // SAFETY: the registration owns the descriptor for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd, bell })
    }

    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Returns once that moment has come, or the later one that the [`Bell`] was moved to. May be
    /// dropped; asked again for the same moment it costs no system call.
    pub async fn at(&mut self, at: Millis) {
        while boottime() < at {
            if self.wait(at).await.is_err() {
                // Cannot be, as far as the manual says; a late or a doubled waking harms nobody.
                tokio::time::sleep(Deadline(at).left()).await;
            }
        }
    }

    async fn wait(&mut self, at: Millis) -> io::Result<()> {
        self.bell.set(at)?;
        let mut ready = self.fd.readable().await?;
        // Reading makes it silent again; nothing to read: the waking belonged to an earlier moment.
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)) {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

impl Bell {
    /// It rings at that moment and not before. Whoever waits for an earlier one waits on: only for a
    /// task that looks again at what it waits for when it is woken.
    ///
    /// # Errors
    /// None that the manual knows of.
    pub fn set(&self, at: Millis) -> io::Result<()> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        if *set == Some(at) {
            return Ok(());
        }
        let value = Timespec {
            tv_sec: i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX),
            tv_nsec: (at.0 % 1_000 * 1_000_000) as _,
        };
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let when = Itimerspec { it_interval: once, it_value: value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &when)?;
        *set = Some(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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

    /// Proves DCS-196: who waits is not woken for a moment that was moved.
    #[tokio::test]
    async fn a_moved_alarm_rings_once_and_later() {
        let mut alarm = Alarm::new().expect("a timer");
        let (bell, early) = (alarm.bell(), boottime().plus(30));
        let later = early.plus(120);
        let mut woken = Box::pin(alarm.at(early));
        assert!(futures::poll!(&mut woken).is_pending());
        bell.set(later).expect("it can be moved");
        woken.await;
        assert!(boottime() >= later, "it rang at the first moment");
        let next = boottime().plus(30);
        alarm.at(next).await;
        assert!(boottime() >= next);
    }
}
