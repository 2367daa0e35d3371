//! The faults that every store made of server processes suffers in the same way.

use super::{Cannot, Fault, Outcome, Target, Way};
use hathi_test_support::StoreServers;
use hathi_test_support::proxy::Proxy;
use std::sync::Arc;
use tokio::sync::Mutex;

enum Hit {
    Paused(usize),
    Killed,
    /// Its proxy does what it should not.
    Behind(usize),
}

/// Servers, and which one of them is hurt.
pub struct Patient<S> {
    pub servers: Arc<Mutex<S>>,
    hit: Mutex<Option<Hit>>,
    /// The one that handles ask first, and another one.
    first: [usize; 2],
}

impl<S: StoreServers> Patient<S> {
    pub fn new(servers: Arc<Mutex<S>>, first: [usize; 2]) -> Self {
        Self { servers, hit: Mutex::new(None), first }
    }

    async fn one(&self, target: Target) -> Result<usize, Cannot> {
        let servers = self.servers.lock().await;
        if servers.count() < 3 {
            return Err(Cannot("it has one member only"));
        }
        let leader = servers.leader().await.expect("a healthy store has a leader");
        Ok(match target {
            Target::Leader => leader,
            Target::Follower if leader == self.first[0] => self.first[1],
            Target::Follower => self.first[0],
        })
    }

    /// `None`: only the store itself knows how to suffer this.
    pub async fn inflict(&self, fault: &Fault) -> Option<Outcome> {
        Some(match fault {
            Fault::PauseOne(target) => match self.one(*target).await {
                Err(cannot) => Err(cannot),
                Ok(which) => {
                    self.servers.lock().await.pause_member(which);
                    *self.hit.lock().await = Some(Hit::Paused(which));
                    Ok(())
                }
            },
            Fault::KillOne(target) => match self.one(*target).await {
                Err(cannot) => Err(cannot),
                Ok(which) => {
                    self.servers.lock().await.kill_member(which);
                    *self.hit.lock().await = Some(Hit::Killed);
                    Ok(())
                }
            },
            Fault::CutOne(target, way) => {
                let hold = match way {
                    Way::Requests => Proxy::hold_requests,
                    Way::Answers => Proxy::hold_answers,
                };
                self.behind(*target, |proxy| hold(proxy, true)).await
            }
            Fault::SlowOne(target, ms) => {
                self.behind(*target, |proxy| proxy.slow_answers(u64::from(*ms))).await
            }
            Fault::LoseLease(_) | Fault::Compact | Fault::Forbid | Fault::Permit => return None,
            other => self.all(other).await,
        })
    }

    async fn behind(&self, target: Target, hurt: impl FnOnce(&Proxy)) -> Outcome {
        let which = self.one(target).await?;
        hurt(self.servers.lock().await.proxy(which));
        *self.hit.lock().await = Some(Hit::Behind(which));
        Ok(())
    }

    async fn all(&self, fault: &Fault) -> Outcome {
        let mut servers = self.servers.lock().await;
        match fault {
            Fault::PauseAll => servers.pause(),
            Fault::ResumeAll => servers.resume(),
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
            Fault::KillMajority if servers.count() < 3 => {
                return Err(Cannot("it has one member only"));
            }
            Fault::KillMajority => {
                servers.kill_member(0);
                servers.kill_member(2);
            }
            Fault::KillAll => servers.kill_all(),
            Fault::StartAll => {
                servers.start_all();
                servers.ready().await;
            }
            Fault::HoldAnswers => servers.proxies().for_each(|proxy| proxy.hold_answers(true)),
            Fault::ReleaseAnswers => servers.proxies().for_each(|proxy| proxy.hold_answers(false)),
            Fault::HoldRequests => servers.proxies().for_each(|proxy| proxy.hold_requests(true)),
            Fault::ReleaseRequests => {
                servers.proxies().for_each(|proxy| proxy.hold_requests(false))
            }
            Fault::SlowAnswers(ms) => {
                servers.proxies().for_each(|proxy| proxy.slow_answers(u64::from(*ms)));
            }
            Fault::CutAnswer(passing) => {
                servers.proxies().for_each(|proxy| proxy.cut_answer(*passing));
            }
            Fault::PauseOne(_) | Fault::KillOne(_) | Fault::LoseLease(_) => {}
            Fault::CutOne(..) | Fault::SlowOne(..) => {}
            Fault::Compact | Fault::Forbid | Fault::Permit => {}
        }
        Ok(())
    }
}

/// What a store of one server cannot suffer: one of three gone, a minority cut off.
pub const NEED_THREE: [&str; 6] = [
    "outage::without_quorum_nothing_is_promised",
    "faults::one_killed_follower_costs_nothing",
    "faults::one_killed_leader_costs_nothing",
    "faults::one_paused_follower_costs_nothing",
    "faults::one_paused_leader_costs_nothing",
    "faults::one_half_cut_off_costs_nothing",
];
