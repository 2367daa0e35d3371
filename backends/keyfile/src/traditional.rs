//! The encryption of PEM itself: the header names cipher and initial vector, and the key is made of
//! the password with MD5. It is old and weak; keys locked with it exist (`openssl ec -aes256` still
//! writes them), and whoever has one wants it read.

use crate::KeyError;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use md5::{Digest, Md5};
use pem::Pem;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivateSec1KeyDer};

pub fn open(block: &Pem, password: &str) -> Result<PrivateKeyDer<'static>, KeyError> {
    let unsupported = |what: &str| KeyError::Unsupported(what.to_owned());
    let info = block.headers().get("DEK-Info").ok_or_else(|| unsupported("no DEK-Info"))?;
    let (cipher, vector) = info.split_once(',').ok_or_else(|| unsupported(info))?;
    let vector = bytes_of(vector.trim()).ok_or_else(|| unsupported(info))?;
    // What makes the key out of the password is always the first half of the vector of AES.
    let salt = vector.get(..8).ok_or_else(|| unsupported(info))?;
    let key = |length: usize| stretch(password.as_bytes(), salt, length);
    let sealed = block.contents();
    let der = match cipher.trim() {
        "AES-128-CBC" => decrypt::<cbc::Decryptor<aes::Aes128>>(&key(16), &vector, sealed),
        "AES-192-CBC" => decrypt::<cbc::Decryptor<aes::Aes192>>(&key(24), &vector, sealed),
        "AES-256-CBC" => decrypt::<cbc::Decryptor<aes::Aes256>>(&key(32), &vector, sealed),
        "DES-EDE3-CBC" => decrypt::<cbc::Decryptor<des::TdesEde3>>(&key(24), &vector, sealed),
        other => return Err(unsupported(other)),
    }?;
    // The padding fits by chance once in 256 wrong passwords; the length inside then does not.
    if !is_one_sequence(&der) {
        return Err(KeyError::WrongPassword);
    }
    match block.tag() {
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        other => Err(unsupported(other)),
    }
}

fn decrypt<C: KeyIvInit + BlockModeDecrypt>(
    key: &[u8],
    vector: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, KeyError> {
    let cipher = C::new_from_slices(key, vector)
        .map_err(|_| KeyError::Unsupported("the initial vector has another length".to_owned()))?;
    cipher.decrypt_padded_vec::<Pkcs7>(sealed).map_err(|_| KeyError::WrongPassword)
}

/// Each round of MD5 hashes the one before, the password and the salt, until there is enough.
fn stretch(password: &[u8], salt: &[u8], length: usize) -> Vec<u8> {
    let mut key = Vec::new();
    let mut round: Vec<u8> = Vec::new();
    while key.len() < length {
        let mut hash = Md5::new();
        hash.update(&round);
        hash.update(password);
        hash.update(salt);
        round = hash.finalize().to_vec();
        key.extend_from_slice(&round);
    }
    key.truncate(length);
    key
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// One SEQUENCE of DER, and nothing behind it.
fn is_one_sequence(der: &[u8]) -> bool {
    let (length, head) = match der {
        [0x30, short, ..] if *short < 0x80 => (usize::from(*short), 2),
        [0x30, 0x81, one, ..] => (usize::from(*one), 3),
        [0x30, 0x82, one, two, ..] => (usize::from(*one) << 8 | usize::from(*two), 4),
        _ => return false,
    };
    der.len() == head + length
}
