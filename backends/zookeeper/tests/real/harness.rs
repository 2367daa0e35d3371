//! Real ZooKeeper as the suite wants it.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Kind;
use hathi_dcs::conformance::{Cannot, Needs};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_test_support::{ZooKeeper, ZooKeeperOptions};
use hathi_zookeeper::{ZooKeeper as Backend, ZooKeeperConfig, open};
use std::sync::Arc;
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

/// So many servers.
#[derive(Clone)]
pub struct RealZooKeeper(pub usize);

fn path(scope: &str, key: &str) -> String {
    format!("/service/{scope}/{key}")
}

/// The session that this node hangs on.
async fn owner(client: &Client, path: &str) -> Option<i64> {
    let found = client.check_stat(path).await.expect("a healthy ZooKeeper");
    found.map(|stat| stat.ephemeral_owner).filter(|owner| *owner != 0)
}

/// Gives every node of the cluster away, as one who has a name.
async fn belongs_to(zookeeper: &ZooKeeper, scope: &str, whom: AuthId) {
    let access = [Acl::new(Permission::ALL, whom)];
    let connector = Client::connector().with_auth("digest", b"owner:secret");
    let owner = connector.connect(&zookeeper.plain_hosts().join(",")).await;
    let owner = owner.expect("a healthy ZooKeeper");
    let mut left = vec![format!("/service/{scope}")];
    while let Some(path) = left.pop() {
        match owner.list_children(&path).await {
            Ok(names) => left.extend(names.iter().map(|name| format!("{path}/{name}"))),
            Err(Error::NoNode) => continue,
            Err(error) => panic!("{path}: {error}"),
        }
        owner.set_acl(&path, &access, None).await.expect("a healthy ZooKeeper");
    }
}

#[async_trait]
impl Kind for RealZooKeeper {
    type Servers = ZooKeeper;

    fn label(&self) -> String {
        format!("ZooKeeper 3.8, {} server(s)", self.0)
    }

    fn members(&self) -> usize {
        self.0
    }

    fn slack_ms(&self) -> u64 {
        1_000
    }

    fn parallel(&self) -> usize {
        4
    }

    async fn start(&self, needs: Needs) -> ZooKeeper {
        let proxied = needs == Needs::LostAnswers;
        ZooKeeper::start(ZooKeeperOptions { proxied, ..ZooKeeperOptions::new(self.0) }).await
    }

    fn open(
        &self,
        zookeeper: &ZooKeeper,
        scope: &str,
        me: MemberName,
        timing: Timing,
    ) -> Arc<dyn Dcs> {
        open(config(zookeeper), Scope::new("service", scope), me, timing)
    }

    async fn raw(
        &self,
        zookeeper: &ZooKeeper,
        scope: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, Cannot> {
        match client(zookeeper).await.get_data(&path(scope, key)).await {
            Ok((data, _)) => Ok(Some(data)),
            Err(Error::NoNode) => Ok(None),
            Err(error) => panic!("a healthy ZooKeeper: {error}"),
        }
    }

    async fn put_raw(&self, zookeeper: &ZooKeeper, scope: &str, key: &str, value: &str) {
        let (client, path) = (client(zookeeper).await, path(scope, key));
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.mkdir(&path, &persistent).await.expect("a healthy ZooKeeper");
        client.set_data(&path, value.as_bytes(), None).await.expect("a healthy ZooKeeper");
    }

    async fn lose_lease(&self, zookeeper: &ZooKeeper, scope: &str, keys: [&str; 2]) {
        let client = client(zookeeper).await;
        let [first, second] = keys.map(|key| path(scope, key));
        let session = match owner(&client, &first).await {
            Some(session) => session,
            None => owner(&client, &second).await.expect("the member has a session"),
        };
        zookeeper.end_session(session).await.expect("a healthy ZooKeeper");
    }

    async fn forbid(&self, zookeeper: &ZooKeeper, scope: &str) {
        belongs_to(zookeeper, scope, AuthId::authed()).await;
    }

    async fn permit(&self, zookeeper: &ZooKeeper, scope: &str) {
        belongs_to(zookeeper, scope, AuthId::anyone()).await;
    }
}
