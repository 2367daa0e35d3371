//! My Pod: its labels, its record, and its address in the leader's Endpoints.
//! (DCS-153, DCS-154, DCS-155)

use crate::objects::Object;
use crate::{KubernetesConfig, RoleLabels};
use hathi_dcs::{MemberData, Role, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Labels to set; `None` removes one.
pub(crate) type Labels = BTreeMap<String, Option<String>>;

/// What my Pod's labels are to be. They follow the lock, not PostgreSQL: the new leader is found
/// before it is promoted, the old one is not any more when it is demoted. (DCS-154)
pub(crate) fn labels(config: &KubernetesConfig, data: &MemberData, leads: bool) -> Labels {
    let standard = RoleLabels::default();
    let pick = |labels: &RoleLabels| -> Option<String> {
        match data.role {
            Some(Role::StandbyLeader) if leads => Some(labels.standby_leader.clone()),
            _ if leads => Some(labels.leader.clone()),
            Some(Role::Primary) | None => None,
            Some(_) if data.state != Some(State::Running) => None,
            Some(Role::Replica) => Some(labels.follower.clone()),
            Some(other) => Some(other.as_str().to_owned()),
        }
    };
    let mut wanted = Labels::new();
    wanted.insert(config.roles.label.clone(), pick(&config.roles));
    if let Some(label) = &config.roles.tmp_label {
        wanted.insert(label.clone(), pick(&standard));
    }
    let making = matches!(
        data.state,
        Some(
            State::Initdb
                | State::CustomBootstrap
                | State::BootstrapStarting
                | State::CreatingReplica
        )
    );
    for (label, value) in &config.bootstrap_labels {
        wanted.insert(label.clone(), making.then(|| value.clone()));
    }
    wanted
}

/// Does the Pod say all this already?
pub(crate) fn says(pod: &Object, labels: &Labels, status: &str) -> bool {
    let labelled = labels.iter().all(|(label, value)| pod.labels.get(label) == value.as_ref());
    labelled && pod.annotations.get("status").is_some_and(|there| there == status)
}

/// The one address of the leader's Endpoints; `None` while my address is not known. (DCS-153)
pub(crate) fn subsets(config: &KubernetesConfig, me: &str, pod: Option<&Object>) -> Option<Value> {
    let ip = config.pod_ip.clone().or_else(|| pod?.pod_ip.clone())?;
    let mut address = json!({"ip": ip});
    if let Some(pod) = pod {
        address["hostname"] = json!(pod.hostname);
        address["nodeName"] = json!(pod.node_name);
        address["targetRef"] = json!({
            "kind": "Pod", "uid": pod.uid, "namespace": config.namespace, "name": me,
            "resourceVersion": pod.version.to_string(),
        });
    }
    let ports = config.ports.iter().map(|port| {
        let mut one = json!({"port": port.port});
        for (key, value) in [("name", &port.name), ("protocol", &port.protocol)] {
            if let Some(value) = value {
                one[key] = json!(value);
            }
        }
        one
    });
    Some(json!([{"addresses": [address], "ports": ports.collect::<Vec<_>>()}]))
}

/// Do the Endpoints point at me alone, at these ports? The version of my Pod in them does not count.
pub(crate) fn points_at(wanted: &Value, there: &Object) -> bool {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let [subset] = there.subsets.as_slice() else { return false };
    let [address] = subset.addresses.as_deref().unwrap_or_default() else { return false };
    let first = &wanted[0]["addresses"][0];
    let same_target = match &address.target_ref {
        Some(target) => {
            text(&first["targetRef"]["uid"]) == target.uid
                && text(&first["targetRef"]["name"]) == target.name
        }
        None => first["targetRef"].is_null(),
    };
    let ports = subset.ports.as_deref().unwrap_or_default();
    let wanted_ports = wanted[0]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let same_ports = ports.len() == wanted_ports.len()
        && ports.iter().zip(wanted_ports).all(|(there, wanted)| {
            wanted["port"] == there.port
                && text(&wanted["name"]) == there.name.clone().filter(|name| !name.is_empty())
                && text(&wanted["protocol"]).unwrap_or("TCP".into())
                    == there.protocol.clone().unwrap_or("TCP".into())
        });
    text(&first["ip"]).as_deref() == Some(address.ip.as_str())
        && text(&first["hostname"]) == address.hostname
        && text(&first["nodeName"]) == address.node_name
        && same_target
        && same_ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Port;

    /// Proves DCS-154: every state, role and lock.
    #[test]
    fn the_label_follows_the_lock() {
        let roles = RoleLabels {
            leader: "master".into(),
            follower: "slave".into(),
            standby_leader: "standby".into(),
            tmp_label: Some("tmp_role".into()),
            ..RoleLabels::default()
        };
        let config = KubernetesConfig {
            roles,
            bootstrap_labels: [("phase".to_owned(), "bootstrapping".to_owned())].into(),
            ..KubernetesConfig::default()
        };
        for state in State::ALL {
            for role in Role::ALL {
                for leads in [false, true] {
                    let data = MemberData {
                        state: Some(*state),
                        role: Some(*role),
                        ..MemberData::default()
                    };
                    let wanted = labels(&config, &data, leads);
                    let (label, standard) = match (leads, *role, *state) {
                        (true, Role::StandbyLeader, _) => (Some("standby"), Some("primary")),
                        (true, _, _) => (Some("master"), Some("primary")),
                        (false, Role::Primary, _) => (None, None),
                        (false, Role::Replica, State::Running) => (Some("slave"), Some("replica")),
                        (false, other, State::Running) => {
                            (Some(other.as_str()), Some(other.as_str()))
                        }
                        (false, _, _) => (None, None),
                    };
                    let case = format!("{state} {role} leads: {leads}");
                    assert_eq!(wanted["role"].as_deref(), label, "{case}");
                    assert_eq!(wanted["tmp_role"].as_deref(), standard, "{case}");
                    let making = matches!(
                        state,
                        State::Initdb
                            | State::CustomBootstrap
                            | State::BootstrapStarting
                            | State::CreatingReplica
                    );
                    let phase = making.then_some("bootstrapping");
                    assert_eq!(wanted["phase"].as_deref(), phase, "{case}");
                }
            }
        }
    }

    /// Proves DCS-155: what stands there is not written again.
    #[test]
    fn an_equal_pod_is_not_patched() {
        let labels: Labels =
            [("role".to_owned(), Some("replica".to_owned())), ("phase".to_owned(), None)].into();
        let mut pod = Object::default();
        assert!(!says(&pod, &labels, "{}"));
        pod.labels.insert("role".into(), "replica".into());
        pod.annotations.insert("status".into(), "{}".into());
        assert!(says(&pod, &labels, "{}"));
        assert!(!says(&pod, &labels, r#"{"state":"running"}"#));
        pod.labels.insert("phase".into(), "bootstrapping".into());
        assert!(!says(&pod, &labels, "{}"));
    }

    /// Proves DCS-153: the recorded subset, and when it is written again.
    #[test]
    fn endpoints_point_at_the_leader_alone() {
        let config = KubernetesConfig {
            pod_ip: Some("10.0.0.11".into()),
            ports: vec![Port { name: Some("postgresql".into()), port: 22432, protocol: None }],
            ..KubernetesConfig::default()
        };
        let pod = Object { uid: Some("u1".into()), version: 94, ..Object::default() };
        let wanted = subsets(&config, "alpha", Some(&pod)).expect("an address");
        let recorded = r#"[{"addresses": [{"ip": "10.0.0.11", "hostname": null, "nodeName": null, "targetRef": {"kind": "Pod", "uid": "u1", "namespace": "default", "name": "alpha", "resourceVersion": "94"}}], "ports": [{"port": 22432, "name": "postgresql"}]}]"#;
        assert_eq!(wanted, serde_json::from_str::<Value>(recorded).expect("JSON"));
        let answer = |ip: &str, version: &str| -> Object {
            let subsets = json!([{
                "addresses": [{"ip": ip, "targetRef": {"kind": "Pod", "namespace": "default",
                    "name": "alpha", "uid": "u1", "resourceVersion": version}}],
                "ports": [{"name": "postgresql", "port": 22432, "protocol": "TCP"}],
            }]);
            Object {
                subsets: serde_json::from_value(subsets).expect("subsets"),
                ..Object::default()
            }
        };
        assert!(points_at(&wanted, &answer("10.0.0.11", "94")));
        assert!(points_at(&wanted, &answer("10.0.0.11", "99")), "my Pod was patched since");
        assert!(!points_at(&wanted, &answer("10.0.0.12", "94")), "somebody else's");
        let mut two = answer("10.0.0.11", "94");
        two.subsets.extend(two.subsets.clone());
        assert!(!points_at(&wanted, &two), "two of them");
        assert!(!points_at(&wanted, &Object::default()), "none");
        let other = KubernetesConfig { pod_ip: None, ..config };
        assert_eq!(subsets(&other, "alpha", None), None, "no address is known");
        let named = Object { pod_ip: Some("10.0.0.7".into()), ..pod };
        let wanted = subsets(&other, "alpha", Some(&named)).expect("the Pod's own");
        assert_eq!(wanted[0]["addresses"][0]["ip"], "10.0.0.7");
    }
}
