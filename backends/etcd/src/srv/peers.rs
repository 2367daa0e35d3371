//! The members, asked for at a port where they talk to each other: `GET /members`. (CFG-303)
//!
//! The certificate there is not verified, as in Patroni: it is of the members' own, whose authority the
//! clients need not know, and what is learnt is only where to ask, as from DNS itself. A certificate of
//! ours is shown to those who demand one.

use super::names::random;
use crate::EtcdConfig;
use hathi_dcs::{Deadline, with_causes};
use hathi_keyfile::trust::Lenient;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A member is some hundred bytes.
const BODY_LIMIT: usize = 1 << 20;
/// The most that one member is waited for while there are others.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    /// Absent until it has started for the first time.
    #[serde(default, rename = "clientURLs")]
    client_urls: Vec<String>,
    #[serde(default)]
    is_learner: bool,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<&'static [u8]>>;

/// Where clients are served, by the first of these members that answers. Which of them is to be tried
/// first is left to chance: here every member says the same of all.
///
/// # Errors
/// What each of them said.
pub(super) async fn client_urls(
    config: &EtcdConfig,
    places: &[String],
    by: Deadline,
) -> Result<Vec<String>, String> {
    let client = client(config)?;
    let mut whys = Vec::new();
    for (place, others) in places.iter().zip((0..places.len()).rev()) {
        let share = by.left() / u32::try_from(others + 1).unwrap_or(u32::MAX);
        let patience = if others == 0 { share } else { share.min(PATIENCE) };
        let why = match timeout(patience, ask(&client, place)).await {
            Ok(Ok(body)) => match read(&body) {
                Ok(mut urls) => {
                    let last = u64::try_from(urls.len()).unwrap_or(1) - 1;
                    urls.rotate_left(usize::try_from(random(last)).unwrap_or(0));
                    return Ok(urls);
                }
                Err(why) => why,
            },
            Ok(Err(why)) => why,
            Err(_elapsed) => "no answer".to_owned(),
        };
        whys.push(format!("{place}/members: {why}"));
    }
    Err(whys.join(", "))
}

/// The URLs of an answer; never none.
fn read(body: &[u8]) -> Result<Vec<String>, String> {
    let members: Vec<Member> =
        serde_json::from_slice(body).map_err(|why| format!("no list of members ({why})"))?;
    let voters = members.into_iter().filter(|member| !member.is_learner);
    let urls: Vec<String> =
        voters.flat_map(|member| member.client_urls).filter_map(usable).collect();
    if urls.is_empty() { Err("no member serves clients".to_owned()) } else { Ok(urls) }
}

/// Over TCP, with a host; a socket in a file is another machine's.
fn usable(url: String) -> Option<String> {
    let parsed: Uri = url.trim_end_matches('/').parse().ok()?;
    let over_http = matches!(parsed.scheme_str(), Some("http" | "https"));
    let place = parsed.authority()?;
    let host = place.host();
    let somewhere = over_http && !host.is_empty() && place.port_u16().is_some_and(|port| port != 0);
    somewhere.then(|| format!("{}://{place}", parsed.scheme_str().unwrap_or("http")))
}

async fn ask(client: &HttpClient, place: &str) -> Result<Vec<u8>, String> {
    let url: Uri = format!("{place}/members").parse().map_err(|_| "no URL".to_owned())?;
    let answer = client.get(url).await.map_err(|why| with_causes(&why))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(status.to_string());
    }
    let body = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
    Ok(body.map_err(|why| why.to_string())?.to_bytes().to_vec())
}

fn client(config: &EtcdConfig) -> Result<HttpClient, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(config)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    // Each server is asked once: nothing is kept for a second request.
    Ok(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
}

fn tls(config: &EtcdConfig) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Lenient::anyone(&provider)));
    // A file that cannot be read is said by the connections that need it.
    match own_certificate(config) {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|why| why.to_string())
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

fn own_certificate(
    config: &EtcdConfig,
) -> Option<(Vec<CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>)> {
    let cert = config.cert.as_deref()?;
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert).ok()?.collect::<Result<_, _>>().ok()?;
    let key = hathi_keyfile::read(Path::new(config.key.as_deref().unwrap_or(cert)), None).ok()?;
    (!chain.is_empty()).then_some((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read() {
        let body = br#"[{"id":1,"peerURLs":["http://a:2380"],"name":"a","clientURLs":["http://a:2379/","unix://x:1"]},
            {"id":2,"peerURLs":["http://b:2380"],"name":"","extra":{}},
            {"id":3,"isLearner":true,"clientURLs":["http://c:2379"]},
            {"id":4,"clientURLs":["https://[::1]:2379","http://d","ftp://e:1","nonsense",""]}]"#;
        assert_eq!(read(body).expect("a list"), ["http://a:2379", "https://[::1]:2379"]);
        for (body, why) in [
            ("", "no list of members"),
            ("{}", "no list of members"),
            ("[]", "no member serves clients"),
            (r#"[{"clientURLs":[]}]"#, "no member serves clients"),
            (r#"[{"clientURLs":7}]"#, "no list of members"),
            ("404 page not found", "no list of members"),
        ] {
            let said = read(body.as_bytes()).expect_err(body);
            assert!(said.contains(why), "{body}: {said}");
        }
    }
}
