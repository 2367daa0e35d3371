//! A store with something around each of its calls: a stopwatch, a check. Otherwise exactly the store
//! behind it: every method is handed on, also those with a default.

use crate::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, Status, Sync, Timing, Version,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::{Map, Value};
use std::sync::Arc;

/// What is done around a call. `work` is the call itself, not begun; `what` names it.
pub trait Around: Send + std::marker::Sync + 'static {
    fn call<T: Send>(
        &self,
        what: &'static str,
        by: Deadline,
        work: impl Future<Output = Result<T, DcsError>> + Send,
    ) -> impl Future<Output = Result<T, DcsError>> + Send;

    /// The same of a call whose answer is one about the lock.
    fn verdict(
        &self,
        what: &'static str,
        by: Deadline,
        work: impl Future<Output = Result<(), DcsError>> + Send,
    ) -> impl Future<Output = Result<(), DcsError>> + Send {
        self.call(what, by, work)
    }
}

/// This store, with that around it.
pub fn with(around: impl Around, store: Arc<dyn Dcs>) -> Arc<dyn Dcs> {
    Arc::new(Wrapped { around, store })
}

struct Wrapped<A> {
    around: A,
    store: Arc<dyn Dcs>,
}

#[async_trait]
impl<A: Around> Dcs for Wrapped<A> {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn set_timing(&self, timing: Timing) {
        self.store.set_timing(timing);
    }

    fn shortest_ttl(&self) -> u32 {
        self.store.shortest_ttl()
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        let what = match freshness {
            Freshness::Latest => "load",
            Freshness::Watched => "load watched",
        };
        self.around.call(what, by, self.store.load(freshness, by)).await
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.around.verdict("acquire leader", by, self.store.acquire_leader(by)).await
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.around.verdict("take leader", by, self.store.take_leader(by)).await
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.around.verdict("renew leader", by, self.store.renew_leader(by)).await
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        self.around.verdict("release leader", by, self.store.release_leader(status, by)).await
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        self.around.call("write member", by, self.store.write_member(data, by)).await
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        self.around.call("write status", by, self.store.write_status(status, by)).await
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        self.around.call("write failsafe", by, self.store.write_failsafe(failsafe, by)).await
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        let work = self.store.write_initialize(value, expect, by);
        self.around.call("write initialize", by, work).await
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.around.call("delete initialize", by, self.store.delete_initialize(by)).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.around.call("write config", by, self.store.write_config(config, expect, by)).await
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let work = self.store.write_failover(failover, expect, by);
        self.around.call("write failover", by, work).await
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.around.call("write sync", by, self.store.write_sync(sync, expect, by)).await
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.around.call("delete sync", by, self.store.delete_sync(expect, by)).await
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        self.around.call("write history", by, self.store.write_history(history, by)).await
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.around.call("delete cluster", by, self.store.delete_cluster(by)).await
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        self.store.watch()
    }
}
