//! The [`Dcs`] that a flat store is: which operation is which key.

use super::wakes::Wakes;
use super::{Flat, READ_AGAIN};
use crate::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, Status, Sync, Timing, Version, json,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::{Map, Value};
use std::sync::{Arc, OnceLock};

/// One cluster in a flat store, as seen by one member.
pub struct Handle<S: Flat> {
    store: Arc<S>,
    wakes: OnceLock<Arc<Wakes>>,
}

impl<S: Flat> Handle<S> {
    pub fn new(store: Arc<S>) -> Arc<Self> {
        Arc::new(Self { store, wakes: OnceLock::new() })
    }

    /// What stands behind it.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// The watch, begun by the first who wants it; it ends with this handle and its streams.
    fn wakes(&self) -> Arc<Wakes> {
        self.wakes.get_or_init(|| Wakes::start(self.store.clone())).clone()
    }

    /// A refusal says that what I see may be old. (DCS-091)
    fn heard<T>(&self, answer: Result<T, DcsError>) -> Result<T, DcsError> {
        if let Err(DcsError::Conflict { .. } | DcsError::NotOwner { .. }) = &answer {
            self.store.kept().doubt();
        }
        answer
    }

    /// What the store says, after it refused something. A watch that shows something else and stands
    /// still begins anew.
    async fn read_in_doubt(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        // Before the reading: what is refused meanwhile is a doubt of its own.
        self.store.kept().believe();
        let read = self.store.read(by).await;
        let view = read.inspect_err(|_| self.store.kept().doubt())?;
        let (store, wanted) = (self.store.clone(), view.clone());
        tokio::spawn(async move {
            if !store.kept().copy.shows_or_moves(&wanted).await {
                store.kept().begin_anew();
            }
        });
        Ok(view)
    }

    /// Without expectation, and not at all if the value stands there already. (DCS-010, DCS-011)
    async fn set_if_new(&self, name: &str, value: String, by: Deadline) -> Result<(), DcsError> {
        if self.store.kept().known(name).is_some_and(|entry| entry.value == value) {
            return Ok(());
        }
        self.store.set(name, value, Expect::Anything, by).await.map(drop)
    }
}

#[async_trait]
impl<S: Flat> Dcs for Handle<S> {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn set_timing(&self, timing: Timing) {
        self.store.retime(timing);
    }

    fn shortest_ttl(&self) -> u32 {
        S::SHORTEST_TTL
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        match freshness {
            Freshness::Latest => {}
            Freshness::Watched => {
                self.wakes();
                let kept = self.store.kept();
                if kept.is_doubted() {
                    return self.read_in_doubt(by).await;
                }
                let own = kept.own();
                if own != READ_AGAIN
                    && let Some(view) = kept.copy.view(own, by).await
                {
                    return Ok(view);
                }
            }
        }
        self.store.read(by).await
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.heard(self.store.acquire(by).await)
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.store.take(by).await
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.store.renew(by).await
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        self.heard(self.store.release(status, by).await)
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        self.store.set_member(data.to_wire(), by).await
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        self.set_if_new("status", status.to_wire(), by).await
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        self.set_if_new("failsafe", failsafe.to_wire(), by).await
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        if value.is_empty() && expect == Expect::Absent {
            return self.heard(self.store.begin_bootstrap(by).await);
        }
        self.heard(self.store.set("initialize", value.to_owned(), expect, by).await).map(drop)
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.store.delete("initialize", Expect::Anything, by).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.heard(self.store.set("config", json::compact(config), expect, by).await)
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.heard(self.store.set("failover", failover.to_wire(), expect, by).await)
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.heard(self.store.set("sync", sync.to_wire(), expect, by).await)
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.heard(self.store.delete("sync", expect, by).await)
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        self.store.set("history", history.to_wire(), Expect::Anything, by).await.map(drop)
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.store.delete_all(by).await
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        Wakes::stream(self.wakes())
    }
}
