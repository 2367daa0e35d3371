//! A small HTTP client for the other members' REST APIs. (REST-349)
//!
//! No connection is kept: members are asked rarely, and a connection of yesterday says nothing about
//! who is alive now.

use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use ::http::{Method, Request, StatusCode, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hathi_dcs::Deadline;
use hathi_keyfile::trust::{Lenient, system_roots};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// The most that is read of an answer.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// How members are spoken to: section `ctl`, else `restapi`. (REST-349)
#[derive(Clone, Debug, Default)]
pub struct ClientSettings {
    /// User and password, sent with every request.
    pub credentials: Option<(String, String)>,
    /// `ctl.certfile`: shown to servers; its presence switches verification on.
    pub certfile: Option<PathBuf>,
    /// The key stands in `certfile` when this is not given.
    pub keyfile: Option<PathBuf>,
    /// What the key is locked with, if it is.
    pub keyfile_password: Option<String>,
    /// Who must have signed the server's certificate, if verification is on. The system's CAs
    /// otherwise. Host names are never compared: members are known by address.
    pub cafile: Option<PathBuf>,
}

/// Why the client cannot be built: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("ctl.{key}: {}: {why}", file.display())]
    File { key: &'static str, file: PathBuf, why: String },
    #[error("ctl: user or password contain bytes that HTTP cannot carry")]
    Credentials,
    #[error("ctl: TLS cannot be set up: {0}")]
    Tls(String),
}

/// Why a request has no answer. Whether the other end acted on it is unknown unless it was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("{url}: not a URL we can ask")]
    Url { url: String },
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url}: no answer in time")]
    TooLate { url: String },
    #[error("{url}: the answer is larger than {BODY_LIMIT} bytes")]
    TooLarge { url: String },
}

#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Speaks http and https to members. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl HttpClient {
    pub fn new(settings: &ClientSettings) -> Result<Self, SettingsError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(settings)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .retry_canceled_requests(false)
            .build(connector);
        let authorization = match &settings.credentials {
            None => None,
            Some((user, password)) => {
                let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                let mut value =
                    HeaderValue::try_from(text).map_err(|_| SettingsError::Credentials)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { client, authorization })
    }

    pub async fn get(&self, url: &str, by: Deadline) -> Result<HttpAnswer, HttpError> {
        self.send(Method::GET, url, None, by).await
    }

    /// POST of a JSON document.
    pub async fn post(
        &self,
        url: &str,
        body: &Value,
        by: Deadline,
    ) -> Result<HttpAnswer, HttpError> {
        self.send(Method::POST, url, Some(body), by).await
    }

    /// One request, no retry, everything done by `by`.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
        by: Deadline,
    ) -> Result<HttpAnswer, HttpError> {
        let bad_url = || HttpError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| bad_url())?;
        if uri.authority().is_none() {
            return Err(bad_url());
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(USER_AGENT, concat!("hathi/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let body = match body {
            None => Bytes::new(),
            Some(document) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(document.to_string())
            }
        };
        let request = request.body(Full::new(body)).map_err(|_| bad_url())?;
        match tokio::time::timeout(by.left(), self.exchange(url, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(HttpError::TooLate { url: url.to_owned() }),
        }
    }

    async fn exchange(
        &self,
        url: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<HttpAnswer, HttpError> {
        let unreachable = |why: String| HttpError::Unreachable { url: url.to_owned(), why };
        let response =
            self.client.request(request).await.map_err(|why| unreachable(root_cause(&why)))?;
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(why) if why.is::<http_body_util::LengthLimitError>() => {
                return Err(HttpError::TooLarge { url: url.to_owned() });
            }
            Err(why) => return Err(unreachable(root_cause(&*why))),
        };
        Ok(HttpAnswer { status: head.status, headers: head.headers, body })
    }
}

/// The innermost reason: `connection refused`, not "client error".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Scheme and host of a member's `api_url`, with another path. (REST-349)
pub fn endpoint(api_url: &str, path: &str) -> Option<String> {
    let uri: Uri = api_url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    Some(format!("{scheme}://{authority}/{}", path.trim_start_matches('/')))
}

fn tls(settings: &ClientSettings) -> Result<ClientConfig, SettingsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |why: &dyn ToString| SettingsError::Tls(why.to_string());
    let chain = match &settings.certfile {
        None => None,
        Some(file) => {
            Some(Arc::new(chain_verifier(settings, Arc::clone(&provider))?)).zip(Some(file))
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|why| failed(&why))?
        .dangerous();
    match chain {
        None => {
            // Members' certificates are not verified without `ctl.certfile`; what they say is
            // believed no more than over plain http. (REST-349)
            let anyone = Arc::new(Lenient::anyone(&provider));
            Ok(builder.with_custom_certificate_verifier(anyone).with_no_client_auth())
        }
        Some((verifier, certfile)) => {
            let keyfile = settings.keyfile.as_ref().unwrap_or(certfile);
            let certificates = certificates("certfile", certfile)?;
            let key = hathi_keyfile::read(keyfile, settings.keyfile_password.as_deref())
                .map_err(|why| file_error("keyfile", keyfile, why))?;
            builder
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(certificates, key)
                .map_err(|why| failed(&why))
        }
    }
}

/// Signed by the right CA, whatever name it carries. (REST-349)
fn chain_verifier(
    settings: &ClientSettings,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Lenient, SettingsError> {
    let roots = match &settings.cafile {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("cafile", file)? {
                roots.add(certificate).map_err(|why| file_error("cafile", file, why))?;
            }
            roots
        }
        None => system_roots(),
    };
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|why| SettingsError::Tls(format!("no usable CA certificate: {why}")))?;
    Ok(Lenient::any_name(chain, &provider))
}

fn file_error(key: &'static str, file: &std::path::Path, why: impl ToString) -> SettingsError {
    SettingsError::File { key, file: file.to_owned(), why: why.to_string() }
}

fn certificates(
    key: &'static str,
    file: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|why| file_error(key, file, why))
}
