//! `Dcs` for etcd: which operation is which request.

use crate::EtcdConfig;
use crate::endpoints::{Answer, Endpoints, Failure};
use crate::lease::Lease;
use crate::watcher::Watcher;
use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse, ResponseHeader, Txn, TxnResponse};
use futures::StreamExt;
use futures::stream::BoxStream;
use hathi_dcs::copy::{self, view_of};
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, MemberName, Scope, Status, Sync, Timing, Version, json,
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Leases are numbers.
pub(crate) type Entry = copy::Entry<i64>;

/// What the calls and the watch have in common.
pub(crate) struct Shared {
    pub endpoints: Arc<Endpoints>,
    pub prefix: String,
    pub me: MemberName,
    pub lease: Lease,
    pub copy: copy::Copy<i64>,
    /// The revision of the last write of mine: a copy without it is too old for me.
    own: AtomicI64,
    /// My records as I last wrote or read them, for when there is no living copy.
    written: Mutex<HashMap<String, Entry>>,
}

/// Bytes of the store as text; what is not UTF-8 is garbage anyway and read as such. (DCS-050)
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Failure {
    pub(crate) fn into_error(self) -> DcsError {
        match self {
            Self::LeaseGone => DcsError::unreachable("etcd", 0, "the lease was lost twice"),
            Self::Failed(error) => error,
        }
    }
}

impl Shared {
    /// The whole key of a record; `key("")` is the cluster's prefix.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub async fn txn(&self, by: Deadline, txn: Txn) -> Result<Answer<TxnResponse>, Failure> {
        self.endpoints
            .call(by, |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await
    }

    /// Every key of the cluster, agreed by the majority. (DCS-001)
    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let prefix = self.key("");
        let answer = self
            .endpoints
            .call(by, |client| {
                let prefix = prefix.clone();
                let options = GetOptions::new().with_prefix();
                async move { client.kv_client().get(prefix, Some(options)).await }
            })
            .await
            .map_err(Failure::into_error)?;
        let keys = self.entries(&answer.value);
        let revision = answer.value.header().map_or(0, ResponseHeader::revision);
        if revision >= self.own_revision() {
            let mine = format!("members/{}", self.me);
            let mut written = self.written();
            for name in ["status", "failsafe", &mine] {
                match keys.get(name) {
                    Some(entry) => written.insert(name.to_owned(), entry.clone()),
                    None => written.remove(name),
                };
            }
        }
        Ok(view_of(&keys))
    }

    pub fn entries(&self, answer: &GetResponse) -> BTreeMap<String, Entry> {
        let entries = answer.kvs().iter().filter_map(|kv| {
            let key = text(kv.key());
            let name = key.strip_prefix(&self.prefix)?;
            let (version, lease) = (kv.mod_revision(), kv.lease());
            Some((name.to_owned(), Entry { value: text(kv.value()), version, lease }))
        });
        entries.collect()
    }

    pub fn own_revision(&self) -> i64 {
        self.own.load(Ordering::Acquire)
    }

    /// The store was restored to an older state, or is another one.
    pub fn reset_own_revision(&self, revision: i64) {
        self.own.store(revision, Ordering::Release);
    }

    /// Notes the revision of a write of mine and gives it back.
    pub fn wrote(&self, header: Option<&ResponseHeader>) -> i64 {
        let revision = header.map_or(0, ResponseHeader::revision);
        self.own.fetch_max(revision, Ordering::AcqRel);
        revision
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn remember_written(&self, name: &str, entry: Entry) {
        self.written().insert(name.to_owned(), entry);
    }

    /// From now until its answer is there, nobody knows what stands under this key.
    pub fn forget_written(&self, name: &str) {
        self.written().remove(name);
    }

    pub fn forget_all_written(&self) {
        self.written().clear();
    }

    /// What stands under a key as far as can be said without asking.
    pub fn known(&self, name: &str) -> Option<Entry> {
        match self.copy.entry(name, self.own_revision()) {
            Some(entry) => entry,
            None => self.written().get(name).cloned(),
        }
    }
}

/// One cluster in etcd, as seen by one member.
pub struct Etcd {
    shared: Arc<Shared>,
    watcher: OnceLock<Arc<Watcher>>,
}

impl Etcd {
    /// Touches neither the network nor a file: the first use does. Wrong credentials are then
    /// `Refused`, an unreadable certificate is `NotRetriable`.
    pub fn new(config: EtcdConfig, scope: Scope, me: MemberName, timing: Timing) -> Arc<Self> {
        let spread = me.as_str().bytes().fold(0_usize, |sum, byte| sum + usize::from(byte));
        let endpoints = Endpoints::new(config, spread, 10 * timing.ttl_ms());
        Arc::new(Self {
            shared: Arc::new(Shared {
                endpoints,
                prefix: scope.prefix(),
                me,
                lease: Lease::new(timing),
                copy: copy::Copy::default(),
                own: AtomicI64::new(0),
                written: Mutex::new(HashMap::new()),
            }),
            watcher: OnceLock::new(),
        })
    }

    /// The watch, begun by the first who wants it; it ends with this handle and its streams.
    fn watcher(&self) -> Arc<Watcher> {
        self.watcher.get_or_init(|| Watcher::start(self.shared.clone())).clone()
    }
}

#[async_trait]
impl Dcs for Etcd {
    fn kind(&self) -> &'static str {
        "etcd3"
    }

    fn set_timing(&self, timing: Timing) {
        self.shared.lease.set_timing(timing);
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        match freshness {
            Freshness::Latest => {}
            Freshness::Watched => {
                self.watcher();
                if let Some(view) = self.shared.copy.view(self.shared.own_revision(), by).await {
                    return Ok(view);
                }
            }
        }
        self.shared.read(by).await
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.shared.acquire(by).await
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.shared.take(by).await
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        self.shared.renew(by).await
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        self.shared.release(status, by).await
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        self.shared.set_member(data.to_wire(), by).await
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        self.shared.set_if_new("status", status.to_wire(), by).await
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        self.shared.set_if_new("failsafe", failsafe.to_wire(), by).await
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        if value.is_empty() && expect == Expect::Absent {
            return self.shared.begin_bootstrap(by).await;
        }
        self.shared.set("initialize", value.to_owned(), expect, by).await.map(drop)
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.shared.delete("initialize", Expect::Anything, by).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.shared.set("config", json::compact(config), expect, by).await
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.shared.set("failover", failover.to_wire(), expect, by).await
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.shared.set("sync", sync.to_wire(), expect, by).await
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.shared.delete("sync", expect, by).await
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        self.shared.set("history", history.to_wire(), Expect::Anything, by).await.map(drop)
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.shared.delete_all(by).await
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        // The stream keeps the watch alive, also when the handle is gone.
        let watcher = self.watcher();
        let changes = watcher.changes();
        let never = futures::stream::pending();
        changes
            .chain(never)
            .map(move |change| {
                let _keep = &watcher;
                change
            })
            .boxed()
    }
}
