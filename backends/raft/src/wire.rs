//! Authenticated frames over TCP, and the greeting before them.
//!
//! ```text
//! client                                   server
//!   magic, hello{cluster, from, to, nonce} ->
//!                                        <- magic, hello{nonce} or refusal
//!   proof of the password                  ->
//!                                        <- proof of the password or refusal
//!   frames, each with the tag of its direction's key and its number
//! ```
//! The keys come from the password and both nonces, so nothing can be replayed or reordered. The
//! content is authenticated, not hidden: it holds no secrets that PostgreSQL's own replication
//! connection does not show. Without a password the same is done with an empty one.

use bytes::{Buf, BufMut, BytesMut};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The last byte is the version of the protocol.
const MAGIC: &[u8; 8] = b"HATHIRF\x02";
const TAG: usize = 16;
const SMALL: usize = 4 << 10;
/// Larger frames end the connection.
pub(crate) const LARGEST: usize = 16 << 20;
pub(crate) const GREETING: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{0}")]
    Io(String),
    #[error("it speaks another protocol than hathi's raft (another program, or pysyncobj?)")]
    Foreign,
    #[error("it speaks version {0} of hathi's raft protocol, this is version {mine}", mine = MAGIC[7])]
    Version(u8),
    #[error("the passwords differ")]
    Password,
    #[error("{0}")]
    Refused(String),
    #[error("a frame of {0} bytes")]
    TooLarge(usize),
    #[error("a frame that is not what it claims to be")]
    Forged,
    #[error("no answer in time")]
    Timeout,
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) cluster: String,
    pub(crate) from: String,
    pub(crate) to: String,
    nonce: [u8; 16],
}

#[derive(Serialize, Deserialize)]
enum Welcome {
    Nonce([u8; 16]),
    Refused(String),
    Password,
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

/// A number no other process has.
pub(crate) fn unique() -> io::Result<u64> {
    let bytes = random()?;
    let mut half = [0; 8];
    half.copy_from_slice(&bytes[..8]);
    Ok(u64::from_be_bytes(half))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// One side of a greeted connection.
pub(crate) struct Conn {
    stream: TcpStream,
    input: BytesMut,
    send_key: [u8; 32],
    send_count: u64,
    recv_key: [u8; 32],
    recv_count: u64,
}

async fn send_plain(stream: &mut TcpStream, magic: bool, value: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(value)?;
    let mut out = BytesMut::new();
    if magic {
        out.put_slice(MAGIC);
    }
    out.put_u32(json.len() as u32);
    out.put_slice(&json);
    stream.write_all(&out).await
}

async fn recv_plain<T: for<'a> Deserialize<'a>>(
    stream: &mut TcpStream,
    magic: bool,
) -> Result<T, WireError> {
    if magic {
        let mut found = [0; 8];
        stream.read_exact(&mut found).await?;
        if found[..7] != MAGIC[..7] {
            return Err(WireError::Foreign);
        }
        if found[7] != MAGIC[7] {
            return Err(WireError::Version(found[7]));
        }
    }
    let length = stream.read_u32().await? as usize;
    if length > SMALL {
        return Err(WireError::TooLarge(length));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await?;
    serde_json::from_slice(&json).map_err(|_| WireError::Forged)
}

struct Keys {
    password: Vec<u8>,
    transcript: Vec<u8>,
}

impl Keys {
    fn new(password: &str, hello: &Hello, nonce: &[u8; 16]) -> Result<Self, WireError> {
        let mut transcript = serde_json::to_vec(hello).map_err(|_| WireError::Forged)?;
        transcript.extend_from_slice(nonce);
        Ok(Self { password: password.as_bytes().to_vec(), transcript })
    }

    fn derive(&self, role: &str) -> [u8; 32] {
        hmac(&self.password, &[role.as_bytes(), b"\0", &self.transcript])
            .finalize()
            .into_bytes()
            .into()
    }

    fn proves(&self, role: &str, proof: &[u8]) -> bool {
        hmac(&self.password, &[role.as_bytes(), b"\0", &self.transcript])
            .verify_slice(proof)
            .is_ok()
    }
}

/// Greets as the one who connected. The caller bounds it with [`GREETING`].
pub(crate) async fn greet(
    mut stream: TcpStream,
    cluster: &str,
    from: &str,
    to: &str,
    password: &str,
) -> Result<Conn, WireError> {
    let hello = Hello {
        cluster: cluster.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        nonce: random()?,
    };
    send_plain(&mut stream, true, &hello).await?;
    let nonce = match recv_plain(&mut stream, true).await? {
        Welcome::Nonce(nonce) => nonce,
        Welcome::Refused(why) => return Err(WireError::Refused(why)),
        Welcome::Password => return Err(WireError::Password),
    };
    let keys = Keys::new(password, &hello, &nonce)?;
    stream.write_all(&keys.derive("client proof")).await?;
    match recv_plain(&mut stream, false).await? {
        Welcome::Nonce(_) => {}
        Welcome::Refused(why) => return Err(WireError::Refused(why)),
        Welcome::Password => return Err(WireError::Password),
    }
    let mut proof = [0; 32];
    stream.read_exact(&mut proof).await?;
    if !keys.proves("server proof", &proof) {
        return Err(WireError::Password);
    }
    Ok(Conn::new(stream, keys.derive("client frames"), keys.derive("server frames")))
}

/// Greets as the one who listened; `check` says why this hello is not welcome.
pub(crate) async fn welcome(
    mut stream: TcpStream,
    password: &str,
    check: impl FnOnce(&Hello) -> Result<(), String>,
) -> Result<(Hello, Conn), WireError> {
    let hello: Hello = recv_plain(&mut stream, true).await?;
    if let Err(why) = check(&hello) {
        send_plain(&mut stream, true, &Welcome::Refused(why.clone())).await?;
        return Err(WireError::Refused(why));
    }
    let nonce = random()?;
    send_plain(&mut stream, true, &Welcome::Nonce(nonce)).await?;
    let keys = Keys::new(password, &hello, &nonce)?;
    let mut proof = [0; 32];
    stream.read_exact(&mut proof).await?;
    if !keys.proves("client proof", &proof) {
        send_plain(&mut stream, false, &Welcome::Password).await?;
        return Err(WireError::Password);
    }
    send_plain(&mut stream, false, &Welcome::Nonce(nonce)).await?;
    stream.write_all(&keys.derive("server proof")).await?;
    let conn = Conn::new(stream, keys.derive("server frames"), keys.derive("client frames"));
    Ok((hello, conn))
}

impl Conn {
    fn new(stream: TcpStream, send_key: [u8; 32], recv_key: [u8; 32]) -> Self {
        let input = BytesMut::new();
        Self { stream, input, send_key, send_count: 0, recv_key, recv_count: 0 }
    }

    /// The next frame. Dropping the future loses nothing: call again.
    pub(crate) async fn recv<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, WireError> {
        loop {
            if self.input.len() >= 4 + TAG {
                let mut head = &self.input[..4];
                let length = head.get_u32() as usize;
                if length > LARGEST {
                    return Err(WireError::TooLarge(length));
                }
                if self.input.len() >= 4 + TAG + length {
                    self.input.advance(4);
                    let tag = self.input.split_to(TAG);
                    let body = self.input.split_to(length);
                    self.recv_count += 1;
                    hmac(&self.recv_key, &[&self.recv_count.to_be_bytes(), &body])
                        .verify_truncated_left(&tag)
                        .map_err(|_| WireError::Forged)?;
                    if self.input.is_empty() {
                        // Gives a large frame's memory back.
                        self.input = BytesMut::new();
                    }
                    return serde_json::from_slice(&body).map_err(|_| WireError::Forged);
                }
            }
            self.input.reserve(4 << 10);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(WireError::Io("the connection was closed".to_owned()));
            }
        }
    }

    /// Sends a whole frame. Dropping the future leaves the connection unusable: drop it, too.
    pub(crate) async fn send(&mut self, value: &impl Serialize) -> Result<(), WireError> {
        let body = serde_json::to_vec(value).map_err(|_| WireError::Forged)?;
        if body.len() > LARGEST {
            return Err(WireError::TooLarge(body.len()));
        }
        self.send_count += 1;
        let tag = hmac(&self.send_key, &[&self.send_count.to_be_bytes(), &body]);
        let tag = tag.finalize().into_bytes();
        let mut frame = Vec::with_capacity(4 + TAG + body.len());
        frame.put_u32(body.len() as u32);
        frame.put_slice(&tag[..TAG]);
        frame.put_slice(&body);
        Ok(self.stream.write_all(&frame).await?)
    }
}
