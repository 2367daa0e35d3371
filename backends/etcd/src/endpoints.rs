//! Which server do we talk to, and for how long?
//!
//! One client per endpoint and a sticky index: the client's own balancing never ejects a dead
//! member (section 3 of docs/spec/crates.md). A call tries the current endpoint for its share of
//! the time left, moves on when that one does not answer, and charges everything it does
//! (connecting, logging in, waiting, trying again) to the one deadline it was given. (DCS-301)

use crate::EtcdConfig;
use crate::trouble::{Trouble, classify, never_sent, whole_text};
use etcd_client::{
    Client, DeleteResponse, GetResponse, LeaseGrantResponse, MemberListResponse, PutResponse,
    ResponseHeader, TxnResponse,
};
use hathi_dcs::{DcsError, Deadline, Millis, boottime};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// The answer, and whether an earlier attempt of the same call may have been applied before it.
/// (DCS-025)
pub(crate) struct Answer<T> {
    pub value: T,
    pub repeated: bool,
}

/// Why a call gave no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered: there is no such lease. (DCS-035)
    LeaseGone,
    Failed(DcsError),
}

/// Who answered: the cluster's id and its term. (DCS-078)
pub(crate) trait Stamped {
    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! stamped {
    ($($answer:ty),+) => {
        $(impl Stamped for $answer {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header()
            }
        })+
    };
}

stamped!(
    GetResponse,
    TxnResponse,
    PutResponse,
    DeleteResponse,
    LeaseGrantResponse,
    MemberListResponse
);

/// A keepalive's answer, of which the client gives no header away.
pub(crate) struct KeptAlive;

impl Stamped for KeptAlive {
    fn header(&self) -> Option<&ResponseHeader> {
        None
    }
}

pub(crate) struct Endpoint {
    pub url: String,
    client: tokio::sync::Mutex<Option<Held>>,
}

#[derive(Clone)]
struct Held {
    client: Client,
    logged_in: bool,
}

/// What went wrong before the request could be sent.
enum Before {
    Etcd(etcd_client::Error),
    /// The configuration cannot work.
    Config(String),
}

impl Endpoint {
    fn new(url: String) -> Arc<Self> {
        Arc::new(Self { url, client: tokio::sync::Mutex::new(None) })
    }

    /// The client, made on first use: with a user it logs in at once, over the network.
    async fn client(&self, config: &EtcdConfig) -> Result<Held, Before> {
        let mut slot = self.client.lock().await;
        if let Some(held) = &*slot {
            return Ok(held.clone());
        }
        let mut logged_in = config.user().is_some();
        let mut made = self.connect(config, logged_in).await;
        if let Err(Before::Etcd(error)) = &made
            && logged_in
            && classify(error) == Trouble::NoLogin
        {
            // Authentication is (still) off: what Patroni does, too. Once it is switched on, the
            // first refused request leads back here.
            logged_in = false;
            made = self.connect(config, false).await;
        }
        let held = Held { client: made?, logged_in };
        *slot = Some(held.clone());
        Ok(held)
    }

    async fn connect(&self, config: &EtcdConfig, login: bool) -> Result<Client, Before> {
        let options = config.options(&self.url, login).map_err(Before::Config)?;
        Client::connect([self.url.as_str()], Some(options)).await.map_err(Before::Etcd)
    }

    /// The next call makes a new connection. If somebody is making one already, that is it.
    fn forget(&self) {
        if let Ok(mut slot) = self.client.try_lock() {
            *slot = None;
        }
    }
}

struct State {
    list: Vec<Arc<Endpoint>>,
    current: usize,
    /// The cluster we know and the highest term seen in it. (DCS-078)
    cluster: Option<(u64, u64)>,
    /// When the members were last asked for; `None` asks again at the next good moment.
    discovered: Option<Millis>,
    discovering: bool,
}

pub(crate) struct Endpoints {
    config: EtcdConfig,
    /// Members are asked for this often, at the most. (DCS-081)
    discover_every_ms: u64,
    state: Mutex<State>,
    /// Counts the changes of the current endpoint, so that the watch can follow.
    moved: watch::Sender<u64>,
}

impl Endpoints {
    /// `spread` differs from member to member, so that they do not all begin at the same endpoint.
    pub fn new(config: EtcdConfig, spread: usize, discover_every_ms: u64) -> Arc<Self> {
        let list: Vec<_> = config.urls().into_iter().map(Endpoint::new).collect();
        let current = spread.checked_rem(list.len()).unwrap_or(0);
        Arc::new(Self {
            config,
            discover_every_ms,
            state: Mutex::new(State {
                list,
                current,
                cluster: None,
                discovered: None,
                discovering: false,
            }),
            moved: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends `changed()` when the current endpoint or its connection is another one.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    fn current(&self) -> Option<(Arc<Endpoint>, usize)> {
        let state = self.state();
        state.list.get(state.current).map(|endpoint| (endpoint.clone(), state.list.len()))
    }

    /// A new connection to the next endpoint (the same one, if there is no other), unless somebody
    /// has moved on already. The watch follows: what it shows must come over the connection that
    /// carries the renewals, or a frozen watch would confirm a lock that is gone.
    pub fn give_up(&self, endpoint: &Arc<Endpoint>) {
        endpoint.forget();
        let mut state = self.state();
        if state.list.get(state.current).is_some_and(|now| Arc::ptr_eq(now, endpoint)) {
            state.current = (state.current + 1) % state.list.len();
            state.discovered = None;
            drop(state);
            self.moved.send_modify(|count| *count += 1);
        }
    }

    /// Is this answer from a node that missed an election? Such a node must not be believed.
    /// (DCS-078)
    pub fn is_stale(&self, header: Option<&ResponseHeader>) -> bool {
        let Some(header) = header else { return false };
        let (id, term) = (header.cluster_id(), header.raft_term());
        let mut state = self.state();
        match state.cluster {
            Some((known, highest)) if known == id => {
                state.cluster = Some((id, highest.max(term)));
                term < highest
            }
            Some(_) | None => {
                state.cluster = Some((id, term));
                false
            }
        }
    }

    /// Asks the store, on this endpoint and the next ones, until it answers or the deadline comes.
    ///
    /// `ask` must be such that sending it twice does no harm; what a second sending finds is for
    /// the caller to judge by [`Answer::repeated`].
    pub async fn call<T, A, F>(self: &Arc<Self>, by: Deadline, ask: A) -> Result<Answer<T>, Failure>
    where
        T: Stamped,
        A: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = boottime();
        let budget = by.left();
        let mut pause = Duration::from_millis(100);
        let mut failures = 0;
        let mut logins = 0;
        let mut repeated = false;
        let mut why = String::from("the deadline had passed");
        loop {
            let Some((endpoint, count)) = self.current() else {
                let why = "no endpoints are configured (discovery by srv is not built yet)".into();
                return Err(Failure::Failed(DcsError::NotRetriable { store: "etcd".into(), why }));
            };
            let left = by.left();
            if left.is_zero() {
                return Err(unreachable(&endpoint, began, &why));
            }
            let mut sent = None;
            let attempt = async {
                let held = endpoint.client(&self.config).await?;
                let asked = ask(held.client.clone());
                sent = Some(held);
                asked.await.map_err(Before::Etcd)
            };
            let trouble = match timeout(attempt_time(budget, count).min(left), attempt).await {
                Ok(Ok(value)) => {
                    if !self.is_stale(value.header()) {
                        self.discover_if_due();
                        return Ok(Answer { value, repeated });
                    }
                    why = "it missed an election".to_owned();
                    repeated = true;
                    Trouble::OtherEndpoint
                }
                Ok(Err(Before::Config(text))) => {
                    let store = endpoint.url.clone();
                    return Err(Failure::Failed(DcsError::NotRetriable { store, why: text }));
                }
                Ok(Err(Before::Etcd(error))) => {
                    why = whole_text(&error);
                    let trouble = classify(&error);
                    if sent.is_some() && trouble == Trouble::OtherEndpoint && !never_sent(&why) {
                        repeated = true;
                    }
                    trouble
                }
                Err(_elapsed) => {
                    why = "no answer".to_owned();
                    repeated |= sent.is_some();
                    Trouble::OtherEndpoint
                }
            };
            tracing::debug!(endpoint = endpoint.url, %why, ?trouble, "etcd gave no answer");
            match trouble {
                Trouble::OtherEndpoint => {
                    self.give_up(&endpoint);
                    failures += 1;
                    if failures < count {
                        continue;
                    }
                    if failures == count {
                        self.back_to_configured();
                    }
                }
                Trouble::Later => {}
                Trouble::Login if logins < 2 => {
                    logins += 1;
                    match sent {
                        // A new token for everybody who uses this connection.
                        Some(held) if held.logged_in && logins == 1 => {
                            match timeout(by.left(), held.client.refresh_token()).await {
                                Ok(Err(error)) if classify(&error) == Trouble::Refused => {
                                    return Err(refused(&endpoint, whole_text(&error)));
                                }
                                Ok(_) | Err(_) => {}
                            }
                        }
                        Some(_) | None => endpoint.forget(),
                    }
                    continue;
                }
                Trouble::NoLogin if logins < 2 => {
                    logins += 1;
                    endpoint.forget();
                    continue;
                }
                Trouble::Login | Trouble::NoLogin | Trouble::Refused => {
                    endpoint.forget();
                    return Err(refused(&endpoint, why));
                }
                Trouble::LeaseGone => return Err(Failure::LeaseGone),
                Trouble::Hopeless => return Err(unreachable(&endpoint, began, &why)),
                Trouble::Wrong => {
                    let store = endpoint.url.clone();
                    return Err(Failure::Failed(DcsError::NotRetriable { store, why }));
                }
            }
            let wait = pause + jitter(pause);
            if wait >= by.left() {
                return Err(unreachable(&endpoint, began, &why));
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// A client of the current endpoint for a long-lived stream.
    pub async fn stream_client(&self, by: Deadline) -> Result<(Client, Arc<Endpoint>), String> {
        let Some((endpoint, _)) = self.current() else { return Err("no endpoints".into()) };
        match timeout(by.left(), endpoint.client(&self.config)).await {
            Ok(Ok(held)) => Ok((held.client, endpoint)),
            Ok(Err(Before::Config(why))) => Err(why),
            Ok(Err(Before::Etcd(error))) => {
                self.give_up(&endpoint);
                Err(whole_text(&error))
            }
            Err(_elapsed) => {
                self.give_up(&endpoint);
                Err("no connection".to_owned())
            }
        }
    }

    /// Nothing answered: what the configuration says is the last resort. (DCS-073)
    fn back_to_configured(&self) {
        self.replace_list(self.config.urls());
    }

    /// Asks for the members when it is time, beside the calls, never in their way.
    fn discover_if_due(self: &Arc<Self>) {
        {
            let mut state = self.state();
            let due = state
                .discovered
                .is_none_or(|last| boottime().since(last) >= self.discover_every_ms);
            if self.config.use_proxies || state.discovering || !due {
                return;
            }
            state.discovering = true;
        }
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(endpoints) = this.upgrade() else { return };
            let asked = timeout(Duration::from_secs(5), async {
                let (endpoint, _) = endpoints.current()?;
                let held = endpoint.client(&endpoints.config).await.ok()?;
                let mut client = held.client;
                client.member_list().await.ok()
            });
            let members = asked.await.ok().flatten();
            {
                let mut state = endpoints.state();
                state.discovering = false;
                state.discovered = Some(boottime());
            }
            let Some(members) = members else { return };
            if endpoints.is_stale(members.header()) {
                return;
            }
            let mut urls: Vec<String> = Vec::new();
            let voters = members.members().iter().filter(|member| !member.is_learner());
            for url in voters.flat_map(|member| member.client_urls()) {
                let url = url.trim_end_matches('/').to_owned();
                if !urls.contains(&url) {
                    urls.push(url);
                }
            }
            if urls.is_empty() {
                return;
            }
            // What was configured stays in the list: members may advertise what only they can
            // reach.
            for url in endpoints.config.urls() {
                if !urls.contains(&url) {
                    urls.push(url);
                }
            }
            endpoints.replace_list(urls);
        });
    }

    /// Endpoints that stay keep their connections; the current one stays the current one.
    fn replace_list(&self, urls: Vec<String>) {
        let mut state = self.state();
        let now = state.list.get(state.current).cloned();
        let list: Vec<_> = urls
            .into_iter()
            .map(|url| {
                let known = state.list.iter().find(|endpoint| endpoint.url == url).cloned();
                known.unwrap_or_else(|| Endpoint::new(url))
            })
            .collect();
        let place = now.and_then(|now| list.iter().position(|one| Arc::ptr_eq(one, &now)));
        state.current = place.unwrap_or(0);
        state.list = list;
        drop(state);
        if place.is_none() {
            self.moved.send_modify(|count| *count += 1);
        }
    }

    #[cfg(test)]
    pub fn urls(&self) -> Vec<String> {
        self.state().list.iter().map(|endpoint| endpoint.url.clone()).collect()
    }
}

/// The share of one attempt: three for one endpoint, two for each of two, one for each of more; at
/// least a second. (DCS-072)
fn attempt_time(budget: Duration, endpoints: usize) -> Duration {
    let attempts: u32 = match endpoints {
        0 | 1 => 3,
        2 => 4,
        more => u32::try_from(more).unwrap_or(u32::MAX),
    };
    (budget / attempts).max(Duration::from_secs(1))
}

/// Up to four fifths of the pause, so that many members do not come back in step. (DCS-070)
fn jitter(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    pause * (nanos / 1_000 % 800) / 1_000
}

fn unreachable(endpoint: &Endpoint, began: Millis, why: &str) -> Failure {
    let tried_ms = boottime().since(began);
    Failure::Failed(DcsError::unreachable(endpoint.url.clone(), tried_ms, why))
}

fn refused(endpoint: &Endpoint, why: String) -> Failure {
    Failure::Failed(DcsError::Refused { store: endpoint.url.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-072.
    #[test]
    fn the_time_is_shared_among_endpoints() {
        let ten = Duration::from_secs(10);
        for (count, ms) in [(1, 3_333), (2, 2_500), (3, 3_333), (5, 2_000)] {
            assert_eq!(attempt_time(ten, count).as_millis(), ms, "{count} endpoints");
        }
        assert_eq!(attempt_time(Duration::from_secs(2), 5), Duration::from_secs(1));
    }

    /// Proves DCS-081 (the configured list stays) and the sticky endpoint.
    #[test]
    fn a_new_list_keeps_the_endpoint_in_use() {
        let config =
            EtcdConfig { endpoints: vec!["a:1".into(), "b:1".into()], ..EtcdConfig::default() };
        let endpoints = Endpoints::new(config, 1, 1_000);
        let (before, _) = endpoints.current().expect("two endpoints");
        assert_eq!(before.url, "http://b:1");
        endpoints.replace_list(vec!["http://c:1".into(), "http://b:1".into()]);
        let (after, count) = endpoints.current().expect("two endpoints");
        assert!(Arc::ptr_eq(&before, &after));
        assert_eq!(count, 2);
        endpoints.give_up(&after);
        assert_eq!(endpoints.current().expect("two").0.url, "http://c:1");
        endpoints.give_up(&after);
        assert_eq!(endpoints.current().expect("two").0.url, "http://c:1", "moved on already");
        endpoints.back_to_configured();
        assert_eq!(endpoints.urls(), ["http://a:1", "http://b:1"]);
    }
}
