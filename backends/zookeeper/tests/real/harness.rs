//! Real ZooKeeper as the suite wants it.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Patient;
use hathi_dcs::conformance::{Cannot, Fault, Harness, Needs, Outcome, Store};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_test_support::{ZooKeeper, ZooKeeperOptions};
use hathi_zookeeper::{ZooKeeper as Backend, ZooKeeperConfig, open};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Error, Permission};

pub fn config(zookeeper: &ZooKeeper) -> ZooKeeperConfig {
    ZooKeeperConfig { hosts: zookeeper.hosts(), ..ZooKeeperConfig::default() }
}

pub fn backend(config: ZooKeeperConfig, me: &str, timing: Timing) -> Arc<Backend> {
    open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
}

/// A client of the first server, beside the backend.
pub async fn client(zookeeper: &ZooKeeper) -> Client {
    Client::connect(&zookeeper.plain_hosts().join(",")).await.expect("a healthy ZooKeeper")
}

pub const TIMING: Timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };

pub struct ZooKeeperHarness {
    members: usize,
    healthy: OnceCell<Arc<Mutex<ZooKeeper>>>,
    scopes: AtomicU32,
}

impl ZooKeeperHarness {
    pub fn new(members: usize) -> Arc<Self> {
        Arc::new(Self { members, healthy: OnceCell::new(), scopes: AtomicU32::new(0) })
    }

    async fn start(&self, proxied: bool) -> Arc<Mutex<ZooKeeper>> {
        let options = ZooKeeperOptions { proxied, ..ZooKeeperOptions::new(self.members) };
        Arc::new(Mutex::new(ZooKeeper::start(options).await))
    }
}

#[async_trait]
impl Harness for ZooKeeperHarness {
    fn label(&self) -> String {
        format!("ZooKeeper 3.8, {} server(s)", self.members)
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let zookeeper = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(false)).await.clone(),
            Needs::Faults | Needs::Rights => self.start(false).await,
            Needs::LostAnswers => self.start(true).await,
        };
        // A name that is the beginning of another one's must not matter.
        let scope = format!("batman{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        let config = config(&*zookeeper.lock().await);
        // The handles choose their servers by chance.
        let patient = Patient::new(zookeeper, [0, 1]);
        Box::new(ZooKeeperStore { patient, config, scope, members: self.members })
    }
}

struct ZooKeeperStore {
    patient: Patient<ZooKeeper>,
    config: ZooKeeperConfig,
    scope: String,
    members: usize,
}

impl ZooKeeperStore {
    /// Every node of the cluster, by one who has a name.
    async fn belongs_to(&self, whom: AuthId) {
        let access = [Acl::new(Permission::ALL, whom)];
        let hosts = self.patient.servers.lock().await.plain_hosts().join(",");
        let connector = Client::connector().with_auth("digest", b"owner:secret");
        let owner = connector.connect(&hosts).await.expect("a healthy ZooKeeper");
        let mut left = vec![self.path("").trim_end_matches('/').to_owned()];
        while let Some(path) = left.pop() {
            match owner.list_children(&path).await {
                Ok(names) => left.extend(names.iter().map(|name| format!("{path}/{name}"))),
                Err(Error::NoNode) => continue,
                Err(error) => panic!("{path}: {error}"),
            }
            owner.set_acl(&path, &access, None).await.expect("a healthy ZooKeeper");
        }
    }

    fn path(&self, key: &str) -> String {
        format!("/service/{}/{key}", self.scope)
    }

    async fn client(&self) -> Client {
        client(&*self.patient.servers.lock().await).await
    }

    async fn owner(&self, client: &Client, key: &str) -> Option<i64> {
        let found = client.check_stat(&self.path(key)).await.expect("a healthy ZooKeeper");
        found.map(|stat| stat.ephemeral_owner).filter(|owner| *owner != 0)
    }
}

#[async_trait]
impl Store for ZooKeeperStore {
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
        match self.client().await.get_data(&self.path(key)).await {
            Ok((data, _)) => Ok(Some(data)),
            Err(Error::NoNode) => Ok(None),
            Err(error) => panic!("a healthy ZooKeeper: {error}"),
        }
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        let (client, path) = (self.client().await, self.path(key));
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.mkdir(&path, &persistent).await.expect("a healthy ZooKeeper");
        client.set_data(&path, value.as_bytes(), None).await.expect("a healthy ZooKeeper");
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        if let Some(outcome) = self.patient.inflict(&fault).await {
            return outcome;
        }
        match fault {
            Fault::LoseLease(name) => {
                let client = self.client().await;
                let leader = self.owner(&client, "leader").await;
                let owner = match leader {
                    Some(owner) => owner,
                    None => {
                        let member = self.owner(&client, &format!("members/{name}")).await;
                        member.expect("the member has a session")
                    }
                };
                let servers = self.patient.servers.lock().await;
                servers.end_session(owner).await.expect("a healthy ZooKeeper");
            }
            Fault::Forbid => self.belongs_to(AuthId::authed()).await,
            Fault::Permit => self.belongs_to(AuthId::anyone()).await,
            // A watch here resumes from nothing; what is left of the fault is the cut.
            _ => self.patient.servers.lock().await.proxies().for_each(|proxy| proxy.cut_all()),
        }
        Ok(())
    }
}
