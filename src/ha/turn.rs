//! One turn of the wheel: look, decide, act. (section 2 of docs/spec/ha-loop.md)
//!
//! The order of the steps is the order of the specification; each step either ends the turn with a
//! status line or lets the next one look. A turn never waits for PostgreSQL's long work: it asks for
//! a [`Task`].

use crate::ha::breakage::{Breakage, broken, hidden};
use crate::ha::lease::{Lease, Reserve, Verdict, least_ms};
use crate::ha::look::{self, Looked};
use crate::ha::memory::Memory;
use crate::ha::operator::{self, Said};
use crate::ha::ports::{Observation, Ports, Reason, Server, Upstream};
use crate::ha::run::{self, Exit};
use crate::ha::settings::Settings;
use crate::ha::task::{Kind, Task};
use crate::ha::{
    election, failsafe, follower, leader, lineage, member, pause, reached, recovery, restart,
    silence, slots, start,
};
use hathi_dcs::{ClusterView, DcsError, Deadline, Freshness, MemberName, Millis, State};
use std::sync::Arc;

/// The leader key, as the store and our own lease show it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    Free,
    /// Mine, and confirmed for at least as long as a demotion takes.
    Mine {
        until: Millis,
    },
    Other {
        holder: MemberName,
    },
    /// The store itself said that what I held is not mine any more.
    Lost {
        holder: Option<MemberName>,
    },
    /// The store does not answer. What I held, I hold until then.
    Unseen {
        until: Option<Millis>,
    },
}

/// What a turn came to.
#[derive(Debug)]
pub struct Decided {
    pub line: String,
    pub start: Option<Task>,
    pub exit: Option<Exit>,
    /// Look again at this moment, earlier than `loop_wait` would.
    pub again_at: Option<Millis>,
}

impl Decided {
    #[cfg_attr(feature = "breakages", track_caller)]
    pub fn line(line: impl Into<String>) -> Self {
        reached::here();
        Self { line: line.into(), start: None, exit: None, again_at: None }
    }

    #[cfg_attr(feature = "breakages", track_caller)]
    pub fn task(line: impl Into<String>, task: Task) -> Self {
        Self { start: Some(task), ..Self::line(line) }
    }

    #[cfg_attr(feature = "breakages", track_caller)]
    pub fn exit(line: impl Into<String>) -> Self {
        let line = line.into();
        Self { exit: Some(Exit::Fatal(line.clone())), ..Self::line(line) }
    }

    pub fn again_at(mut self, at: Millis) -> Self {
        self.again_at = Some(self.again_at.map_or(at, |other| other.min(at)));
        self
    }
}

/// Everything one turn works with.
pub struct Turn<'a> {
    pub ports: &'a Ports,
    pub lease: &'a Arc<Lease>,
    pub memory: &'a mut Memory,
    pub settings: Arc<Settings>,
    pub view: Arc<ClusterView>,
    pub pg: Observation,
    pub lock: Lock,
    pub reasons: Vec<Reason>,
    /// The earliest moment at which some rule has to look again, whatever this turn comes to.
    pub wake: Option<Millis>,
    pub looked: Looked,
}

/// What the loop publishes and acts on.
pub struct Turned {
    pub decided: Decided,
    /// As the turn saw it last.
    pub lock: Lock,
    pub pg: Observation,
    pub view: Option<Arc<ClusterView>>,
    pub reasons: Vec<Reason>,
    /// The answer to the wish of an operator, if there was one.
    pub said: Option<Said>,
}

/// How long one look at PostgreSQL may take; it runs beside the reading of the store.
const OBSERVE_MS: u64 = 2_000;

/// Lets one turn happen.
pub async fn turn(ports: &Ports, lease: &Arc<Lease>, memory: &mut Memory, urgent: bool) -> Turned {
    let settings = ports.configuration.settings();
    let now = ports.clock.now();
    memory.failsafe.began.get_or_insert(now);
    let freshness = freshness(memory, urgent);
    // What is due at the end of the lease must begin in time, whatever the store and PostgreSQL do.
    let read_by = bounded(lease, &settings, now, settings.timing.retry_timeout_ms());
    let observe_by = bounded(lease, &settings, now, OBSERVE_MS);
    let clock = &ports.clock;
    let (mut pg, postgres, (loaded, answered)) = {
        let observed = async {
            let pg = look(ports, lease, memory, observe_by).await;
            (pg, clock.now())
        };
        let read = async { (ports.dcs.load(freshness, read_by).await, clock.now()) };
        let ((pg, postgres), read) = futures::future::join(observed, read).await;
        (pg, postgres, read)
    };
    let mut looked = Looked { asked: now, answered, postgres };
    if answered.since(postgres) > look::most_ms(settings.timing)
        && !broken(Breakage::ActsOnOldLooks)
    {
        // The store kept us waiting: what PostgreSQL was before that decides nothing. (HA-325)
        let by = bounded(lease, &settings, answered, OBSERVE_MS);
        pg = look(ports, lease, memory, by).await;
        looked.postgres = clock.now();
    }
    match loaded {
        Ok(view) => seen(ports, lease, memory, pg, Arc::new(view), looked).await,
        Err(error) => unseen(ports, lease, memory, pg, &error, looked).await,
    }
}

/// So many milliseconds at most; ends before a demotion must begin. (HA-304)
fn bounded(lease: &Lease, settings: &Settings, now: Millis, most_ms: u64) -> Deadline {
    let by = Deadline(now.plus(most_ms));
    match lease.until(now) {
        Some(until) => {
            let at = failsafe::act_at(settings, until);
            by.earlier(Deadline(at.max(now.plus(least_ms(settings.timing)))))
        }
        None => by,
    }
}

/// Looks at PostgreSQL. What an agent that died left armed would reset a machine on which only a standby runs:
/// that does not wait for a silent store. (HA-179, INV-26; the simulator, seed 18332)
async fn look(ports: &Ports, lease: &Lease, memory: &Memory, by: Deadline) -> Observation {
    let pg = ports.postgres.observe(by).await;
    let task = memory.task.map(|task| task.kind);
    let first = memory.view.is_none();
    if first && run::needs_no_fence(&pg.server, task) && lease.until(ports.clock.now()).is_none() {
        ports.watchdog.disable();
    }
    pg
}

/// A copy fed by a watch is good enough while the cluster has a leader and nothing happened.
fn freshness(memory: &Memory, urgent: bool) -> Freshness {
    let quiet = memory.view.as_ref().is_some_and(|(view, _)| !view.is_unlocked());
    if quiet && !urgent && !memory.want_latest { Freshness::Watched } else { Freshness::Latest }
}

async fn seen(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    pg: Observation,
    view: Arc<ClusterView>,
    looked: Looked,
) -> Turned {
    memory.want_latest = false;
    remember(ports, memory, &view);
    let mut reasons = Vec::new();
    apply_configuration(ports, memory, &view, &mut reasons).await;
    agree_on_ttl(ports, memory, &view, &mut reasons);
    lease.shorten(ports);
    let settings = ports.configuration.settings();
    lineage::note(memory, &view, &pg, &settings.me);
    let now = ports.clock.now();
    failsafe::note_view(memory, &view, &settings, now);
    let view = with_promise(ports, view, &settings.me);
    let lock = Lock::Free;
    let wake = None;
    let mut turn = Turn { ports, lease, memory, settings, view, pg, lock, reasons, wake, looked };
    turn.lock = turn.look_at_lock().await;
    let (decided, said) = operator::with_wish(&mut turn).await;
    let decided = turn.finish(decided).await;
    turn.settle_claim(&decided);
    Turned {
        decided,
        lock: turn.lock,
        pg: turn.pg,
        view: Some(turn.view),
        reasons: turn.reasons,
        said,
    }
}

/// While the promise binds its caller leads, whatever the store lacks. (HA-103)
fn with_promise(ports: &Ports, view: Arc<ClusterView>, me: &MemberName) -> Arc<ClusterView> {
    let now = ports.clock.now();
    let promise = if view.leader.is_none() { ports.promises.promised(now) } else { None };
    failsafe::with_promised_leader(view, promise, me)
}

/// The store does not answer. (section 13)
async fn unseen(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    pg: Observation,
    error: &DcsError,
    looked: Looked,
) -> Turned {
    let view = memory.view.as_ref().map(|(view, _)| view.clone());
    let settings = ports.configuration.settings();
    lineage::note_primary(memory, &pg, &settings.me);
    let until = lease.until(ports.clock.now());
    let mut turn = Turn {
        ports,
        lease,
        memory,
        settings,
        view: view.clone().unwrap_or_default(),
        pg,
        lock: Lock::Unseen { until },
        reasons: Vec::new(),
        wake: None,
        looked,
    };
    let said = operator::without_store(&mut turn);
    turn.because("HA-001", format!("the store could not be read: {error}"));
    let decided = if turn.settings.pause {
        pause::paused(&mut turn).await
    } else if turn.memory.task.is_some() {
        silence::during_a_task(&mut turn).await;
        turn.while_task_runs().await
    } else {
        silence::store_is_silent(&mut turn).await
    };
    let decided = match turn.wake {
        Some(at) => decided.again_at(at),
        None => decided,
    };
    turn.memory.want_latest = true;
    Turned { decided, lock: turn.lock, pg: turn.pg, view, reasons: turn.reasons, said }
}

/// Notes the view for this race and the next. (HA-001, HA-318)
fn remember(ports: &Ports, memory: &mut Memory, view: &Arc<ClusterView>) {
    if view.leader.is_some() || memory.old_view.is_none() {
        memory.old_view = Some(view.clone());
    }
    if view.leader.is_some() {
        memory.leaderless = None;
    }
    if view.leader.is_some() || !view.is_bootstrapping() {
        memory.abandoned = None;
    }
    memory.view = Some((view.clone(), ports.clock.now()));
}

/// A changed `/config` is put in force before anything is decided. (HA-002, HA-019)
async fn apply_configuration(
    ports: &Ports,
    memory: &mut Memory,
    view: &ClusterView,
    reasons: &mut Vec<Reason>,
) {
    let Some(config) = &view.config else { return };
    if memory.config_seen == Some(config.version) || config.value.is_empty() {
        return;
    }
    memory.config_seen = Some(config.version);
    if config.value == ports.configuration.dynamic() {
        return;
    }
    if let Err(why) = ports.configuration.apply(&config.value).await {
        reasons
            .push(Reason { rule: "CFG-038", why: format!("/config keeps its old values: {why}") });
    }
}

/// A ttl below Patroni's floor is in force only while every member says that it lives with one: a
/// member that counts with more would rely on a promise that we think has run out. (HA-324)
fn agree_on_ttl(ports: &Ports, memory: &mut Memory, view: &ClusterView, reasons: &mut Vec<Reason>) {
    let settings = ports.configuration.settings();
    let others = view.members.iter().filter(|member| member.name != settings.me);
    let long = others.into_iter().find(|member| !member.data.short_ttl);
    let short = settings.short_ttl && long.is_none();
    if short == memory.short_ttl {
        return;
    }
    memory.short_ttl = short;
    ports.configuration.allow_short_ttl(short);
    let why = match long {
        Some(member) if settings.short_ttl => {
            format!("{} does not live with so short a ttl: 20 s are in force", member.name)
        }
        Some(_) | None => format!("a ttl below 20 s is in force: {short}"),
    };
    reasons.push(Reason { rule: "HA-324", why });
}

impl Turn<'_> {
    #[cfg_attr(feature = "breakages", track_caller)]
    pub fn because(&mut self, rule: &'static str, why: impl Into<String>) {
        reached::here();
        self.reasons.push(Reason { rule, why: why.into() });
    }

    /// Some rule has to look again at this moment.
    pub fn wake_at(&mut self, at: Millis) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    pub fn me(&self) -> &MemberName {
        &self.settings.me
    }

    pub fn now(&self) -> Millis {
        self.ports.clock.now()
    }

    /// For one operation on the store that this turn waits for; ends before a demotion must begin.
    pub fn store_deadline(&self) -> Deadline {
        self.deadline(self.settings.timing.retry_timeout_ms())
    }

    /// For anything that this turn waits for, so many milliseconds at most; ends before a demotion
    /// must begin.
    pub fn deadline(&self, most_ms: u64) -> Deadline {
        bounded(self.lease, &self.settings, self.now(), most_ms)
    }

    pub fn i_own_the_lock(&self) -> bool {
        match &self.lock {
            Lock::Mine { .. } => true,
            Lock::Free | Lock::Other { .. } | Lock::Lost { .. } | Lock::Unseen { .. } => false,
        }
    }

    /// What the store shows and what we believe, brought together; where they differ the store is
    /// asked again before anything is believed. (HA-063, HA-305, DCS-305)
    async fn look_at_lock(&mut self) -> Lock {
        let holder = self.view.leader_name().cloned();
        let mine = holder.as_ref() == Some(self.me());
        let believed = self.lease.until(self.now());
        if mine && !self.may_write() && self.lease.is_disowned() && !broken(Breakage::KeepsALateKey)
        {
            return self.refuse_key().await;
        }
        if self.memory.giving_up {
            return holder.filter(|_| !mine).map_or(Lock::Free, |holder| Lock::Other { holder });
        }
        match (mine, believed) {
            (false, None) => holder.map_or(Lock::Free, |holder| Lock::Other { holder }),
            (true, Some(until)) => match self.lease.verdict() {
                Verdict::Unreachable { since } if self.store_is_missed(until) => {
                    let silent_for = self.now().since(since);
                    self.because("HA-304", format!("no renewal for {silent_for} ms"));
                    Lock::Unseen { until: Some(until) }
                }
                // Nobody prolonged it and nobody heard why: the keeper stands still, or its request
                // has no answer yet. The turn asks itself, as long as that helps. (HA-304)
                Verdict::Mine | Verdict::NotOwner { .. } | Verdict::None
                    if self.store_is_missed(until) =>
                {
                    self.because("HA-304", "the keeper has not prolonged the lease: the turn does");
                    self.confirm_lock().await;
                    self.lock.clone()
                }
                Verdict::Mine
                | Verdict::Unreachable { .. }
                | Verdict::NotOwner { .. }
                | Verdict::None => Lock::Mine { until },
            },
            (true, None) | (false, Some(_)) => self.ask_for_lock(holder).await,
        }
    }

    /// A primary here, or what may be one in a moment.
    fn may_write(&self) -> bool {
        match &self.pg.server {
            Server::Primary { .. } => true,
            Server::Starting | Server::Silent(_) => self.pg.is_primary,
            Server::Down | Server::Standby(_) => false,
        }
    }

    /// The key came back in my name after I had given it up: by a renewal that was held up on its way, or by
    /// a request whose answer I did not wait for. Left there it would keep the others from leading for as
    /// long as its lease is. (HA-326)
    async fn refuse_key(&mut self) -> Lock {
        self.because("HA-326", "a leader key in my name that I do not want any more is given up");
        self.memory.want_latest = true;
        let by = self.store_deadline();
        // If the store does not hear of it the next turn asks again, and the key runs out.
        let released = self.lease.release(self.ports, None, by).await;
        if !self.read_again().await || self.view.leader_name() == Some(self.me()) {
            if let Err(error) = released {
                self.because("HA-326", format!("it was not given up: {error}"));
            }
            return Lock::Unseen { until: None };
        }
        self.view.leader_name().cloned().map_or(Lock::Free, |holder| Lock::Other { holder })
    }

    /// The store and our belief differ: one renewal settles it. It also brings back a key that
    /// vanished under a healthy leader, if nobody took it. (HA-305)
    async fn ask_for_lock(&mut self, shown: Option<MemberName>) -> Lock {
        let before = self.lease.until(self.now());
        let mut shown = shown;
        if before.is_none() {
            // Frozen for long, or only just started: the copy that shows my key may be as old as
            // that, and somebody may have led and gone since. A renewal would bring the key back
            // without a race. (INV-8, INV-17)
            if !self.read_again().await {
                self.because("HA-305", "the key looks like mine, and the store cannot be read now");
                return Lock::Unseen { until: None };
            }
            shown = self.view.leader_name().cloned();
            if shown.as_ref() != Some(self.me()) {
                self.because("HA-305", "the key that looked like mine is not there any more");
                return shown.map_or(Lock::Free, |holder| Lock::Other { holder });
            }
        }
        let known = self.view.clone();
        let asked = self.lease.renew(self.ports, self.store_deadline()).await;
        self.memory.want_latest = true;
        match asked {
            Ok(()) => {
                self.because("HA-305", "the store shows another leader key, and confirms mine");
                let read = self.read_again().await;
                if before.is_some() || self.runs_as_primary_of(&known) {
                    return self.confirmed();
                }
                if !read {
                    self.lease.forget();
                    return Lock::Unseen { until: None };
                }
                if !self.nobody_led_since(&known) {
                    self.because("HA-305", "somebody may have led before the key came back to me");
                    let by = self.store_deadline();
                    // If this fails the key runs out: nothing is believed.
                    let _ = self.lease.release(self.ports, None, by).await;
                    return Lock::Free;
                }
                self.confirmed()
            }
            Err(DcsError::NotOwner { holder }) => {
                self.because("HA-063", "the store says that the key is not mine");
                match (before, holder.or(shown)) {
                    (Some(_), holder) => Lock::Lost { holder },
                    (None, Some(holder)) => Lock::Other { holder },
                    (None, None) => Lock::Free,
                }
            }
            Err(error) => {
                self.because("HA-001", format!("the key could not be asked for: {error}"));
                if broken(Breakage::UnreachableIsLost) {
                    return Lock::Lost { holder: None };
                }
                Lock::Unseen { until: self.lease.until(self.now()) }
            }
        }
    }

    /// A primary that runs here did not stop leading: its guard would have ended it.
    fn runs_as_primary_of(&self, known: &ClusterView) -> bool {
        match &self.pg.server {
            Server::Primary { timeline, .. } => *timeline >= known.history.cluster_timeline(),
            Server::Silent(_) => self.pg.is_primary,
            Server::Down | Server::Starting | Server::Standby(_) => false,
        }
    }

    /// Whoever leads says how far it is, and a promotion leaves a row in the history.
    fn nobody_led_since(&self, known: &ClusterView) -> bool {
        self.view.leader_name() == Some(self.me())
            && self.view.history == known.history
            && self.view.status == known.status
    }

    /// The lock as the last confirmation left it.
    pub fn confirmed(&self) -> Lock {
        match self.lease.until(self.now()) {
            Some(until) => Lock::Mine { until },
            None => Lock::Unseen { until: None },
        }
    }

    /// Is the lock mine as of now? For steps that cannot be taken back. An answer younger than
    /// the time one renewal takes is not asked for twice.
    pub async fn confirm_lock(&mut self) -> bool {
        if self.lease.until(self.now()).is_none() {
            // Somebody may have led since; a renewal would bring the key back without a race. The next
            // turn asks what has become of it. (HA-305, INV-17)
            self.because("HA-305", "the lease ran out before the lock could be confirmed");
            self.lock = Lock::Unseen { until: None };
            self.memory.want_latest = true;
            return false;
        }
        match self.lease.renew(self.ports, self.store_deadline()).await {
            Ok(()) => {
                self.lock = self.confirmed();
                true
            }
            Err(DcsError::NotOwner { holder }) => {
                self.because("HA-063", "the store says that the key is not mine");
                self.lock = Lock::Lost { holder };
                false
            }
            Err(error) => {
                self.because("HA-064", format!("the key could not be renewed: {error}"));
                self.lock = Lock::Unseen { until: self.lease.until(self.now()) };
                false
            }
        }
    }

    /// Gives the key up because another member is the better one to have it, and races for it only after
    /// a ttl. If the store does not hear of it the key runs out: nothing is believed. (HA-083)
    pub async fn give_key_up(&mut self) {
        let by = self.store_deadline();
        let _ = self.lease.release(self.ports, None, by).await;
        self.memory.released_at = Some(self.now());
        self.memory.want_latest = true;
    }

    /// What PostgreSQL is as of now.
    pub async fn observe_again(&mut self) {
        let by = self.deadline(OBSERVE_MS);
        self.pg = self.ports.postgres.observe(by).await;
        self.looked.postgres = self.now();
    }

    pub async fn read_again(&mut self) -> bool {
        let asked = self.now();
        match self.ports.dcs.load(Freshness::Latest, self.store_deadline()).await {
            Ok(view) => {
                self.looked = Looked { asked, answered: self.now(), ..self.looked };
                let view = Arc::new(view);
                remember(self.ports, self.memory, &view);
                self.view = with_promise(self.ports, view, &self.settings.me);
                true
            }
            Err(_) => {
                self.memory.want_latest = true;
                false
            }
        }
    }

    /// Without a renewal something has to be done by now: to ask the members, or to demote.
    fn store_is_missed(&self, until: Millis) -> bool {
        !broken(Breakage::IgnoreLeaseDeadline)
            && self.now() >= failsafe::act_at(&self.settings, until)
    }

    /// The lease ran down while this turn worked, each step within its time: what is left of it is for
    /// the members' promise or the demotion, not for the steps that follow. (HA-304)
    pub fn time_is_up(&self) -> bool {
        match &self.lock {
            Lock::Mine { .. } => match self.lease.until(self.now()) {
                Some(until) => self.store_is_missed(until),
                None => !broken(Breakage::IgnoreLeaseDeadline),
            },
            Lock::Free | Lock::Other { .. } | Lock::Lost { .. } | Lock::Unseen { .. } => false,
        }
    }

    pub fn demotion_is_due(&self, until: Millis) -> bool {
        !broken(Breakage::IgnoreLeaseDeadline)
            && self.now() >= until.minus(Reserve::of(self.settings.timing).demote)
    }

    /// The steps of section 2, in their order.
    pub async fn decide(&mut self) -> Decided {
        if broken(Breakage::HiddenInput) {
            self.because("INV-32", format!("turn {} of this program", hidden()));
        }
        if self.settings.pause {
            return pause::paused(self).await;
        }
        if self.memory.was_paused {
            pause::resumed(self).await; // HA-005
        }
        if self.memory.task.is_some() {
            return self.while_task_runs().await; // HA-009
        }
        if let Lock::Unseen { .. } = self.lock {
            return silence::store_is_silent(self).await;
        }
        self.seed_the_store().await; // HA-007, HA-008
        if self.pg.alive && starting(self.pg.state) {
            if let Some(decided) = start::starting(self).await {
                return decided; // HA-010
            }
        } else {
            self.memory.start_timeout = None; // HA-056
        }
        if self.memory.recovering
            && let Some(decided) = recovery::judge_start(self).await
        {
            return decided; // HA-012
        }
        if let Some(decided) = start::empty_data_dir(self).await {
            return decided; // HA-013
        }
        if let Some(decided) = start::identity(self).await {
            return decided; // HA-014
        }
        if !self.pg.alive {
            return recovery::not_running(self).await; // HA-015
        }
        let decided = match self.lock.clone() {
            Lock::Mine { .. } => {
                let decided = leader::with_lock(self).await;
                restart::when_due(self, decided).await
            }
            Lock::Free => election::without_leader(self).await,
            Lock::Lost { holder } => leader::lost(self, holder),
            Lock::Other { holder } => {
                let decided = follower::follow(self, &holder).await;
                restart::when_due(self, decided).await
            }
            Lock::Unseen { .. } => silence::store_is_silent(self).await,
        };
        self.memory.joined = true;
        decided
    }

    /// Who neither holds the key nor may hold it without knowing can promise again; who holds it as a
    /// primary owes nobody a promise. (HA-018, HA-157)
    fn settle_claim(&mut self, decided: &Decided) {
        let running = self.memory.task.map(|task| task.kind);
        let begins = decided.start.as_ref().map(Task::kind);
        let at_work = running.into_iter().chain(begins).any(Kind::concerns_a_primary);
        match &self.lock {
            Lock::Mine { .. } if self.pg.is_primary => {
                self.memory.raced = None;
                self.ports.promises.forget_promise();
            }
            // Whoever leads a standby cluster says itself how far it is: what differs then is its own
            // doing. (HA-113; the simulator, seed 2587)
            Lock::Mine { .. } if self.memory.standby_leader => self.memory.raced = None,
            Lock::Mine { .. } | Lock::Unseen { .. } => {}
            Lock::Free | Lock::Other { .. } | Lock::Lost { .. } => {
                if !at_work && !self.pg.is_primary {
                    self.ports.promises.disclaim();
                }
            }
        }
    }

    /// HA-160 … HA-164.
    pub async fn while_task_runs(&mut self) -> Decided {
        let Some(task) = self.memory.task else { return Decided::line("no task") };
        let line = Decided::line(format!("{} in progress", task.name));
        leader::task_runs(self, task, line).await
    }

    /// A leader puts back what an operator wiped: the identifier, the configuration.
    pub async fn seed_the_store(&mut self) {
        if !self.i_own_the_lock() {
            return;
        }
        if self.view.system_id().is_none()
            && let Some(mine) = self.pg.system_id.clone()
        {
            self.because("HA-007", "initialize does not hold a system identifier");
            let expect = match self.view.initialize {
                None => hathi_dcs::Expect::Absent,
                Some(_) => hathi_dcs::Expect::Anything,
            };
            // Repeated by the next turn.
            let by = self.store_deadline();
            let _ = self.ports.dcs.write_initialize(mine.as_str(), expect, by).await;
        }
        let absent = self.view.config.as_ref().is_none_or(|config| config.value.is_empty());
        let dynamic = self.ports.configuration.dynamic();
        if absent && !dynamic.is_empty() {
            self.because("HA-008", "/config is absent or empty");
            let by = self.store_deadline();
            let _ = self.ports.dcs.write_config(&dynamic, hathi_dcs::Expect::Anything, by).await;
            self.memory.want_latest = true;
        }
    }

    /// Slots, then the member record. (HA-016, HA-018)
    async fn finish(&mut self, mut decided: Decided) -> Decided {
        if let Some(at) = self.wake {
            decided = decided.again_at(at);
        }
        if self.time_is_up() && decided.start.is_none() {
            return decided.again_at(self.now());
        }
        let idle = self.memory.task.is_none() && decided.start.is_none() && decided.exit.is_none();
        if idle && self.pg.alive {
            decided.start = self.keep_slots().await;
        }
        if decided.start.is_some() {
            // A store that is slow to take the record must not hold up what was decided: the task
            // begins, and the turn after it publishes. (HA-317)
            return decided.again_at(self.now());
        }
        if self.time_is_up() {
            return decided.again_at(self.now());
        }
        if self.view.member(self.me()).is_none() {
            self.memory.published = None; // HA-006
        }
        let with_positions =
            self.memory.task.is_none_or(|task| matches!(task.kind, crate::ha::task::Kind::Promote));
        let settings = self.settings.clone();
        let by = self.store_deadline();
        member::publish(self.ports, self.memory, &settings, &self.pg, with_positions, by).await;
        decided
    }

    /// The slots of this server as they are to be; those that a standby lacks are a task. (HA-016)
    pub async fn keep_slots(&mut self) -> Option<Task> {
        if self.pg.state != State::Running {
            return None;
        }
        let life = self.pg.details.as_ref().map(|details| details.postmaster_start_time.clone());
        // Only where it is known whom slots are for: with a leader, and after the first turn. (PG-267)
        let judged = life.is_none()
            || self.memory.slots_judged == life
            || self.view.leader.is_none()
            || !self.memory.joined
            || self.settings.pause;
        let now = self.now();
        let seen = &mut self.memory.slots_seen;
        let mut plan = slots::plan(&self.settings, &self.view, &self.pg, seen, judged, now);
        if !judged {
            self.memory.slots_judged = life;
        }
        for conflict in std::mem::take(&mut plan.conflicts) {
            self.because("PG-271", conflict);
        }
        if self.settings.pause {
            plan.slots.unwanted.clear(); // HA-137
        }
        if !plan.slots.is_done(&self.pg) {
            // A server that does not answer must not use up what the members promised. (HA-154)
            let by = self.deadline(1_000);
            if let Err(error) = self.ports.postgres.set_slots(&plan.slots, by).await {
                self.because("PG-261", format!("slots could not be brought up to date: {error}"));
            }
        }
        if plan.to_copy.is_empty() || self.settings.pause {
            return None;
        }
        let source = self.upstream(self.view.leader_name()?)?;
        self.because("PG-272", format!("logical slots are copied from {}", source.name));
        Some(Task::CopySlots { source, names: plan.to_copy })
    }

    /// What this turn wrote to `/sync`, for the decisions after it.
    pub fn remember_sync(&mut self, written: Option<(hathi_dcs::Sync, hathi_dcs::Version)>) {
        let mut view = (*self.view).clone();
        view.sync = written.map(|(value, version)| hathi_dcs::Stored { value, version });
        self.view = Arc::new(view);
        // The copy of the watch may be older.
        self.memory.want_latest = true;
    }

    /// Where a member's PostgreSQL is, if it said so.
    pub fn upstream(&self, name: &MemberName) -> Option<Upstream> {
        let conn_url = self.view.member(name)?.data.conn_url.clone()?;
        Some(Upstream { name: name.clone(), conn_url, remote: false })
    }
}

fn starting(state: State) -> bool {
    match state {
        State::Starting | State::BootstrapStarting => true,
        State::Initdb
        | State::InitdbFailed
        | State::CustomBootstrap
        | State::CustomBootstrapFailed
        | State::CreatingReplica
        | State::Running
        | State::StartFailed
        | State::Restarting
        | State::RestartFailed
        | State::Stopping
        | State::Stopped
        | State::StopFailed
        | State::Crashed => false,
    }
}
