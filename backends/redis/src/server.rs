//! The connection to the writable server, and one call under one deadline. (DCS-070, DCS-204,
//! DCS-207, DCS-301)

use crate::RedisConfig;
use crate::sentinel::{self, NoName};
use crate::trust::{Server, Trust};
use hathi_dcs::flat::Pauses;
use hathi_dcs::{DcsError, Deadline, boottime};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, Script, Value};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex as Shelf, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

const SCRIPT: &str = include_str!("store.lua");
/// How long one attempt may take while there is time for another one.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// How long the replicas may take before the write is tried again.
const REPLICAS: Duration = Duration::from_millis(1_000);

/// What the script answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// With the revision.
    Done(i64),
    /// Not as expected: what stands there, and its revision.
    Found(String, i64),
    Nothing,
    /// The answer of a reading.
    All(Vec<Value>),
}

/// A reply, and whether an earlier sending of the same call may have been carried out.
pub(crate) struct Answer {
    pub reply: Reply,
    pub repeated: bool,
}

/// Why an attempt is no answer.
enum Trouble {
    /// It may have been carried out, or not.
    Unknown(String),
    /// It was not; another server or another moment may do.
    NotNow(String),
    Final(DcsError),
}

pub(crate) struct Servers {
    config: RedisConfig,
    prefix: String,
    script: Script,
    pub trust: Trust,
    current: AtomicUsize,
    /// Whom Sentinel named last.
    named: Shelf<Option<(String, u16)>>,
    /// How many replicas must have a write.
    replicas: AtomicU32,
    connection: Mutex<Option<Connection>>,
}

/// To a server that was the writable one when the connection began.
#[derive(Clone)]
pub(crate) struct Connection {
    redis: MultiplexedConnection,
    identity: String,
}

pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

pub(crate) fn number(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => text(other).parse().unwrap_or(0),
    }
}

fn read(value: Value, load: bool) -> Option<Reply> {
    let Value::Array(parts) = value else { return None };
    if load {
        return Some(Reply::All(parts));
    }
    match (parts.first().map(number)?, parts.get(1), parts.get(2)) {
        (1, Some(revision), _) => Some(Reply::Done(number(revision))),
        (0, Some(value), Some(revision)) => Some(Reply::Found(text(value), number(revision))),
        (2, ..) => Some(Reply::Nothing),
        _ => None,
    }
}

impl Servers {
    /// `prefix`: what all keys of the cluster begin with, in braces, so that they lie together.
    pub fn new(config: RedisConfig, prefix: String) -> Self {
        Self {
            replicas: AtomicU32::new(config.replicas),
            config,
            prefix,
            script: Script::new(SCRIPT),
            trust: Trust::default(),
            current: AtomicUsize::new(0),
            named: Shelf::new(None),
            connection: Mutex::new(None),
        }
    }

    pub fn channel(&self) -> String {
        format!("{}:changed", self.prefix)
    }

    fn asks_sentinel(&self) -> bool {
        !self.config.sentinels.hosts.is_empty()
    }

    fn host(&self) -> (String, u16) {
        let which = self.current.load(Ordering::Relaxed);
        let hosts = match self.asks_sentinel() {
            true => &self.config.sentinels.hosts,
            false => &self.config.hosts,
        };
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(named) = named {
            return named;
        }
        let host = hosts.get(which % hosts.len().max(1)).cloned();
        host.unwrap_or_else(|| ("127.0.0.1".to_owned(), 6379))
    }

    pub fn store(&self) -> String {
        let (host, port) = self.host();
        format!("redis {host}:{port}")
    }

    pub fn unreachable(&self, tried_ms: u64, why: impl ToString) -> DcsError {
        DcsError::unreachable(self.store(), tried_ms, why)
    }

    pub fn client(&self) -> Result<redis::Client, DcsError> {
        let (host, port) = self.host();
        let made = self.config.client(&host, port);
        made.map_err(|why| DcsError::NotRetriable { store: self.store(), why })
    }

    /// Lets Sentinel name the writable server.
    async fn ask_sentinel(&self) -> Result<(), Trouble> {
        let which = self.current.load(Ordering::Relaxed);
        let named = match sentinel::ask(&self.config, which, ATTEMPT).await {
            Ok(named) => named,
            Err(NoName::NotNow(why)) => return Err(Trouble::NotNow(why)),
            Err(NoName::Failed(error)) => return Err(self.judge(&error, false)),
            Err(NoName::Broken(why)) => {
                return Err(Trouble::Final(DcsError::NotRetriable { store: self.store(), why }));
            }
        };
        // It may know fewer servers than there are, never more: the number does not fall.
        self.replicas.fetch_max(named.least, Ordering::Relaxed);
        *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Some(named.server);
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Trouble> {
        if self.asks_sentinel() {
            self.ask_sentinel().await?;
        }
        let client = self.client().map_err(Trouble::Final)?;
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ATTEMPT))
            .set_response_timeout(None);
        let made = client.get_multiplexed_async_connection_with_config(&options).await;
        let mut connection = made.map_err(|error| self.judge(&error, false))?;
        let info = redis::cmd("INFO").query_async::<String>(&mut connection).await;
        let server = Server::parse(&info.map_err(|error| self.judge(&error, false))?);
        if !server.writable {
            return Err(Trouble::NotNow("it is a replica, or still loading".to_owned()));
        }
        if let Some(rule) = &server.evicts {
            let why = format!(
                "maxmemory-policy is {rule}: the lock could be thrown away when memory is full; \
                 set it to noeviction"
            );
            return Err(Trouble::Final(DcsError::NotRetriable { store: self.store(), why }));
        }
        self.trust.met(&server);
        let mut connection = Connection { redis: connection, identity: server.identity };
        if !self.trust.began(&connection.identity) {
            self.probe(&mut connection).await?;
        }
        Ok(connection)
    }

    fn judge(&self, error: &RedisError, sent: bool) -> Trouble {
        let why = error.to_string();
        let refused = matches!(error.kind(), ErrorKind::AuthenticationFailed)
            || error.code().is_some_and(|code| ["NOAUTH", "WRONGPASS", "NOPERM"].contains(&code));
        if refused {
            return Trouble::Final(DcsError::Refused { store: self.store(), why });
        }
        match error.code() {
            Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS" | "OOM")
            | Some("BUSY" | "TRYAGAIN" | "MISCONF" | "UNKILLABLE") => Trouble::NotNow(why),
            Some(_) if !error.is_io_error() => {
                Trouble::Final(DcsError::NotRetriable { store: self.store(), why })
            }
            _ if sent => Trouble::Unknown(why),
            _ => Trouble::NotNow(why),
        }
    }

    /// Enough replicas have what this connection wrote before.
    async fn replicated(&self, connection: &mut Connection) -> Result<(), Trouble> {
        let wanted = i64::from(self.replicas.load(Ordering::Relaxed));
        if wanted > 0 {
            let wait = redis::cmd("WAIT").arg(wanted).arg(REPLICAS.as_millis() as u64).to_owned();
            let have: i64 = wait
                .query_async(&mut connection.redis)
                .await
                .map_err(|error| self.judge(&error, true))?;
            if have < wanted {
                return Err(Trouble::Unknown(format!("{have} of {wanted} replicas have it")));
            }
        }
        self.trust.acknowledged(&connection.identity);
        Ok(())
    }

    /// A write that changes nothing, and that enough replicas have.
    async fn probe(&self, connection: &mut Connection) -> Result<(), Trouble> {
        let key = format!("{}:probe", self.prefix);
        let set = redis::cmd("SET").arg(key).arg("").to_owned();
        let done = set.query_async::<()>(&mut connection.redis).await;
        done.map_err(|error| self.judge(&error, true))?;
        self.replicated(connection).await
    }

    async fn attempt(&self, mut connection: Connection, args: &[String]) -> Result<Reply, Trouble> {
        let load = args.first().is_some_and(|op| op == "load");
        if load && self.replicas.load(Ordering::Relaxed) > 0 {
            // A reading proves nothing: this server may have been replaced.
            self.probe(&mut connection).await?;
        }
        let mut call = self.script.key(&self.prefix);
        for arg in args {
            call.arg(arg.as_str());
        }
        let said = call.invoke_async::<Value>(&mut connection.redis).await;
        let said = said.map_err(|error| self.judge(&error, true))?;
        let shown = format!("{said:?}");
        let reply = read(said, load);
        let reply = reply.ok_or_else(|| Trouble::Unknown(format!("no answer of ours: {shown}")))?;
        if !load {
            self.replicated(&mut connection).await?;
        }
        Ok(reply)
    }

    /// Runs the script on the writable server until it answers or `by` is there.
    pub async fn call(&self, by: Deadline, args: &[&str]) -> Result<Answer, DcsError> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.call_on(by, |_| Ok(args.clone())).await
    }

    /// The same with words that depend on the server of each attempt: they are given a function from
    /// the ttl to how long that server still has to be waited for, both in milliseconds.
    pub async fn call_on(
        &self,
        by: Deadline,
        words: impl Fn(&dyn Fn(u64) -> u64) -> Result<Vec<String>, DcsError> + Send + std::marker::Sync,
    ) -> Result<Answer, DcsError> {
        let began = boottime();
        let mut pauses = Pauses::default();
        let (mut first, mut last) = (String::new(), "no time to ask".to_owned());
        let mut repeated = false;
        loop {
            let left = by.left();
            if left.is_zero() {
                break;
            }
            let limit = left.min((left / 2).max(ATTEMPT));
            let attempt = async {
                let mut held = self.connection.lock().await;
                let connection = match &*held {
                    Some(connection) => connection.clone(),
                    None => held.insert(self.connect().await?).clone(),
                };
                drop(held);
                let missing = |ttl_ms| self.trust.missing_ms(&connection.identity, ttl_ms);
                let args = words(&missing).map_err(Trouble::Final)?;
                self.attempt(connection, &args).await
            };
            let trouble = match timeout(limit, attempt).await {
                Ok(Ok(reply)) => return Ok(Answer { reply, repeated }),
                Ok(Err(trouble)) => trouble,
                Err(_elapsed) => {
                    Trouble::Unknown(format!("no answer within {} ms", limit.as_millis()))
                }
            };
            let why = match trouble {
                Trouble::Final(error) => return Err(error),
                Trouble::NotNow(why) => why,
                Trouble::Unknown(why) => {
                    repeated = true;
                    // What may have been done matters more than who was asked afterwards.
                    if first.is_empty() {
                        first.clone_from(&why);
                    }
                    why
                }
            };
            last = why;
            self.leave(by).await;
            let Some(wait) = pauses.next(by, None) else { break };
            tokio::time::sleep(wait).await;
        }
        let why = if first.is_empty() { last } else { format!("{first}; then {last}") };
        Err(self.unreachable(boottime().since(began), why))
    }

    /// The next call looks for the writable server again, beginning with the next one.
    async fn leave(&self, by: Deadline) {
        if let Ok(mut held) = timeout(by.left(), self.connection.lock()).await {
            *held = None;
            *self.named.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.current.fetch_add(1, Ordering::Relaxed);
        }
    }
}
