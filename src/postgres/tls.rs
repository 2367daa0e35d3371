//! TLS to a PostgreSQL by libpq's options: which mode, what is verified, with which certificate.
//!
//! `prefer` and `require` verify nothing, `verify-ca` the chain, `verify-full` the name too, as libpq
//! has it. `rustls` only does the cryptography; this file maps the options.

use crate::postgres::settings::Login;
use hathi_keyfile::trust::Lenient;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// How a connection to `host` as `login` is made.
pub struct Tls {
    pub mode: SslMode,
    pub connector: Connector,
}

#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// # Errors
    /// A certificate or key file that cannot be used, or an `sslmode` nobody knows.
    pub fn new(host: &str, login: &Login) -> Result<Self, String> {
        let option = |name: &str| login.options.get(name).map(String::as_str);
        let (mode, verify) = match option("sslmode").unwrap_or("prefer") {
            _ if host.starts_with('/') => (SslMode::Disable, Verify::Nothing),
            "disable" => (SslMode::Disable, Verify::Nothing),
            "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
            // With a root certificate libpq verifies the chain.
            "require" if option("sslrootcert").is_some() => (SslMode::Require, Verify::Chain),
            "require" => (SslMode::Require, Verify::Nothing),
            "verify-ca" => (SslMode::Require, Verify::Chain),
            "verify-full" => (SslMode::Require, Verify::Name),
            other => return Err(format!("unknown sslmode {other:?}")),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = verifier(verify, option("sslrootcert"), &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (option("sslcert"), option("sslkey")) {
            (Some(cert), Some(key)) => {
                let key = hathi_keyfile::read(Path::new(key), option("sslpassword"))
                    .map_err(|why| format!("sslkey {key}: {why}"))?;
                builder
                    .with_client_auth_cert(certificates(cert)?, key)
                    .map_err(|why| format!("sslcert {cert}: {why}"))?
            }
            (Some(_), None) | (None, Some(_) | None) => builder.with_no_client_auth(),
        };
        let name = ServerName::try_from(host.to_owned()).ok();
        Ok(Self { mode, connector: Connector { config: Arc::new(config), name } })
    }
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|why| format!("{path}: {why}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    Name,
}

fn verifier(
    verify: Verify,
    root: Option<&str>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let (path, name) = match (verify, root) {
        (Verify::Nothing, _) => return Ok(Arc::new(Lenient::anyone(provider))),
        (Verify::Chain | Verify::Name, None) => {
            return Err("sslmode verify-ca and verify-full need sslrootcert".into());
        }
        (Verify::Chain, Some(path)) => (path, false),
        (Verify::Name, Some(path)) => (path, true),
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|why| format!("{path}: {why}"))?;
    }
    let built = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
    let whole = built.build().map_err(|why| format!("{path}: {why}"))?;
    Ok(if name { whole } else { Arc::new(Lenient::any_name(whole, provider)) })
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = Self;
    type Error = std::io::Error;

    fn make_tls_connect(&mut self, _domain: &str) -> Result<Self, std::io::Error> {
        Ok(self.clone())
    }
}

impl<S> TlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = std::io::Error;
    type Future = futures::future::BoxFuture<'static, Result<Encrypted<S>, std::io::Error>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(self.handshake(stream))
    }
}

impl Connector {
    /// TLS over a stream whose server has agreed to it.
    pub async fn handshake<S>(self, stream: S) -> Result<Encrypted<S>, std::io::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.name.ok_or_else(|| std::io::Error::other("the host is no name for TLS"))?;
        let connector = tokio_rustls::TlsConnector::from(self.config);
        connector.connect(name, stream).await.map(Encrypted)
    }
}

/// A stream inside TLS.
pub struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    /// Not offered: SCRAM works without it, and `channel_binding=require` is refused by the client.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-320 (what `sslmode` means to us).
    #[test]
    fn modes_are_libpqs() {
        let with = |host: &str, pairs: &[(&str, &str)]| {
            let options = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Tls::new(host, &Login { options, ..Login::default() }).map(|tls| tls.mode)
        };
        assert_eq!(with("h", &[]), Ok(SslMode::Prefer));
        assert_eq!(with("/run", &[("sslmode", "require")]), Ok(SslMode::Disable));
        assert_eq!(with("h", &[("sslmode", "require")]), Ok(SslMode::Require));
        assert!(with("h", &[("sslmode", "verify-full")]).is_err(), "no root certificate");
        assert!(with("h", &[("sslmode", "verify-ca"), ("sslrootcert", "/no/such")]).is_err());
        assert!(with("h", &[("sslmode", "perhaps")]).is_err());
    }
}
