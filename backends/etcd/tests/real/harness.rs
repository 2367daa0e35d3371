//! Real etcd as the suite wants it.

use async_trait::async_trait;
use etcd_client::Client;
use hathi_dcs::conformance::servers::Kind;
use hathi_dcs::conformance::{Cannot, Needs};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_etcd::{Etcd as Backend, EtcdConfig, open};
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion};
use std::sync::Arc;

/// Once per test binary; the library leaves this to the program.
pub fn install_tls() {
    // The second one is told that there is a first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub fn config(etcd: &Etcd) -> EtcdConfig {
    EtcdConfig { endpoints: etcd.urls(), ..EtcdConfig::default() }
}

pub fn backend(config: EtcdConfig, me: &str, timing: Timing) -> Arc<Backend> {
    open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
}

pub const TIMING: Timing = Timing { ttl: 15, loop_wait: 1, retry_timeout: 3 };

/// A client of one member, beside the backend.
pub async fn client(etcd: &Etcd, member: usize) -> Client {
    let port = etcd.client_ports()[member];
    let connected = Client::connect([format!("http://127.0.0.1:{port}")], None).await;
    connected.expect("a client connects lazily")
}

/// So many members of this version.
#[derive(Clone)]
pub struct RealEtcd {
    pub version: EtcdVersion,
    pub members: usize,
}

fn key(scope: &str, name: &str) -> String {
    format!("/service/{scope}/{name}")
}

#[async_trait]
impl Kind for RealEtcd {
    type Servers = Etcd;

    fn label(&self) -> String {
        let version = match self.version {
            EtcdVersion::V34 => "3.4",
            EtcdVersion::V35 => "3.5",
        };
        format!("etcd {version}, {} member(s)", self.members)
    }

    fn members(&self) -> usize {
        self.members
    }

    fn slack_ms(&self) -> u64 {
        1_000
    }

    /// The handle of "a" begins at the second, or at its neighbour.
    fn first(&self) -> [usize; 2] {
        [1, 2]
    }

    async fn start(&self, needs: Needs) -> Etcd {
        install_tls();
        let proxied = needs == Needs::LostAnswers;
        Etcd::start_with(EtcdOptions { proxied, ..EtcdOptions::new(self.version, self.members) })
            .await
    }

    fn open(&self, etcd: &Etcd, scope: &str, me: MemberName, timing: Timing) -> Arc<dyn Dcs> {
        open(config(etcd), Scope::new("service", scope), me, timing)
    }

    async fn raw(&self, etcd: &Etcd, scope: &str, name: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let got = client(etcd, 0).await.get(key(scope, name), None).await;
        Ok(got.expect("a healthy etcd").kvs().first().map(|kv| kv.value().to_vec()))
    }

    async fn put_raw(&self, etcd: &Etcd, scope: &str, name: &str, value: &str) {
        let put = client(etcd, 0).await.put(key(scope, name), value, None).await;
        put.expect("a healthy etcd");
    }

    async fn lose_lease(&self, etcd: &Etcd, scope: &str, keys: [&str; 2]) {
        let mut client = client(etcd, 0).await;
        let mut lease = 0;
        for name in keys {
            let got = client.get(key(scope, name), None).await.expect("a healthy etcd");
            let found = got.kvs().first().map_or(0, |kv| kv.lease());
            lease = if lease == 0 { found } else { lease };
        }
        client.lease_revoke(lease).await.expect("the member has a lease");
    }

    async fn forbid(&self, etcd: &Etcd, _scope: &str) {
        let mut client = client(etcd, 0).await;
        client.user_add("root", "secret", None).await.expect("a user");
        client.user_grant_role("root", "root").await.expect("a role");
        client.auth_enable().await.expect("authentication");
    }

    async fn permit(&self, etcd: &Etcd, _scope: &str) {
        let user = etcd_client::ConnectOptions::new().with_user("root", "secret");
        let mut root = Client::connect(etcd.urls(), Some(user)).await.expect("the root user");
        root.auth_disable().await.expect("off again");
    }

    async fn compact(&self, etcd: &Etcd) {
        let mut client = client(etcd, 0).await;
        let put = client.put("/elsewhere", "", None).await.expect("a healthy etcd");
        let revision = put.header().expect("every answer has one").revision();
        client.compact(revision, None).await.expect("a healthy etcd");
    }
}
