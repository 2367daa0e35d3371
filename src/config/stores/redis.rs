//! The section `redis`, which Patroni does not know. (CFG-410)

use crate::config::reader::Reader;
use crate::config::{Address, BaseUnit, RedisSection, RedisTls};

const PORT: u16 = 6379;

pub(super) fn redis(section: &Reader<'_>) -> Option<RedisSection> {
    let port = section.get("port").integer(BaseUnit::None, 1);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    let listed = section.first(&["hosts", "host"]);
    if !listed.is_there() {
        listed.fail("is not defined; add hosts: [host:6379]");
        return None;
    }
    let mut hosts = Vec::new();
    for text in listed.texts() {
        match Address::parse(&text, Some(port)) {
            Some(address) => hosts.push(address),
            None => listed.fail(format!("{text:?} is no host:port")),
        }
    }
    if section.get("sentinel").is_there() {
        section.get("sentinel").fail(
            "Sentinel is not asked here; list all servers in hosts, the writable one is found among \
             them, also after Sentinel promoted another one",
        );
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
    let least = u32::try_from(hosts.len() / 2).unwrap_or(0);
    let replicas = number("replicas").unwrap_or(least);
    if replicas < least {
        section.get("replicas").fail(format!(
            "is {replicas}; with {} servers at least {least} must have a write before it counts",
            hosts.len()
        ));
    }
    section.warn(
        "Redis may lose what it acknowledged, and after each start or promotion of a server no lock \
         is given away for a ttl; read docs/stores.md, and use another store if you can",
    );
    Some(RedisSection {
        hosts: (!hosts.is_empty()).then_some(hosts)?,
        tls,
        username: section.get("username").text(),
        password: section.get("password").secret(),
        db: number("db").unwrap_or(0),
        replicas,
    })
}
