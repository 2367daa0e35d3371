//! `Flat` for Consul: reading everything, and what the calls and the watch have in common.

use crate::ConsulConfig;
use crate::http::{Agents, Answer, Call, key_path};
use crate::service::Service;
use crate::session::Sessions;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_dcs::flat::copy::{self, view_of};
use hathi_dcs::flat::{Ended, Flat, Handle, Kept, READ_AGAIN, Wake};
use hathi_dcs::{ClusterView, DcsError, Deadline, MemberName, Scope, Timing};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sessions are named by text; empty: none.
pub(crate) type Entry = copy::Entry<String>;
pub(crate) type Keys = BTreeMap<String, Entry>;

/// What the calls and the watch have in common.
pub struct Shared {
    pub(crate) agents: Agents,
    /// Without the slash that other stores begin with. (DCS-050)
    pub(crate) prefix: String,
    pub(crate) scope: String,
    pub(crate) me: MemberName,
    pub(crate) sessions: Sessions,
    pub(crate) kept: Kept<String>,
    pub(crate) service: Service,
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
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What an answer lists, by the part of the key after the prefix. 404: nothing is there.
    pub(crate) fn keys_in(&self, answer: &Answer) -> Result<Keys, DcsError> {
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
    async fn read_all(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let marked = self.kept.own();
        let path = format!("{}?recurse=1{}", key_path(&self.key("")), self.agents.flags(true));
        let answer = self.agents.call(by, &Call::get(path)).await?;
        let keys = self.keys_in(&answer)?;
        if keys.is_empty() {
            self.may_read(by).await?;
        }
        let index = i64::try_from(answer.index).unwrap_or(0);
        self.kept.read_again(marked, index);
        self.kept.took(&keys);
        Ok(view_of(&keys))
    }

    /// Consul leaves out of a list what one may not read: an empty cluster, and no word of rights. One
    /// key by its name is refused.
    pub(crate) async fn may_read(&self, by: Deadline) -> Result<(), DcsError> {
        self.look("leader", by).await.map(drop)
    }

    /// One key as of now.
    pub(crate) async fn look(&self, name: &str, by: Deadline) -> Result<Option<Entry>, DcsError> {
        let flags = self.agents.flags(true);
        let path = format!("{}?{}", key_path(&self.key(name)), flags.trim_start_matches('&'));
        let answer = self.agents.hedged(by, &Call::get(path)).await?;
        Ok(self.keys_in(&answer)?.remove(name))
    }

    /// Notes the index of a write of mine; 0 is a deletion, which has none.
    pub(crate) fn wrote(&self, index: u64) {
        let index = i64::try_from(index).unwrap_or(0);
        self.kept.wrote(if index == 0 { READ_AGAIN } else { index });
    }
}

/// One cluster in Consul, as seen by one member.
pub type Consul = Handle<Shared>;

/// Touches neither the network nor a file: the first use does. A wrong token is then `Refused`, an
/// unreadable certificate is `NotRetriable`.
pub fn open(config: ConsulConfig, scope: Scope, me: MemberName, timing: Timing) -> Arc<Consul> {
    let sessions = Sessions::new(format!("{}-{me}", scope.scope()), timing);
    Handle::new(Arc::new(Shared {
        agents: Agents::new(config),
        prefix: scope.prefix().trim_start_matches('/').to_owned(),
        kept: Kept::new(&me),
        scope: scope.scope().to_owned(),
        me,
        sessions,
        service: Service::default(),
    }))
}

#[async_trait]
impl Flat for Shared {
    type Lease = String;
    const KIND: &'static str = "consul";

    /// Two sessions of at least ten seconds each. (DCS-111)
    const SHORTEST_TTL: u32 = 20;

    fn kept(&self) -> &Kept<String> {
        &self.kept
    }

    fn retime(&self, timing: Timing) {
        self.sessions.tenure.set_timing(timing);
    }

    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        self.read_all(by).await
    }

    async fn watch_once(&self, wake: &Wake) -> Ended {
        self.follow(wake).await
    }
}
