//! What is kept of an object or a Pod, and how it comes over the wire.

use crate::layout::Annotations;
use k8s_openapi::api::core::v1::EndpointSubset;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The two sorts of things this crate reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Endpoints,
    ConfigMaps,
    Pods,
}

impl Kind {
    /// As paths and rules of RBAC name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::ConfigMaps => "configmaps",
            Self::Pods => "pods",
        }
    }
}

/// As the API server sends it, whichever of the three it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sent {
    pub metadata: ObjectMeta,
    subsets: Option<Vec<EndpointSubset>>,
    spec: Option<SentSpec>,
    status: Option<SentStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SentSpec {
    hostname: Option<String>,
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SentStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

/// A list of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SentList {
    pub metadata: ListMeta,
    pub items: Option<Vec<Sent>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListMeta {
    pub resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub next_page: Option<String>,
}

/// A version as the server gives it. It calls them opaque; they are etcd's revisions, and everybody,
/// Patroni too, compares them as such. (DCS-175)
pub(crate) fn version(text: Option<&str>) -> Result<u64, String> {
    let text = text.unwrap_or_default();
    text.parse().map_err(|_| format!("a resourceVersion is {text:?}, a number is expected"))
}

/// What counts of one of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Object {
    pub version: u64,
    pub uid: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: Annotations,
    pub subsets: Vec<EndpointSubset>,
    pub hostname: Option<String>,
    pub node_name: Option<String>,
    pub pod_ip: Option<String>,
}

impl Object {
    /// With its name.
    ///
    /// # Errors
    /// It has no version that can be compared.
    pub fn of(sent: Sent) -> Result<(String, Self), String> {
        let Sent { metadata, subsets, spec, status } = sent;
        let spec = spec.unwrap_or_default();
        let object = Self {
            version: version(metadata.resource_version.as_deref())?,
            uid: metadata.uid,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            subsets: subsets.unwrap_or_default(),
            hostname: spec.hostname,
            node_name: spec.node_name,
            pod_ip: status.and_then(|status| status.pod_ip).filter(|ip| !ip.is_empty()),
        };
        Ok((metadata.name.unwrap_or_default(), object))
    }
}
