//! The suite of backends/dcs on one and on three members.

use super::{Group, soon, until};
use crate::machine::{Cond, Op, Reply};
use async_trait::async_trait;
use hathi_dcs::conformance::{
    Cannot, Fault, Harness, Needs, Outcome, Store, Target, Way, run_all, run_some, table,
};
use hathi_dcs::{Dcs, Timing};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Members(usize);

struct Running {
    group: Group,
    /// Where the handles live.
    home: usize,
    struck: AtomicUsize,
}

#[async_trait]
impl Harness for Members {
    fn label(&self) -> String {
        format!("raft, {} member(s)", self.0)
    }

    async fn fresh(&self, _needs: Needs) -> Box<dyn Store> {
        let group = Group::start(self.0).await;
        let home = group.follower().await;
        until("the home is in touch", 5_000, || group.node(home).in_touch().then_some(())).await;
        Box::new(Running { group, home, struck: AtomicUsize::new(usize::MAX) })
    }
}

impl Running {
    async fn run(&self, op: Op) -> Reply {
        let work = self.group.hubs[self.home]
            .call(soon(), |node, why| async move { node.write(op, soon(), &why).await });
        work.await.expect("a healthy store").1
    }

    async fn victim(&self, target: Target) -> usize {
        let leader = self.group.leader().await;
        let others = || (0..self.group.hubs.len()).filter(|n| *n != self.home);
        let found = match target {
            Target::Leader => others().find(|n| *n == leader),
            Target::Follower => others().find(|n| *n != leader),
        };
        found.or_else(|| others().next()).expect("more than one member")
    }

    fn all(&self) -> std::ops::Range<usize> {
        0..self.group.hubs.len()
    }
}

#[async_trait]
impl Store for Running {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        self.group.store(self.home, me, timing)
    }

    fn members(&self) -> usize {
        self.group.hubs.len()
    }

    fn slack_ms(&self) -> u64 {
        500
    }

    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let key = format!("/service/test/{key}");
        let hub = &self.group.hubs[self.home];
        let work = hub.call(soon(), |node, why| async move {
            node.catch_up(soon(), &why).await;
            let copy = node.state.copy();
            copy.machine.keys.get(&key).map(|entry| entry.value.clone().into_bytes())
        });
        Ok(work.await.expect("a healthy store"))
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        let key = format!("/service/test/{key}");
        self.run(Op::Put { key, value: value.to_owned(), cond: Cond::Any, lease: None }).await;
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        match fault {
            Fault::PauseAll => {
                for n in self.all() {
                    self.group.pause(n).await;
                }
            }
            Fault::ResumeAll => self.group.resume_all(),
            Fault::PauseOne(target) => {
                let victim = self.victim(target).await;
                self.group.pause(victim).await;
            }
            Fault::KillOne(target) => {
                let victim = self.victim(target).await;
                self.struck.store(victim, Ordering::SeqCst);
                self.group.kill(victim).await;
            }
            Fault::CutOne(target, way) => {
                let victim = self.victim(target).await;
                match way {
                    Way::Requests => {
                        for n in self.all().filter(|n| *n != victim) {
                            let network = &self.group.node(n).network;
                            network.cut_to(&self.group.addrs[victim], true);
                        }
                    }
                    // Its own questions are what it is answered to, and says.
                    Way::Answers => self.group.node(victim).network.cut(true),
                }
            }
            Fault::SlowOne(target, ms) => {
                let victim = self.victim(target).await;
                for n in self.all().filter(|n| *n != victim) {
                    self.group.node(n).network.late_from(&self.group.addrs[victim], ms);
                }
            }
            Fault::RestoreOne => {
                self.group.resume_all();
                for node in self.all().filter_map(|n| self.group.hubs[n].node().ok()) {
                    node.network.cut(false);
                    for addr in &self.group.addrs {
                        node.network.late_from(addr, 0);
                    }
                }
                let struck = self.struck.load(Ordering::SeqCst);
                if struck < self.group.hubs.len() {
                    self.group.revive(struck);
                }
                self.group.leader().await;
            }
            Fault::KillMajority => {
                for n in self.all().filter(|n| *n != self.home || self.members() == 1) {
                    self.group.kill(n).await;
                }
            }
            Fault::KillAll => {
                for n in self.all() {
                    self.group.kill(n).await;
                }
            }
            Fault::StartAll => {
                for n in self.all() {
                    self.group.revive(n);
                }
                self.group.leader().await;
                self.run(Op::Nothing).await;
            }
            Fault::LoseLease(owner) => {
                self.run(Op::Revoke { owner }).await;
            }
            Fault::HoldAnswers => self.group.hold_answers(self.home, true),
            Fault::ReleaseAnswers => self.group.hold_answers(self.home, false),
            Fault::HoldRequests => self.group.hold_requests(self.home, true),
            Fault::ReleaseRequests => self.group.hold_requests(self.home, false),
            Fault::SlowAnswers(ms) => self.group.slow_answers(self.home, ms),
            Fault::Forbid | Fault::Permit => {
                return Err(Cannot("its password is for all, and is read at start"));
            }
            Fault::CutAnswer(pass) => self.group.cut_after(self.home, pass),
            Fault::Compact => {
                for n in self.all() {
                    let node = self.group.node(n);
                    node.engine.trigger().snapshot().await.expect("it runs");
                    until("a snapshot", 5_000, || {
                        let metrics = node.engine.metrics();
                        let snapshot = metrics.borrow().snapshot;
                        snapshot.map(|at| at.index)
                    })
                    .await;
                    let upto = node.engine.metrics().borrow().snapshot.map_or(0, |at| at.index);
                    node.engine.trigger().purge_log(upto).await.expect("it runs");
                }
                self.group.kill(self.home).await;
                self.group.revive(self.home);
                self.group.leader().await;
                self.run(Op::Nothing).await;
            }
        }
        Ok(())
    }
}

/// Proves DCS-T1 … DCS-T14 as far as they apply; DCS-194.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_conforms() {
    // What it shows is the store itself, which nobody else changes: it cannot be behind.
    let alone = |name: &str| name != "watching::a_silent_watch_is_not_believed";
    run_some(Arc::new(Members(1)), alone).await;
}

/// Proves the same with a quorum, forwarding and elections in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_conform() {
    table::check("raft", &run_all(Arc::new(Members(3))).await);
}
