//! The store as a whole: several members in this process, each on its own thread, and as processes.

mod cluster;
mod conformance;
mod damage;
mod keeping;
mod processes;

use crate::config::RaftConfig;
use crate::hub::Hub;
use crate::node::{Node, lock};
use crate::peers::Answer;
use crate::store::RaftStore;
use hathi_dcs::{Deadline, MemberName, Scope, Timing};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What tests do to what a member asks, and to the answers it gets.
#[derive(Default)]
pub(crate) struct Faults {
    hold: AtomicBool,
    hold_requests: AtomicBool,
    slow_ms: AtomicU32,
    /// The next stop is none that was planned.
    pub(crate) crash: AtomicBool,
    /// The how-manieth answer from now is cut; 0: none.
    cut: AtomicU32,
}

impl Faults {
    pub(crate) async fn request(&self) {
        while self.hold_requests.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn answer(&self, answer: Result<Answer, String>) -> Result<Answer, String> {
        while self.hold.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let slow = self.slow_ms.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(slow.into())).await;
        let count = |left: u32| left.checked_sub(1);
        let counted = |_: &Answer| self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count);
        if answer.as_ref().is_ok_and(|answer| counted(answer) == Ok(1)) {
            return Err("cut by the test".to_owned());
        }
        answer
    }
}

/// Distinct free ports, held until all are known.
pub(crate) fn free_addrs(n: usize) -> Vec<String> {
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    held.iter().map(|l| l.local_addr().expect("bound").to_string()).collect()
}

pub(crate) fn config(addrs: &[String], n: usize, dir: &std::path::Path) -> RaftConfig {
    let mut config = RaftConfig::new(addrs[n].clone(), dir.join(format!("n{n}")));
    config.partner_addrs = addrs.iter().filter(|addr| **addr != addrs[n]).cloned().collect();
    config.password = Some("geheim".to_owned());
    config.append_entries_period_ms = 150;
    config.min_timeout_ms = 1_500;
    config.max_timeout_ms = 2_000;
    config.connection_timeout_ms = 1_000;
    config
}

/// Members in this process.
pub(crate) struct Group {
    pub(crate) hubs: Vec<Arc<Hub>>,
    pub(crate) addrs: Vec<String>,
    paused: Mutex<Vec<(usize, Arc<AtomicBool>)>>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn soon() -> Deadline {
    Deadline::in_ms(10_000)
}

pub(crate) async fn until<T>(what: &str, ms: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Deadline::in_ms(ms);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(!end.left().is_zero(), "{what}: not within {ms} ms");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Group {
    pub(crate) async fn start(n: usize) -> Self {
        let group = Self::of(n, n).await;
        group.leader().await;
        group
    }

    /// The first `running` of `n` members.
    pub(crate) async fn of(n: usize, running: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let addrs = free_addrs(n);
        let hubs = (0..running)
            .map(|n| Arc::new(Hub::start(config(&addrs, n, dir.path()), "/c/".into()).expect("up")))
            .collect();
        Self { hubs, addrs, paused: Mutex::default(), dir }
    }

    pub(crate) fn add(&mut self) {
        let config = config(&self.addrs, self.hubs.len(), self.dir.path());
        self.hubs.push(Arc::new(Hub::start(config, "/c/".into()).expect("up")));
    }

    pub(crate) fn node(&self, n: usize) -> Arc<Node> {
        self.hubs[n].node().expect("it runs")
    }

    fn is_paused(&self, n: usize) -> bool {
        lock(&self.paused).iter().any(|(at, _)| *at == n)
    }

    /// The one that a majority follows.
    pub(crate) fn leader_now(&self) -> Option<usize> {
        (0..self.hubs.len()).find(|n| {
            let node = self.hubs[*n].node();
            !self.is_paused(*n) && node.is_ok_and(|node| node.is_leader() && node.in_touch())
        })
    }

    pub(crate) async fn leader(&self) -> usize {
        until("a leader", 15_000, || self.leader_now()).await
    }

    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.hubs.len()).find(|n| *n != leader).unwrap_or(leader)
    }

    pub(crate) fn term(&self, n: usize) -> u64 {
        self.node(n).log.vote().map_or(0, |vote| vote.leader_id.term)
    }

    pub(crate) fn store(&self, n: usize, me: &str, timing: Timing) -> Arc<RaftStore> {
        let prefix = Scope::new("service", "test").prefix();
        RaftStore::on(self.hubs[n].clone(), prefix, MemberName::from(me), timing).expect("a handle")
    }

    /// Stops the raft thread where it stands, as SIGSTOP would.
    pub(crate) async fn pause(&self, n: usize) {
        let Ok(node) = self.hubs[n].node() else { return };
        let (on, stopped) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (still, now) = (on.clone(), stopped.clone());
        node.runtime.spawn(async move {
            now.store(true, Ordering::SeqCst);
            while still.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        until("paused", 20_000, || stopped.load(Ordering::SeqCst).then_some(())).await;
        lock(&self.paused).push((n, on));
    }

    pub(crate) fn resume_all(&self) {
        for (_, on) in lock(&self.paused).drain(..) {
            on.store(false, Ordering::SeqCst);
        }
    }

    pub(crate) async fn kill(&self, n: usize) {
        let hub = self.hubs[n].clone();
        hub.faults.crash.store(true, Ordering::SeqCst);
        tokio::task::spawn_blocking(move || hub.stop()).await.expect("stopped");
    }

    pub(crate) async fn stop_as_planned(&self, n: usize) {
        let hub = self.hubs[n].clone();
        hub.faults.crash.store(false, Ordering::SeqCst);
        tokio::task::spawn_blocking(move || hub.stop()).await.expect("stopped");
    }

    pub(crate) fn revive(&self, n: usize) {
        if self.hubs[n].node().is_err() {
            self.hubs[n].run().expect("its own data");
        }
    }

    pub(crate) fn hold_answers(&self, n: usize, hold: bool) {
        self.hubs[n].faults.hold.store(hold, Ordering::SeqCst);
    }

    pub(crate) fn hold_requests(&self, n: usize, hold: bool) {
        self.hubs[n].faults.hold_requests.store(hold, Ordering::SeqCst);
    }

    pub(crate) fn slow_answers(&self, n: usize, ms: u32) {
        self.hubs[n].faults.slow_ms.store(ms, Ordering::SeqCst);
    }

    pub(crate) fn cut_after(&self, n: usize, answers: u32) {
        self.hubs[n].faults.cut.store(answers + 1, Ordering::SeqCst);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.resume_all();
        for hub in &self.hubs {
            hub.faults.crash.store(true, Ordering::SeqCst);
            hub.stop();
        }
    }
}
