//! What must hold, judged by the truth that only the world knows. (section 21 of ha-loop.md)

use crate::wal::Tip;
use crate::world::{MS, Process, SECOND, World};
use hathi::ha::ports::{Stop, StopMode};
use hathi::ha::run::Exit;
use hathi_dcs::{Lsn, Timeline};
use std::collections::BTreeMap;

/// What the checks remember.
#[derive(Default)]
pub struct Watched {
    pub can_rewind: bool,
    /// The guard is not there: a run that shows what it is for.
    pub fence_broken: bool,
    /// How many requests operators wrote, and how many graceful demotions there were. (INV-24)
    pub requests: u64,
    pub requested_at: u64,
    pub orders: crate::operators::Orders,
    graceful: u64,
    epoch_optime: Lsn,
    /// Branch to the last acknowledged commit on it, with its time and node.
    acknowledged: BTreeMap<usize, (u64, u64, usize)>,
    pub commits: u64,
    pub promotions: u64,
    /// Turns are recorded and run again.
    pub recorded: bool,
    pub replayed: u64,
    pub lost_bytes: u64,
    /// The last planned stop of a primary after which nothing may be missing.
    clean: Option<(usize, u64, Tip)>,
    without_lock_since: BTreeMap<usize, u64>,
    /// The store itself broke its promise at this time: a lease was revoked.
    pub revoked_at: Option<u64>,
    /// Until then a primary may believe in a lease that the store took from it.
    pub apart_until: u64,
    /// The links of the network have been as they are since then.
    pub network_since: u64,
    /// The run ended with nobody whom the rules allow to lead: an operator must decide.
    pub nobody_eligible: bool,
    pub promises: crate::failsafe::Promises,
    /// Two promotions that PostgreSQL itself cannot tell apart; the run ended there.
    pub twins: bool,
    pub confirmed: crate::synchronous::Confirmed,
    pub pause: crate::pause::Pause,
    /// Who got the key last and should not have: it is not yet promoted.
    pub unfit: Option<(usize, &'static str)>,
    /// The identifiers that clusters got.
    pub founded: std::collections::BTreeSet<String>,
    /// A member of Patroni's broke a rule by its own: what follows from it is not ours.
    pub patroni_broke: bool,
    pub twins_in_failsafe: crate::patroni_failsafe::Twins,
    /// When an operator's request was last written.
    pub request_at: Option<u64>,
}

impl Watched {
    pub fn new_epoch(&mut self) {
        self.epoch_optime = Lsn(0);
    }

    pub fn acknowledged(&mut self, node: usize, tip: Tip, now: u64) {
        self.commits += 1;
        self.acknowledged.insert(tip.branch, (tip.lsn, now, node));
    }
}

impl World {
    fn name(&self, node: usize) -> String {
        self.nodes[node].name.to_string()
    }

    fn holds_key(&self, node: usize) -> bool {
        self.store.leader.as_ref().is_some_and(|held| held.name == self.nodes[node].name)
    }

    fn believes(&self, node: usize) -> bool {
        let now = self.local(node);
        self.nodes[node].agent.as_ref().is_some_and(|agent| agent.lease.until(now).is_some())
    }

    /// The ttl its agent lives with; of one that is dead, the one it lived with.
    pub fn ttl_us(&self, node: usize) -> u64 {
        let machine = &self.nodes[node];
        if let Some(agent) = &machine.agent {
            return agent.settings.timing.ttl_ms() * MS;
        }
        let left = machine.cached.as_ref().and_then(|dynamic| dynamic.get("ttl")?.as_u64());
        left.map_or(self.base.timing.ttl_ms(), |seconds| seconds * 1000) * MS
    }

    pub fn store_kept_its_promise(&self) -> bool {
        let long_ago = self.watched.revoked_at.is_none_or(|at| at + 45 * SECOND < self.now_us);
        long_ago && self.now_us > self.watched.apart_until
    }

    /// INV-2.
    pub fn check_writers(&mut self) {
        let writers: Vec<String> = (0..self.members())
            .filter(|node| self.nodes[*node].server.writable() && !self.in_hands(*node))
            .map(|node| self.name(node))
            .collect();
        let excused = self.now_us < self.watched.apart_until;
        if writers.len() > 1 && !excused && (!self.watched.fence_broken || self.watchdogs.fences())
        {
            self.violation(
                "INV-2",
                format!("{} accept writes at the same time", writers.join(" and ")),
            );
        }
    }

    /// INV-4, INV-28, and INV-2 once more.
    pub fn check_tick(&mut self) {
        self.check_writers();
        self.check_order();
        for node in 0..self.members() {
            self.check_belief(node);
            self.check_licence(node);
        }
        self.check_watchdogs();
        self.check_standby_tick();
    }

    fn check_belief(&mut self, node: usize) {
        let Some(agent) = &self.nodes[node].agent else { return };
        let Some(until) = agent.lease.confirmed_until(self.local(node)) else { return };
        if !self.store_kept_its_promise() {
            return;
        }
        let until = self.true_at(node, until);
        let ends = if self.holds_key(node) { self.store.leader_until() } else { None };
        if ends.is_none_or(|ends| until > ends + MS) {
            let ms = |us: u64| us / MS;
            let what = format!(
                "{} believes in its lease until {} ms, the store ends it at {:?}",
                self.name(node),
                ms(until),
                ends.map(ms)
            );
            self.violation("INV-28", what);
        }
    }

    fn check_licence(&mut self, node: usize) {
        let bootstrapping =
            self.nodes[node].agent.as_ref().is_some_and(|agent| agent.tasks.contains(&"bootstrap"));
        let now = self.local(node);
        let licensed = self.nodes[node]
            .agent
            .as_ref()
            .is_some_and(|agent| agent.lease.licensed_until(now).is_some());
        let fine = self.holds_key(node)
            || bootstrapping
            || licensed
            || self.twin_is_licensed(node)
            || self.in_hands(node);
        if !self.nodes[node].server.writable() || fine {
            self.watched.without_lock_since.remove(&node);
            return;
        }
        let now = self.now_us;
        let since = *self.watched.without_lock_since.entry(node).or_insert(now);
        let alone = now - since;
        let may_know = !self.is_patroni(node)
            && self.is_healthy(node, 12 * SECOND)
            && self.sees_store(node)
            && self.store.lose_requests + self.store.lose_answers + self.store.slow_ms == 0
            && self.last_fault_at + 12 * SECOND < now;
        let guarded = !self.watched.fence_broken;
        if (guarded && alone > self.ttl_us(node) + 3 * SECOND) || (may_know && alone > 12 * SECOND)
        {
            let what = format!(
                "{} accepts writes without the lock for {} ms",
                self.name(node),
                alone / MS
            );
            self.violation("INV-4", what);
        }
    }

    /// INV-3.
    pub fn check_promote(&mut self, node: usize) {
        self.check_watched(node);
        self.check_standby_promotes(node);
        if let Some((_, what)) = self.watched.unfit.filter(|(unfit, _)| *unfit == node) {
            let what = format!("{} is promoted and was not {what}", self.name(node));
            return self.violation_by(node, "INV-13", what);
        }
        if self.is_patroni(node) {
            if !self.holds_key(node) {
                let what = format!("{} promotes without the leader key", self.name(node));
                self.violation_by(node, "INV-3", what);
            }
        } else if !self.believes(node) {
            let what = format!("{} promotes and does not hold the lock", self.name(node));
            self.violation("INV-3", what);
        } else if !self.holds_key(node) && self.store_kept_its_promise() {
            let what = format!("{} promotes without the leader key in the store", self.name(node));
            self.violation("INV-3", what);
        }
    }

    /// INV-17, INV-8, and that planned changes lose nothing.
    pub fn check_promoted(&mut self, node: usize, at: Tip) {
        self.forget_promise_of(node);
        self.watched.promotions += 1;
        if self.remote.is_some_and(|remote| remote.demoted) {
            self.watched.confirmed.forget();
        }
        self.check_synchronous_promotion(node, at);
        let timeline = Timeline(self.timeline(node));
        let cluster = self.store.history.cluster_timeline();
        // What `/history` holds in a standby cluster is of its former life. (HA-117)
        if self.somebody_in_hands() || self.remote.is_some() {
            self.watched.clean = None;
            return;
        }
        // Without a guard nobody stops a promotion whose agent is frozen.
        let alone = self.watched.fence_broken && !self.is_healthy(node, SECOND);
        if timeline <= cluster && self.base.check_timeline && cluster.0 > 1 && !alone {
            let what = format!(
                "{} is promoted to timeline {timeline}, the cluster's history is at {cluster}",
                self.name(node)
            );
            self.violation_by(node, "INV-17", what);
        }
        let lost = self.watched.acknowledged.iter().filter_map(|(branch, (lsn, _, _))| {
            let end = Tip { branch: *branch, lsn: *lsn };
            (*branch == at.branch && !self.wal.holds(at, end)).then(|| lsn - at.lsn)
        });
        let lost: u64 = lost.sum();
        self.watched.lost_bytes += lost;
        if let Some((from, when, tip)) = self.watched.clean.take()
            && from != node
            && self.active_faults == 0
            && self.last_fault_at + 10 * SECOND < when
            && !self.wal.holds(at, tip)
        {
            let what = format!(
                "{} takes over from {} after a planned stop and lacks acknowledged rows",
                self.name(node),
                self.name(from)
            );
            self.violation_by(node, "INV-8", what);
        }
    }

    /// A primary has written its shutdown checkpoint and its senders are done.
    pub fn note_clean_shutdown(&mut self, node: usize, tip: Tip) {
        let somebody = (0..self.members()).any(|other| {
            let machine = &self.nodes[other];
            other != node
                && !machine.nofailover
                && machine.server.streaming
                && machine.agent.is_some()
                && self.tip(other).is_some_and(|have| self.wal.holds(have, tip))
        });
        self.watched.clean = somebody.then_some((node, self.now_us, tip));
    }

    /// INV-14, as far as the one who asks knows.
    pub fn check_race(&mut self, process: Process) {
        let node = process.node;
        let Some(agent) = self.agent(process) else { return };
        let standby = self.nodes[node].server.recovering;
        if let Some(peer) = &agent.saw_primary
            && standby
        {
            let what =
                format!("{} races although {peer} said that it is a primary", self.name(node));
            self.violation_by(node, "INV-14", what);
        }
    }

    /// The store gives the key: was this the one to have it? (INV-8, INV-13, INV-14, INV-17)
    pub fn check_acquire(&mut self, node: usize) {
        self.watched.unfit = None;
        self.note_elected(node);
        self.check_may_lead(node);
        self.check_promise(node);
        self.check_synchronous_acquire(node);
        if self.somebody_in_hands() {
            return;
        }
        let machine = &self.nodes[node];
        let (Some(tip), Some(agent)) = (self.tip(node), &machine.agent) else { return };
        let cluster = self.store.history.cluster_timeline();
        if !machine.server.recovering && self.remote.is_none() {
            if machine.server.ready() && self.timeline(node) < cluster.0 {
                let what =
                    format!("{} is a primary of an old timeline and gets the key", self.name(node));
                self.violation_by(node, "INV-17", what);
            }
            return;
        }
        if machine.nofailover {
            let what = format!("{} is tagged nofailover and gets the key", self.name(node));
            self.violation_by(node, "INV-13", what);
            return;
        }
        let manual = self.store.failover.as_ref().is_some_and(|(request, _)| !request.is_empty());
        let behind = self.store.status.optime.0.saturating_sub(tip.lsn);
        let most = agent.settings.maximum_lag_on_failover;
        if behind > most && !manual {
            let what = format!(
                "{} gets the key {behind} bytes behind the leader's last position; {most} are allowed",
                self.name(node)
            );
            self.violation_by(node, "INV-8", what);
            return;
        }
        // What it heard of the others is older than its request.
        let old = 6 * SECOND + 2 * self.store.slow_ms * MS;
        if manual || self.watched.network_since + old > self.now_us {
            return;
        }
        for peer in 0..self.members() {
            let other = &self.nodes[peer];
            let member = self.store.members.contains_key(&other.name);
            if peer == node
                || !member
                || other.foreign
                || self.watchdog_failed(peer)
                || !self.connected(node, peer)
                || !self.is_healthy(peer, old)
                || !self.is_healthy(node, old)
                || other.server.frozen
                || !other.server.ready()
                || other.server.ready_since + old > self.now_us
            {
                continue;
            }
            let (us, them) = (self.name(node), self.name(peer));
            if other.server.writable() && !other.server.stopping {
                self.violation_by(
                    node,
                    "INV-14",
                    format!("{us} gets the key while {them} is a live primary"),
                );
                return;
            }
            let ahead = self
                .tip(peer)
                .is_some_and(|theirs| theirs.branch == tip.branch && theirs.lsn > tip.lsn + 20_000);
            // Nobody waits for one that the records keep from winning. (8.2, HA-092)
            let may_win = self.may_be_elected(peer) && !self.is_outside_the_map(peer);
            // Nor for one that stops: its REST API says that no PostgreSQL runs there.
            let answers = other.server.recovering && other.server.clients;
            // In a standby cluster the others' logs go on without a leader, after they were asked as well.
            let stands_still = self.remote.is_none();
            let waits = ahead && may_win && !other.nofailover && answers && stands_still;
            if waits && !other.server.streaming {
                self.violation_by(
                    node,
                    "HA-095",
                    format!("{us} gets the key while {them} is further ahead"),
                );
                return;
            }
        }
    }

    /// INV-23.
    pub fn check_release(&mut self, node: usize) {
        let server = &self.nodes[node].server;
        if server.ready() && !server.recovering && server.clients && !self.in_hands(node) {
            let what = format!("{} gives the key up while its clients write", self.name(node));
            self.violation_by(node, "INV-23", what);
        }
    }

    /// INV-29.
    pub fn check_status(&mut self, node: usize, optime: Lsn) {
        let primary = !self.nodes[node].server.recovering && self.nodes[node].server.ready();
        if primary && self.tip(node).is_some_and(|tip| optime.0 > tip.lsn) {
            let what = format!("{} writes optime {optime} and is not there", self.name(node));
            self.violation_by(node, "INV-29", what);
        }
        // A standby leader is as far as the remote primary, which may fail over.
        let may_go_back = self.remote.is_some();
        if self.holds_key(node) && optime < self.watched.epoch_optime && !may_go_back {
            let what = format!("optime goes back from {} to {optime}", self.watched.epoch_optime);
            self.violation_by(node, "INV-29", what);
        }
        self.watched.epoch_optime = optime;
    }

    /// INV-24, INV-31.
    pub fn check_stop(&mut self, node: usize, how: Stop) {
        let server = &self.nodes[node].server;
        let primary = server.ready() && !server.recovering;
        match how.mode {
            StopMode::Fast
                if how.checkpoint
                    && primary
                    && !self.runs(node, "restart")
                    && !self.in_hands(node) =>
            {
                self.watched.graceful += 1;
                if self.watched.graceful > self.watched.requests {
                    let what = format!("{} demotes itself for a request twice", self.name(node));
                    self.violation_by(node, "INV-24", what);
                }
            }
            // A start that took too long may have ended while the turn decided that. (HA-058)
            StopMode::Immediate
                if server.writable() && server.ready_since + 5 * SECOND < self.now_us =>
            {
                let left = self.store.leader_until().unwrap_or(0).saturating_sub(self.now_us);
                let bootstrapping = self.nodes[node]
                    .agent
                    .as_ref()
                    .is_some_and(|agent| agent.tasks.contains(&"bootstrap"));
                // What an operator promoted without its watchdog may not stay. (HA-100)
                let unwatched = self.in_hands(node) && self.watchdog_failed(node);
                // Nor what reaches its disk no more. (HA-314)
                let dead_disk = self.nodes[node].disk_hangs_since.is_some();
                if self.holds_key(node)
                    && !bootstrapping
                    && !unwatched
                    && !dead_disk
                    // The reserve, what is not believed of a lease, and a clock that is as much off.
                    && left > self.ttl_us(node) / 6 + self.ttl_us(node) / 10 + 2 * SECOND
                {
                    let what = format!(
                        "{} is killed immediately with {} ms of its lease left",
                        self.name(node),
                        left / MS
                    );
                    self.violation_by(node, "INV-31", what);
                }
            }
            StopMode::Fast if primary && !how.checkpoint && how.immediate_at.is_some() => {
                self.check_failsafe_held(node);
            }
            StopMode::Fast | StopMode::Immediate => {}
        }
    }

    fn runs(&self, node: usize, task: &'static str) -> bool {
        self.nodes[node].agent.as_ref().is_some_and(|agent| agent.tasks.contains(&task))
    }

    /// INV-5: the guard is for agents that cannot act; a healthy one stops PostgreSQL itself.
    pub fn check_fence_fired(&mut self, node: usize) {
        self.check_paused_fence(node);
        // An agent that just came may not know yet whether the lock is its own; and a stop for a
        // switchover may take longer than the lease. A restart ends before it does. (HA-163)
        let server = &self.nodes[node].server;
        let hands_over = server.stopping && !self.runs(node, "restart");
        let writes = server.writable() || server.starts_as_primary();
        if self.is_healthy(node, self.ttl_us(node)) && writes && !hands_over {
            let what = format!("the guard of {} had to act for a healthy agent", self.name(node));
            self.violation("INV-5", what);
        }
    }

    /// INV-18.
    pub fn check_task(&mut self, node: usize, name: &'static str) {
        const BESIDE: &str = "checkpoint after promotion";
        self.check_ordered(node, name);
        self.check_paused_task(node, name);
        let Some(agent) = &self.nodes[node].agent else { return };
        let other = agent.tasks.iter().find(|task| **task != BESIDE && name != BESIDE);
        if let Some(other) = other {
            let what = format!("{} begins \"{name}\" while \"{other}\" runs", self.name(node));
            self.violation("INV-18", what);
        }
    }

    /// INV-19.
    pub fn check_start_as_primary(&mut self, node: usize) {
        let licensed =
            if self.is_patroni(node) { self.holds_key(node) } else { self.believes(node) };
        if !licensed && !self.in_hands(node) {
            let what = format!("{} starts as a primary without the lock", self.name(node));
            self.violation_by(node, "INV-19", what);
        }
    }

    /// INV-20, and that the last copy stays.
    pub fn check_removal(&mut self, node: usize, what: &'static str) {
        let Some(data) = &self.nodes[node].server.data else { return };
        let cluster = self.store.initialize.as_ref().map(|(value, _)| value.as_str());
        let valid = cluster == Some(data.system_id.as_str());
        if self.holds_key(node) && self.believes(node) && valid {
            let text =
                format!("{} owns the lock and its data directory is {what}", self.name(node));
            self.violation("INV-20", text);
            return;
        }
        let copies = self.nodes.iter().enumerate().filter(|(other, machine)| {
            let theirs = machine.server.data.as_ref();
            *other != node && theirs.is_some_and(|theirs| theirs.system_id == data.system_id)
        });
        // A cluster that is not finished has nothing to lose. (HA-032)
        let unborn = self.runs(node, "bootstrap");
        if copies.count() == 0 && valid && !unborn {
            let text = format!("the last copy, on {}, is {what}", self.name(node));
            self.violation("LAST-COPY", text);
        }
    }

    /// INV-21.
    pub fn check_effect(&mut self, node: usize, what: &'static str) {
        let Some(data) = &self.nodes[node].server.data else { return };
        let Some((cluster, _)) = &self.store.initialize else { return };
        // An operator's order to copy the cluster in its place. (HA-055)
        if self.runs(node, "reinitialize") {
            return;
        }
        if !cluster.is_empty() && *cluster != data.system_id.as_str() {
            let text = format!("{what} on {}, which holds another cluster's data", self.name(node));
            self.violation("INV-21", text);
        }
    }

    /// INV-22.
    pub fn check_bootstrap(&mut self, node: usize) {
        let others = (0..self.members()).filter(|other| *other != node);
        let busy: Vec<String> = others
            .filter(|other| {
                let agent = self.nodes[*other].agent.as_ref();
                agent.is_some_and(|agent| agent.tasks.contains(&"bootstrap"))
            })
            .map(|other| self.name(other))
            .collect();
        if !busy.is_empty() {
            let text = format!("{} bootstraps while {} does", self.name(node), busy.join(", "));
            self.violation("INV-22", text);
        }
    }

    /// The agent that was demoting for a request died; its next life may begin anew.
    pub fn forgive_graceful(&mut self, node: usize) {
        let agent = self.nodes[node].agent.as_ref();
        if agent.is_some_and(|agent| agent.tasks.contains(&"switchover: demote")) {
            self.watched.graceful = self.watched.graceful.saturating_sub(1);
        }
    }

    /// INV-30.
    pub fn check_rewind_source(&mut self, source: Option<usize>) {
        let Some(source) = source else { return };
        let server = &self.nodes[source].server;
        let running = server.ready() && !server.recovering;
        if running && server.checkpointed != self.timeline(source) {
            let what = format!("rewind to {} before its checkpoint", self.name(source));
            self.violation("INV-30", what);
        }
    }

    /// Two nodes wrote a timeline of the same number, and one now follows the other. Where even the
    /// history files agree nobody can know; that is counted, and the run ends there. Otherwise the
    /// standby's agent finds out as soon as it can look.
    pub fn check_foreign_history(&mut self, standby: usize, upstream: usize, twins: bool) {
        let what = format!(
            "{} streams from {} a timeline {} that is not its own",
            self.name(standby),
            self.name(upstream),
            self.timeline(standby)
        );
        let now = self.now_us;
        let since = *self.nodes[standby].server.foreign_since.get_or_insert(now);
        let long = self.ttl_us(standby);
        let may_act = self.is_healthy(standby, long)
            && self.sees_store(standby)
            && self.active_faults == 0
            && self.last_fault_at + long < now;
        if twins {
            self.say(standby, 70, |_| format!("{what}, and nobody can know"));
            self.watched.twins = true;
        } else if may_act && since + long < now && !self.somebody_in_hands() {
            self.violation("INV-17", what);
        }
    }

    /// Only what is not of this cluster is fatal for an agent.
    pub fn check_exit(&mut self, node: usize, exit: &Exit) {
        let bootstrapped =
            self.store.initialize.as_ref().is_some_and(|(value, _)| !value.is_empty());
        let unfinished = self.nodes[node]
            .server
            .data
            .as_ref()
            .is_some_and(|data| !self.watched.founded.contains(data.system_id.as_str()));
        if let (Exit::Fatal(_), true) = (exit, bootstrapped && unfinished) {
            // It was taken for dead while it created a cluster; what it has is nobody's. (HA-308)
            if std::mem::replace(&mut self.nodes[node].foreign, true) {
                return;
            }
            self.count("data of an abandoned bootstrap left to the operator");
            return;
        }
        if let Exit::Fatal(why) = exit
            && bootstrapped
            && !self.nodes[node].foreign
            && !why.contains("bootstrap")
            && !why.contains("could not be stopped")
        {
            let what = format!("{} gives up: {why}", self.name(node));
            self.violation("INV-21", what);
        }
    }

    /// May it win a race by the rules, whatever the others are? (HA-089, HA-095 a, b)
    pub fn is_eligible(&self, node: usize) -> bool {
        let machine = &self.nodes[node];
        let (Some(tip), Some(agent)) = (self.tip(node), &machine.agent) else { return false };
        let old = self.wal.timeline(tip) < self.store.history.cluster_timeline().0;
        let behind = self.store.status.optime.0.saturating_sub(tip.lsn);
        // A member of Patroni's waits for whoever has the longer log, on whatever timeline. (HA-322)
        let longer = |peer: usize| {
            let ready = self.nodes[peer].server.ready() && !self.nodes[peer].nofailover;
            peer != node && ready && self.tip(peer).is_some_and(|theirs| theirs.lsn > tip.lsn)
        };
        // One of ours waits for whoever is on a later timeline; a member of Patroni's there may wait for it.
        let later = |peer: usize| {
            let machine = &self.nodes[peer];
            let may_win = self.is_patroni(peer) && machine.server.ready() && !machine.nofailover;
            may_win
                && self.tip(peer).is_some_and(|theirs| {
                    let lags = self.store.status.optime.0.saturating_sub(theirs.lsn)
                        > agent.settings.maximum_lag_on_failover;
                    let place = |tip: Tip| (self.wal.timeline(tip), tip.lsn);
                    !lags && place(theirs) > place(tip)
                })
        };
        let waits = if self.is_patroni(node) {
            (0..self.members()).any(longer)
        } else {
            (0..self.members()).any(later)
        };
        !machine.nofailover
            && !waits
            && !machine.foreign
            && !self.watchdog_failed(node)
            && machine.server.ready()
            && self.may_be_elected(node)
            && self.collects_votes(node, tip)
            && !self.is_outside_the_map(node)
            && (!old || !agent.settings.check_timeline)
            && behind <= agent.settings.maximum_lag_on_failover
    }

    /// Long after the last fault: one leader, everybody follows, nothing is left over.
    /// (INV-33, INV-34, INV-35)
    pub fn check_end(&mut self) {
        if self.watched.twins || self.watched.patroni_broke {
            return;
        }
        if self.follows_another_cluster() {
            return self.check_standby_end();
        }
        let leaders: Vec<usize> =
            (0..self.members()).filter(|node| self.nodes[*node].server.writable()).collect();
        if leaders.is_empty() && !(0..self.members()).any(|node| self.is_eligible(node)) {
            self.watched.nobody_eligible = true;
            return;
        }
        let [leader] = leaders[..] else {
            let what = format!("{} writers long after the last fault", leaders.len());
            return self.violation("INV-33", what);
        };
        if !self.holds_key(leader) {
            return self
                .violation("INV-33", format!("{} writes without the key", self.name(leader)));
        }
        self.check_synchronous_end(leader);
        let timeline = Timeline(self.timeline(leader));
        if self.store.history.cluster_timeline() != timeline && timeline.0 > 1 {
            let what = format!(
                "history is at {}, the leader at {timeline}",
                self.store.history.cluster_timeline()
            );
            return self.violation("INV-35", what);
        }
        if self.store.failover.as_ref().is_some_and(|(request, _)| !request.is_empty()) {
            return self.violation("INV-24", "a request was never answered");
        }
        for node in 0..self.members() {
            if self.nodes[node].foreign {
                continue;
            }
            if !self.store.members.contains_key(&self.nodes[node].name) {
                return self.violation("INV-34", format!("{} has no member key", self.name(node)));
            }
            let (Some(mine), Some(theirs)) = (self.tip(node), self.tip(leader)) else {
                return self.violation("INV-35", format!("{} has no data", self.name(node)));
            };
            let behind = theirs.lsn.saturating_sub(mine.lsn);
            let same = self.wal.holds(theirs, mine) && mine.branch == theirs.branch;
            if node != leader && (!self.nodes[node].server.streaming || !same || behind > 20_000) {
                let what = format!(
                    "{} does not follow {} (streams: {}, {behind} bytes behind; {mine:?} on timeline \
                     {}, the leader {theirs:?}; it asks {:?})",
                    self.name(node),
                    self.name(leader),
                    self.nodes[node].server.streaming,
                    self.wal.timeline(mine),
                    self.nodes[node].server.data.as_ref().and_then(|data| data.conninfo),
                );
                return self.violation("INV-35", what);
            }
        }
    }
}
