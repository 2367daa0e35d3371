//! `Flat` for etcd: reading everything, and what the calls and the watch have in common.

use crate::EtcdConfig;
use crate::call::{Answer, Failure};
use crate::endpoints::Endpoints;
use crate::srv;
use async_trait::async_trait;
use etcd_client::{GetOptions, GetResponse, ResponseHeader, Txn, TxnResponse};
use hathi_dcs::flat::copy::{self, view_of};
use hathi_dcs::flat::{Ended, Flat, Handle, Kept, Tenure, Wake};
use hathi_dcs::{ClusterView, DcsError, Deadline, MemberName, Scope, Timing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Leases are numbers.
pub(crate) type Entry = copy::Entry<i64>;

/// What the calls and the watch have in common.
pub struct Shared {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) prefix: String,
    pub(crate) me: MemberName,
    pub(crate) lease: Tenure<i64>,
    pub(crate) kept: Kept<i64>,
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
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) async fn txn(&self, by: Deadline, txn: Txn) -> Result<Answer<TxnResponse>, Failure> {
        self.endpoints
            .call(by, |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await
    }

    /// The same for a transaction that a lock depends on, and that may run several times at once.
    pub(crate) async fn hedged_txn(
        &self,
        by: Deadline,
        txn: Txn,
    ) -> Result<Answer<TxnResponse>, Failure> {
        self.endpoints
            .hedged(by, |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await
    }

    /// Every key of the cluster, agreed by the majority. (DCS-001)
    async fn read_all(&self, by: Deadline) -> Result<ClusterView, DcsError> {
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
        if revision >= self.kept.own() {
            self.kept.took(&keys);
        }
        Ok(view_of(&keys))
    }

    pub(crate) fn entries(&self, answer: &GetResponse) -> BTreeMap<String, Entry> {
        let entries = answer.kvs().iter().filter_map(|kv| {
            let key = text(kv.key());
            let name = key.strip_prefix(&self.prefix)?;
            let (version, lease) = (kv.mod_revision(), kv.lease());
            Some((name.to_owned(), Entry { value: text(kv.value()), version, lease }))
        });
        entries.collect()
    }

    /// Notes the revision of a write of mine and gives it back.
    pub(crate) fn wrote(&self, header: Option<&ResponseHeader>) -> i64 {
        let revision = header.map_or(0, ResponseHeader::revision);
        self.kept.wrote(revision);
        revision
    }
}

/// One cluster in etcd, as seen by one member.
pub type Etcd = Handle<Shared>;

/// Touches neither the network nor a file: the first use does. Wrong credentials are then
/// `Refused`, an unreadable certificate is `NotRetriable`.
pub fn open(config: EtcdConfig, scope: Scope, me: MemberName, timing: Timing) -> Arc<Etcd> {
    let spread = me.as_str().bytes().fold(0_usize, |sum, byte| sum + usize::from(byte));
    Handle::new(Arc::new(Shared {
        endpoints: Endpoints::new(config, spread, 10 * timing.ttl_ms()),
        prefix: scope.prefix(),
        kept: Kept::new(&me),
        me,
        lease: Tenure::new(timing),
    }))
}

/// The servers that DNS names below `config.srv`, as URLs: what the store would begin with. None without
/// `srv`.
///
/// # Errors
/// One line: who was asked for which names, and what each said.
pub async fn named_by_dns(config: &EtcdConfig, by: Deadline) -> Result<Vec<String>, String> {
    match &config.srv {
        Some(domain) => srv::find(config, domain, by).await,
        None => Ok(Vec::new()),
    }
}

#[async_trait]
impl Flat for Shared {
    type Lease = i64;
    const KIND: &'static str = "etcd3";

    fn kept(&self) -> &Kept<i64> {
        &self.kept
    }

    fn retime(&self, timing: Timing) {
        self.lease.set_timing(timing);
    }

    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        self.read_all(by).await
    }

    async fn watch_once(&self, wake: &Wake) -> Ended {
        self.follow(wake).await
    }
}
