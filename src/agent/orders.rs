//! Does what the REST API asks for, each order under its own deadline. (docs/design.md section 6)

use crate::agent::configuration::InUse;
use crate::agent::events::reload;
use crate::agent::publisher::Publisher;
use crate::api::merge::merged;
use crate::api::{ConfigOutcome, Order};
use crate::ha::manual::{self, Answer};
use crate::ha::ports::{Configuration, Ports};
use crate::ha::run::{Event, Events};
use crate::postgres::LocalPostgres;
use hathi_dcs::{DcsError, Deadline, Expect, Failover, Freshness, boottime};
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long a fresh look at PostgreSQL may take. (design section 6)
const FRESH_MS: u64 = 500;
/// Orders under way at the same time; further ones wait in the API's own bounded queue.
const AT_ONCE: usize = 32;

/// What the orders are done with.
#[derive(Clone)]
pub struct Hands {
    pub ports: Ports,
    pub events: Events,
    pub postgres: LocalPostgres,
    pub publisher: Arc<Publisher>,
    pub configuration: Arc<InUse>,
}

/// Takes orders until nobody can give one any more.
pub async fn serve(mut orders: mpsc::Receiver<Order>, hands: Hands) {
    let mut under_way = JoinSet::new();
    while let Some(order) = orders.recv().await {
        while under_way.len() >= AT_ONCE {
            under_way.join_next().await;
        }
        while under_way.try_join_next().is_some() {}
        let hands = hands.clone();
        under_way.spawn(async move { hands.carry_out(order).await });
    }
}

impl Hands {
    /// An asker that went away gets no answer; the order is carried out all the same.
    async fn carry_out(&self, order: Order) {
        match order {
            Order::PatchConfig { document, reply } => {
                let _ = reply.send(self.patch(&document).await);
            }
            Order::PutConfig { document, reply } => {
                let _ = reply.send(self.put(document).await);
            }
            Order::Manual { request, reply } => {
                let _ = reply.send(self.change_leader(&request).await);
            }
            Order::Member { wish, reply } => {
                // Without an answer the agent ends; the API says so when the reply is dropped.
                if let Ok(answer) = self.events.order(wish).await {
                    let _ = reply.send(answer);
                }
            }
            Order::DeleteSchedule { reply } => {
                let _ = reply.send(self.delete_schedule().await);
            }
            Order::FreshStatus { reply } => {
                let asked = boottime();
                if let Some(seen) = self.postgres.fresh(Deadline(asked.plus(FRESH_MS))).await {
                    self.publisher.observed(&seen, asked);
                    let _ = reply.send(seen);
                }
            }
            Order::Reload { reply } => {
                let _ = reply.send(());
                reload(&self.configuration, &self.events).await;
            }
        }
    }

    fn deadline(&self) -> Deadline {
        let timing = self.configuration.settings().timing;
        Deadline(boottime().plus(timing.retry_timeout_ms()))
    }

    /// REST-465: what is wrong with a document that was not wrong with the one before it.
    ///
    /// # Errors
    /// The refusal, if this node is strict.
    fn judge(
        &self,
        how: &str,
        before: &Map<String, Value>,
        after: &Map<String, Value>,
    ) -> Result<Vec<String>, ConfigOutcome> {
        let known = self.configuration.objections(before);
        let mut new = self.configuration.objections(after);
        new.retain(|objection| !known.contains(objection));
        if !new.is_empty() && self.configuration.is_strict() {
            return Err(ConfigOutcome::Refused(new));
        }
        for objection in &new {
            tracing::warn!("{how} /config: {objection}");
        }
        Ok(new)
    }

    /// REST-163.
    async fn patch(&self, patch: &Map<String, Value>) -> ConfigOutcome {
        let by = self.deadline();
        let stored = match self.ports.dcs.load(Freshness::Latest, by).await {
            Ok(view) => view.config,
            Err(error) => return ConfigOutcome::Failed(error.to_string()),
        };
        let Some(current) = stored else { return ConfigOutcome::Missing };
        let Some(new) = merged(&current.value, patch) else {
            return ConfigOutcome::Stored { document: current.value, objections: Vec::new() };
        };
        let objections = match self.judge("PATCH", &current.value, &new) {
            Ok(objections) => objections,
            Err(refused) => return refused,
        };
        let expect = Expect::Version(current.version);
        match self.ports.dcs.write_config(&new, expect, by).await {
            Ok(_) => {
                self.events.post(Event::Poke("PATCH /config"));
                ConfigOutcome::Stored { document: new, objections }
            }
            Err(DcsError::Conflict { .. }) => ConfigOutcome::Conflict,
            Err(error) => self.written_after_all(new, objections, &error).await,
        }
    }

    /// A write without an answer may have happened: the store is asked, not guessed at.
    async fn written_after_all(
        &self,
        wanted: Map<String, Value>,
        objections: Vec<String>,
        error: &DcsError,
    ) -> ConfigOutcome {
        match self.ports.dcs.load(Freshness::Latest, self.deadline()).await {
            Ok(view) if view.config.as_ref().is_some_and(|stored| stored.value == wanted) => {
                self.events.post(Event::Poke("/config"));
                ConfigOutcome::Stored { document: wanted, objections }
            }
            Ok(_) => ConfigOutcome::Failed(error.to_string()),
            Err(_) => ConfigOutcome::Failed(format!(
                "{error}; whether /config was written is not known: read it again"
            )),
        }
    }

    /// REST-164.
    async fn put(&self, document: Map<String, Value>) -> ConfigOutcome {
        let by = self.deadline();
        let stored = match self.ports.dcs.load(Freshness::Latest, by).await {
            Ok(view) => view.config,
            Err(error) => return ConfigOutcome::Failed(error.to_string()),
        };
        let current = stored.map(|stored| stored.value).unwrap_or_default();
        if current == document {
            return ConfigOutcome::Stored { document, objections: Vec::new() };
        }
        let objections = match self.judge("PUT", &current, &document) {
            Ok(objections) => objections,
            Err(refused) => return refused,
        };
        match self.ports.dcs.write_config(&document, Expect::Anything, by).await {
            Ok(_) => {
                self.events.post(Event::Poke("PUT /config"));
                ConfigOutcome::Stored { document, objections }
            }
            Err(error) => self.written_after_all(document, objections, &error).await,
        }
    }

    /// REST-190 … REST-192.
    async fn change_leader(&self, request: &manual::Request) -> Answer {
        match manual::request(&self.ports, request, self.deadline()).await {
            Err(answer) => answer,
            Ok(old_leader) => {
                self.events.post(Event::Poke("switchover or failover"));
                let loop_wait = u64::from(self.configuration.settings().timing.loop_wait);
                let wait_ms = 2 * loop_wait.max(10) * 1000;
                let by = Deadline(boottime().plus(wait_ms));
                manual::outcome(&self.ports, request, old_leader, by).await
            }
        }
    }

    /// REST-194.
    async fn delete_schedule(&self) -> Answer {
        let answer = |status, text: &str| Answer { status, text: text.to_owned() };
        let by = self.deadline();
        let view = match self.ports.dcs.load(Freshness::Latest, by).await {
            Ok(view) => view,
            Err(error) => return answer(503, &format!("the store does not answer: {error}")),
        };
        let scheduled =
            view.pending_failover().filter(|stored| stored.value.scheduled_at.is_some());
        let Some(scheduled) = scheduled else {
            return answer(404, "no switchover is scheduled");
        };
        let expect = Expect::Version(scheduled.version);
        match self.ports.dcs.write_failover(&Failover::default(), expect, by).await {
            Ok(_) => answer(200, "scheduled switchover deleted"),
            Err(DcsError::Conflict { .. }) => {
                answer(409, "the schedule was changed by somebody else")
            }
            Err(error) => answer(503, &error.to_string()),
        }
    }
}
