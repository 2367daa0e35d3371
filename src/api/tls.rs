//! https: the certificate, and who must show one. (REST-293 … REST-311)
//!
//! No ALPN: a client that offers only `http/1.0` would be refused at the handshake.

use crate::api::settings::{RestConfig, VerifyClient};
use hathi_keyfile::KeyError;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ProtocolVersion, RootCertStore, ServerConfig};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Why https cannot be offered; never a reason to fall back to plain http.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("restapi.{key}: {}: {why}", file.display())]
    File { key: &'static str, file: PathBuf, why: String },
    #[error("restapi.verify_client needs restapi.cafile")]
    NoCa,
    #[error("restapi.keyfile: {}: {why}{}", file.display(), match why {
        KeyError::Locked => " (restapi.keyfile_password)",
        _ => "",
    })]
    Key { file: PathBuf, why: KeyError },
    #[error("restapi.certfile: certificate and key do not work together: {0}")]
    Mismatch(rustls::Error),
}

/// `None` without `certfile`: plain http.
pub fn load(config: &RestConfig) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let Some(certfile) = &config.certfile else { return Ok(None) };
    let chain = certificates("certfile", certfile)?;
    let keyfile = config.keyfile.as_ref().unwrap_or(certfile);
    let key = hathi_keyfile::read(keyfile, config.keyfile_password.as_deref())
        .map_err(|why| TlsError::Key { file: keyfile.clone(), why })?;
    let provider = Arc::new(provider(config.ciphers.as_deref()));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Mismatch)?;
    let builder = match config.verify_client {
        VerifyClient::None => builder.with_no_client_auth(),
        VerifyClient::Optional | VerifyClient::Required => {
            let cafile = config.cafile.as_ref().ok_or(TlsError::NoCa)?;
            let mut roots = RootCertStore::empty();
            for certificate in certificates("cafile", cafile)? {
                roots.add(certificate).map_err(|why| file_error("cafile", cafile, why))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if config.verify_client == VerifyClient::Optional {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            let verifier = verifier.build().map_err(|why| file_error("cafile", cafile, why))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let tls = builder.with_single_cert(chain, key).map_err(TlsError::Mismatch)?;
    Ok(Some(Arc::new(tls)))
}

/// OpenSSL's names of the suites we have below TLS 1.3, whose suites are always offered.
const SUITES: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// The suites of the list that we have; all of ours when it names none of them, with a warning.
/// (REST-492)
fn provider(ciphers: Option<&str>) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let Some(list) = ciphers.filter(|list| !list.trim().is_empty()) else { return provider };
    let (mut named, mut unknown) = (Vec::new(), Vec::new());
    for name in list.split([':', ',', ' ']).filter(|name| !name.is_empty()) {
        match SUITES.iter().find(|(known, _)| *known == name) {
            Some((_, suite)) => named.push(*suite),
            None => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        tracing::warn!(
            unknown = unknown.join(":"),
            "restapi.ciphers: these are not understood and left out; TLS 1.2 and 1.3 are offered"
        );
    }
    if !named.is_empty() {
        provider.cipher_suites.retain(|suite| {
            suite.version().version == ProtocolVersion::TLSv1_3 || named.contains(&suite.suite())
        });
    }
    provider
}

/// One file as it was: when it was written, how long it is, and which file it is (a link may point
/// to another one of the same age). `None`: it was not there.
pub type Stamp = Option<(SystemTime, u64, u64)>;

/// The files as they are: another value is a reason to load them again. (REST-453)
pub fn changed_at(config: &RestConfig) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let data = std::fs::metadata(file).ok()?;
        Some((data.modified().ok()?, data.len(), data.ino()))
    };
    [&config.certfile, &config.keyfile, &config.cafile].into_iter().flatten().map(stamp).collect()
}

fn file_error(key: &'static str, file: &Path, why: impl ToString) -> TlsError {
    TlsError::File { key, file: file.to_owned(), why: why.to_string() }
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(|why| file_error(key, file, why))?
        .collect::<Result<_, _>>()
        .map_err(|why| file_error(key, file, why))?;
    if found.is_empty() {
        return Err(file_error(key, file, "there is no certificate in it"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-492.
    #[test]
    fn known_suites_are_chosen_and_unknown_ones_left_out() {
        let all = provider(None).cipher_suites.len();
        for (list, left) in [
            ("", all),
            ("HIGH:!aNULL", all),
            ("ECDHE-RSA-AES128-GCM-SHA256", 4),
            ("ECDHE-RSA-AES128-GCM-SHA256:nonsense:ECDHE-ECDSA-AES128-GCM-SHA256", 5),
        ] {
            assert_eq!(provider(Some(list)).cipher_suites.len(), left, "{list}");
        }
    }
}
