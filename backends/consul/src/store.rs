//! `Dcs` for Consul: which operation is which request.

use crate::ConsulConfig;
use crate::http::{Agents, Answer, Call, key_path};
use crate::session::Session;
use crate::watcher::Watcher;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::BoxStream;
use hathi_dcs::copy::{self, view_of};
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, MemberName, Scope, Status, Sync, Timing, Version, json,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Sessions are named by text; empty: none.
pub(crate) type Entry = copy::Entry<String>;
pub(crate) type Keys = BTreeMap<String, Entry>;

/// A deletion of mine has no index: until the store was read again nothing that is kept here counts.
const READ_AGAIN: i64 = i64::MAX;

/// What the calls and the watch have in common.
pub(crate) struct Shared {
    pub agents: Agents,
    /// Without the slash that other stores begin with. (DCS-050)
    pub prefix: String,
    pub me: MemberName,
    pub session: Session,
    pub copy: copy::Copy<String>,
    /// The index of the last write of mine: a copy without it is too old for me.
    own: AtomicI64,
    /// My records as I last wrote or read them, for when there is no living copy.
    written: Mutex<HashMap<String, Entry>>,
}

/// One key as Consul lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    value: Option<String>,
    modify_index: i64,
    #[serde(default)]
    session: String,
}

impl Shared {
    /// The whole key of a record; `key("")` is the cluster's prefix.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What an answer lists, by the part of the key after the prefix. 404: nothing is there.
    pub fn keys_in(&self, answer: &Answer) -> Result<Keys, DcsError> {
        if answer.status == 404 {
            return Ok(Keys::new());
        }
        let strange = |why: String| DcsError::unreachable("consul", 0, why);
        let listed: Vec<Listed> = serde_json::from_slice(&answer.body)
            .map_err(|why| strange(format!("a list of keys that is none: {why}")))?;
        let entries = listed.into_iter().filter_map(|kv| {
            let name = kv.key.strip_prefix(&self.prefix)?.to_owned();
            let bytes = STANDARD.decode(kv.value.unwrap_or_default()).unwrap_or_default();
            let value = String::from_utf8_lossy(&bytes).into_owned();
            Some((name, Entry { value, version: kv.modify_index, lease: kv.session }))
        });
        Ok(entries.collect())
    }

    /// Every key of the cluster, agreed by a majority of the servers. (DCS-001, DCS-120)
    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let marked = self.own_index();
        let path = format!("{}?recurse=1{}", key_path(&self.key("")), self.agents.flags(true));
        let answer = self.agents.call(by, &Call::get(path)).await?;
        let keys = self.keys_in(&answer)?;
        let index = i64::try_from(answer.index).unwrap_or(0);
        if marked == READ_AGAIN {
            // This reading has the deletion. Another one may have come meanwhile: it marks again.
            let _ = self.own.compare_exchange(marked, index, Ordering::AcqRel, Ordering::Relaxed);
        }
        let mut written = self.written();
        for name in ["status".to_owned(), "failsafe".to_owned(), format!("members/{}", self.me)] {
            match keys.get(&name) {
                Some(entry) => written.insert(name, entry.clone()),
                None => written.remove(&name),
            };
        }
        drop(written);
        Ok(view_of(&keys))
    }

    /// One key as of now.
    pub async fn look(&self, name: &str, by: Deadline) -> Result<Option<Entry>, DcsError> {
        let flags = self.agents.flags(true);
        let path = format!("{}?{}", key_path(&self.key(name)), flags.trim_start_matches('&'));
        let answer = self.agents.call(by, &Call::get(path)).await?;
        Ok(self.keys_in(&answer)?.remove(name))
    }

    pub fn own_index(&self) -> i64 {
        self.own.load(Ordering::Acquire)
    }

    /// The store is another one, or lost what it had: indexes begin anew.
    pub fn reset_own_index(&self, index: i64) {
        self.own.store(index, Ordering::Release);
    }

    /// Notes the index of a write of mine; 0 is a deletion.
    pub fn wrote(&self, index: u64) {
        let index = i64::try_from(index).unwrap_or(0);
        self.own.fetch_max(if index == 0 { READ_AGAIN } else { index }, Ordering::AcqRel);
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
        match self.copy.entry(name, self.own_index()) {
            Some(entry) => entry,
            None => self.written().get(name).cloned(),
        }
    }
}

/// One cluster in Consul, as seen by one member.
pub struct Consul {
    shared: Arc<Shared>,
    watcher: OnceLock<Arc<Watcher>>,
}

impl Consul {
    /// Touches neither the network nor a file: the first use does. A wrong token is then `Refused`,
    /// an unreadable certificate is `NotRetriable`.
    pub fn new(config: ConsulConfig, scope: Scope, me: MemberName, timing: Timing) -> Arc<Self> {
        let session = Session::new(format!("{}-{me}", scope.scope()), timing);
        Arc::new(Self {
            shared: Arc::new(Shared {
                agents: Agents::new(config),
                prefix: scope.prefix().trim_start_matches('/').to_owned(),
                me,
                session,
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
impl Dcs for Consul {
    fn kind(&self) -> &'static str {
        "consul"
    }

    fn set_timing(&self, timing: Timing) {
        self.shared.session.set_timing(timing);
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        match freshness {
            Freshness::Latest => {}
            Freshness::Watched => {
                self.watcher();
                let own = self.shared.own_index();
                if own != READ_AGAIN
                    && let Some(view) = self.shared.copy.view(own, by).await
                {
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
        let never = futures::stream::pending();
        watcher
            .changes()
            .chain(never)
            .map(move |change| {
                let _keep = &watcher;
                change
            })
            .boxed()
    }
}
