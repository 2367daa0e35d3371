//! A handle that checks what holds for every call of every test: the call returns by its deadline,
//! whatever the backend asks besides. (Proves HA-024, DCS-301)

use crate::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, Millis, Status, Sync, Timing, Version, boottime,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::{Map, Value};
use std::sync::Arc;

/// For the scheduler of a busy machine, not for the store.
const SLACK_MS: u64 = 500;

pub struct Strict {
    inner: Arc<dyn Dcs>,
}

impl Strict {
    pub fn new(inner: Arc<dyn Dcs>) -> Self {
        Self { inner }
    }
}

fn check(call: &str, began: Millis, by: Deadline) {
    let late = boottime().since(by.0.max(began));
    assert!(late <= SLACK_MS, "{call} came back {late} ms after its deadline");
}

macro_rules! kept {
    ($self:ident.$call:ident($($arg:expr),*; $by:expr)) => {{
        let began = boottime();
        let answer = $self.inner.$call($($arg,)* $by).await;
        check(stringify!($call), began, $by);
        answer
    }};
}

#[async_trait]
impl Dcs for Strict {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn set_timing(&self, timing: Timing) {
        self.inner.set_timing(timing);
    }

    fn shortest_ttl(&self) -> u32 {
        self.inner.shortest_ttl()
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        kept!(self.load(freshness; by))
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        kept!(self.acquire_leader(; by))
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        kept!(self.take_leader(; by))
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        kept!(self.renew_leader(; by))
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        kept!(self.release_leader(status; by))
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        kept!(self.write_member(data; by))
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        kept!(self.write_status(status; by))
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        kept!(self.write_failsafe(failsafe; by))
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        kept!(self.write_initialize(value, expect; by))
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        kept!(self.delete_initialize(; by))
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        kept!(self.write_config(config, expect; by))
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        kept!(self.write_failover(failover, expect; by))
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        kept!(self.write_sync(sync, expect; by))
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        kept!(self.delete_sync(expect; by))
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        kept!(self.write_history(history; by))
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        kept!(self.delete_cluster(; by))
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        self.inner.watch()
    }
}
