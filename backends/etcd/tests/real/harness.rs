//! Real etcd as the suite wants it.

use async_trait::async_trait;
use etcd_client::Client;
use hathi_dcs::conformance::servers::Patient;
use hathi_dcs::conformance::{Cannot, Fault, Harness, Needs, Outcome, Store};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_etcd::{Etcd as Backend, EtcdConfig, open};
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell};

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

pub struct EtcdHarness {
    version: EtcdVersion,
    members: usize,
    healthy: OnceCell<Arc<Mutex<Etcd>>>,
    scopes: AtomicU32,
}

impl EtcdHarness {
    pub fn new(version: EtcdVersion, members: usize) -> Arc<Self> {
        install_tls();
        let (healthy, scopes) = (OnceCell::new(), AtomicU32::new(0));
        Arc::new(Self { version, members, healthy, scopes })
    }

    async fn start(&self, proxied: bool) -> Arc<Mutex<Etcd>> {
        let options = EtcdOptions { proxied, ..EtcdOptions::new(self.version, self.members) };
        Arc::new(Mutex::new(Etcd::start_with(options).await))
    }
}

#[async_trait]
impl Harness for EtcdHarness {
    fn label(&self) -> String {
        let version = match self.version {
            EtcdVersion::V34 => "3.4",
            EtcdVersion::V35 => "3.5",
        };
        format!("etcd {version}, {} member(s)", self.members)
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let etcd = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(false)).await.clone(),
            Needs::Faults | Needs::Rights => self.start(false).await,
            Needs::LostAnswers => self.start(true).await,
        };
        // A name that is the beginning of another one's must not matter.
        let scope = format!("batman{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        let config = config(&*etcd.lock().await);
        // The handle of "a" begins at the second, or at its neighbour.
        let patient = Patient::new(etcd, [1, 2]);
        Box::new(EtcdStore { patient, config, scope, members: self.members })
    }

    fn parallel(&self) -> usize {
        6
    }
}

struct EtcdStore {
    patient: Patient<Etcd>,
    config: EtcdConfig,
    scope: String,
    members: usize,
}

impl EtcdStore {
    fn key(&self, name: &str) -> String {
        format!("/service/{}/{name}", self.scope)
    }

    async fn client(&self) -> Client {
        client(&*self.patient.servers.lock().await, 0).await
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        let scope = Scope::new("service", &self.scope);
        open(self.config.clone(), scope, MemberName::from(me), timing)
    }

    fn members(&self) -> usize {
        self.members
    }

    fn slack_ms(&self) -> u64 {
        1_000
    }

    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let got = self.client().await.get(self.key(key), None).await.expect("a healthy etcd");
        Ok(got.kvs().first().map(|kv| kv.value().to_vec()))
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        self.client().await.put(self.key(key), value, None).await.expect("a healthy etcd");
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        if let Some(outcome) = self.patient.inflict(&fault).await {
            return outcome;
        }
        match fault {
            Fault::LoseLease(name) => {
                let mut client = self.client().await;
                let mut lease = 0;
                for key in [self.key("leader"), self.key(&format!("members/{name}"))] {
                    let got = client.get(key, None).await.expect("a healthy etcd");
                    let found = got.kvs().first().map_or(0, |kv| kv.lease());
                    lease = if lease == 0 { found } else { lease };
                }
                client.lease_revoke(lease).await.expect("the member has a lease");
            }
            Fault::Forbid => {
                let mut client = self.client().await;
                client.user_add("root", "secret", None).await.expect("a user");
                client.user_grant_role("root", "root").await.expect("a role");
                client.auth_enable().await.expect("authentication");
            }
            Fault::Permit => {
                let urls = self.patient.servers.lock().await.urls();
                let user = etcd_client::ConnectOptions::new().with_user("root", "secret");
                let mut root = Client::connect(urls, Some(user)).await.expect("the root user");
                root.auth_disable().await.expect("off again");
            }
            _ => {
                let mut client = self.client().await;
                let put = client.put("/elsewhere", "", None).await.expect("a healthy etcd");
                let revision = put.header().expect("every answer has one").revision();
                client.compact(revision, None).await.expect("a healthy etcd");
                self.patient.servers.lock().await.proxies().for_each(|proxy| proxy.cut_all());
            }
        }
        Ok(())
    }
}
