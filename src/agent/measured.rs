//! A store that counts what it is asked, how long that took and how it failed; otherwise exactly the
//! store behind it. Every method is handed on, also those with a default. (REST-469)

use crate::api::Meter;
use async_trait::async_trait;
use futures::stream::BoxStream;
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, Status, Sync, Timing, Version,
};
use serde_json::{Map, Value};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

pub struct Measured {
    store: Arc<dyn Dcs>,
    meter: Arc<Meter>,
}

impl Measured {
    pub fn of(store: Arc<dyn Dcs>, meter: Arc<Meter>) -> Arc<dyn Dcs> {
        Arc::new(Self { store, meter })
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, DcsError>> + Send,
    ) -> Result<T, DcsError> {
        let began = Instant::now();
        let outcome = work.await;
        self.meter.store(operation, outcome.as_ref().err().map(kind), began.elapsed());
        outcome
    }
}

fn kind(error: &DcsError) -> &'static str {
    match error {
        DcsError::NotOwner { .. } => "not owner",
        DcsError::Conflict { .. } => "conflict",
        DcsError::Unreachable { .. } => "unreachable",
        DcsError::Refused { .. } => "refused",
        DcsError::NotRetriable { .. } => "not retriable",
    }
}

#[async_trait]
impl Dcs for Measured {
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
        let operation = match freshness {
            Freshness::Latest => "load",
            Freshness::Watched => "load watched",
        };
        self.timed(operation, self.store.load(freshness, by)).await
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.timed("acquire leader", self.store.acquire_leader(by)).await
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.timed("take leader", self.store.take_leader(by)).await
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.timed("renew leader", self.store.renew_leader(by)).await
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        self.timed("release leader", self.store.release_leader(status, by)).await
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        self.timed("write member", self.store.write_member(data, by)).await
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        self.timed("write status", self.store.write_status(status, by)).await
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        self.timed("write failsafe", self.store.write_failsafe(failsafe, by)).await
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        self.timed("write initialize", self.store.write_initialize(value, expect, by)).await
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.timed("delete initialize", self.store.delete_initialize(by)).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.timed("write config", self.store.write_config(config, expect, by)).await
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.timed("write failover", self.store.write_failover(failover, expect, by)).await
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.timed("write sync", self.store.write_sync(sync, expect, by)).await
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.timed("delete sync", self.store.delete_sync(expect, by)).await
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        self.timed("write history", self.store.write_history(history, by)).await
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.timed("delete cluster", self.store.delete_cluster(by)).await
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        self.store.watch()
    }
}
