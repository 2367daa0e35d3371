//! The section `redis`, which Patroni does not know. (CFG-410)

use crate::config::reader::Reader;
use crate::config::{Address, BaseUnit, RedisSection, RedisSentinels, RedisTls};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

pub(super) fn redis(section: &Reader<'_>) -> Option<RedisSection> {
    let port = section.get("port").integer(BaseUnit::None, 1);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    let sentinels = sentinels(section);
    let listed = section.first(&["hosts", "host"]);
    if !listed.is_there() && sentinels.is_none() {
        listed.fail("is not defined; add hosts: [host:6379], or sentinels: [host:26379]");
        return None;
    }
    if listed.is_there() && sentinels.is_some() {
        listed.warn("is not used: sentinels name the writable server");
    }
    let hosts = addresses(&listed, port);
    if section.get("sentinel").is_there() {
        section.get("sentinel").fail("is no option; write sentinels: [host:26379]");
    }
    let tls = section.get("use_ssl").flag().then(|| RedisTls {
        cacert: section.get("cacert").file(),
        cert: section.get("cert").file(),
        key: section.get("key").file(),
    });
    let number = |name: &str| {
        let found = section.get(name).integer(BaseUnit::None, 0);
        found.and_then(|number| u32::try_from(number).ok())
    };
    // With the writable server itself these are a majority.
    let least = match sentinels {
        // More, if Sentinel knows more than three servers.
        Some(_) => 1,
        None => u32::try_from(hosts.len() / 2).unwrap_or(0),
    };
    let replicas = number("replicas").unwrap_or(least);
    if replicas < least {
        let servers = match sentinels {
            Some(_) => "servers that Sentinel replaces".to_owned(),
            None => format!("{} servers", hosts.len()),
        };
        section.get("replicas").fail(format!(
            "is {replicas}; with {servers} at least {least} must have a write before it counts"
        ));
    }
    section.warn(
        "Redis may lose what it acknowledged, and after each start or promotion of a server no lock \
         is given away for a ttl; read docs/stores.md, and use another store if you can",
    );
    Some(RedisSection {
        hosts: (!hosts.is_empty() || sentinels.is_some()).then_some(hosts)?,
        tls,
        username: section.get("username").text(),
        password: section.get("password").secret(),
        db: number("db").unwrap_or(0),
        replicas,
        sentinels,
    })
}

fn addresses(listed: &Reader<'_>, port: u16) -> Vec<Address> {
    let mut found = Vec::new();
    for text in listed.texts() {
        match Address::parse(&text, Some(port)) {
            Some(address) => found.push(address),
            None => listed.fail(format!("{text:?} is no host:port")),
        }
    }
    found
}

/// Who is asked for the writable server.
fn sentinels(section: &Reader<'_>) -> Option<RedisSentinels> {
    let listed = section.get("sentinels");
    let hosts = addresses(&listed, SENTINEL_PORT);
    let found = RedisSentinels {
        hosts,
        master: section.get("sentinel_master").text().unwrap_or_else(|| "mymaster".to_owned()),
        username: section.get("sentinel_username").text(),
        password: section.get("sentinel_password").secret(),
    };
    (!found.hosts.is_empty()).then_some(found)
}
