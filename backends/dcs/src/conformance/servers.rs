//! Stores that are made of server processes: they are started, given out and hurt in the same way.
//! What lives here is all of that; what one kind of them does differently is a [`Kind`].

use super::{Cannot, Fault, Harness, Needs, Outcome, Store, Summary, Target, Way, run_all};
use crate::{Dcs, MemberName, Timing};
use async_trait::async_trait;
use hathi_test_support::StoreServers;
use hathi_test_support::proxy::Proxy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell, RwLock};

/// One kind of servers, in one size. Its methods are called while the servers answer, and name the
/// cluster by its scope.
#[async_trait]
pub trait Kind: Clone + Send + Sync + 'static {
    type Servers: StoreServers;

    /// For the printed report: `etcd 3.4, three members`.
    fn label(&self) -> String;

    /// How many servers there are.
    fn members(&self) -> usize;

    /// How much later than the ttl an abandoned key may vanish. (DCS-T2)
    fn slack_ms(&self) -> u64;

    /// How many tests may run at the same time.
    fn parallel(&self) -> usize {
        6
    }

    /// The server that handles ask first, and another one.
    fn first(&self) -> [usize; 2] {
        [0, 1]
    }

    /// See [`Store::equal_bytes_are_a_write`].
    fn equal_bytes_are_a_write(&self) -> bool {
        true
    }

    /// See [`Store::members_expire`].
    fn members_expire(&self) -> Outcome {
        Ok(())
    }

    /// Servers that serve, behind proxies where answers will be lost.
    async fn start(&self, needs: Needs) -> Self::Servers;

    /// What a new cluster needs before anybody opens it.
    async fn begin(&self, _servers: &Self::Servers, _scope: &str, _needs: Needs) {}

    /// A new handle; see [`Store::open`].
    fn open(
        &self,
        servers: &Self::Servers,
        scope: &str,
        me: MemberName,
        timing: Timing,
    ) -> Arc<dyn Dcs>;

    /// See [`Store::raw`].
    async fn raw(
        &self,
        servers: &Self::Servers,
        scope: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, Cannot>;

    /// See [`Store::put_raw`].
    async fn put_raw(&self, servers: &Self::Servers, scope: &str, key: &str, value: &str);

    /// Destroys the lease or session that the first of these keys hangs on, or the second where the
    /// first is not there; a store without such destroys the keys.
    async fn lose_lease(&self, servers: &Self::Servers, scope: &str, keys: [&str; 2]);

    /// Whoever has no rights of his own may nothing any more.
    async fn forbid(&self, servers: &Self::Servers, scope: &str);

    async fn permit(&self, servers: &Self::Servers, scope: &str);

    /// Throws away the history a watch could resume from. Where none is kept, what is left of the
    /// fault is the cut that follows.
    async fn compact(&self, _servers: &Self::Servers) {}
}

/// Servers of this kind, for the suite.
pub fn on<K: Kind>(kind: K) -> Arc<dyn Harness> {
    Arc::new(Servers { kind, healthy: OnceCell::new(), scopes: AtomicU32::new(0) })
}

/// Runs the whole suite, and sees that the store can suffer what so many servers can.
pub async fn judge<K: Kind>(kind: K) -> Summary {
    let impossible = if kind.members() < 3 { &NEED_THREE[..] } else { &[] };
    let summary = run_all(on(kind)).await;
    assert_eq!(summary.impossible(), impossible);
    summary
}

/// What a store of one server cannot suffer: one of three gone, a minority cut off.
const NEED_THREE: [&str; 6] = [
    "outage::without_quorum_nothing_is_promised",
    "faults::one_killed_follower_costs_nothing",
    "faults::one_killed_leader_costs_nothing",
    "faults::one_paused_follower_costs_nothing",
    "faults::one_paused_leader_costs_nothing",
    "faults::one_half_cut_off_costs_nothing",
];

struct Servers<K: Kind> {
    kind: K,
    /// For all tests that do nothing bad to them.
    healthy: OnceCell<Arc<RwLock<K::Servers>>>,
    scopes: AtomicU32,
}

impl<K: Kind> Servers<K> {
    async fn start(&self, needs: Needs) -> Arc<RwLock<K::Servers>> {
        Arc::new(RwLock::new(self.kind.start(needs).await))
    }
}

#[async_trait]
impl<K: Kind> Harness for Servers<K> {
    fn label(&self) -> String {
        self.kind.label()
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let servers = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(needs)).await.clone(),
            Needs::Faults | Needs::LostAnswers | Needs::Rights => self.start(needs).await,
        };
        // A name that is the beginning of another one's must not matter.
        let scope = format!("batman{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        self.kind.begin(&*servers.read().await, &scope, needs).await;
        Box::new(Cluster { kind: self.kind.clone(), servers, scope, hit: Mutex::new(None) })
    }

    fn parallel(&self) -> usize {
        self.kind.parallel()
    }
}

enum Hit {
    Paused(usize),
    Killed,
    /// Its proxy does what it should not.
    Behind(usize),
}

/// One cluster in the servers, and which of them is hurt.
struct Cluster<K: Kind> {
    kind: K,
    servers: Arc<RwLock<K::Servers>>,
    scope: String,
    hit: Mutex<Option<Hit>>,
}

impl<K: Kind> Cluster<K> {
    async fn one(&self, servers: &K::Servers, target: Target) -> usize {
        let leader = servers.leader().await.expect("a healthy store has a leader");
        let [first, second] = self.kind.first();
        match target {
            Target::Leader => leader,
            Target::Follower if leader == first => second,
            Target::Follower => first,
        }
    }

    async fn hit(&self, hit: Hit) {
        *self.hit.lock().await = Some(hit);
    }

    async fn behind(&self, servers: &K::Servers, target: Target, hurt: impl FnOnce(&Proxy)) {
        let which = self.one(servers, target).await;
        hurt(servers.proxy(which));
        self.hit(Hit::Behind(which)).await;
    }
}

#[async_trait]
impl<K: Kind> Store for Cluster<K> {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        self.kind.open(&*self.servers.read().await, &self.scope, MemberName::from(me), timing)
    }

    fn members(&self) -> usize {
        self.kind.members()
    }

    fn slack_ms(&self) -> u64 {
        self.kind.slack_ms()
    }

    fn equal_bytes_are_a_write(&self) -> bool {
        self.kind.equal_bytes_are_a_write()
    }

    fn members_expire(&self) -> Outcome {
        self.kind.members_expire()
    }

    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        self.kind.raw(&*self.servers.read().await, &self.scope, key).await
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        self.kind.put_raw(&*self.servers.read().await, &self.scope, key, value).await;
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        let mut servers = self.servers.write().await;
        match fault {
            Fault::PauseAll => servers.pause_whole(),
            Fault::ResumeAll => servers.resume_whole(),
            Fault::PauseOne(target) => {
                let which = self.one(&servers, target).await;
                servers.pause_member(which);
                self.hit(Hit::Paused(which)).await;
            }
            Fault::KillOne(target) => {
                let which = self.one(&servers, target).await;
                servers.kill_member(which);
                self.hit(Hit::Killed).await;
            }
            Fault::CutOne(target, way) => {
                let hold = match way {
                    Way::Requests => Proxy::hold_requests,
                    Way::Answers => Proxy::hold_answers,
                };
                self.behind(&servers, target, |proxy| hold(proxy, true)).await;
            }
            Fault::SlowOne(target, ms) => {
                self.behind(&servers, target, |proxy| proxy.slow_answers(ms.into())).await;
            }
            Fault::RestoreOne => {
                match self.hit.lock().await.take() {
                    Some(Hit::Paused(which)) => servers.resume_member(which),
                    Some(Hit::Killed) => servers.start_all(),
                    Some(Hit::Behind(which)) => {
                        let proxy = servers.proxy(which);
                        proxy.hold_requests(false);
                        proxy.hold_answers(false);
                        proxy.slow_answers(0);
                    }
                    None => panic!("nothing was hit"),
                }
                servers.ready().await;
            }
            Fault::KillMajority => {
                if !servers.kill_majority() {
                    return Err(Cannot::ALONE);
                }
            }
            Fault::KillAll => servers.kill_whole(),
            Fault::StartAll => {
                servers.start_all();
                servers.ready().await;
            }
            Fault::LoseLease(name) => {
                let member = format!("members/{name}");
                self.kind.lose_lease(&servers, &self.scope, ["leader", &member]).await;
            }
            Fault::HoldAnswers => servers.proxies().for_each(|proxy| proxy.hold_answers(true)),
            Fault::ReleaseAnswers => servers.proxies().for_each(|proxy| proxy.hold_answers(false)),
            Fault::HoldRequests => servers.proxies().for_each(|proxy| proxy.hold_requests(true)),
            Fault::ReleaseRequests => {
                servers.proxies().for_each(|proxy| proxy.hold_requests(false));
            }
            Fault::SlowAnswers(ms) => {
                servers.proxies().for_each(|proxy| proxy.slow_answers(ms.into()));
            }
            Fault::Forbid => self.kind.forbid(&servers, &self.scope).await,
            Fault::Permit => self.kind.permit(&servers, &self.scope).await,
            Fault::CutAnswer(passing) => {
                servers.proxies().for_each(|proxy| proxy.cut_answer(passing));
            }
            Fault::Compact => {
                self.kind.compact(&servers).await;
                servers.proxies().for_each(Proxy::cut_all);
            }
        }
        Ok(())
    }
}
