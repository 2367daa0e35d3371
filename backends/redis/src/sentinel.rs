//! Who is the writable server, by Sentinel's word. (DCS-200)
//!
//! Sentinel is asked for each new connection and believed for nothing else: what it names must say
//! of itself that it is writable, and enough replicas must confirm what is written there. A Sentinel
//! that is cut off with an old server sends us to a server that can confirm nothing.

use crate::RedisConfig;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Value, from_redis_value};
use std::collections::HashMap;
use std::time::Duration;

/// Where Sentinel listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentinels {
    /// Empty: Sentinel is not asked.
    pub hosts: Vec<(String, u16)>,
    /// What `sentinel monitor` calls the servers.
    pub master: String,
    pub username: Option<String>,
    pub password: Option<String>,
}

/// What one Sentinel said.
pub(crate) struct Named {
    pub server: (String, u16),
    /// Half of the servers that it knows, rounded down: with the writable one a majority.
    pub least: u32,
}

pub(crate) enum NoName {
    /// It could not be asked, or it does not know.
    NotNow(String),
    Failed(RedisError),
    /// The client cannot even be made.
    Broken(String),
}

/// Asks one of them. `limit`: for connecting; the caller bounds the whole.
pub(crate) async fn ask(
    config: &RedisConfig,
    which: usize,
    limit: Duration,
) -> Result<Named, NoName> {
    let sentinels = &config.sentinels;
    let Some((host, port)) = sentinels.hosts.get(which % sentinels.hosts.len().max(1)) else {
        return Err(NoName::NotNow("no Sentinel is configured".to_owned()));
    };
    let client = config.sentinel_client(host, *port).map_err(NoName::Broken)?;
    let options = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limit))
        .set_response_timeout(Some(limit));
    let made = client.get_multiplexed_async_connection_with_config(&options).await;
    let mut connection = made.map_err(NoName::Failed)?;
    let name = &sentinels.master;
    let unknown =
        || NoName::NotNow(format!("Sentinel {host}:{port} knows no server by the name {name:?}"));
    let address = said(&mut connection, "GET-MASTER-ADDR-BY-NAME", name).await?;
    let address: Option<(String, u16)> = from_redis_value(address).ok();
    let server = address.ok_or_else(unknown)?;
    let about = said(&mut connection, "MASTER", name).await?;
    let about: HashMap<String, String> = from_redis_value(about).unwrap_or_default();
    let replicas = about.get("num-slaves").and_then(|text| text.parse::<u32>().ok());
    let least = replicas.unwrap_or(0).saturating_add(1) / 2;
    Ok(Named { server, least })
}

async fn said(
    connection: &mut MultiplexedConnection,
    word: &str,
    name: &str,
) -> Result<Value, NoName> {
    let asked = redis::cmd("SENTINEL").arg(word).arg(name).to_owned();
    asked.query_async(connection).await.map_err(NoName::Failed)
}
