//! What the listener has to know: plain values, already checked by the configuration.

use std::path::PathBuf;
use std::time::Duration;

/// Section `restapi` of the configuration. (section 11 of docs/spec/rest-api.md)
#[derive(Clone, Debug)]
pub struct RestConfig {
    /// `host:port`; several hosts with commas; IPv6 with or without brackets; `*` or nothing for
    /// every address. (REST-290)
    pub listen: String,
    pub credentials: Option<Credentials>,
    /// Empty: everybody, unless `allowlist_include_members`.
    pub allowlist: Vec<String>,
    pub allowlist_include_members: bool,
    /// Its presence switches to https. (REST-293)
    pub certfile: Option<PathBuf>,
    /// The key stands in `certfile` when this is not given.
    pub keyfile: Option<PathBuf>,
    pub keyfile_password: Option<String>,
    pub cafile: Option<PathBuf>,
    /// An OpenSSL list; the suites it names that we have are offered for TLS 1.2. (REST-492)
    pub ciphers: Option<String>,
    pub verify_client: VerifyClient,
    pub server_tokens: ServerTokens,
    pub http_extra_headers: Vec<(String, String)>,
    /// Added, and winning, only with `certfile`. (REST-302)
    pub https_extra_headers: Vec<(String, String)>,
    /// Connections the kernel keeps for us before we accept them; at least 1024 are. (REST-401)
    pub request_queue_size: u32,
    /// For the TLS handshake. (REST-363)
    pub handshake_timeout: Duration,
    /// For the header, for the body, and between two requests of one connection. (REST-363)
    pub request_timeout: Duration,
    /// Open connections; past it the one that was idle longest goes. (REST-451)
    pub max_connections: usize,
    /// A socket file that only its owner may open, besides `listen`. (REST-315)
    pub unix_socket: Option<PathBuf>,
    /// How often the certificate's files are looked at. (REST-453)
    pub certificate_check: Duration,
}

impl RestConfig {
    /// Everything but the address as it is when nothing is configured.
    pub fn on(listen: impl Into<String>) -> Self {
        Self {
            listen: listen.into(),
            credentials: None,
            allowlist: Vec::new(),
            allowlist_include_members: false,
            certfile: None,
            keyfile: None,
            keyfile_password: None,
            cafile: None,
            ciphers: None,
            verify_client: VerifyClient::None,
            server_tokens: ServerTokens::Original,
            http_extra_headers: Vec::new(),
            https_extra_headers: Vec::new(),
            request_queue_size: 128,
            handshake_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            max_connections: 512,
            unix_socket: None,
            certificate_check: Duration::from_secs(10),
        }
    }
}

/// What unsafe requests must show. (REST-278)
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// (REST-307 … REST-309)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyClient {
    #[default]
    None,
    Optional,
    Required,
}

/// What the `Server` header says. (REST-303, REST-491)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerTokens {
    #[default]
    Original,
    ProductOnly,
    Minimal,
}

impl ServerTokens {
    pub fn header(self) -> String {
        match self {
            Self::Original => concat!("hathi/", env!("CARGO_PKG_VERSION")).to_owned(),
            Self::ProductOnly => "Patroni".to_owned(),
            Self::Minimal => format!("Patroni/{}", crate::ha::settings::EMULATED_VERSION),
        }
    }
}
