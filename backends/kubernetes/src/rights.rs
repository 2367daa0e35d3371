//! What the Role has to allow, asked at start: a right that only a leader needs would otherwise be
//! missed when the old one is dead. (DCS-309, section 9.2 of docs/spec/dcs.md)

use crate::KubernetesConfig;
use crate::servers::{Call, Servers};
use hathi_dcs::{DcsError, Deadline};
use http::Request;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

const OBJECTS: &[&str] = &["create", "get", "list", "patch", "watch"];
const PODS: &[&str] = &["list", "patch", "watch"];
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The rights that this configuration's user lacks, each as `verb resource`.
///
/// # Errors
/// As for every call.
pub async fn missing_rights(
    config: KubernetesConfig,
    by: Deadline,
) -> Result<Vec<String>, DcsError> {
    missing(&Servers::new(config.clone()), &config, by).await
}

pub(crate) async fn missing(
    servers: &Servers,
    config: &KubernetesConfig,
    by: Deadline,
) -> Result<Vec<String>, DcsError> {
    let objects = if config.use_endpoints { "endpoints" } else { "configmaps" };
    let mut lacking = Vec::new();
    for (resource, verbs) in [(objects, OBJECTS), ("pods", PODS)] {
        for verb in verbs {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "namespace": config.namespace, "resource": resource, "verb": verb,
                }},
            });
            let request = Request::post(REVIEWS).header(CONTENT_TYPE, "application/json");
            let request = request.body(review.to_string().into_bytes());
            let request = request.map_err(|why| DcsError::NotRetriable {
                store: servers.store(),
                why: why.to_string(),
            })?;
            let kind = "selfsubjectaccessreviews";
            let call = Call { verb: "create", kind, request, patient: false };
            let answer = servers.call(by, &call).await?;
            let said = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
            // No answer to the question is none that says no.
            if said["status"]["allowed"].as_bool() == Some(false) {
                lacking.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok(lacking)
}
