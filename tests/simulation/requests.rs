//! Operators at the worst moment: they ask for another leader, and change the configuration.

use crate::agent::Agency;
use crate::dcs_port::patience;
use crate::plan::{Kind, Strike};
use crate::random::Random;
use crate::world::{Process, World};
use futures::FutureExt;
use hathi::ha::manual;
use hathi_dcs::{Expect, Failover, MemberName};

pub const FAULTS: &[Kind] = &[
    Kind {
        name: "switchover requested",
        weight: 7,
        strike: |world, it| {
            world.fault("switchover requested");
            let Wish { leader, candidate, through, .. } = world.wish(it);
            let failover = Failover { leader, candidate, scheduled_at: None };
            world.request(through, manual::Request { switchover: true, failover });
        },
    },
    Kind {
        name: "failover requested",
        weight: 5,
        strike: |world, it| {
            world.fault("failover requested");
            let Wish { other, through, .. } = world.wish(it);
            let failover = Failover { leader: None, candidate: Some(other), scheduled_at: None };
            world.request(through, manual::Request { switchover: false, failover });
        },
    },
    Kind {
        name: "/failover written by hand",
        weight: 4,
        strike: |world, it| {
            world.fault("/failover written by hand");
            let Wish { leader, candidate, .. } = world.wish(it);
            let leader = leader.filter(|_| it.random.percent(70));
            let request = Failover { leader, candidate, scheduled_at: None };
            if world.store.up {
                let _ = world.op_failover(request, Expect::Anything);
            }
        },
    },
    Kind {
        name: "configuration changed",
        weight: 3,
        strike: |world, it| {
            world.change_config(&mut it.random);
        },
    },
];

/// What somebody asks for.
struct Wish {
    leader: Option<MemberName>,
    /// Any member, and in most cases the one that is to lead.
    other: MemberName,
    candidate: Option<MemberName>,
    /// Whose REST API is asked.
    through: usize,
}

impl World {
    fn wish(&self, it: &mut Strike) -> Wish {
        let leader = self.store.leader.as_ref().map(|held| held.name.clone());
        let other = it.random.pick(&self.nodes[..self.members()]).name.clone();
        let candidate = it.random.percent(60).then_some(other.clone());
        let through = it.random.below(self.members() as u64) as usize;
        Wish { leader, other, candidate, through }
    }

    fn change_config(&mut self, random: &mut Random) {
        let Some((mut config, _)) = self.store.config.clone() else { return };
        self.fault("configuration changed");
        let (ttl, loop_wait, retry_timeout) =
            *random.pick(&[(30, 10, 10), (20, 5, 5), (60, 10, 10), (40, 5, 10)]);
        config.insert("ttl".into(), ttl.into());
        config.insert("loop_wait".into(), loop_wait.into());
        config.insert("retry_timeout".into(), retry_timeout.into());
        let _ = self.op_config(config, Expect::Anything);
    }

    /// POST /switchover or /failover on this node.
    pub fn request(&mut self, through: usize, request: manual::Request) {
        let Some(agent) = &self.nodes[through].agent else { return };
        let process = Process { node: through, life: agent.life };
        let agency = Agency { shared: self.shared(), process };
        let work = async move {
            let ports = agency.ports();
            let by = patience(agency.local_now());
            let answer = match manual::request(&ports, &request, by).await {
                Ok(old_leader) => manual::outcome(&ports, &request, old_leader, by).await,
                Err(refused) => refused,
            };
            agency.world().say(process.node, 60, |_| {
                format!("REST answers the operator: {} {}", answer.status, answer.text)
            });
        };
        self.spawned.push((process, work.boxed()));
    }
}
