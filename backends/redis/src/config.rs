//! How to reach Redis: what the section `redis` says.

use crate::Sentinels;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, TlsCertificates,
};
use std::path::{Path, PathBuf};

/// The section `redis`, resolved. (CFG-410)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisConfig {
    /// Host and port of servers; the first that is writable is used, so replicas may be listed.
    pub hosts: Vec<(String, u16)>,
    pub tls: Option<Tls>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub db: u32,
    /// How many replicas must have a write before it counts. 0: the server stands alone. With
    /// Sentinel at least half of the servers that it knows, whatever is said here.
    pub replicas: u32,
    /// Asked for the writable server instead of `hosts`, if there are some.
    pub sentinels: Sentinels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files. Without `cacert` the system's roots are trusted.
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn login(username: Option<&str>, password: Option<&str>) -> RedisConnectionInfo {
    let mut login =
        RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    login
}

impl RedisConfig {
    /// A client of one server. Blocks on the files, which are read anew for each connection.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub(crate) fn client(&self, host: &str, port: u16) -> Result<Client, String> {
        let login = login(self.username.as_deref(), self.password.as_deref());
        self.client_as(host, port, login.set_db(i64::from(self.db)))
    }

    /// The same for a Sentinel, which has users of its own and no numbered databases.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub(crate) fn sentinel_client(&self, host: &str, port: u16) -> Result<Client, String> {
        let sentinels = &self.sentinels;
        let login = login(sentinels.username.as_deref(), sentinels.password.as_deref());
        self.client_as(host, port, login)
    }

    fn client_as(
        &self,
        host: &str,
        port: u16,
        login: RedisConnectionInfo,
    ) -> Result<Client, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let address = match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let info = address.into_connection_info().map_err(|why| why.to_string())?;
        let info = info.set_redis_settings(login);
        let Some(tls) = &self.tls else {
            return Client::open(info).map_err(|why| why.to_string());
        };
        let client_tls = match &tls.cert {
            None => None,
            Some(cert) => {
                let key = tls.key.as_ref().unwrap_or(cert);
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
        };
        let root_cert = tls.cacert.as_deref().map(read).transpose()?;
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
            .map_err(|why| format!("TLS cannot be set up: {why}"))
    }
}
