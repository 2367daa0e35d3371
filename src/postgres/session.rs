//! One connection to a PostgreSQL, every use of it under a deadline. (PG-311, PG-323)
//!
//! `tokio-postgres` bounds neither login nor query, and dropping a query does not end it: so each
//! wait has an outer limit, and a query out of time is cancelled and its connection dropped.

use crate::postgres::conninfo::Address;
use crate::postgres::settings::{Login, Settings};
use crate::postgres::tls::{Connector, Tls};
use hathi_dcs::Deadline;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// Why SQL did not answer; the variants are what callers tell apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// SQLSTATE 57P03: the server is there and does not accept connections (yet).
    #[error("{0}")]
    Rejecting(String),
    /// Nobody listens.
    #[error("{0}")]
    NoResponse(String),
    #[error("no answer within {waited_ms} ms")]
    TimedOut { waited_ms: u64 },
    /// The server answered with an error.
    #[error("{message} ({code})")]
    Server { code: String, message: String },
    #[error("{0}")]
    Other(String),
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let message = db.message().to_owned();
            if *db.code() == SqlState::CANNOT_CONNECT_NOW {
                return Self::Rejecting(message);
            }
            return Self::Server { code: db.code().code().to_owned(), message };
        }
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        let mut refused = false;
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            refused |= cause.downcast_ref::<std::io::Error>().is_some_and(|io| {
                use std::io::ErrorKind::{ConnectionRefused, NotFound};
                matches!(io.kind(), ConnectionRefused | NotFound)
            });
            source = cause.source();
        }
        if refused { Self::NoResponse(text) } else { Self::Other(text) }
    }
}

impl SqlError {
    /// The server's error code, if it sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            Self::Rejecting(_) | Self::NoResponse(_) | Self::TimedOut { .. } | Self::Other(_) => {
                None
            }
        }
    }
}

/// A connection and the task that drives it; both end when it is dropped.
pub struct Session {
    client: Client,
    /// For the cancel request, which logs in anew.
    tls: Connector,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What a connection is made with.
#[derive(Clone, Debug)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub dbname: String,
    pub login: Login,
    /// `-c name=value …`
    pub options: String,
}

/// The options of every connection of ours but for `statement_timeout`. (PG-323)
const OPTIONS: &str = "-c search_path=pg_catalog -c synchronous_commit=local";

impl Target {
    /// The local server as superuser. `statement_timeout_ms` 0: none.
    pub fn local(settings: &Settings, statement_timeout_ms: u64) -> Self {
        Self {
            host: settings.local_host(settings.use_unix_socket),
            port: settings.port,
            dbname: settings.database.clone(),
            login: settings.superuser.clone(),
            options: format!("-c statement_timeout={statement_timeout_ms} {OPTIONS}"),
        }
    }

    /// The local server for the monitoring query: it writes nothing, and sees `synchronous_commit` as
    /// clients have it.
    pub fn watching(settings: &Settings) -> Self {
        let options = "-c statement_timeout=2000 -c search_path=pg_catalog".to_owned();
        Self { options, ..Self::local(settings, 0) }
    }

    /// The local server for replication commands. (PG-320, PG-321)
    pub fn local_replication(settings: &Settings) -> Self {
        Self {
            host: settings.local_host(settings.use_unix_socket_repl),
            login: settings.replication.clone(),
            ..Self::local(settings, 0)
        }
    }

    /// The hosts of another server.
    pub fn remote(address: &Address, login: &Login, statement_timeout_ms: u64) -> Vec<Self> {
        let mut ports = address.port.split(',').cycle();
        let hosts = address.host.split(',').map(|host| Self {
            host: host.to_owned(),
            port: ports.next().and_then(|port| port.parse().ok()).unwrap_or(5432),
            dbname: address.dbname.clone(),
            login: login.clone(),
            options: format!("-c statement_timeout={statement_timeout_ms} {OPTIONS}"),
        });
        hosts.collect()
    }
}

impl Session {
    pub async fn open(target: &Target, by: Deadline) -> Result<Self, SqlError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&target.host)
            .port(target.port)
            .dbname(&target.dbname)
            .application_name("hathi")
            .connect_timeout(Duration::from_secs(3))
            .options(&target.options);
        match &target.login.username {
            Some(user) => config.user(user),
            None => config.user(operating_system_user()),
        };
        if let Some(password) = &target.login.password {
            config.password(password);
        }
        let tls = Tls::new(&target.host, &target.login).map_err(SqlError::Other)?;
        config.ssl_mode(tls.mode);
        let waited = by.left();
        let connect = config.connect(tls.connector.clone());
        let limited = tokio::time::timeout(waited, connect).await;
        let (client, connection) = limited.map_err(|_| timed_out(waited))??;
        let driver = tokio::spawn(async move {
            // Its error shows up in the next query.
            let _ = connection.await;
        });
        Ok(Self { client, tls: tls.connector, driver })
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements and gives the rows of all of them. After an error other than the server's
    /// own the session must be dropped.
    pub async fn rows(&self, sql: &str, by: Deadline) -> Result<Vec<SimpleQueryRow>, SqlError> {
        let waited = by.left();
        let cancel = self.client.cancel_token();
        let tls = self.tls.clone();
        match tokio::time::timeout(waited, self.client.simple_query(sql)).await {
            Ok(messages) => Ok(messages?
                .into_iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                })
                .collect()),
            Err(_) => {
                tokio::spawn(async move {
                    // A frozen server does not take the cancel either; it gets a second.
                    let limit = Duration::from_secs(1);
                    let _ = tokio::time::timeout(limit, cancel.cancel_query(tls)).await;
                });
                Err(timed_out(waited))
            }
        }
    }

    /// The first row's columns.
    pub async fn row(&self, sql: &str, by: Deadline) -> Result<SimpleQueryRow, SqlError> {
        let rows = self.rows(sql, by).await?;
        rows.into_iter().next().ok_or_else(|| SqlError::Other("the query gave no row".into()))
    }

    pub async fn run(&self, sql: &str, by: Deadline) -> Result<(), SqlError> {
        self.rows(sql, by).await.map(|_| ())
    }
}

fn timed_out(waited: Duration) -> SqlError {
    SqlError::TimedOut { waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX) }
}

/// Whom libpq would log in as. (PG-324)
fn operating_system_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    own.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "postgres".into())
}

/// Text as an SQL literal, whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// Text as an SQL name.
pub fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_for_sql() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }

    #[tokio::test]
    async fn nobody_listening_is_told_from_not_answering() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = Settings::new("a", "s", "/d", port);
        // Accepts in the backlog and never answers: like a frozen postmaster.
        let silent = Session::open(&Target::local(&settings, 0), Deadline::in_ms(50)).await;
        assert!(matches!(silent.err(), Some(SqlError::TimedOut { .. })));
        drop(listener);
        let refused = Session::open(&Target::local(&settings, 0), Deadline::in_ms(2000)).await;
        assert!(matches!(refused.err(), Some(SqlError::NoResponse(_))));
    }
}
