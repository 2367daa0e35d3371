//! The port to the store: requests and answers travel, get lost, come late; the store applies them
//! in between, whatever has become of who asked.

use crate::agent::Agency;
use crate::store::Asker;
use crate::world::{MS, SECOND, World};
use async_trait::async_trait;
use futures::channel::{mpsc, oneshot};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, Millis, Status, Sync, Timing, Version,
};
use serde_json::{Map, Value};

impl Agency {
    /// One request, and its answer if one comes.
    async fn ask<T: Send + 'static>(
        &self,
        by: Deadline,
        what: &'static str,
        apply: impl FnOnce(&mut World, &Asker) -> Result<T, DcsError> + Send + 'static,
    ) -> Result<T, DcsError> {
        let asked = self.local_now();
        match self.attempt(by.0, what, apply).await {
            Some(answer) => answer,
            None => {
                self.sleep(by.0).await;
                Err(self.no_answer(what, asked))
            }
        }
    }

    /// As a backend does with what may be applied twice: asks again within the same deadline.
    async fn ask_again<T: Send + 'static>(
        &self,
        by: Deadline,
        what: &'static str,
        apply: impl Fn(&mut World, &Asker) -> Result<T, DcsError>
        + Clone
        + Send
        + std::marker::Sync
        + 'static,
    ) -> Result<T, DcsError> {
        let asked = self.local_now();
        loop {
            let end = self.local_now().plus(2_000).min(by.0);
            if let Some(answer) = self.attempt(end, what, apply.clone()).await {
                return answer;
            }
            self.sleep(end).await;
            if self.local_now() >= by.0 {
                return Err(self.no_answer(what, asked));
            }
        }
    }

    fn no_answer(&self, what: &'static str, asked: Millis) -> DcsError {
        let tried = self.local_now().since(asked);
        DcsError::unreachable("sim", tried, format!("{what}: no answer"))
    }

    fn heard_from_the_store(&self) {
        let mut world = self.world();
        let now = world.now_us;
        if let Some(agent) = world.agent_mut(self.process) {
            agent.looks.store = now;
        }
    }

    async fn attempt<T: Send + 'static>(
        &self,
        until: Millis,
        what: &'static str,
        apply: impl FnOnce(&mut World, &Asker) -> Result<T, DcsError> + Send + 'static,
    ) -> Option<Result<T, DcsError>> {
        let (done, waits) = oneshot::channel();
        self.send(what, done, apply);
        futures::select_biased! {
            answer = waits.fuse() => answer.ok(),
            () = self.sleep(until).fuse() => None,
        }
    }

    fn send<T: Send + 'static>(
        &self,
        what: &'static str,
        done: oneshot::Sender<Result<T, DcsError>>,
        apply: impl FnOnce(&mut World, &Asker) -> Result<T, DcsError> + Send + 'static,
    ) {
        let mut world = self.world();
        let process = self.process;
        let node = process.node;
        let Some(agent) = world.agent(process) else { return };
        let asker = Asker {
            node,
            name: agent.settings.me.clone(),
            session: agent.session,
            ttl_us: agent.settings.timing.ttl_ms() * MS,
        };
        let lost = world.store.lose_requests;
        if world.random.percent(lost) {
            world.say(node, 50, |_| format!("NET loses the request {what}"));
            return;
        }
        let slow = world.store.slow_ms;
        let delay = world.random.between(1, 4 + slow) * MS;
        // One connection: requests arrive in the order in which they were sent.
        let arrives = (world.now_us + delay).max(world.nodes[node].last_request_at);
        world.nodes[node].last_request_at = arrives;
        world.at(arrives, move |world| {
            let slow = world.store.slow_ms;
            let back = world.random.between(1, 4 + slow) * MS;
            if !world.nodes[node].to_store {
                return;
            }
            let answer = if world.store.up {
                apply(world, &asker)
            } else if world.store.refuses {
                Err(DcsError::unreachable("sim", 1, "connection refused"))
            } else {
                return;
            };
            let lost = world.store.lose_answers;
            if world.random.percent(lost) {
                world.say(node, 51, |_| format!("NET loses the answer to {what}"));
                return;
            }
            world.after(back, move |world| {
                if !world.nodes[node].from_store {
                    return;
                }
                // A backend shows what it wrote itself at once.
                let (revision, view) = (world.store.revision, world.store.view());
                if answer.is_ok()
                    && let Some(agent) = world.agent_mut(process)
                    && agent.copy.as_ref().is_some_and(|(have, _)| *have < revision)
                {
                    agent.copy = Some((revision, view));
                }
                let _ = done.send(answer);
            });
        });
    }
}

#[async_trait]
impl Dcs for Agency {
    fn kind(&self) -> &'static str {
        "sim"
    }

    fn set_timing(&self, _timing: Timing) {}

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        if freshness == Freshness::Watched {
            let world = self.world();
            if let Some((_, view)) = world.agent(self.process).and_then(|agent| agent.copy.as_ref())
            {
                let view = (**view).clone();
                drop(world);
                self.heard_from_the_store();
                return Ok(view);
            }
        }
        let answer = self
            .ask_again(by, "load", |world, _| {
                world.expire_sessions();
                Ok((*world.store.view()).clone())
            })
            .await;
        self.heard_from_the_store();
        answer
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        {
            let mut world = self.world();
            world.check_race(self.process);
            world.check_look(self.process, "the race");
            let now = world.now_us;
            if let Some(agent) = world.agent_mut(self.process) {
                agent.looks.raced = now;
            }
            world.late_call(self.process.node);
        }
        self.ask(by, "acquire", |world, me| world.op_acquire(me)).await
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.ask(by, "take", |world, me| world.op_take(me)).await
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.world().hold_up_a_copy(self.process);
        self.ask_again(by, "renew", |world, me| world.op_renew(me)).await
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let status = status.cloned();
        self.ask(by, "release", move |world, me| world.op_release(me, status)).await
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        let data = data.clone();
        self.ask_again(by, "member", move |world, me| world.op_member(me, data.clone())).await
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        let status = status.clone();
        self.ask_again(by, "status", move |world, me| world.op_status(me, status.clone())).await
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        let failsafe = failsafe.clone();
        self.ask(by, "failsafe", move |world, _| world.op_failsafe(failsafe)).await
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        let value = value.to_owned();
        self.ask(by, "initialize", move |world, me| {
            world.say(me.node, 52, |_| format!("STORE initialize := \"{value}\" ({expect:?})"));
            world.op_initialize(value, expect)
        })
        .await
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.ask(by, "delete initialize", |world, _| world.op_delete_initialize()).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let config = config.clone();
        self.ask(by, "config", move |world, _| world.op_config(config, expect)).await
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let failover = failover.clone();
        self.ask(by, "failover", move |world, _| world.op_failover(failover, expect)).await
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let sync = sync.clone();
        self.ask(by, "sync", move |world, me| world.op_sync(me, Some(sync), expect)).await
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.ask(by, "delete sync", move |world, me| world.op_sync(me, None, expect).map(|_| ()))
            .await
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        let history = history.clone();
        self.ask(by, "history", move |world, _| world.op_history(&history)).await
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.ask(by, "delete", |world, _| world.op_delete_cluster()).await
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        let (sender, stream) = mpsc::unbounded();
        if let Some(agent) = self.world().agent_mut(self.process) {
            agent.watchers.retain(|watcher| !watcher.is_closed());
            agent.watchers.push(sender);
        }
        stream.boxed()
    }
}

/// No answer is of use after this: an operator's patience.
pub fn patience(now: Millis) -> Deadline {
    Deadline(now.plus(60 * SECOND / MS))
}
