//! The section `zookeeper`. (CFG-320 … CFG-323, CFG-424)

use crate::config::reader::Reader;
use crate::config::{Address, Secret, ZooKeeperRight, ZooKeeperSection, ZooKeeperTls};

const PORT: u16 = 2181;

pub(super) fn zookeeper(section: &Reader<'_>) -> Option<ZooKeeperSection> {
    let listed = section.get("hosts");
    if !listed.is_there() && section.get("exhibitor").is_there() {
        section.get("exhibitor").fail(super::EXHIBITOR);
        return None;
    }
    if !listed.is_there() {
        listed.fail("is not defined; add hosts: [host:2181]");
        return None;
    }
    let mut hosts = Vec::new();
    for text in listed.texts() {
        match Address::parse(&text, Some(PORT)) {
            Some(address) => hosts.push(address),
            None => listed.fail(format!("{text:?} is no host:port")),
        }
    }
    let shown = section.get("auth_data");
    if shown.get("sasl").is_there() {
        // Sent as it is, the server would take it for a scheme it has not, and hang up. (DCS-142)
        shown.get("sasl").fail(
            "SASL is not spoken; use a digest (auth_data: {digest: \"user:password\"}) or a client's \
             certificate (use_ssl, cert, key)",
        );
        return None;
    }
    let auth = shown.entries().into_iter().filter_map(|(scheme, credential)| {
        credential.text().map(|text| (scheme, Secret::new(text)))
    });
    Some(ZooKeeperSection {
        tls: section.get("use_ssl").flag().then(|| tls(section)),
        auth_data: auth.collect(),
        set_acls: acls(&section.get("set_acls")),
        hosts: (!hosts.is_empty()).then_some(hosts)?,
    })
}

fn tls(section: &Reader<'_>) -> ZooKeeperTls {
    let verify = section.get("verify").boolean().unwrap_or(true);
    if !verify {
        section.get("verify").warn(
            "the name in the server's certificate is not checked then; its authority is, always",
        );
    }
    ZooKeeperTls {
        verify,
        cacert: section.get("cacert").file(),
        cert: section.get("cert").file(),
        key: section.get("key").file(),
        key_password: section.get("key_password").secret(),
    }
}

fn acls(listed: &Reader<'_>) -> Vec<(String, Vec<ZooKeeperRight>)> {
    use ZooKeeperRight as Right;
    let known = [
        ("CREATE", Right::Create),
        ("READ", Right::Read),
        ("WRITE", Right::Write),
        ("DELETE", Right::Delete),
        ("ADMIN", Right::Admin),
        ("ALL", Right::All),
    ];
    let each = listed.entries().into_iter().map(|(principal, rights)| {
        let mut given = Vec::new();
        for word in rights.texts() {
            match known.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word)) {
                Some((_, right)) => given.push(*right),
                None => rights.fail(format!(
                    "{word:?} is no right; there are CREATE, READ, WRITE, DELETE, ADMIN and ALL"
                )),
            }
        }
        (principal, given)
    });
    each.collect()
}
