//! How to reach the cluster's objects: what the section `kubernetes` says.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The section `kubernetes`, resolved. (CFG-330 … CFG-338)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    pub access: Access,
    /// Of all objects and Pods of the cluster.
    pub namespace: String,
    /// What every object and Pod of this cluster carries, beside the scope's label; never empty.
    pub labels: BTreeMap<String, String>,
    pub scope_label: String,
    pub roles: RoleLabels,
    /// On my Pod while its data directory is being made. (DCS-154)
    pub bootstrap_labels: BTreeMap<String, String>,
    /// Endpoints instead of ConfigMaps; the leader's then carry its address. (DCS-150, DCS-153)
    pub use_endpoints: bool,
    /// In the leader's Endpoints; the Pod's own if absent.
    pub pod_ip: Option<String>,
    /// In the leader's Endpoints; never empty.
    pub ports: Vec<Port>,
    /// Ask the API servers themselves, not the service in front of them. (DCS-178)
    pub bypass_api_service: bool,
    /// Answers to try again after, beside 429 and all from 500 on. (DCS-179)
    pub retriable_codes: Vec<u16>,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            access: Access::Found { context: None, cacert: None },
            namespace: "default".into(),
            labels: BTreeMap::new(),
            scope_label: "cluster-name".into(),
            roles: RoleLabels::default(),
            bootstrap_labels: BTreeMap::new(),
            use_endpoints: false,
            pod_ip: None,
            ports: vec![Port::default()],
            bypass_api_service: false,
            retriable_codes: Vec::new(),
        }
    }
}

/// Where the API server is and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Inside a Pod its service account, elsewhere the kubeconfig. (DCS-177)
    Found {
        /// Of the kubeconfig; `kind-kind` unless given, else its current one.
        context: Option<String>,
        /// Instead of the service account's own authority.
        cacert: Option<PathBuf>,
    },
    /// The files of a service account, read again as they rotate.
    Account { url: String, token_file: PathBuf, cacert: PathBuf },
}

/// How a Pod's label says what it is. (CFG-332, CFG-333, DCS-154)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleLabels {
    pub label: String,
    pub leader: String,
    pub follower: String,
    pub standby_leader: String,
    /// Gets the default values, for a change of the others.
    pub tmp_label: Option<String>,
}

impl Default for RoleLabels {
    fn default() -> Self {
        Self {
            label: "role".into(),
            leader: "primary".into(),
            follower: "replica".into(),
            standby_leader: "primary".into(),
            tmp_label: None,
        }
    }
}

/// One port of the leader's Endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Option<String>,
}

impl Default for Port {
    fn default() -> Self {
        Self { name: None, port: 5432, protocol: None }
    }
}
