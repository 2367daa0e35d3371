//! The section `kubernetes`. (CFG-330 … CFG-338)

use crate::config::reader::Reader;
use crate::config::{BaseUnit, KubernetesPort, KubernetesSection};
use std::collections::BTreeMap;

const NAMESPACE: &str = "default";
const PORT: u16 = 5432;

pub(super) fn kubernetes(section: &Reader<'_>, root: &Reader<'_>) -> Option<KubernetesSection> {
    let labels = section.get("labels");
    let found = texts(&labels);
    if found.is_empty() {
        labels.fail(
            "is not defined; add the labels of the cluster's Pods, as in labels: {application: \
             patroni}",
        );
    }
    let text = |key: &str, default: &str| section.get(key).text().unwrap_or(default.to_owned());
    let codes = section.get("retriable_http_codes");
    let retriable_http_codes = codes.texts().into_iter().filter_map(|code| {
        let number = code.trim().parse::<u16>().ok().filter(|code| (400..600).contains(code));
        if number.is_none() {
            codes.warn(format!("{code:?} is no HTTP status from 400 to 599; ignored"));
        }
        number
    });
    let role = "role_label";
    if section.get("scope_label").text() == section.get(role).text() && section.get(role).is_there()
    {
        section.get(role).fail("is the scope_label, too; the two must differ");
    }
    Some(KubernetesSection {
        namespace: namespace(section, root)?,
        scope_label: text("scope_label", "cluster-name"),
        role_label: text(role, "role"),
        leader_label_value: text("leader_label_value", "primary"),
        follower_label_value: text("follower_label_value", "replica"),
        standby_leader_label_value: text("standby_leader_label_value", "primary"),
        tmp_role_label: section.get("tmp_role_label").text(),
        bootstrap_labels: texts(&section.get("bootstrap_labels")),
        use_endpoints: section.get("use_endpoints").flag(),
        pod_ip: pod_ip(&section.get("pod_ip")),
        ports: ports(&section.get("ports")),
        bypass_api_service: section.get("bypass_api_service").flag(),
        retriable_http_codes: retriable_http_codes.collect(),
        cacert: section.get("cacert").file(),
        context: section.get("context").text(),
        labels: (!found.is_empty()).then_some(found)?,
    })
}

fn texts(map: &Reader<'_>) -> BTreeMap<String, String> {
    let each = map.entries().into_iter();
    each.filter_map(|(key, value)| value.text().map(|text| (key, text))).collect()
}

/// Lower case letters, digits and dashes: what a namespace of Kubernetes is.
fn is_namespace(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(plain)
}

/// With Patroni the namespace of the paths in other stores overrides this one. Here it does where it
/// can be one of Kubernetes; `/service/`, which every example has, cannot. (CFG-331)
fn namespace(section: &Reader<'_>, root: &Reader<'_>) -> Option<String> {
    let (own, path) = (section.get("namespace"), root.get("namespace"));
    let named = own.text().unwrap_or_else(|| NAMESPACE.to_owned());
    if !is_namespace(&named) {
        own.fail(format!("is {named:?}, which is no namespace of Kubernetes"));
        return None;
    }
    match path.text() {
        Some(over) if is_namespace(&over) && over != named => {
            path.warn(format!("overrides kubernetes.namespace ({named}), as with Patroni"));
            Some(over)
        }
        _ => Some(named),
    }
}

fn pod_ip(reader: &Reader<'_>) -> Option<String> {
    let text = reader.text()?;
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some(text),
        Ok(_) => {
            reader.fail(format!("is {text}, which no other Pod can reach, and Endpoints refuse"));
            None
        }
        Err(_) => {
            reader.fail(format!("is {text:?}, an IP address is expected"));
            None
        }
    }
}

fn ports(listed: &Reader<'_>) -> Vec<KubernetesPort> {
    let mut found = Vec::new();
    for one in listed.items() {
        if !one.is_map() {
            continue;
        }
        let port = one.get("port").integer(BaseUnit::None, 1);
        let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
        let (name, protocol) = (one.get("name").text(), one.get("protocol").text());
        found.push(KubernetesPort { name, port, protocol });
    }
    if found.len() > 1 && found.iter().any(|port| port.name.is_none()) {
        listed.fail("has several ports; each of them needs a name then");
    }
    if found.is_empty() {
        found.push(KubernetesPort { name: None, port: PORT, protocol: None });
    }
    found
}
