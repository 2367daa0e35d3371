//! Which store this configuration chooses. (CFG-006, CFG-300 … CFG-313, CFG-320 … CFG-323, CFG-330 … CFG-338, CFG-340, CFG-341, CFG-409,
//! CFG-410)

mod kubernetes;
mod redis;
mod zookeeper;

use super::reader::Reader;
use super::{
    Address, BaseUnit, ConsulConsistency, ConsulSection, ConsulService, DcsSection, Etcd3Section,
    EtcdSrv, RaftSection, Secret,
};
use serde_json::Value;
use std::path::PathBuf;

/// What can be said of a section's backend.
enum Backend {
    Here,
    /// The Cargo feature that brings it.
    NotCompiledIn(&'static str),
    /// What to do instead.
    Unknown(&'static str),
}

/// The keys of v2 and v3 are two spaces: a node on the one never sees a node on the other. (DCS-100, DCS-106)
const ETCD_V2: &str = "etcd's v2 API is not spoken; use section etcd3, on all members of the cluster at once: \
     members that stay on v2 would not be seen (pause the cluster, stop every Patroni, rename the section, \
     start)";

/// (DCS-143)
const EXHIBITOR: &str =
    "Exhibitor is not asked for servers; list them in section zookeeper, hosts: [host:2181]";

/// Alphabetical: the first that is here is used. (CFG-006)
const SECTIONS: [&str; 8] =
    ["consul", "etcd", "etcd3", "exhibitor", "kubernetes", "raft", "redis", "zookeeper"];

fn backend(section: &str) -> Backend {
    match section {
        "consul" if cfg!(feature = "consul") => Backend::Here,
        "consul" => Backend::NotCompiledIn("consul"),
        "etcd3" if cfg!(feature = "etcd") => Backend::Here,
        "etcd3" => Backend::NotCompiledIn("etcd"),
        "kubernetes" if cfg!(feature = "kubernetes") => Backend::Here,
        "kubernetes" => Backend::NotCompiledIn("kubernetes"),
        "raft" if cfg!(feature = "raft") => Backend::Here,
        "raft" => Backend::NotCompiledIn("raft"),
        "redis" if cfg!(feature = "redis") => Backend::Here,
        "redis" => Backend::NotCompiledIn("redis"),
        "zookeeper" if cfg!(feature = "zookeeper") => Backend::Here,
        "zookeeper" => Backend::NotCompiledIn("zookeeper"),
        "etcd" => Backend::Unknown(ETCD_V2),
        "exhibitor" => Backend::Unknown(EXHIBITOR),
        _ => Backend::Unknown(
            "this version has no such backend; use section etcd3, consul, zookeeper, kubernetes, redis \
             or raft",
        ),
    }
}

/// The chosen section. `None` when there is none that can be used, and that is said.
pub(super) fn choose(root: &Reader<'_>) -> Option<DcsSection> {
    let there: Vec<&str> = SECTIONS.into_iter().filter(|name| root.get(name).is_there()).collect();
    let usable = there.iter().find(|name| matches!(backend(name), Backend::Here));
    let Some(chosen) = usable else {
        match there.first() {
            None => root.fail(
                "no section for a store; add one: raft (the agents form it themselves), etcd3, \
                 consul, zookeeper or kubernetes",
            ),
            Some(first) => root.get(first).fail(match backend(first) {
                Backend::NotCompiledIn(feature) => format!(
                    "this hathi was built without it; build with: cargo build --features {feature}"
                ),
                Backend::Unknown(advice) => advice.to_owned(),
                Backend::Here => "cannot be used".to_owned(),
            }),
        }
        return None;
    };
    for other in there.iter().filter(|name| *name != chosen) {
        root.get(other).warn(format!("ignored, because section {chosen} is used as the store"));
    }
    let section = root.get(chosen);
    if !section.is_map() {
        return None;
    }
    match *chosen {
        "consul" => consul(&section).map(DcsSection::Consul),
        "etcd3" => etcd3(&section).map(DcsSection::Etcd3),
        "kubernetes" => kubernetes::kubernetes(&section, root).map(DcsSection::Kubernetes),
        "redis" => redis::redis(&section).map(DcsSection::Redis),
        "zookeeper" => zookeeper::zookeeper(&section).map(DcsSection::ZooKeeper),
        _ => raft(&section).map(DcsSection::Raft),
    }
}

pub(super) fn raft(section: &Reader<'_>) -> Option<RaftSection> {
    section.get("self_addr").required();
    let self_addr = section.get("self_addr").address(None);
    let bind = section.get("bind_addr");
    let bind_addr = if bind.is_there() { bind.address(None) } else { self_addr.clone() };
    let partners = section.get("partner_addrs");
    let mut partner_addrs = Vec::new();
    for text in partners.texts() {
        match Address::parse(&text, None) {
            Some(address) => partner_addrs.push(address),
            None => partners.fail(format!("{text:?} is no host:port")),
        }
    }
    let self_addr = self_addr?;
    partner_addrs.retain(|address| *address != self_addr);
    if !section.get("data_dir").is_there() {
        section.get("data_dir").warn("is not defined; the current directory is used");
    }
    if partner_addrs.len() == 1 {
        partners.warn("two nodes cannot outvote the loss of one; add a third, or a witness");
    }
    Some(RaftSection {
        bind_addr: bind_addr?,
        self_addr,
        partner_addrs,
        data_dir: section.get("data_dir").file().unwrap_or_else(|| PathBuf::from(".")),
        password: section.get("password").secret(),
        min_timeout_ms: section.get("min_timeout").milliseconds(),
        max_timeout_ms: section.get("max_timeout").milliseconds(),
        connection_timeout_ms: section.get("connection_timeout").milliseconds(),
        append_entries_period_ms: section.get("append_entries_period").milliseconds(),
    })
}

/// CFG-310 … CFG-313.
fn consul(section: &Reader<'_>) -> Option<ConsulSection> {
    const PORT: u16 = 8500;
    let port = section.get("port").integer(BaseUnit::None, 1);
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    let https = section.get("scheme").word(&[("http", false), ("https", true)]);
    let levels = [
        ("default", ConsulConsistency::Default),
        ("consistent", ConsulConsistency::Consistent),
        ("stale", ConsulConsistency::Stale),
    ];
    let mut found = ConsulSection {
        hosts: Vec::new(),
        https: https.unwrap_or(false),
        token: section.get("token").secret(),
        dc: section.get("dc").text(),
        consistency: section.get("consistency").word(&levels).unwrap_or_default(),
        checks: section.get("checks").texts(),
        verify: section.get("verify").boolean().unwrap_or(true),
        cacert: section.get("cacert").file(),
        cert: section.get("cert").file(),
        key: section.get("key").file(),
        service: section.get("register_service").flag().then(|| service(section)),
    };
    let url = section.get("url");
    let listed = section.first(&["hosts", "host"]);
    if let Some(text) = url.text() {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text.as_str()));
        let place = rest.split('/').next().unwrap_or_default();
        found.https = scheme == "https";
        match Address::parse(place, Some(port)) {
            Some(address) => found.hosts.push(address),
            None => url.fail("is no URL of the form http://host:8500"),
        }
    } else if listed.is_there() {
        for text in listed.texts() {
            match Address::parse(&text, Some(port)) {
                Some(address) => found.hosts.push(address),
                None => listed.fail(format!("{text:?} is no host:port")),
            }
        }
    } else {
        // The agent of this machine, where every Consul has one.
        found.hosts.extend(Address::parse("127.0.0.1", Some(port)));
    }
    (!found.hosts.is_empty()).then_some(found)
}

/// (CFG-314, CFG-315)
fn service(section: &Reader<'_>) -> ConsulService {
    let mut tags = section.get("service_tags").texts();
    tags.sort();
    tags.dedup();
    let interval = section.get("service_check_interval").text();
    ConsulService {
        tags,
        check_interval: interval.unwrap_or_else(|| "5s".to_owned()),
        check_tls_server_name: section.get("service_check_tls_server_name").text(),
    }
}

fn etcd3(section: &Reader<'_>) -> Option<Etcd3Section> {
    let default_port = section.get("port").integer(BaseUnit::None, 1);
    let default_port = default_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(2379);
    let mut found = Etcd3Section {
        hosts: Vec::new(),
        srv: None,
        use_proxies: section.get("use_proxies").flag() || section.get("proxy").is_there(),
        https: false,
        username: section.get("username").text(),
        password: section.get("password").secret(),
        cacert: section.get("cacert").file(),
        cert: section.get("cert").file(),
        key: section.get("key").file(),
    };
    let words = [("http", false), ("https", true)];
    found.https = section.get("protocol").word(&words).unwrap_or(false);
    let url = section.first(&["proxy", "url"]);
    let listed = section.first(&["hosts", "host"]);
    if url.is_there() {
        read_url(&url, default_port, &mut found)?;
    } else if listed.is_there() {
        if matches!(listed.raw(), Some(Value::Object(_))) {
            listed.fail("is a mapping, a list of host:port is expected");
            return None;
        }
        for text in listed.texts() {
            // Some write the scheme into the list.
            let (scheme, rest) = text.split_once("://").unwrap_or(("", text.as_str()));
            found.https |= scheme == "https";
            match Address::parse(rest.trim_end_matches('/'), Some(default_port)) {
                Some(address) => found.hosts.push(address),
                None => listed.fail(format!("{text:?} is no host:port")),
            }
        }
    }
    // A proxy is all that is asked for, whatever else is there.
    if !section.get("proxy").is_there() {
        found.srv = etcd_srv(section)?;
    }
    if found.hosts.is_empty() && found.srv.is_none() {
        section.fail("none of host, hosts, srv, url, proxy is defined; add hosts: [host:2379]");
        return None;
    }
    Some(found)
}

/// The older names of the domain win over the newer one, as in Patroni. `None`: what is there is no domain,
/// and that is said. (CFG-042, CFG-303)
fn etcd_srv(section: &Reader<'_>) -> Option<Option<EtcdSrv>> {
    let (reader, suffix) =
        (section.first(&["srv_domain", "discovery_srv", "srv"]), section.get("srv_suffix"));
    if !reader.raw().is_some_and(|value| value != "") {
        if suffix.text().is_some() {
            suffix.warn("is of no use without srv");
        }
        return Some(None);
    }
    let domain = reader.text()?;
    if !is_dns_name(&domain) {
        reader.fail(format!("{domain:?} is no domain, such as example.org"));
        return None;
    }
    let suffix_text = suffix.text();
    if let Some(text) = suffix_text.as_ref().filter(|text| text.contains('.') || !is_dns_name(text))
    {
        suffix.fail(format!("{text:?} is no part of a name; letters, digits, - and _ are"));
        return None;
    }
    Some(Some(EtcdSrv { domain, suffix: suffix_text }))
}

/// Short enough to have the service's name put before it.
fn is_dns_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let mut labels =
        labels.map(|label| (1..=63).contains(&label.len()) && label.bytes().all(plain));
    text.len() <= 200 && labels.all(|good| good)
}

/// `scheme://user:password@host:port/`; what it says wins over the other keys. (CFG-302)
fn read_url(reader: &Reader<'_>, default_port: u16, found: &mut Etcd3Section) -> Option<()> {
    let text = reader.text()?;
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text.as_str()));
    let (login, place) = match rest.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, rest),
    };
    let place = place.split('/').next().unwrap_or_default();
    let (https, Some(address)) = (scheme == "https", Address::parse(place, Some(default_port)))
    else {
        reader.fail("is no URL of the form http://host:2379");
        return None;
    };
    found.https = https;
    found.hosts.push(address);
    if let Some(login) = login {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let plain = |text: &str| {
            percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
        };
        found.username = Some(plain(user));
        found.password = Some(Secret::new(plain(password)));
    }
    Some(())
}
