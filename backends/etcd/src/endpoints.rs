//! Which server do we talk to?
//!
//! One client per endpoint and a sticky index: the client's own balancing never ejects a dead
//! member (section 3 of docs/spec/crates.md). A call tries the current endpoint for its share of
//! the time left, moves on when that one does not answer, and charges everything it does
//! (connecting, logging in, waiting, trying again) to the one deadline it was given ([`crate::call`]).

mod begin;

use crate::EtcdConfig;
use crate::names::Names;
use crate::trouble::{Trouble, classify, whole_text};
use etcd_client::{Client, ResponseHeader};
use hathi_dcs::{Deadline, Millis, boottime};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) struct Endpoint {
    pub url: String,
    client: tokio::sync::Mutex<Option<Held>>,
}

#[derive(Clone)]
pub(crate) struct Held {
    pub client: Client,
    pub logged_in: bool,
}

/// What went wrong before there was an answer.
pub(crate) enum Before {
    Etcd(etcd_client::Error),
    /// The configuration cannot work.
    Config(String),
}

impl Endpoint {
    fn new(url: String) -> Arc<Self> {
        Arc::new(Self { url, client: tokio::sync::Mutex::new(None) })
    }

    /// The client, made on first use: with a user it logs in at once, over the network.
    async fn client(&self, config: &EtcdConfig, names: &Names) -> Result<Held, Before> {
        let mut slot = self.client.lock().await;
        if let Some(held) = &*slot {
            return Ok(held.clone());
        }
        let mut logged_in = config.user().is_some();
        let detour = names.detour(&self.url).await;
        let mut made = self.connect(config, logged_in, detour).await;
        if let Err(Before::Etcd(error)) = &made
            && logged_in
            && classify(error) == Trouble::NoLogin
        {
            // Authentication is (still) off: what Patroni does, too. Once it is switched on, the
            // first refused request leads back here.
            logged_in = false;
            made = self.connect(config, false, detour).await;
        }
        let held = Held { client: made?, logged_in };
        *slot = Some(held.clone());
        Ok(held)
    }

    /// To where the name leads, or to `detour`; a certificate must carry the name all the same.
    async fn connect(
        &self,
        config: &EtcdConfig,
        login: bool,
        detour: Option<SocketAddr>,
    ) -> Result<Client, Before> {
        let options = config.options(&self.url, login, detour.is_some()).map_err(Before::Config)?;
        let url = match (detour, self.url.split_once("://")) {
            (Some(address), Some((scheme, _))) => format!("{scheme}://{address}"),
            (_, _) => self.url.clone(),
        };
        Client::connect([url], Some(options)).await.map_err(Before::Etcd)
    }

    /// The next call makes a new connection. If somebody is making one already, that is it.
    pub fn forget(&self) {
        if let Ok(mut slot) = self.client.try_lock() {
            *slot = None;
        }
    }
}

struct State {
    list: Vec<Arc<Endpoint>>,
    current: usize,
    /// What the list was begun with; it stays in it.
    base: Vec<String>,
    /// How often the current endpoint was left since somebody answered. (DCS-073)
    given_up: usize,
    /// Why DNS named nobody when it was asked last.
    nobody: Option<String>,
    /// The cluster we know and the highest term seen in it. (DCS-078)
    cluster: Option<(u64, u64)>,
    /// When the members were last asked for; `None` asks again at the next good moment.
    discovered: Option<Millis>,
    discovering: bool,
}

pub(crate) struct Endpoints {
    config: EtcdConfig,
    names: Names,
    spread: usize,
    /// One call asks DNS for the servers, the others wait for it.
    asking: tokio::sync::Mutex<()>,
    /// Members are asked for this often, at the most. (DCS-081)
    discover_every_ms: u64,
    state: Mutex<State>,
    /// Counts the changes of the current endpoint, so that the watch can follow.
    moved: watch::Sender<u64>,
}

impl Endpoints {
    /// `spread` differs from member to member, so that they do not all begin at the same endpoint.
    pub fn new(config: EtcdConfig, spread: usize, discover_every_ms: u64) -> Arc<Self> {
        Self::by_names(config, spread, discover_every_ms, Names::new())
    }

    fn by_names(
        config: EtcdConfig,
        spread: usize,
        discover_every_ms: u64,
        names: Names,
    ) -> Arc<Self> {
        // DNS goes before what is listed, and is asked at the first use.
        let base = if config.srv.is_none() { config.urls() } else { Vec::new() };
        let list: Vec<_> = base.iter().cloned().map(Endpoint::new).collect();
        let current = spread.checked_rem(list.len()).unwrap_or(0);
        Arc::new(Self {
            config,
            names,
            spread,
            asking: tokio::sync::Mutex::new(()),
            discover_every_ms,
            state: Mutex::new(State {
                list,
                current,
                base,
                given_up: 0,
                nobody: None,
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

    /// The connection to this server; made now if there is none.
    pub async fn client_of(&self, endpoint: &Arc<Endpoint>) -> Result<Held, Before> {
        endpoint.client(&self.config, &self.names).await
    }

    pub fn current(&self) -> Option<(Arc<Endpoint>, usize)> {
        let state = self.state();
        state.list.get(state.current).map(|endpoint| (endpoint.clone(), state.list.len()))
    }

    /// So many endpoints, beginning with the current one; the same again where there are fewer.
    pub fn in_order(&self, count: usize) -> Vec<Arc<Endpoint>> {
        let state = self.state();
        state.list.iter().cycle().skip(state.current).take(count).cloned().collect()
    }

    /// This one answered where the current one may not have: it is the current one now.
    pub fn prefer(&self, endpoint: &Arc<Endpoint>) {
        let mut state = self.state();
        let place = state.list.iter().position(|one| Arc::ptr_eq(one, endpoint));
        if let Some(place) = place
            && place != state.current
        {
            state.current = place;
            drop(state);
            self.moved.send_modify(|count| *count += 1);
        }
    }

    /// A new connection to the next endpoint (the same one, if there is no other), unless somebody
    /// has moved on already. The watch follows: what it shows must come over the connection that
    /// carries the renewals, or a frozen watch would confirm a lock that is gone.
    pub fn give_up(&self, endpoint: &Arc<Endpoint>) {
        endpoint.forget();
        let mut state = self.state();
        if state.list.get(state.current).is_some_and(|now| Arc::ptr_eq(now, endpoint)) {
            state.current = (state.current + 1) % state.list.len();
            state.given_up = state.given_up.saturating_add(1);
            state.discovered = None;
            drop(state);
            self.moved.send_modify(|count| *count += 1);
        }
    }

    /// Is this answer from a node that missed an election? Such a node must not be believed.
    /// (DCS-078)
    pub fn is_stale(&self, header: Option<&ResponseHeader>) -> bool {
        let mut state = self.state();
        let stale = header.is_some_and(|header| {
            let (id, term) = (header.cluster_id(), header.raft_term());
            let highest = state.cluster.filter(|(known, _)| *known == id).map_or(0, |both| both.1);
            state.cluster = Some((id, highest.max(term)));
            term < highest
        });
        if !stale {
            state.given_up = 0;
        }
        stale
    }

    /// A client of the current endpoint for a long-lived stream.
    pub async fn stream_client(&self, by: Deadline) -> Result<(Client, Arc<Endpoint>), String> {
        let begun = self.begin(by).await;
        let Some((endpoint, _)) = self.current() else {
            return Err(begun.err().unwrap_or_else(|| "no endpoints".into()));
        };
        match timeout(by.left(), self.client_of(&endpoint)).await {
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

    /// Asks for the members when it is time, beside the calls, never in their way.
    pub fn discover_if_due(self: &Arc<Self>) {
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
                let held = endpoints.client_of(&endpoint).await.ok()?;
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
            // What it was begun with stays in the list: members may advertise what only they can
            // reach. DNS gave an order to its own, which is kept.
            let base = endpoints.state().base.clone();
            let urls = match endpoints.config.srv {
                Some(_) => begin::merged(base, urls),
                None => begin::merged(urls, base),
            };
            endpoints.replace_list(urls.clone());
            endpoints.names.renew(&urls).await;
        });
    }

    /// Endpoints that stay keep their connections; the current one stays the current one.
    fn replace_list(&self, urls: Vec<String>) {
        let mut state = self.state();
        let now = state.list.get(state.current).cloned();
        let list = state.listed(urls);
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicU16, Ordering};

    /// Where the only name leads; 0: no name server answers.
    static PORT: AtomicU16 = AtomicU16::new(0);

    /// Proves DCS-075 on a real server: a connection that is made while no name server answers goes to where
    /// the name led before.
    #[tokio::test]
    async fn a_name_server_that_is_gone_costs_no_store() {
        use hathi_test_support::{Etcd, EtcdVersion};
        let etcd = Etcd::start(EtcdVersion::V35, 1).await;
        let port = etcd.client_ports()[0];
        let names = Names::by(|_name| {
            async {
                match PORT.load(Ordering::SeqCst) {
                    0 => Err(std::io::Error::other("no name server answers")),
                    port => Ok(vec![([127, 0, 0, 1], port).into()]),
                }
            }
            .boxed()
        });
        // The system itself never knows such a name.
        let endpoint = format!("http://etcd.invalid:{port}");
        let config = EtcdConfig {
            endpoints: vec![endpoint.clone()],
            use_proxies: true,
            ..EtcdConfig::default()
        };
        let endpoints = Endpoints::by_names(config, 0, 60_000, names);
        let read = || {
            let by = Deadline::in_ms(3_000);
            endpoints.call(by, |client| async move { client.kv_client().get("k", None).await })
        };
        assert!(read().await.is_err(), "it was never known");
        PORT.store(port, Ordering::SeqCst);
        endpoints.names.renew(&[endpoint]).await;
        PORT.store(0, Ordering::SeqCst);
        assert!(read().await.is_ok(), "where it led before");
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
