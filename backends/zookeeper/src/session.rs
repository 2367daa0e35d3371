//! The one session of this process: it carries the leader key and my member key.
//!
//! A client keeps its session alive as long as it runs, so by itself the lock of an agent whose
//! loop hangs would stand for ever. Here a session that carries keys is closed a ttl after it was
//! last prolonged by a call; its keys go at once then. A process that is frozen or cut off does not
//! send signs of life, and the servers end its session. (DCS-130, DCS-131, DCS-133)
//!
//! How long the servers wait is counted from the last sign of life that their leader knows of, and
//! that may be older than the renewal that was just confirmed: signs of life reach the leader by way
//! of another server, up to half a tick late, and the client sends one only after half a connection
//! timeout of silence. [`MARGIN_MS`] is asked for on top of the ttl for both, so that the agent's
//! idea of its lease always ends first.

use crate::ZooKeeperConfig;
use hathi_dcs::{DcsError, Deadline, Millis, Timing, boottime};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use zookeeper_client::{Client, Error, SessionState};

/// Half of the longest connection timeout, and half of the usual tick of two seconds.
const MARGIN_MS: u64 = 2_000;

pub(crate) struct Session {
    pub client: Client,
    pub id: i64,
    /// Why it must not carry the lock: it may end before the agent's lease does.
    pub too_short: Option<String>,
    /// Set once: its client is not run any more.
    cut: watch::Sender<bool>,
}

impl Session {
    fn ended(&self) -> bool {
        *self.cut.borrow() || self.client.state().is_terminated()
    }

    /// Waits until it is cut.
    pub async fn cut(&self) {
        // It cannot fail: the sender is here.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }

    pub fn cuts(&self) -> watch::Receiver<bool> {
        self.cut.subscribe()
    }

    /// Waits until it is connected or has ended. A request made in between would be sent as soon as
    /// the connection is back, whoever still waits for it or not. (DCS-139)
    async fn settled(&self) {
        let mut states = self.client.state_watcher();
        let mut state = self.client.state();
        while state != SessionState::SyncConnected && !self.ended() {
            tokio::select! {
                () = self.cut() => return,
                changed = states.changed() => state = changed,
            }
        }
    }
}

/// Drives a client, which would otherwise run until it has closed its session, on a leash.
struct Leash(watch::Sender<bool>);

/// Watchers of a client that vanished would panic; whoever has one lets go of it when it is cut, which
/// takes no time. It may then be dropped.
const UNTIL_ALL_LET_GO: Duration = Duration::from_secs(60);

impl spawns_core::Spawn for Leash {
    fn spawn(&self, task: spawns_core::Task) {
        let mut cut = self.0.subscribe();
        let mut client = Box::into_pin(task.future);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                Ok(_) = cut.wait_for(|cut| *cut) => {}
                () = client.as_mut() => return,
            }
            tokio::time::sleep(UNTIL_ALL_LET_GO).await;
        });
    }
}

/// A request whose answer somebody waits for.
pub(crate) struct Waiting<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    pub answered: bool,
}

impl Drop for Waiting<'_> {
    /// Given up while there was no connection, it may lie in the client's queue, to be sent whenever
    /// a connection is back. A write must not be carried out long after its caller was told that
    /// nobody answers; so this client never gets another connection.
    fn drop(&mut self) {
        if !self.answered && self.session.client.state() != SessionState::SyncConnected {
            self.sessions.cut(&self.session);
        }
    }
}

struct State {
    timing: Timing,
    current: Option<Arc<Session>>,
    /// Sessions of another ttl, which may still carry my keys, and when they are closed.
    former: Vec<(Arc<Session>, Millis)>,
    /// The session carries keys of mine, and when it was last prolonged.
    kept: Option<Millis>,
}

impl State {
    /// Closes what nobody prolonged; says when to look again, in milliseconds.
    fn reap(&mut self, now: Millis) -> Option<u64> {
        let ttl = self.timing.ttl_ms();
        let mut next = None;
        if let Some(kept) = self.kept {
            if now.since(kept) >= ttl {
                tracing::info!("the session on ZooKeeper was not prolonged for {ttl} ms: closed");
                self.current = None;
                self.former.clear();
                self.kept = None;
            } else {
                next = Some(kept.plus(ttl));
            }
        }
        self.former.retain(|(_, until)| *until > now);
        let untils = self.former.iter().map(|(_, until)| *until);
        untils.chain(next).min().map(|at| at.since(now))
    }
}

pub(crate) struct Sessions {
    config: ZooKeeperConfig,
    state: Arc<Mutex<State>>,
    /// The reaper has something new to wait for.
    stirred: Arc<Notify>,
    reaper: Mutex<Option<tokio::task::AbortHandle>>,
    opening: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Sessions {
    fn drop(&mut self) {
        if let Some(reaper) = lock(&self.reaper).take() {
            reaper.abort();
        }
    }
}

impl Sessions {
    pub fn new(config: ZooKeeperConfig, timing: Timing) -> Self {
        let state = State { timing, current: None, former: Vec::new(), kept: None };
        Self {
            config,
            state: Arc::new(Mutex::new(state)),
            stirred: Arc::default(),
            reaper: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    pub fn store(&self) -> String {
        format!("zookeeper {}", self.config.hosts.join(","))
    }

    /// Another ttl needs another session. The old one stays for as long as its lock was promised, so
    /// that the keys are never without one. (DCS-019, DCS-140)
    pub fn set_timing(&self, timing: Timing) {
        let mut state = lock(&self.state);
        if state.timing.ttl != timing.ttl
            && let Some(old) = state.current.take()
            && let Some(kept) = state.kept
        {
            let until = kept.plus(state.timing.ttl_ms());
            state.former.push((old, until));
        }
        state.timing = timing;
        drop(state);
        self.stirred.notify_one();
    }

    /// A call that wrote or confirmed a key of mine has its answer.
    pub fn prolonged(&self, session: &Session) {
        let mut state = lock(&self.state);
        if state.current.as_ref().is_some_and(|current| current.id == session.id) {
            state.kept = Some(boottime());
        }
        drop(state);
        self.stirred.notify_one();
    }

    pub fn waiting(&self, session: Arc<Session>) -> Waiting<'_> {
        Waiting { sessions: self, session, answered: false }
    }

    /// Its servers end it a session timeout later; a new one takes its keys over before that.
    fn cut(&self, session: &Session) {
        session.cut.send_replace(true);
        let mut state = lock(&self.state);
        if state.current.as_ref().is_some_and(|current| current.id == session.id) {
            state.current = None;
        }
    }

    fn current(&self) -> Option<Arc<Session>> {
        lock(&self.state).current.clone().filter(|session| !session.ended())
    }

    /// The session, connected; a new one if there is none.
    ///
    /// # Errors
    /// Nobody answers, or our credentials are refused.
    pub async fn get(&self, by: Deadline) -> Result<Arc<Session>, DcsError> {
        loop {
            let session = match self.current() {
                Some(session) => session,
                None => self.open(by).await?,
            };
            if timeout(by.left(), session.settled()).await.is_err() {
                return Err(DcsError::unreachable(self.store(), 0, "the connection is lost"));
            }
            if !session.ended() {
                return Ok(session);
            }
            if session.client.state() == SessionState::AuthFailed {
                lock(&self.state).current = None;
                return Err(self.refused());
            }
        }
    }

    /// The servers do not say what they miss. (DCS-142)
    fn refused(&self) -> DcsError {
        let why = match self.config.auth.is_empty() {
            true => {
                "it wants its clients to log in, and there is no auth_data; a digest is understood, \
                 and certificates (use_ssl), SASL is not spoken"
            }
            false => "the credentials of auth_data are not accepted (SASL is not spoken)",
        };
        DcsError::Refused { store: self.store(), why: why.to_owned() }
    }

    async fn open(&self, by: Deadline) -> Result<Arc<Session>, DcsError> {
        let waited = |what: &str| DcsError::unreachable(self.store(), 0, what);
        let turn = timeout(by.left(), self.opening.lock()).await;
        let _opening = turn.map_err(|_| waited("waited for another call's session"))?;
        loop {
            if let Some(session) = self.current() {
                return Ok(session);
            }
            let timing = lock(&self.state).timing;
            let asked_ms = timing.ttl_ms() + MARGIN_MS;
            let leash = Leash(watch::Sender::new(false));
            let connecting = self.connect(timing, asked_ms, &leash);
            let client = match timeout(by.left(), connecting).await {
                Err(_elapsed) => return Err(waited("no server answers")),
                Ok(Ok(client)) => client,
                Ok(Err(Dead::Error(Error::AuthFailed))) => return Err(self.refused()),
                Ok(Err(Dead::Error(Error::Timeout | Error::ConnectionLoss | Error::NoHosts))) => {
                    continue;
                }
                Ok(Err(Dead::Error(error))) => return Err(waited(&error.to_string())),
                Ok(Err(Dead::Config(why))) => {
                    return Err(DcsError::NotRetriable { store: self.store(), why });
                }
            };
            let granted = u64::try_from(client.session_timeout().as_millis()).unwrap_or(u64::MAX);
            let id = client.session_id().0;
            let session = Arc::new(Session {
                client,
                id,
                too_short: too_short(asked_ms, granted),
                cut: leash.0,
            });
            if granted > asked_ms + MARGIN_MS {
                tracing::warn!(
                    "ZooKeeper ends sessions after {granted} ms at the earliest \
                     (minSessionTimeout): a dead leader's lock is free after that, not after ttl"
                );
            }
            let mut state = lock(&self.state);
            // The ttl may have changed meanwhile; then this session is closed again.
            if state.timing.ttl == timing.ttl {
                state.current = Some(session.clone());
                drop(state);
                self.watch_over();
                return Ok(session);
            }
        }
    }

    async fn connect(&self, timing: Timing, asked_ms: u64, leash: &Leash) -> Result<Client, Dead> {
        // A server that says nothing for so long is left for another one. (DCS-140)
        let silence = Duration::from_millis((timing.ttl_ms() / 10).clamp(1_000, 2_000));
        let connector = Client::connector()
            .with_session_timeout(Duration::from_millis(asked_ms))
            .with_connection_timeout(silence);
        let connector = self.config.dress(connector).map_err(Dead::Config)?;
        let servers = self.config.servers();
        let secure = self.config.tls.is_some();
        let mut connecting = Box::pin(async move {
            match secure {
                true => connector.secure_connect(&servers).await,
                false => connector.connect(&servers).await,
            }
        });
        let connected = std::future::poll_fn(|context| {
            let _scope = spawns_core::enter(leash);
            connecting.as_mut().poll(context)
        });
        connected.await.map_err(Dead::Error)
    }

    fn watch_over(&self) {
        let mut reaper = lock(&self.reaper);
        if reaper.is_none() {
            let (state, stirred) = (self.state.clone(), self.stirred.clone());
            *reaper = Some(tokio::spawn(reap(state, stirred)).abort_handle());
        }
    }
}

enum Dead {
    Config(String),
    Error(Error),
}

async fn reap(state: Arc<Mutex<State>>, stirred: Arc<Notify>) {
    loop {
        let next = lock(&state).reap(boottime());
        match next {
            None => stirred.notified().await,
            Some(ms) => {
                let _ = timeout(Duration::from_millis(ms.max(1)), stirred.notified()).await;
            }
        }
    }
}

/// A lock on a session that may end before the agent's lease is none. (DCS-130)
fn too_short(asked_ms: u64, granted_ms: u64) -> Option<String> {
    (granted_ms < asked_ms).then(|| {
        format!(
            "it ends sessions after {granted_ms} ms (maxSessionTimeout), and a ttl of {} s needs \
             {asked_ms}: lower ttl to {} or raise maxSessionTimeout",
            (asked_ms - MARGIN_MS) / 1000,
            granted_ms.saturating_sub(MARGIN_MS) / 1000,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-130 as far as words go.
    #[test]
    fn a_session_that_is_too_short_is_named() {
        assert_eq!(too_short(32_000, 32_000), None);
        let why = too_short(62_000, 40_000).expect("shorter than asked");
        assert!(why.contains("a ttl of 60 s") && why.contains("lower ttl to 38"), "{why}");
    }

    #[test]
    fn the_reaper_waits_for_the_ttl_and_no_longer() {
        let timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };
        let mut state = State { timing, current: None, former: Vec::new(), kept: None };
        assert_eq!(state.reap(Millis(5)), None, "a session without keys may stay");
        state.kept = Some(Millis(1_000));
        assert_eq!(state.reap(Millis(1_500)), Some(19_500));
        assert_eq!(state.reap(Millis(20_999)), Some(1));
        assert_eq!(state.reap(Millis(21_000)), None);
        assert_eq!(state.kept, None);
    }
}
