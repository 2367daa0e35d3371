//! Real Redis as the suite wants it.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Patient;
use hathi_dcs::conformance::{Cannot, Fault, Harness, Needs, Outcome, Store, until};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_redis::{Redis as Backend, RedisConfig, open};
use hathi_test_support::{Redis, RedisOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, OnceCell};

pub fn config(redis: &Redis) -> RedisConfig {
    RedisConfig { hosts: redis.hosts(), ..RedisConfig::default() }
}

pub fn backend(config: RedisConfig, me: &str, timing: Timing) -> Arc<Backend> {
    open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
}

pub const TIMING: Timing = Timing { ttl: 3, loop_wait: 1, retry_timeout: 3 };

/// A connection past the proxy, beside the backend.
pub async fn connection(redis: &Redis, which: usize) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(("127.0.0.1", redis.port(which))).expect("an address");
    client.get_multiplexed_async_connection().await.expect("a healthy Redis")
}

/// Waits until the server has been there for so long that its word counts for every ttl of the suite.
async fn trusted(redis: &Redis) {
    let mut connection = connection(redis, 0).await;
    until("the server is old enough", 30_000, || {
        let mut connection = connection.clone();
        async move {
            let info: String = redis::cmd("INFO").query_async(&mut connection).await.expect("up");
            let uptime = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
            let uptime: u64 = uptime.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            (uptime >= 17).then_some(())
        }
    })
    .await;
    let _: () = redis::cmd("PING").query_async(&mut connection).await.expect("up");
}

pub struct RedisHarness {
    healthy: OnceCell<Arc<Mutex<Redis>>>,
    scopes: AtomicU32,
}

impl RedisHarness {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { healthy: OnceCell::new(), scopes: AtomicU32::new(0) })
    }

    async fn start(&self, proxied: bool) -> Arc<Mutex<Redis>> {
        let redis = Redis::start(RedisOptions { proxied, ..RedisOptions::default() }).await;
        trusted(&redis).await;
        Arc::new(Mutex::new(redis))
    }
}

#[async_trait]
impl Harness for RedisHarness {
    fn label(&self) -> String {
        "Redis 7.0, one server".to_owned()
    }

    async fn fresh(&self, needs: Needs) -> Box<dyn Store> {
        let redis = match needs {
            Needs::Health => self.healthy.get_or_init(|| self.start(false)).await.clone(),
            Needs::Faults | Needs::Rights => self.start(false).await,
            Needs::LostAnswers => self.start(true).await,
        };
        // A name that is the beginning of another one's must not matter.
        let scope = format!("batman{}", self.scopes.fetch_add(1, Ordering::Relaxed));
        let config = config(&*redis.lock().await);
        Box::new(RedisStore { patient: Patient::new(redis, [0, 0]), config, scope })
    }

    fn parallel(&self) -> usize {
        20
    }
}

struct RedisStore {
    patient: Patient<Redis>,
    config: RedisConfig,
    scope: String,
}

impl RedisStore {
    fn key(&self, name: &str) -> String {
        format!("{{/service/{}}}/{name}", self.scope)
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        connection(&*self.patient.servers.lock().await, 0).await
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        let scope = Scope::new("service", &self.scope);
        open(self.config.clone(), scope, MemberName::from(me), timing)
    }

    fn members(&self) -> usize {
        1
    }

    fn slack_ms(&self) -> u64 {
        500
    }

    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let mut connection = self.connection().await;
        let get = redis::cmd("HGET").arg(self.key(key)).arg("v").to_owned();
        Ok(get.query_async(&mut connection).await.expect("a healthy Redis"))
    }

    async fn put_raw(&self, key: &str, value: &str) -> Outcome {
        let mut connection = self.connection().await;
        let (keys, revision) =
            (self.key("").replace("}/", "}:keys"), self.key("").replace("}/", "}:rev"));
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("SADD").arg(keys).arg(key).ignore();
        pipe.cmd("INCR").arg(revision).ignore();
        pipe.cmd("HSET").arg(self.key(key)).arg(&["v", value, "r", "1", "l", "", "w", ""]).ignore();
        pipe.query_async::<()>(&mut connection).await.expect("a healthy Redis");
        Ok(())
    }

    async fn inflict(&self, fault: Fault) -> Outcome {
        if let Some(outcome) = self.patient.inflict(&fault).await {
            return outcome;
        }
        match fault {
            Fault::LoseLease(name) => {
                let mut connection = self.connection().await;
                let keys = [self.key("leader"), self.key(&format!("members/{name}"))];
                let del = redis::cmd("DEL").arg(&keys).to_owned();
                del.query_async::<()>(&mut connection).await.expect("a healthy Redis");
                let channel = self.key("").replace("}/", "}:changed");
                let publish = redis::cmd("PUBLISH").arg(channel).arg("").to_owned();
                publish.query_async::<()>(&mut connection).await.expect("a healthy Redis");
            }
            Fault::Forbid => {
                let mut connection = self.connection().await;
                let boss = ["SETUSER", "boss", "on", ">secret", "~*", "&*", "+@all"];
                for words in [&boss[..], &["SETUSER", "default", "-@all"]] {
                    let acl = redis::cmd("ACL").arg(words).to_owned();
                    acl.query_async::<()>(&mut connection).await.expect("a healthy Redis");
                }
            }
            Fault::Permit => {
                let port = self.patient.servers.lock().await.port(0);
                let said = hathi_test_support::Redis::asks_as(
                    port,
                    &["AUTH boss secret", "ACL SETUSER default +@all"],
                );
                let said = said.expect("a healthy Redis");
                assert!(said.starts_with("+OK\r\n+OK"), "{said}");
            }
            // Nothing is resumed from a history; what is left of the fault is the cut.
            _ => self.patient.servers.lock().await.proxies().for_each(|proxy| proxy.cut_all()),
        }
        Ok(())
    }
}
