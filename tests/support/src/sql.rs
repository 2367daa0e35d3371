//! SQL against one node, each statement under a deadline.

use crate::ports::Place;
use std::time::Duration;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The superuser the harness's YAML creates.
pub const SUPERUSER: &str = "postgres";
pub const SUPERUSER_PASSWORD: &str = "dummy-super";

/// A connection together with the task that drives it; dropped, it is cut at once, which is what
/// a client that lost patience does.
pub struct Session {
    pub client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to the PostgreSQL at `place`.
///
/// # Errors
/// Refused, or no session within `within`.
pub async fn connect(place: impl Place, within: Duration) -> Result<Session, String> {
    connect_with(place, SUPERUSER_PASSWORD, within).await
}

/// Connects as the superuser of a cluster that has another password.
///
/// # Errors
/// As [`connect`].
pub async fn connect_with(
    place: impl Place,
    password: &str,
    within: Duration,
) -> Result<Session, String> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(place.at().ip().to_string())
        .port(place.at().port())
        .user(SUPERUSER)
        .password(password)
        .dbname("postgres")
        .application_name("hathi-test")
        .connect_timeout(within);
    let (client, connection) = tokio::time::timeout(within, config.connect(NoTls))
        .await
        .map_err(|_| format!("no session in {within:?}"))?
        .map_err(|e| explain(&e))?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Session { client, driver })
}

/// What the server said, not just "db error".
pub fn explain(e: &tokio_postgres::Error) -> String {
    e.as_db_error()
        .map_or_else(|| e.to_string(), |d| format!("{} {}", d.code().code(), d.message()))
}

impl Session {
    /// Runs statements and returns the rows of all of them as text.
    ///
    /// # Errors
    /// The server's refusal, or no answer within `within`; then the outcome is unknown.
    pub async fn rows(
        &self,
        sql: &str,
        within: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, String> {
        let answer = tokio::time::timeout(within, self.client.simple_query(sql)).await;
        let messages =
            answer.map_err(|_| format!("no answer in {within:?}"))?.map_err(|e| explain(&e))?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect());
            }
        }
        Ok(rows)
    }
}

/// One statement on a fresh session; the rows as text.
///
/// # Errors
/// As [`connect`] and [`Session::rows`].
pub async fn query(place: impl Place, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
    let within = Duration::from_secs(10);
    connect(place, Duration::from_secs(3)).await?.rows(sql, within).await
}

/// One value on a fresh session.
///
/// # Errors
/// As [`query`], or no row.
pub async fn value(place: impl Place, sql: &str) -> Result<String, String> {
    let rows = query(place, sql).await?;
    rows.into_iter().flatten().flatten().next().ok_or_else(|| format!("no value: {sql}"))
}
