//! How to reach etcd: what the section `etcd3` says, and the client options made of it.

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::net::SocketAddr;
use std::time::Duration;

/// The section `etcd3`, resolved. (CFG-300 … CFG-307)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// URLs, or `host:port` to which `protocol` is put in front; 2379 where no port is given.
    pub endpoints: Vec<String>,
    /// `http` or `https`.
    pub protocol: String,
    pub username: Option<String>,
    pub password: Option<String>,
    /// PEM files. Without `cacert` the system's roots are trusted. The key may stand in the file
    /// of the certificate.
    pub cacert: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
    /// The endpoints are proxies: their members are never asked for. (DCS-081)
    pub use_proxies: bool,
    /// The domain below which DNS names the servers; `endpoints` are for when it names none. (CFG-303)
    pub srv: Option<String>,
    pub srv_suffix: Option<String>,
    /// Whom to ask; none: those of /etc/resolv.conf.
    pub name_servers: Vec<SocketAddr>,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            protocol: "http".to_owned(),
            username: None,
            password: None,
            cacert: None,
            cert: None,
            key: None,
            use_proxies: false,
            srv: None,
            srv_suffix: None,
            name_servers: Vec::new(),
        }
    }
}

impl EtcdConfig {
    /// The endpoints as URLs, in the order given, each once.
    pub(crate) fn urls(&self) -> Vec<String> {
        let mut urls: Vec<String> = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let url = self.url(endpoint);
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls
    }

    fn url(&self, endpoint: &str) -> String {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let (scheme, address) =
            endpoint.split_once("://").unwrap_or((self.protocol.as_str(), endpoint));
        // The text after the last colon is a port unless that colon is inside an IPv6 address.
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && (!address.contains('[') || address.contains("]:"));
        if has_port {
            format!("{scheme}://{address}")
        } else {
            format!("{scheme}://{address}:2379")
        }
    }

    /// The user to log in as; both halves must be there.
    pub(crate) fn user(&self) -> Option<(String, String)> {
        self.username.clone().zip(self.password.clone())
    }

    /// Options for one endpoint. The certificate files are read anew for each connection, so a
    /// renewed certificate needs no restart.
    ///
    /// `renamed`: the connection goes to an address, and the certificate must carry the URL's name.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(crate) fn options(
        &self,
        url: &str,
        login: bool,
        renamed: bool,
    ) -> Result<ConnectOptions, String> {
        // A watch is the only thing that waits on an idle connection. etcd calls pings more
        // frequent than one in 5 s abuse and hangs up, hence 6 s. (DCS-074)
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(6), Duration::from_secs(3))
            .with_require_leader(true);
        if login && let Some((name, password)) = self.user() {
            options = options.with_user(name, password);
        }
        if let Some(place) = url.strip_prefix("https://") {
            let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
            let tls = self.tls()?;
            options = options.with_tls(if renamed { tls.domain_name(host) } else { tls });
        }
        Ok(options)
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let read = |what: &str, path: &str| {
            std::fs::read(path).map_err(|error| format!("{what} {path}: {error}"))
        };
        let mut tls = match &self.cacert {
            Some(path) => {
                TlsOptions::new().ca_certificate(Certificate::from_pem(read("cacert", path)?))
            }
            None => TlsOptions::new().with_enabled_roots(),
        };
        if let Some(cert_path) = &self.cert {
            let cert = read("cert", cert_path)?;
            let key = match &self.key {
                Some(key_path) => read("key", key_path)?,
                None => cert.clone(),
            };
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Ok(tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves CFG-300, CFG-301 (the default port), CFG-305.
    #[test]
    fn endpoints_become_urls() {
        let mut config = EtcdConfig {
            endpoints: ["a", "b:1", "http://c:2/", "[::1]", "[::1]:3", "a:2379", "https://d"]
                .map(str::to_owned)
                .to_vec(),
            ..EtcdConfig::default()
        };
        let expected = [
            "http://a:2379",
            "http://b:1",
            "http://c:2",
            "http://[::1]:2379",
            "http://[::1]:3",
            "https://d:2379",
        ];
        assert_eq!(config.urls(), expected);
        config.protocol = "https".to_owned();
        assert_eq!(config.urls()[0], "https://a:2379");
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let config = EtcdConfig { cacert: Some("/nowhere/ca.pem".into()), ..EtcdConfig::default() };
        let error = config.options("https://h:1", false, false).err().unwrap_or_default();
        assert!(error.starts_with("cacert /nowhere/ca.pem"), "{error}");
    }
}
