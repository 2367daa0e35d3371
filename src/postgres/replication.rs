//! The two questions only the replication protocol answers exactly: IDENTIFY_SYSTEM and
//! TIMELINE_HISTORY. (PG-144, PG-145)
//!
//! A client of its own, because `tokio-postgres` cannot open replication connections: it logs in,
//! sends one command, reads text rows, and is gone.

use crate::postgres::session::{SqlError, Target};
use crate::postgres::tls::Tls;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use hathi_dcs::{Deadline, Lsn, Timeline};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_postgres::config::SslMode;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// More than any answer here can be; a stranger on the port must not fill the memory.
const ANSWER_LIMIT: usize = 1 << 20;

/// Where the server is now. On a standby: what it has replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub timeline: Timeline,
    pub position: Lsn,
}

pub struct Replication {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
}

type Row = Vec<Option<String>>;

impl Replication {
    pub async fn open(target: &Target, by: Deadline) -> Result<Self, SqlError> {
        within(by, Self::connect(target)).await
    }

    pub async fn identify(&mut self, by: Deadline) -> Result<Identity, SqlError> {
        let rows = within(by, self.query("IDENTIFY_SYSTEM")).await?;
        let column = |at: usize| rows.first().and_then(|row| row.get(at)?.clone());
        let timeline = column(1).and_then(|text| text.parse().ok()).map(Timeline);
        let position = column(2).and_then(|text| Lsn::parse(&text));
        match (timeline, position) {
            (Some(timeline), Some(position)) => Ok(Identity { timeline, position }),
            _ => Err(SqlError::Other("IDENTIFY_SYSTEM was not understood".into())),
        }
    }

    /// The text of the history file of this timeline.
    pub async fn history(&mut self, timeline: Timeline, by: Deadline) -> Result<String, SqlError> {
        let rows = within(by, self.query(&format!("TIMELINE_HISTORY {timeline}"))).await?;
        let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)?);
        content.ok_or_else(|| SqlError::Other("TIMELINE_HISTORY was not understood".into()))
    }

    async fn connect(target: &Target) -> Result<Self, SqlError> {
        let mut stream: Box<dyn Stream> = if target.host.starts_with('/') {
            let path = format!("{}/.s.PGSQL.{}", target.host, target.port);
            Box::new(tokio::net::UnixStream::connect(path).await.map_err(no_response)?)
        } else {
            let address = (target.host.as_str(), target.port);
            Box::new(tokio::net::TcpStream::connect(address).await.map_err(no_response)?)
        };
        let tls = Tls::new(&target.host, &target.login).map_err(SqlError::Other)?;
        if tls.mode != SslMode::Disable {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            stream.write_all(&request).await.map_err(broken)?;
            match stream.read_u8().await.map_err(broken)? {
                b'S' => {
                    stream = Box::new(tls.connector.handshake(stream).await.map_err(broken)?);
                }
                _ if tls.mode == SslMode::Require => {
                    return Err(SqlError::Other("the server does not speak TLS".into()));
                }
                _ => {}
            }
        }
        let mut made = Self { stream, buffer: BytesMut::new() };
        made.log_in(target).await?;
        Ok(made)
    }

    async fn log_in(&mut self, target: &Target) -> Result<(), SqlError> {
        let user = target.login.username.clone().unwrap_or_default();
        let password = target.login.password.clone().unwrap_or_default();
        let parameters = [
            ("user", user.as_str()),
            ("replication", "true"),
            ("application_name", "hathi"),
            ("client_encoding", "UTF8"),
        ];
        self.send(|out| frontend::startup_message(parameters, out)).await?;
        let mut scram: Option<ScramSha256> = None;
        loop {
            match self.next().await? {
                Message::AuthenticationOk => {}
                Message::AuthenticationCleartextPassword => {
                    self.send(|out| frontend::password_message(password.as_bytes(), out)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password.as_bytes(), body.salt());
                    self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    let known = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256));
                    if !known.map_err(broken)? {
                        return Err(SqlError::Other("no common way to log in".into()));
                    }
                    let binding = ChannelBinding::unsupported();
                    let started = ScramSha256::new(password.as_bytes(), binding);
                    let first = started.message().to_vec();
                    scram = Some(started);
                    let step = |out: &mut BytesMut| {
                        frontend::sasl_initial_response(SCRAM_SHA_256, &first, out)
                    };
                    self.send(step).await?;
                }
                Message::AuthenticationSaslContinue(body) => {
                    let started = scram.as_mut().ok_or_else(unexpected)?;
                    started.update(body.data()).map_err(broken)?;
                    let answer = started.message().to_vec();
                    self.send(|out| frontend::sasl_response(&answer, out)).await?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let started = scram.as_mut().ok_or_else(unexpected)?;
                    started.finish(body.data()).map_err(broken)?;
                }
                Message::ErrorResponse(body) => return Err(refused(&body)),
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                _ => return Err(unexpected()),
            }
        }
    }

    async fn query(&mut self, command: &str) -> Result<Vec<Row>, SqlError> {
        self.send(|out| frontend::query(command, out)).await?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            match self.next().await? {
                Message::DataRow(body) => {
                    let bytes = body.buffer();
                    let cell = |range: Option<std::ops::Range<usize>>| {
                        let cell = range.and_then(|range| bytes.get(range));
                        Ok(cell.map(|cell| String::from_utf8_lossy(cell).into_owned()))
                    };
                    rows.push(body.ranges().map(cell).collect().map_err(broken)?);
                }
                Message::ErrorResponse(body) => error = Some(refused(&body)),
                Message::ReadyForQuery(_) => return error.map_or(Ok(rows), Err),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_) => {}
                _ => return Err(unexpected()),
            }
        }
    }

    async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), SqlError> {
        let mut out = BytesMut::new();
        write(&mut out).map_err(broken)?;
        self.stream.write_all(&out).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)
    }

    async fn next(&mut self) -> Result<Message, SqlError> {
        loop {
            if let Some(message) = Message::parse(&mut self.buffer).map_err(broken)? {
                return Ok(message);
            }
            let read = self.stream.read_buf(&mut self.buffer).await.map_err(broken)?;
            if read == 0 {
                return Err(SqlError::Other("the server closed the connection".into()));
            }
            if self.buffer.len() > ANSWER_LIMIT {
                return Err(SqlError::Other("the answer is too long".into()));
            }
        }
    }
}

async fn within<T>(
    by: Deadline,
    work: impl Future<Output = Result<T, SqlError>>,
) -> Result<T, SqlError> {
    let left = by.left();
    let waited_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    tokio::time::timeout(left, work).await.unwrap_or(Err(SqlError::TimedOut { waited_ms }))
}

fn broken(why: std::io::Error) -> SqlError {
    SqlError::Other(why.to_string())
}

fn no_response(why: std::io::Error) -> SqlError {
    SqlError::NoResponse(why.to_string())
}

fn unexpected() -> SqlError {
    SqlError::Other("the server sent something unexpected".into())
}

fn refused(body: &ErrorResponseBody) -> SqlError {
    let mut code = String::new();
    let mut message = String::new();
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        match field.type_() {
            b'C' => code = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            b'M' => message = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            _ => {}
        }
    }
    if code == "57P03" { SqlError::Rejecting(message) } else { SqlError::Server { code, message } }
}
