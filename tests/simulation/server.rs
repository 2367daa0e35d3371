//! The model of PostgreSQL: a data directory somewhere on the tree of logs, and a postmaster that
//! takes its time, fails, crashes and freezes. What an agent asks of it comes in by
//! `postgres_port.rs`.

use crate::wal::{Stream, Tip};
use crate::world::{MS, World};
use futures::channel::mpsc::UnboundedSender;
use hathi::ha::ports::{ControlState, Stop, StopMode, StopStep};
use hathi::ha::run::Event;
use hathi_dcs::{Lsn, Millis, SystemId};
use std::collections::BTreeSet;

/// What is in the data directory.
#[derive(Clone, Debug)]
pub struct Data {
    pub system_id: SystemId,
    /// Everything flushed here.
    pub tip: Tip,
    pub control: ControlState,
    pub checkpoint: u64,
    pub checkpoint_end: u64,
    pub checkpoint_timeline: u32,
    /// What a standby's control file admits; may lie behind the tip after a crash.
    pub min_recovery: Option<Tip>,
    pub standby_signal: bool,
    pub backup_label: bool,
    /// Whom it streams from.
    pub conninfo: Option<usize>,
    /// Names of its slots.
    pub slots: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Postmaster {
    #[default]
    Down,
    Starting,
    Up,
}

#[derive(Default)]
pub struct Server {
    pub data: Option<Data>,
    pub postmaster: Postmaster,
    pub recovering: bool,
    /// Clients may connect and write; ends when a stop begins to bite.
    pub clients: bool,
    pub frozen: bool,
    /// Grows with each start and each death: what was scheduled for an earlier one is void.
    pub epoch: u64,
    /// Somebody else than the agent started it: the agent takes it as it finds it. (PG-014)
    pub joins: bool,
    /// An operator promoted or started it, in this life of the server.
    pub by_hand: bool,
    pub streaming: bool,
    /// The receiver ran since the start.
    pub received: bool,
    /// A stop is on its way.
    pub stopping: bool,
    pub promoting: bool,
    /// The timeline on which a checkpoint was made since it was promoted.
    pub checkpointed: u32,
    pub stops: Vec<UnboundedSender<StopStep>>,
    /// Where a standby may go in the next tick: as far as its upstream was in the last one.
    pub offered: Option<Tip>,
    pub ready_since: u64,
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// The value in the file, which every reload and every start reads: an earlier one that is late
    /// brings back nothing.
    pub written_names: String,
    /// A client's commit that waits for its confirmation.
    pub waiting: Option<Tip>,
    /// Since when its upstream sends another history under the number of its timeline.
    pub foreign_since: Option<u64>,
}

impl Server {
    pub fn alive(&self) -> bool {
        self.postmaster != Postmaster::Down
    }

    pub fn ready(&self) -> bool {
        self.postmaster == Postmaster::Up
    }

    /// Will it accept commits as soon as it is ready?
    pub fn starts_as_primary(&self) -> bool {
        let standby = self.data.as_ref().is_none_or(|data| data.standby_signal);
        self.postmaster == Postmaster::Starting && !standby
    }

    /// Would a client's commit be accepted now?
    pub fn writable(&self) -> bool {
        self.ready() && !self.recovering && self.clients && !self.frozen
    }
}

const CHECKPOINT_RECORD: u64 = 0x70;

impl World {
    pub fn server(&mut self, node: usize) -> &mut Server {
        &mut self.nodes[node].server
    }

    pub fn tip(&self, node: usize) -> Option<Tip> {
        self.nodes[node].server.data.as_ref().map(|data| data.tip)
    }

    pub fn timeline(&self, node: usize) -> u32 {
        self.tip(node).map_or(0, |tip| self.wal.timeline(tip))
    }

    /// How long something takes on this machine, in microseconds.
    pub fn takes(&mut self, node: usize, low_ms: u64, high_ms: u64) -> u64 {
        let slow = self.nodes[node].slow;
        // Slow, not endless: the quiet end of a run must suffice for a clone.
        (self.random.between(low_ms, high_ms) * slow).min(45_000) * MS
    }

    pub fn fails(&mut self, node: usize) -> bool {
        let failing = self.nodes[node].failing;
        failing > 0 && self.random.percent(failing)
    }

    /// Does it when the server is not frozen, if it is still the same life of the server.
    pub fn when_thawed(
        &mut self,
        node: usize,
        epoch: u64,
        what: impl FnOnce(&mut World) + Send + 'static,
    ) {
        if self.nodes[node].server.epoch != epoch {
            return;
        }
        if self.nodes[node].server.frozen {
            self.after(200 * MS, move |world| world.when_thawed(node, epoch, what));
        } else {
            what(self);
        }
    }

    /// The whole of it is gone at once; what was flushed stays.
    pub fn pg_die(&mut self, node: usize, why: &'static str) {
        if !self.nodes[node].server.alive() {
            return;
        }
        self.say(node, 20, |_| format!("postgres is dead ({why})"));
        let back = self.random.below(20_000);
        let server = &mut self.nodes[node].server;
        server.postmaster = Postmaster::Down;
        server.epoch += 1;
        server.frozen = false;
        server.streaming = false;
        server.received = false;
        server.stopping = false;
        server.promoting = false;
        server.clients = false;
        server.waiting = None;
        server.offered = None;
        for stop in server.stops.drain(..) {
            let _ = stop.unbounded_send(StopStep::Stopped);
        }
        let recovering = server.recovering;
        if let Some(data) = &mut server.data
            && recovering
            && data.control == ControlState::InArchiveRecovery
        {
            let lsn = data.tip.lsn.saturating_sub(back).max(data.checkpoint);
            data.min_recovery = Some(Tip { lsn, ..data.tip });
        }
        self.pg_gone(node);
    }

    fn pg_gone(&mut self, node: usize) {
        let later = self.random.between(1, 8) * MS;
        self.after(later, move |world| world.post(node, Event::PostmasterExited));
    }

    /// Starts the postmaster; it is ready after a while. `None`: it will die instead.
    pub fn pg_start(&mut self, node: usize, as_primary: bool, upstream: Option<usize>) -> u64 {
        let dirty = {
            let server = &mut self.nodes[node].server;
            server.epoch += 1;
            server.postmaster = Postmaster::Starting;
            server.by_hand = false;
            server.clients = false;
            server.recovering = true;
            server.stopping = false;
            server.promoting = false;
            server.streaming = false;
            server.received = false;
            server.waiting = None;
            if !as_primary {
                server.written_names.clear(); // PG-288
            }
            server.names.clone_from(&server.written_names);
            let Some(data) = &mut server.data else { return 0 };
            data.standby_signal = !as_primary;
            data.conninfo = if as_primary { None } else { upstream };
            let clean =
                matches!(data.control, ControlState::ShutDown | ControlState::ShutDownInRecovery);
            data.control = match (as_primary, clean) {
                (false, _) => ControlState::InArchiveRecovery,
                (true, true) => ControlState::StartingUp,
                (true, false) => ControlState::InCrashRecovery,
            };
            !clean
        };
        self.say(node, 21, |_| {
            format!("postgres starts as {}", if as_primary { "primary" } else { "standby" })
        });
        let mut wait = self.takes(node, 100, 600);
        if dirty {
            wait += self.takes(node, 100, 2_000);
        }
        let dies = self.fails(node);
        let epoch = self.nodes[node].server.epoch;
        self.after(wait, move |world| {
            world.when_thawed(node, epoch, move |world| {
                if dies {
                    world.pg_die(node, "it could not start");
                } else {
                    world.pg_ready(node, as_primary);
                }
            });
        });
        epoch
    }

    fn pg_ready(&mut self, node: usize, as_primary: bool) {
        if self.nodes[node].server.stopping {
            return;
        }
        let now = self.now_us;
        let server = &mut self.nodes[node].server;
        server.postmaster = Postmaster::Up;
        server.ready_since = now;
        server.clients = true;
        server.recovering = !as_primary;
        if let Some(data) = &mut server.data {
            data.backup_label = false;
            data.min_recovery = None;
            if as_primary {
                data.control = ControlState::InProduction;
            }
        }
        if as_primary {
            self.write_checkpoint(node);
        }
        self.say(node, 22, |world| {
            let role = if as_primary { "primary" } else { "standby" };
            format!("postgres is ready as {role}, timeline {}", world.timeline(node))
        });
        self.check_writers();
    }

    /// Writes a checkpoint record at the end of the log.
    pub fn write_checkpoint(&mut self, node: usize) {
        let timeline = self.timeline(node);
        let server = &mut self.nodes[node].server;
        server.checkpointed = timeline;
        if let Some(data) = &mut server.data {
            data.checkpoint = data.tip.lsn;
            data.tip.lsn += CHECKPOINT_RECORD;
            data.checkpoint_end = data.tip.lsn;
            data.checkpoint_timeline = timeline;
        }
    }

    /// Sends the signal. The steps are told to whoever listens.
    pub fn pg_stop(&mut self, node: usize, how: Stop, steps: UnboundedSender<StopStep>) {
        if !self.nodes[node].server.alive() {
            let _ = steps.unbounded_send(StopStep::Stopped);
            return;
        }
        self.check_stop(node, how);
        let mode = if how.mode == StopMode::Fast { "fast" } else { "immediate" };
        self.say(node, 23, |_| format!("postgres is told to stop ({mode})"));
        let epoch = self.nodes[node].server.epoch;
        self.nodes[node].server.stops.push(steps);
        self.nodes[node].server.stopping = true;
        match how.mode {
            StopMode::Immediate => self.stop_now(node, epoch),
            StopMode::Fast => {
                let first = if how.checkpoint { self.takes(node, 20, 300) } else { 0 };
                let begin = self.random.between(5, 60) * MS;
                self.after(first + begin, move |world| {
                    world.when_thawed(node, epoch, move |world| world.stop_clients(node, epoch));
                });
            }
        }
        if let Some(at) = how.immediate_at {
            let at = self.true_at(node, at);
            let life = self.nodes[node].agent.as_ref().map(|agent| agent.life);
            self.at(at, move |world| world.stop_after_all(node, epoch, life));
        }
    }

    /// The second signal comes from the agent that sent the first, if it is there and runs.
    fn stop_after_all(&mut self, node: usize, epoch: u64, life: Option<u64>) {
        let agent = self.nodes[node].agent.as_ref();
        match agent.filter(|agent| Some(agent.life) == life) {
            Some(agent) if agent.frozen => {
                self.after(200 * MS, move |world| world.stop_after_all(node, epoch, life));
            }
            Some(_) => self.stop_now(node, epoch),
            None => {}
        }
    }

    fn stop_now(&mut self, node: usize, epoch: u64) {
        if self.nodes[node].server.epoch != epoch {
            return;
        }
        // A frozen one needs the second signal.
        let frozen = self.nodes[node].server.frozen;
        let wait = if frozen { 1_000 * MS } else { self.random.between(5, 50) * MS };
        self.after(wait, move |world| {
            if world.nodes[node].server.epoch == epoch {
                world.pg_die(node, "stopped immediately");
            }
        });
    }

    fn stop_clients(&mut self, node: usize, epoch: u64) {
        self.nodes[node].server.clients = false;
        self.nodes[node].server.waiting = None;
        self.say(node, 24, |_| "postgres has no clients any more".into());
        for stop in &self.nodes[node].server.stops {
            let _ = stop.unbounded_send(StopStep::SafePoint);
        }
        let wait = self.takes(node, 30, 500);
        self.after(wait, move |world| {
            world.when_thawed(node, epoch, move |world| world.stop_written(node, epoch));
        });
    }

    fn stop_written(&mut self, node: usize, epoch: u64) {
        if self.nodes[node].server.recovering {
            if let Some(data) = &mut self.nodes[node].server.data {
                data.control = ControlState::ShutDownInRecovery;
                data.min_recovery = Some(data.tip);
            }
        } else {
            let before = self.tip(node);
            self.write_checkpoint(node);
            // The senders go last: whoever streams has everything.
            for standby in 0..self.members() {
                self.stream_to(standby, true);
            }
            if let Some(before) = before {
                self.note_clean_shutdown(node, before);
            }
            if let Some(data) = &mut self.nodes[node].server.data {
                data.control = ControlState::ShutDown;
                let checkpoint = Lsn(data.checkpoint);
                for stop in &self.nodes[node].server.stops {
                    let step = StopStep::ShutDown { checkpoint, previous: checkpoint };
                    let _ = stop.unbounded_send(step);
                }
            }
        }
        let wait = self.takes(node, 5, 60);
        self.after(wait, move |world| {
            if world.nodes[node].server.epoch == epoch {
                world.pg_stopped(node);
            }
        });
    }

    fn pg_stopped(&mut self, node: usize) {
        self.say(node, 25, |_| "postgres is stopped".into());
        let server = &mut self.nodes[node].server;
        server.postmaster = Postmaster::Down;
        server.epoch += 1;
        server.stopping = false;
        server.streaming = false;
        server.received = false;
        server.offered = None;
        for stop in server.stops.drain(..) {
            let _ = stop.unbounded_send(StopStep::Stopped);
        }
        self.pg_gone(node);
    }

    /// The end of recovery.
    pub fn pg_promoted(&mut self, node: usize) {
        let Some(at) = self.tip(node) else { return };
        let branch = self.wal.fork(at);
        let server = &mut self.nodes[node].server;
        server.recovering = false;
        server.streaming = false;
        server.promoting = false;
        server.offered = None;
        if let Some(data) = &mut server.data {
            data.tip = Tip { branch, lsn: at.lsn + 0x50 };
            data.control = ControlState::InProduction;
            data.standby_signal = false;
            data.conninfo = None;
        }
        self.say(node, 26, |world| {
            format!("postgres is promoted, timeline {} from {}", world.timeline(node), Lsn(at.lsn))
        });
        self.check_promoted(node, at);
        self.check_writers();
    }

    /// Does the standby stream, and how far? `drain`: the sender is shutting down and sends all.
    fn stream_to(&mut self, standby: usize, drain: bool) {
        let server = &self.nodes[standby].server;
        let follows = server.data.as_ref().and_then(|data| data.conninfo);
        let wants = server.ready() && server.recovering && !server.frozen;
        let (Some(upstream), true) = (follows, wants) else {
            self.nodes[standby].server.streaming = false;
            self.nodes[standby].server.offered = None;
            return;
        };
        let sender = &self.nodes[upstream].server;
        let reachable = sender.ready()
            && !sender.frozen
            && (sender.clients || drain)
            && self.connected(standby, upstream);
        let (Some(from), Some(to), true) = (self.tip(upstream), self.tip(standby), reachable)
        else {
            self.nodes[standby].server.streaming = false;
            self.nodes[standby].server.offered = None;
            return;
        };
        let same_system = self.nodes[standby].server.data.as_ref().map(|data| &data.system_id)
            == self.nodes[upstream].server.data.as_ref().map(|data| &data.system_id);
        let verdict = if same_system { self.wal.stream(from, to) } else { Stream::Refuses };
        match verdict {
            Stream::Sends => {
                let offered = self.nodes[standby].server.offered.replace(from);
                let go_to = if drain { Some(from) } else { offered };
                let server = &mut self.nodes[standby].server;
                server.streaming = true;
                server.received = true;
                if let Some(go_to) = go_to
                    && self.wal.holds(from, go_to)
                    && self.wal.holds(go_to, to)
                    && let Some(data) = &mut self.nodes[standby].server.data
                {
                    data.tip = go_to;
                }
            }
            Stream::Refuses => {
                self.nodes[standby].server.streaming = false;
                self.nodes[standby].server.offered = None;
            }
            // The bytes that come do not continue what is there: replay stops at the first record.
            Stream::SendsAnotherHistory => {
                let server = &mut self.nodes[standby].server;
                server.streaming = false;
                server.offered = None;
                let twins = self.wal.are_twins(from, to);
                self.check_foreign_history(standby, upstream, twins);
                return;
            }
        }
        self.nodes[standby].server.foreign_since = None;
    }

    /// Ten times a second: clients write, standbys receive, guards look at the clock.
    pub fn tick(&mut self) {
        self.after(100 * MS, Self::tick);
        for node in 0..self.members() {
            self.fence_tick(node);
        }
        for node in 0..self.members() {
            if self.nodes[node].server.writable() {
                self.client_writes(node);
            }
        }
        self.remote_writes();
        for node in 0..self.members() {
            self.stream_to(node, false);
        }
        for node in 0..self.members() {
            self.client_hears(node);
        }
        self.check_tick();
    }

    /// The guard: a process of its own, with the agent's last word on the lease.
    pub fn fence_tick(&mut self, node: usize) {
        let Some(until) = self.nodes[node].fence else { return };
        if self.nodes[node].suspended || self.local(node) < until {
            return;
        }
        self.nodes[node].fence = None;
        if self.is_patroni(node) {
            return self.reset_patroni(node);
        }
        if self.nodes[node].server.alive() {
            self.say(node, 27, |_| "GUARD kills postgres: the lease ends".into());
            self.check_fence_fired(node);
            self.pg_die(node, "killed by the guard");
        }
    }

    /// The guard looks exactly when the deadline comes.
    pub fn arm_fence(&mut self, node: usize, until: Millis) {
        self.nodes[node].fence = Some(until);
        let at = self.true_at(node, until);
        if at > self.now_us + 100 * MS {
            self.at(at, move |world| world.fence_tick(node));
        } else {
            self.fence_tick(node);
        }
    }

    pub fn new_system_id(&mut self) -> SystemId {
        let number = 7_000_000_000_000_000_000 + self.random.below(1_000_000_000_000);
        SystemId::parse(&number.to_string()).expect("nineteen digits")
    }

    /// initdb.
    pub fn fresh_data(&mut self) -> Data {
        let branch = self.wal.plant();
        Data {
            system_id: self.new_system_id(),
            tip: Tip { branch, lsn: 0x300_0000 },
            control: ControlState::ShutDown,
            checkpoint: 0x2FF_FF90,
            checkpoint_end: 0x300_0000,
            checkpoint_timeline: 1,
            min_recovery: None,
            standby_signal: false,
            backup_label: false,
            conninfo: None,
            slots: BTreeSet::new(),
        }
    }
}
