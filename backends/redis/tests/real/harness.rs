//! Real Redis as the suite wants it.

use async_trait::async_trait;
use hathi_dcs::conformance::servers::Kind;
use hathi_dcs::conformance::{Cannot, Needs, until};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use hathi_redis::{Redis as Backend, RedisConfig, open};
use hathi_test_support::{Redis, RedisOptions};
use std::sync::Arc;

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

/// One server.
#[derive(Clone)]
pub struct RealRedis;

/// What stands under the scope's keys: `/leader`, or `:rev` for the count beside them.
fn key(scope: &str, name: &str) -> String {
    format!("{{/service/{scope}}}{name}")
}

#[async_trait]
impl Kind for RealRedis {
    type Servers = Redis;

    fn label(&self) -> String {
        "Redis 7.0, one server".to_owned()
    }

    fn members(&self) -> usize {
        1
    }

    fn slack_ms(&self) -> u64 {
        500
    }

    fn parallel(&self) -> usize {
        20
    }

    async fn start(&self, needs: Needs) -> Redis {
        let proxied = needs == Needs::LostAnswers;
        let redis = Redis::start(RedisOptions { proxied, ..RedisOptions::default() }).await;
        trusted(&redis).await;
        redis
    }

    fn open(&self, redis: &Redis, scope: &str, me: MemberName, timing: Timing) -> Arc<dyn Dcs> {
        open(config(redis), Scope::new("service", scope), me, timing)
    }

    async fn raw(&self, redis: &Redis, scope: &str, name: &str) -> Result<Option<Vec<u8>>, Cannot> {
        let mut connection = connection(redis, 0).await;
        let get = redis::cmd("HGET").arg(key(scope, &format!("/{name}"))).arg("v").to_owned();
        Ok(get.query_async(&mut connection).await.expect("a healthy Redis"))
    }

    async fn put_raw(&self, redis: &Redis, scope: &str, name: &str, value: &str) {
        let mut connection = connection(redis, 0).await;
        let record = key(scope, &format!("/{name}"));
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("SADD").arg(key(scope, ":keys")).arg(name).ignore();
        pipe.cmd("INCR").arg(key(scope, ":rev")).ignore();
        pipe.cmd("HSET").arg(record).arg(&["v", value, "r", "1", "l", "", "w", ""]).ignore();
        pipe.query_async::<()>(&mut connection).await.expect("a healthy Redis");
    }

    async fn lose_lease(&self, redis: &Redis, scope: &str, keys: [&str; 2]) {
        let mut connection = connection(redis, 0).await;
        let del =
            redis::cmd("DEL").arg(&keys.map(|name| key(scope, &format!("/{name}")))).to_owned();
        del.query_async::<()>(&mut connection).await.expect("a healthy Redis");
        let publish = redis::cmd("PUBLISH").arg(key(scope, ":changed")).arg("").to_owned();
        publish.query_async::<()>(&mut connection).await.expect("a healthy Redis");
    }

    async fn forbid(&self, redis: &Redis, _scope: &str) {
        let mut connection = connection(redis, 0).await;
        let boss = ["SETUSER", "boss", "on", ">secret", "~*", "&*", "+@all"];
        for words in [&boss[..], &["SETUSER", "default", "-@all"]] {
            let acl = redis::cmd("ACL").arg(words).to_owned();
            acl.query_async::<()>(&mut connection).await.expect("a healthy Redis");
        }
    }

    async fn permit(&self, redis: &Redis, _scope: &str) {
        let commands = ["AUTH boss secret", "ACL SETUSER default +@all"];
        let said = Redis::asks_as(redis.port(0), &commands).expect("a healthy Redis");
        assert!(said.starts_with("+OK\r\n+OK"), "{said}");
    }
}
