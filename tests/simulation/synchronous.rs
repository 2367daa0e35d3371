//! The model of synchronous replication: commits that wait, clients that remember what was confirmed,
//! and what must hold of it. (INV-6, INV-7, INV-9 … INV-13)

use crate::agent::Agency;
use crate::random::Random;
use crate::wal::Tip;
use crate::world::{SECOND, World};
use futures::FutureExt;
use futures::channel::oneshot;
use hathi::ha::ports::{Commit, PgError, Replication, Sender};
use hathi::ha::settings::{Synchronous, SynchronousMode};
use hathi::ha::sync::names::Names;
use hathi_dcs::{Deadline, Lsn, MemberName, Sync};
use std::collections::BTreeMap;

/// What the checks remember of it.
#[derive(Default)]
pub struct Confirmed {
    /// Branch to the last commit on it that was confirmed under a record of its own primary.
    commits: BTreeMap<usize, u64>,
    /// The key was given for an operator's request: what that loses is the operator's.
    manual: bool,
    pub count: u64,
    pub waited: u64,
}

/// Off in most runs, so that the other rules are met without it too.
pub fn draw(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x5_1C0);
    if !random.percent(40) {
        return;
    }
    let mode = *random.pick(&[SynchronousMode::Priority, SynchronousMode::Quorum]);
    let node_count = *random.pick(&[1, 1, 1, 2]);
    let maximum_lag = *random.pick(&[-1, -1, 1_000_000]);
    world.base.synchronous =
        Synchronous { mode, strict: random.percent(25), node_count, maximum_lag };
    world.base.primary_stop_timeout = *random.pick(&[0, 0, 5]);
    if world.members() > 3 && random.percent(20) {
        world.nodes[2].nosync = true;
    }
}

impl Confirmed {
    /// An operator's hand may have thrown away what was confirmed.
    pub fn forget(&mut self) {
        self.commits.clear();
    }
}

impl World {
    pub fn is_synchronous(&self) -> bool {
        match self.base.synchronous.mode {
            SynchronousMode::Off => false,
            SynchronousMode::Priority | SynchronousMode::Quorum => true,
        }
    }

    fn record(&self) -> Option<&Sync> {
        self.store.sync.as_ref().map(|(record, _)| record).filter(|record| record.leader.is_some())
    }

    /// By the record, where there is one.
    pub fn may_be_elected(&self, node: usize) -> bool {
        let record = self.record().filter(|_| self.is_synchronous());
        record.is_none_or(|record| record.names(&self.nodes[node].name))
    }

    /// HA-095 g: would those that are there elect it?
    pub fn collects_votes(&self, node: usize, tip: Tip) -> bool {
        let Some(record) = self.record().filter(|_| self.is_synchronous()) else { return true };
        if self.base.synchronous.mode != SynchronousMode::Quorum {
            return true;
        }
        let timeline = self.wal.timeline(tip);
        let (mut votes, mut ahead) = (if record.names(&self.nodes[node].name) { 0 } else { -1 }, 0);
        for (peer, machine) in
            self.nodes[..self.members()].iter().enumerate().filter(|(peer, _)| *peer != node)
        {
            let Some(theirs) = self.tip(peer).filter(|_| machine.server.ready()) else { continue };
            let counts = !machine.nofailover && !self.watchdog_failed(peer);
            let behind = match self.wal.timeline(theirs).cmp(&timeline) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => theirs.lsn <= tip.lsn,
                std::cmp::Ordering::Greater => false,
            };
            ahead += u32::from(!behind);
            votes += i64::from(counts && behind && record.names(&machine.name));
        }
        let leads = record.leader.as_ref() == Some(&self.nodes[node].name);
        votes >= i64::try_from(record.quorum).unwrap_or(i64::MAX) || (leads && ahead == 0)
    }

    fn receives_from(&self, standby: usize, node: usize) -> bool {
        let server = &self.nodes[standby].server;
        server.streaming && server.data.as_ref().is_some_and(|data| data.conninfo == Some(node))
    }

    /// What pg_stat_replication shows.
    pub fn replication(&self, node: usize) -> Replication {
        let server = &self.nodes[node].server;
        let names = Names::parse(&server.names);
        let rows = (0..self.members()).filter(|standby| self.receives_from(*standby, node));
        let sender = |standby: usize| {
            let name = self.nodes[standby].name.clone();
            let sync_state = match &names {
                Names::Star => "sync",
                Names::Some { any: true, names, .. } if names.contains(&name) => "quorum",
                Names::Some { any: false, names, .. } if names.contains(&name) => "sync",
                Names::Some { .. } | Names::Nobody => "async",
            };
            let lsn = Lsn(self.tip(standby).map_or(0, |tip| tip.lsn));
            Sender {
                name,
                streaming: true,
                sync_state: sync_state.to_owned(),
                written: lsn,
                flushed: lsn,
                replayed: lsn,
            }
        };
        let senders = rows.map(sender).collect();
        Replication { names: server.names.clone(), commit: Commit::Flushed, senders }
    }

    /// Would PostgreSQL confirm this commit now?
    fn confirms(&self, node: usize, commit: Tip) -> bool {
        let has = |standby: usize| {
            self.receives_from(standby, node)
                && self.tip(standby).is_some_and(|tip| self.wal.holds(tip, commit))
        };
        let mut all = (0..self.members()).filter(|standby| *standby != node);
        match Names::parse(&self.nodes[node].server.names) {
            Names::Nobody => true,
            Names::Star => all.any(has),
            Names::Some { num, names, .. } => {
                let listed = all.filter(|standby| names.contains(&self.nodes[*standby].name));
                listed.filter(|standby| has(*standby)).count() >= num as usize
            }
        }
    }

    /// A client writes a row, unless the last one still waits.
    pub fn client_writes(&mut self, node: usize) {
        let bytes = self.random.between(100, 3_000);
        if self.nodes[node].server.waiting.is_some() {
            self.watched.confirmed.waited += 1;
            return;
        }
        if let Some(data) = &mut self.nodes[node].server.data {
            data.tip.lsn += bytes;
            self.nodes[node].server.waiting = Some(data.tip);
        }
        self.client_hears(node);
    }

    /// The client hears that its row is safe.
    pub fn client_hears(&mut self, node: usize) {
        let server = &self.nodes[node].server;
        let Some(commit) = server.waiting.filter(|_| server.writable()) else { return };
        if !self.confirms(node, commit) {
            return;
        }
        self.nodes[node].server.waiting = None;
        self.watched.acknowledged(node, commit, self.now_us);
        if !self.is_synchronous() {
            return;
        }
        let name = self.nodes[node].name.clone();
        let mine = self.record().is_some_and(|record| record.leader.as_ref() == Some(&name));
        if mine {
            self.watched.confirmed.count += 1;
            self.watched.confirmed.commits.insert(commit.branch, commit.lsn);
        } else if !Names::parse(&self.nodes[node].server.names).eq(&Names::Nobody) {
            self.check_foreign_record(node);
        }
    }

    /// INV-12.
    fn check_foreign_record(&mut self, node: usize) {
        let Some(record) = self.record().cloned() else { return };
        if self.holds_record(&record, node) || self.in_hands(node) {
            return;
        }
        // Without a guard nobody stops a primary whose agent is frozen or gone, and an operator may have
        // another lead meanwhile, whatever /sync says.
        let alone = self.nodes[node].agent.as_ref().is_none_or(|agent| agent.frozen);
        if alone && self.watched.fence_broken && !self.watchdogs.fences() {
            return;
        }
        let what = format!(
            "{} confirms a commit under '{}' while /sync is {}",
            self.nodes[node].name,
            self.nodes[node].server.names,
            record.to_wire()
        );
        self.violation("INV-12", what);
    }

    /// QS: does every commit that waits for these names meet every election under this record?
    fn holds_record(&self, record: &Sync, node: usize) -> bool {
        let me = &self.nodes[node].name;
        let (sync, num) = match Names::parse(&self.nodes[node].server.names) {
            Names::Some { num, names, .. } => (names, u64::from(num)),
            Names::Star | Names::Nobody => (Vec::new(), 0),
        };
        let own = record.leader.as_ref() == Some(me);
        if own && record.voters.is_empty() {
            return true;
        }
        let mut all: Vec<&MemberName> = record.voters.iter().chain(&sync).collect();
        all.extend(&record.leader);
        all.push(me);
        all.sort();
        all.dedup();
        let quorum = match self.base.synchronous.mode {
            SynchronousMode::Quorum => record.quorum,
            SynchronousMode::Priority | SynchronousMode::Off => 0,
        };
        all.len() as u64 <= quorum + num + 1
    }

    /// INV-9, INV-10, INV-11: after every single change, and at every moment.
    pub fn check_order(&mut self) {
        if !self.is_synchronous() {
            return;
        }
        let Some(record) = self.record().cloned() else { return };
        if record.quorum > record.voters.len() as u64 {
            self.violation("INV-11", format!("/sync is {}", record.to_wire()));
            return;
        }
        for node in 0..self.members() {
            let own = record.leader.as_ref() == Some(&self.nodes[node].name);
            // What an operator promoted knows of no record yet.
            let server = &self.nodes[node].server;
            let judged = own && server.writable() && !server.by_hand;
            if judged && !self.holds_record(&record, node) {
                let rule = match self.base.synchronous.mode {
                    SynchronousMode::Priority => "INV-9",
                    SynchronousMode::Quorum | SynchronousMode::Off => "INV-10",
                };
                let what = format!(
                    "{} waits for '{}' while /sync is {}",
                    self.nodes[node].name,
                    self.nodes[node].server.names,
                    record.to_wire()
                );
                self.violation(rule, what);
                return;
            }
        }
    }

    /// INV-11.
    fn check_names(&mut self, node: usize) {
        if let Names::Some { num, names, .. } = Names::parse(&self.nodes[node].server.names)
            && (num == 0 || num as usize > names.len())
        {
            let what = format!("names are '{}'", self.nodes[node].server.names);
            self.violation("INV-11", what);
        }
        self.check_order();
    }

    /// The key is given away: by an operator's will? INV-13 in priority mode.
    pub fn check_synchronous_acquire(&mut self, node: usize) {
        // A primary of an operator's making takes over: what it lacks is the operator's.
        if self.in_hands(node) && !self.nodes[node].server.recovering {
            self.watched.confirmed.forget();
            self.note_led_by_hand(node);
        }
        let asked = self.store.failover.as_ref().is_some_and(|(request, _)| !request.is_empty());
        let recent = self.watched.request_at.is_some_and(|at| at + 5 * SECOND > self.now_us);
        self.watched.confirmed.manual = asked || recent || self.somebody_in_hands();
        if !self.is_synchronous() || self.watched.confirmed.manual {
            return;
        }
        let name = self.nodes[node].name.clone();
        let priority = self.base.synchronous.mode == SynchronousMode::Priority;
        if priority && self.record().is_some_and(|record| !record.names(&name)) {
            // It may have answers of long ago; before it is promoted it looks again.
            self.watched.unfit = Some((node, "a synchronous member"));
        }
    }

    /// A member that got the key by an operator's word makes the record its own: from then on only it
    /// may be elected, and what it lacks is lost, whatever becomes of its promotion.
    pub fn note_record(&mut self, node: usize) {
        let Some(tip) = self.tip(node).filter(|_| self.watched.confirmed.manual) else { return };
        let wal = &self.wal;
        let held =
            |branch: &usize, lsn: &mut u64| wal.holds(tip, Tip { branch: *branch, lsn: *lsn });
        self.watched.confirmed.commits.retain(held);
    }

    /// INV-6, INV-7: nothing that was confirmed is missing.
    pub fn check_synchronous_promotion(&mut self, node: usize, at: Tip) {
        let lost =
            |branch: &usize, lsn: &u64| !self.wal.holds(at, Tip { branch: *branch, lsn: *lsn });
        let missing: Vec<(usize, u64)> = self
            .watched
            .confirmed
            .commits
            .iter()
            .filter(|(branch, lsn)| lost(branch, lsn))
            .map(|(branch, lsn)| (*branch, *lsn))
            .collect();
        let Some((branch, lsn)) = missing.first() else { return };
        let beside = |branch: &usize| self.wal.holds(at, Tip { branch: *branch, lsn: 0 });
        if self.watched.confirmed.manual || self.watched.pause.branches.iter().any(beside) {
            for (branch, _) in missing {
                self.watched.confirmed.commits.remove(&branch);
            }
            return;
        }
        let rule = match self.base.synchronous.mode {
            SynchronousMode::Priority => "INV-6",
            SynchronousMode::Quorum | SynchronousMode::Off => "INV-7",
        };
        let what = format!(
            "{} is promoted at {} and lacks the confirmed commit at {} of branch {branch}; /sync: {}",
            self.nodes[node].name,
            Lsn(at.lsn),
            Lsn(*lsn),
            self.record().map(Sync::to_wire).unwrap_or_default()
        );
        self.violation(rule, what);
    }

    /// INV-35: long after the last fault both records are as they should be.
    pub fn check_synchronous_end(&mut self, leader: usize) {
        if !self.is_synchronous() {
            return;
        }
        let others: Vec<usize> = (0..self.members())
            .filter(|node| {
                *node != leader && !self.nodes[*node].nosync && !self.nodes[*node].foreign
            })
            .collect();
        let wanted = self.base.synchronous.node_count as usize;
        let good = others.iter().filter(|node| !self.nodes[**node].nofailover).count();
        let (expected, quorum) = match self.base.synchronous.mode {
            SynchronousMode::Quorum => {
                let chosen = good.max(wanted.min(others.len()));
                (chosen, chosen.saturating_sub(wanted))
            }
            SynchronousMode::Priority | SynchronousMode::Off => (wanted.min(others.len()), 0),
        };
        let record = self.record().cloned().unwrap_or_default();
        let names = self.nodes[leader].server.names.clone();
        let own = record.leader.as_ref() == Some(&self.nodes[leader].name);
        let listed = match Names::parse(&names) {
            Names::Some { names, .. } => names.len(),
            Names::Star | Names::Nobody => 0,
        };
        if !own
            || record.voters.len() != expected
            || record.quorum != quorum as u64
            || listed != expected
        {
            let what = format!(
                "/sync is {} and the names are '{names}'; {expected} synchronous standbys are there",
                record.to_wire()
            );
            self.violation("INV-35", what);
        }
    }
}

impl Agency {
    /// Written, reloaded, in force after a moment; a failing disk makes the outcome unknown. What comes
    /// into force is what the file says by then.
    pub async fn change_names(&self, names: Option<&str>, by: Deadline) -> Result<(), PgError> {
        let node = self.process.node;
        let names = names.unwrap_or_default().to_owned();
        let takes = self.world().takes(node, 5, 150);
        let epoch = self.world().nodes[node].server.epoch;
        let (done, waits) = oneshot::channel();
        self.world().server(node).written_names = names;
        self.world().after(takes, move |world| {
            world.when_thawed(node, epoch, move |world| {
                if !world.nodes[node].server.ready() {
                    return;
                }
                let names = world.nodes[node].server.written_names.clone();
                let changed = world.nodes[node].server.names != names;
                if changed {
                    world.say(node, 34, |_| format!("synchronous_standby_names = '{names}'"));
                    world.server(node).names.clone_from(&names);
                    world.check_names(node);
                    world.client_hears(node);
                }
                if !world.fails(node) {
                    let _ = done.send(());
                }
            });
        });
        let failed = || PgError::TimedOut { what: "synchronous_standby_names", waited_ms: 0 };
        futures::select_biased! {
            done = waits.fuse() => done.map_err(|_| failed()),
            () = self.sleep(by.0).fuse() => Err(failed()),
        }
    }
}
