//! A private key from a PEM file, with or without a password, for whoever shows a certificate: the
//! REST API, the client that asks other members, PostgreSQL's connections, a store.
//!
//! Both ways in which OpenSSL locks a key are read: PKCS #8 (`ENCRYPTED PRIVATE KEY`) and the older
//! one of PEM itself (`Proc-Type: 4,ENCRYPTED`). As with OpenSSL a password that is not needed does no
//! harm. Never in here: which option of which file the password came from; the caller says that.
//!
//! Beside it, for the clients that want it so: a server whose certificate is not verified.

mod traditional;
mod unverified;

pub use unverified::AnyServer;

use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::Path;

/// Why there is no key. None of the texts names the file, and none shows the password.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    Unreadable(std::io::Error),
    #[error("there is no private key in it ({0})")]
    NoKey(String),
    #[error("the key is encrypted, and no password is given")]
    Locked,
    #[error("the password does not open the key")]
    WrongPassword,
    #[error(
        "the key is encrypted in a way that is not supported ({0}); encrypt it anew: openssl pkcs8 -topk8"
    )]
    Unsupported(String),
}

/// The first private key of the file; the certificate may stand in it too.
///
/// # Errors
/// See [`KeyError`].
pub fn read(file: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>, KeyError> {
    parse(&std::fs::read(file).map_err(KeyError::Unreadable)?, password)
}

/// As [`read`], of the file's content.
///
/// # Errors
/// See [`KeyError`].
pub fn parse(content: &[u8], password: Option<&str>) -> Result<PrivateKeyDer<'static>, KeyError> {
    match locked(content) {
        Some(Lock::Pkcs8(der)) => open_pkcs8(&der, password.ok_or(KeyError::Locked)?),
        Some(Lock::Traditional(block)) => {
            traditional::open(&block, password.ok_or(KeyError::Locked)?)
        }
        None => {
            PrivateKeyDer::from_pem_slice(content).map_err(|why| KeyError::NoKey(why.to_string()))
        }
    }
}

/// How the first key of a file is locked.
enum Lock {
    Pkcs8(Vec<u8>),
    Traditional(pem::Pem),
}

fn locked(content: &[u8]) -> Option<Lock> {
    // What this crate cannot read at all is no locked key; the other one says what is wrong with it.
    let blocks = pem::parse_many(content).ok()?;
    let key = blocks.into_iter().find(|block| block.tag().ends_with("PRIVATE KEY"))?;
    if key.tag() == "ENCRYPTED PRIVATE KEY" {
        Some(Lock::Pkcs8(key.into_contents()))
    } else if key.headers().get("Proc-Type").is_some_and(|kind| kind.contains("ENCRYPTED")) {
        Some(Lock::Traditional(key))
    } else {
        None
    }
}

fn open_pkcs8(der: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, KeyError> {
    let unsupported = |why: &dyn ToString| KeyError::Unsupported(why.to_string());
    let sealed = EncryptedPrivateKeyInfoRef::try_from(der).map_err(|why| unsupported(&why))?;
    // Only the deriving of the key and the cipher can refuse here, and of these only the wrong
    // password leads to what is no key.
    let opened = sealed.decrypt(password).map_err(|why| match why {
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed)
        | pkcs8::Error::Asn1(_) => KeyError::WrongPassword,
        other => unsupported(&other),
    })?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}

/// The key as PEM without a password, for clients that take nothing else. It stays in memory.
pub fn to_pem(key: &PrivateKeyDer<'_>) -> String {
    let tag = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    pem::encode(&pem::Pem::new(tag, key.secret_der()))
}

#[cfg(test)]
mod tests;
