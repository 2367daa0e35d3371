//! TLS to Consul, from PEM files. (CFG-311)

use crate::ConsulConfig;
use hathi_keyfile::AnyServer;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

fn named(path: &Path, why: impl ToString) -> String {
    format!("{}: {}", path.display(), why.to_string())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|why| named(path, why))?;
    let all: Result<Vec<_>, _> = read.collect();
    let all = all.map_err(|why| named(path, why))?;
    if all.is_empty() { Err(named(path, "holds no certificate")) } else { Ok(all) }
}

/// The client's side of TLS. Blocks on the files.
///
/// # Errors
/// One line that names the file.
pub(crate) fn client(config: &ConsulConfig) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    match &config.cacert {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|why| named(path, why))?;
            }
        }
        // The system's own roots. One that cannot be read is not trusted.
        None => {
            for file in ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"] {
                let found = certificates(Path::new(file)).unwrap_or_default();
                roots.add_parsable_certificates(found);
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?;
    let builder = if config.verify {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_webpki_verifier(verifier.build().map_err(|why| format!("no roots: {why}"))?)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::new(provider)))
    };
    match &config.cert {
        None => Ok(builder.with_no_client_auth()),
        Some(cert) => {
            let key = config.key.as_deref().unwrap_or(cert);
            let private = PrivateKeyDer::from_pem_file(key).map_err(|why| named(key, why))?;
            let chain = certificates(cert)?;
            builder.with_client_auth_cert(chain, private).map_err(|why| named(cert, why))
        }
    }
}
