//! The lease: what we believe of the leader key, and the small task that prolongs it. (HA-303)
//!
//! The belief counts from before the request was sent, and is a twentieth shorter than the ttl so
//! that a clock that runs 5 % wrong never makes it the longer one (HA-028, INV-28). Every operation
//! on the leader key goes through here, one at a time, so that a renewal on its way cannot bring
//! back a key that was just released. Nothing here decides: it reports verdicts to the loop.

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::Ports;
use crate::ha::record::Front;
use crate::ha::run::{Event, Events};
use futures::FutureExt;
use futures::channel::mpsc;
use futures::stream::StreamExt;
use hathi_dcs::{DcsError, Deadline, MemberName, Millis, Status, Timing};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How a lease of this length is spent when nobody prolongs it. All in milliseconds before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Demotion begins: a fast stop. (HA-304)
    pub demote: u64,
    /// The stop turns immediate.
    pub immediate: u64,
    /// The guard kills, whatever the agent does.
    pub guard: u64,
}

impl Reserve {
    pub fn of(timing: Timing) -> Self {
        let ttl = timing.ttl_ms();
        // However short the lease is: what the guard itself needs to kill, and a stop before that.
        let guard = (ttl / 20).max(350);
        let immediate = (ttl / 12).max(guard + 150);
        Self { demote: (ttl / 6).max(immediate + 300), immediate, guard }
    }
}

/// A step that a turn waits for gets at least so many milliseconds, however late it is.
pub fn least_ms(timing: Timing) -> u64 {
    (timing.ttl_ms() / 20).min(500)
}

/// How long a renewal that the store confirms is worth, from before it was sent. (INV-28)
pub fn worth_ms(timing: Timing) -> u64 {
    timing.ttl_ms() - timing.ttl_ms() / 20
}

/// Turns further apart than this wake the keeper: shorter than any ttl. (HA-021, HA-324)
const STUCK_AFTER_MS: u64 = 1_500;

fn believed_until(ports: &Ports, sent: Millis, timing: Timing) -> Millis {
    if broken(Breakage::BeliefTooLong) {
        return ports.clock.now().plus(timing.ttl_ms() + timing.ttl_ms() / 4);
    }
    sent.plus(worth_ms(timing))
}

/// The last thing the store said, or did not say, about the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing asked yet, or given up by ourselves.
    None,
    Mine,
    NotOwner {
        holder: Option<MemberName>,
    },
    /// No answer since this moment; what was confirmed before goes on until it ends.
    Unreachable {
        since: Millis,
    },
}

#[derive(Debug)]
struct Belief {
    /// What the store confirmed.
    until: Option<Millis>,
    /// What all members allowed while the store was away. (HA-154)
    licensed: Option<Millis>,
    verdict: Verdict,
    /// When the next renewal is due.
    renew_at: Millis,
    /// When the loop last finished a turn. A stuck loop loses its lock. (design section 2)
    turn_done: Millis,
    closed: bool,
    /// Who holds it cannot write: no fence is armed by a renewal. (HA-110)
    read_only: bool,
    /// I gave the key up, or was told that it is another's, and have not asked for it since: one in my
    /// name is the work of a request that came late. (HA-326)
    disowned: bool,
}

impl Belief {
    /// When I may not act as the leader any more.
    fn end(&self) -> Option<Millis> {
        self.until.max(self.licensed)
    }

    fn lose(&mut self) {
        self.until = None;
        self.licensed = None;
    }
}

/// Shared by the turn, the tasks and the keeper.
#[derive(Debug)]
pub struct Lease {
    belief: Mutex<Belief>,
    /// One operation on the leader key at a time.
    one_at_a_time: futures::lock::Mutex<()>,
    poke: Mutex<mpsc::Sender<()>>,
    poked: Mutex<Option<mpsc::Receiver<()>>>,
    /// A turn that is recorded or replayed asks this one instead. (HA-320)
    front: Option<Front>,
}

impl Default for Lease {
    fn default() -> Self {
        let (poke, poked) = mpsc::channel(1);
        Self {
            belief: Mutex::new(Belief {
                until: None,
                licensed: None,
                verdict: Verdict::None,
                renew_at: Millis(0),
                turn_done: Millis(0),
                closed: false,
                read_only: false,
                disowned: false,
            }),
            one_at_a_time: futures::lock::Mutex::new(()),
            poke: Mutex::new(poke),
            poked: Mutex::new(Some(poked)),
            front: None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere must not cost the lease its truth: the data is valid at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a request left, and how long a lease it asked for. The configuration may change before the
/// answer is here; the answer is about the lease that was asked for. (INV-28)
#[derive(Clone, Copy)]
struct Sent {
    at: Millis,
    timing: Timing,
}

impl Sent {
    fn now(ports: &Ports) -> Self {
        Self { at: ports.clock.now(), timing: ports.configuration.settings().timing }
    }
}

impl Lease {
    /// A lease whose every answer comes from `front`.
    pub fn behind(front: Front) -> Self {
        Self { front: Some(front), ..Self::default() }
    }

    /// Until when I may act as the leader; `None` when I am not, or it has ended.
    pub fn until(&self, now: Millis) -> Option<Millis> {
        if let Some(front) = &self.front {
            return front.until(now);
        }
        lock(&self.belief).end().filter(|until| now < *until)
    }

    /// Until when the members let this primary go on although the store does not answer, if that
    /// is what it lives on. (REST-093)
    pub fn licensed_until(&self, now: Millis) -> Option<Millis> {
        if let Some(front) = &self.front {
            return front.licensed_until(now);
        }
        lock(&self.belief).licensed.filter(|until| now < *until)
    }

    /// What the store itself confirmed.
    pub fn confirmed_until(&self, now: Millis) -> Option<Millis> {
        lock(&self.belief).until.filter(|until| now < *until)
    }

    /// Every member of `/failsafe` promised not to race, answering questions sent at this moment or
    /// later: the belief and the guard go on for as long as a renewal sent then would be worth.
    /// False: the lease has ended, or the store said meanwhile that it is not mine. (HA-154)
    pub fn license(&self, ports: &Ports, sent: Millis) -> bool {
        if let Some(front) = &self.front {
            return front.license(sent);
        }
        let settings = ports.configuration.settings();
        let now = ports.clock.now();
        let mut belief = lock(&self.belief);
        if belief.end().is_none_or(|until| until <= now) {
            return false;
        }
        let mut until = sent.plus(worth_ms(settings.timing));
        if broken(Breakage::FailsafeBeliefTooLong) {
            until = now.plus(settings.timing.ttl_ms() * 3 / 2);
        }
        belief.licensed = belief.licensed.max(Some(until));
        let until = belief.end().unwrap_or(until);
        drop(belief);
        if !settings.pause && !broken(Breakage::IgnoreLeaseDeadline) {
            ports.fence.protect_until(until.minus(Reserve::of(settings.timing).guard));
        }
        ports.watchdog.keep_alive(until); // HA-172
        self.wake_keeper();
        true
    }

    pub fn verdict(&self) -> Verdict {
        if let Some(front) = &self.front {
            return front.verdict();
        }
        lock(&self.belief).verdict.clone()
    }

    /// A leader key in my name would not be one that I want. (HA-326)
    pub fn is_disowned(&self) -> bool {
        if let Some(front) = &self.front {
            return front.is_disowned();
        }
        lock(&self.belief).disowned
    }

    /// The loop finished a turn: the keeper may go on. (design section 2)
    pub fn turn_done(&self, now: Millis) {
        if let Some(front) = &self.front {
            return front.turn_done(now);
        }
        let before = std::mem::replace(&mut lock(&self.belief).turn_done, now);
        // The keeper may have seen a loop without progress, as it is before the first turn is done,
        // and sleeps for long then.
        if now.since(before) > STUCK_AFTER_MS {
            self.wake_keeper();
        }
    }

    /// Ends the keeper. The belief stays and runs out.
    pub fn close(&self) {
        if let Some(front) = &self.front {
            return front.close();
        }
        lock(&self.belief).closed = true;
        self.wake_keeper();
    }

    /// Takes the key if nobody holds it. (HA-080)
    pub async fn acquire(&self, ports: &Ports, by: Deadline) -> Result<(), DcsError> {
        if let Some(front) = &self.front {
            return front.acquire(by).await;
        }
        let _one = self.alone(ports, by).await?;
        let sent = Sent::now(ports);
        // Whatever becomes of this request, the key may be mine by it.
        lock(&self.belief).disowned = false;
        let outcome = ports.dcs.acquire_leader(by).await;
        self.learn(ports, sent, outcome)
    }

    /// Takes the key after bootstrap. (HA-031)
    pub async fn take(&self, ports: &Ports, by: Deadline) -> Result<(), DcsError> {
        if let Some(front) = &self.front {
            return front.take(by).await;
        }
        let _one = self.alone(ports, by).await?;
        let sent = Sent::now(ports);
        lock(&self.belief).disowned = false;
        let outcome = ports.dcs.take_leader(by).await;
        self.learn(ports, sent, outcome)
    }

    /// Asks the store now whether the key is mine, and prolongs it. (DCS-003)
    pub async fn renew(&self, ports: &Ports, by: Deadline) -> Result<(), DcsError> {
        if let Some(front) = &self.front {
            return front.renew(by).await;
        }
        let _one = self.alone(ports, by).await?;
        let sent = Sent::now(ports);
        let outcome = ports.dcs.renew_leader(by).await;
        self.learn(ports, sent, outcome)
    }

    /// Gives the key up. The belief ends before the request is sent: whatever the store answers, we
    /// are not the leader any more. (HA-104, INV-23)
    pub async fn release(
        &self,
        ports: &Ports,
        status: Option<&Status>,
        by: Deadline,
    ) -> Result<(), DcsError> {
        if let Some(front) = &self.front {
            return front.release(status, by).await;
        }
        self.forget();
        lock(&self.belief).disowned = true;
        let _one = self.alone(ports, by).await?;
        // A renewal that was on its way may have ended in between.
        self.forget();
        lock(&self.belief).disowned = true;
        ports.dcs.release_leader(status, by).await
    }

    /// A shorter ttl is in force from now on: whatever is sent next makes the lease this short, also
    /// if its answer is lost. (INV-28)
    pub fn shorten(&self, ports: &Ports) {
        if let Some(front) = &self.front {
            return front.shorten();
        }
        let Sent { at, timing } = Sent::now(ports);
        let limit = at.plus(worth_ms(timing));
        let mut belief = lock(&self.belief);
        if belief.end().is_some_and(|until| until > limit) {
            belief.until = belief.until.map(|until| until.min(limit));
            belief.licensed = belief.licensed.map(|until| until.min(limit));
            belief.renew_at = at;
            let read_only = belief.read_only;
            drop(belief);
            if !read_only && !ports.configuration.settings().pause {
                ports.fence.protect_until(limit.minus(Reserve::of(timing).guard));
            }
            // Sooner than before: that much of the lease is confirmed.
            ports.watchdog.keep_alive(limit);
            self.wake_keeper();
        }
    }

    /// The holder of the lock leads a standby cluster: there is nothing to fence, and a store that is
    /// away must not cost it its PostgreSQL. Ends with `false`: the renewal after that arms the fence
    /// again, before anything is promoted. (HA-110, HA-113)
    pub fn read_only(&self, ports: &Ports, yes: bool) {
        if let Some(front) = &self.front {
            return front.read_only(yes);
        }
        lock(&self.belief).read_only = yes;
        if yes {
            ports.fence.stand_down();
        }
    }

    /// The lock is somebody else's, or nobody's: stop believing. Writes nothing.
    pub fn forget(&self) {
        if let Some(front) = &self.front {
            return front.forget();
        }
        let mut belief = lock(&self.belief);
        belief.lose();
        belief.verdict = Verdict::None;
    }

    /// Waits until no other operation on the key is on its way; not longer than the answer is of
    /// use.
    async fn alone(
        &self,
        ports: &Ports,
        by: Deadline,
    ) -> Result<futures::lock::MutexGuard<'_, ()>, DcsError> {
        let asked = ports.clock.now();
        futures::select_biased! {
            one = self.one_at_a_time.lock().fuse() => Ok(one),
            () = ports.clock.sleep_until(by.0).fuse() => Err(DcsError::unreachable(
                ports.dcs.kind(),
                ports.clock.now().since(asked),
                "another operation on the leader key has had no answer yet",
            )),
        }
    }

    fn learn(
        &self,
        ports: &Ports,
        sent: Sent,
        outcome: Result<(), DcsError>,
    ) -> Result<(), DcsError> {
        let settings = ports.configuration.settings();
        let Sent { at: sent, timing } = sent;
        // A shorter ttl that came in between rules what was sent since. (INV-28)
        let timing = if settings.timing.ttl < timing.ttl { settings.timing } else { timing };
        let mut belief = lock(&self.belief);
        match &outcome {
            Ok(()) => {
                let until = believed_until(ports, sent, timing);
                belief.until = Some(until);
                belief.licensed = None;
                belief.verdict = Verdict::Mine;
                belief.disowned = false;
                belief.renew_at = sent.plus(timing.loop_wait_ms().min(timing.ttl_ms() / 3));
                let read_only = belief.read_only;
                drop(belief);
                // In pause the operator is responsible for PostgreSQL. (HA-130)
                if !settings.pause && !read_only && !broken(Breakage::IgnoreLeaseDeadline) {
                    ports.fence.protect_until(until.minus(Reserve::of(timing).guard));
                }
                ports.watchdog.keep_alive(until); // HA-172; in pause it is not armed
                self.wake_keeper();
            }
            Err(DcsError::NotOwner { holder }) => {
                belief.lose();
                belief.verdict = Verdict::NotOwner { holder: holder.clone() };
                // A store may know me by name and not by the lease of this life.
                belief.disowned = holder.as_ref() != Some(&settings.me);
            }
            Err(
                DcsError::Conflict { .. }
                | DcsError::Unreachable { .. }
                | DcsError::Refused { .. }
                | DcsError::NotRetriable { .. },
            ) => {
                if !matches!(belief.verdict, Verdict::Unreachable { .. }) {
                    belief.verdict = Verdict::Unreachable { since: sent };
                }
                // Soon again, but not in a tight loop when the store refuses at once.
                belief.renew_at = ports.clock.now().plus((timing.ttl_ms() / 10).min(1_000));
                drop(belief); // No port is called under a lock.
                if broken(Breakage::KeepAliveWithoutLock) {
                    ports.watchdog.keep_alive(ports.clock.now().plus(worth_ms(timing)));
                }
            }
        }
        outcome
    }

    fn wake_keeper(&self) {
        // Full means it is awake already.
        let _ = lock(&self.poke).try_send(());
    }

    /// What the keeper does next.
    fn plan(&self, now: Millis, timing: Timing) -> Plan {
        let belief = lock(&self.belief);
        if belief.closed {
            return Plan::End;
        }
        match belief.end() {
            None => Plan::Wait,
            // It ran out: only the loop may ask for it again.
            Some(until) if until <= now => Plan::Wait,
            Some(_) if now.since(belief.turn_done) > timing.ttl_ms() => Plan::LoopIsStuck,
            Some(_) if belief.renew_at <= now => Plan::Renew,
            Some(_) => Plan::SleepUntil(belief.renew_at),
        }
    }
}

enum Plan {
    End,
    Wait,
    SleepUntil(Millis),
    Renew,
    /// No turn for a whole ttl: let the lease run out.
    LoopIsStuck,
}

/// Prolongs the lease for as long as it is held and the loop shows progress. Runs beside the loop,
/// on a thread that nothing else can delay; ends with [`Lease::close`].
pub async fn keep(ports: Ports, lease: std::sync::Arc<Lease>, events: Events) {
    let Some(mut poked) = lock(&lease.poked).take() else { return };
    loop {
        let now = ports.clock.now();
        let timing = ports.configuration.settings().timing;
        match lease.plan(now, timing) {
            Plan::End => return,
            Plan::Wait | Plan::LoopIsStuck => {
                let later = ports.clock.sleep_until(now.plus(timing.ttl_ms()));
                futures::select_biased! {
                    _ = poked.next() => {}
                    () = later.fuse() => {}
                }
            }
            Plan::SleepUntil(at) => {
                futures::select_biased! {
                    _ = poked.next() => {}
                    () = ports.clock.sleep_until(at).fuse() => {}
                }
            }
            Plan::Renew => {
                let before = lease.verdict();
                let by = Deadline(now.plus(timing.retry_timeout_ms()));
                // The verdict is kept in the lease; the loop reads it there.
                let _ = lease.renew(&ports, by).await;
                if lease.verdict() != before {
                    events.post(Event::Lease);
                }
            }
        }
    }
}
