//! What wakes the guard: the moment it waits for, the end of a process, the agent's ring.
//!
//! A guard that looked every second whether something changed would cost a fifth of what an idle
//! agent costs. So it sleeps until the deadline it knows, and the agent rings when it writes one that
//! is earlier, or another process.

use crate::postgres::process::Postmaster;
use hathi_dcs::{Millis, boottime};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::os::fd::OwnedFd;

/// The signal that means "look at the board". Whoever does not know it ignores it: a guard of an
/// earlier version, which looks by itself.
const RING: Signal = Signal::URG;

/// How long at most nobody looks where the kernel gives no timer.
const WITHOUT_TIMER: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Tells a guard to look at the board now. What was written before is seen then: a signal that comes
/// while the guard is awake is kept until it sleeps.
pub fn ring(guard: &Postmaster) {
    // Gone: the next guard looks at the board first of all.
    let _ = guard.signal(RING);
}

/// The guard's ears, for its whole life.
pub struct Bell {
    rings: Option<SignalFd>,
    alarm: Option<OwnedFd>,
}

impl Bell {
    /// To be made before the guard says that it watches: rings before that are not needed.
    ///
    /// # Errors
    /// The kernel refuses one of the two descriptors; one line. The guard looks often instead.
    pub fn new() -> (Self, Result<(), String>) {
        let mut mask = SigSet::empty();
        mask.add(NixSignal::SIGURG);
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let rings = mask.thread_block().and_then(|()| SignalFd::with_flags(&mask, flags));
        // Counts on through a suspend, and fires at once after one that was longer than it.
        let alarm = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        );
        let told = match (&rings, &alarm) {
            (Err(why), _) => Err(format!("no signalfd, it looks twice a second: {why}")),
            (_, Err(why)) => Err(format!("no timerfd, it looks twice a second: {why}")),
            (Ok(_), Ok(_)) => Ok(()),
        };
        (Self { rings: rings.ok(), alarm: alarm.ok() }, told)
    }

    /// Sleeps until that moment, a ring, or the end of one of these processes.
    pub fn sleep(&mut self, until: Millis, watched: &[Option<&Postmaster>]) {
        let pidfds: Vec<_> = watched.iter().flatten().filter_map(|one| one.pidfd()).collect();
        let armed = self.alarm.as_ref().is_some_and(|alarm| set(alarm, until));
        let mut heard: Vec<PollFd<'_>> =
            pidfds.iter().map(|fd| PollFd::new(fd.as_ref(), PollFlags::IN)).collect();
        heard.extend(self.rings.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        heard.extend(self.alarm.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let sure = armed && self.rings.is_some();
        let now = boottime();
        if until > now {
            let left = Timespec {
                tv_sec: i64::try_from(until.since(now) / 1000).unwrap_or(1),
                tv_nsec: i64::try_from(until.since(now) % 1000).unwrap_or(0) * 1_000_000,
            };
            let timeout = if sure { None } else { Some(left.min(WITHOUT_TIMER)) };
            let _ = poll(&mut heard, timeout.as_ref());
        }
        if let Some(rings) = &mut self.rings {
            while matches!(rings.read_signal(), Ok(Some(_))) {}
        }
    }
}

/// Setting it anew also makes it silent again.
fn set(alarm: &OwnedFd, until: Millis) -> bool {
    let value = Timespec {
        tv_sec: i64::try_from(until.0 / 1_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(until.0 % 1_000).unwrap_or(0) * 1_000_000,
    };
    let once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let when = Itimerspec { it_interval: once, it_value: value };
    timerfd_settime(alarm, TimerfdTimerFlags::ABSTIME, &when).is_ok()
}
