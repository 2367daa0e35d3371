//! One call over all API servers under one deadline. (DCS-045, DCS-046, DCS-070, DCS-072, DCS-178, DCS-179, DCS-301,
//! section 7 of docs/spec/crates.md)
//!
//! A `kube` client knows one address; so there is one client a server, asked one after the other.
//! Its own retries are off: whether a request may be sent twice is decided here.

use crate::objects::{Kind, Sent};
use crate::{KubernetesConfig, access};
use futures::{Stream, StreamExt};
use hathi_dcs::flat::{LANES, Pauses, hedged};
use hathi_dcs::{DcsError, Deadline, Millis, boottime};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::Endpoints;
use kube::core::WatchEvent;
use kube::{Client, Config};
use serde_json::Value;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

/// The most that is read of an answer: a cluster of hundreds of members is far below.
const BODY_LIMIT: usize = 32 << 20;
/// How long one attempt may take while there is somebody else to ask, or another try.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// How long the servers' own addresses may be asked for; they are a help, not a condition.
const DISCOVERY: Duration = Duration::from_secs(1);

/// An error with its causes.
pub(crate) fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// One request, as it is sent to whichever server answers.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// As RBAC names it, for the line that says which right is missing.
    pub verb: &'static str,
    pub kind: &'static str,
    pub request: Request<Vec<u8>>,
    /// The lock depends on it. Withdrawn rights may come back: they are asked for again until the
    /// deadline (DCS-045). And no single server may use the time up (DCS-302).
    pub patient: bool,
}

/// An answer that the caller can do something with: success, or 404 or 409.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    /// An earlier sending of this call had no answer: it may have been carried out.
    pub repeated: bool,
}

enum Attempt {
    Answered {
        status: u16,
        body: Vec<u8>,
    },
    /// It may have been carried out, or not; with the pause the server asked for.
    Unknown(String, Option<Duration>),
    /// It was not carried out; the same server may do it in a moment, or another one.
    NotNow(String, Option<Duration>),
    /// Our token was not taken; it may have been replaced in its file.
    Unknown401(String),
    Forbidden(String),
}

struct Server {
    /// `https://10.0.0.1:6443`
    url: String,
    config: Config,
    client: Mutex<Option<Client>>,
}

impl Server {
    fn new(config: Config) -> Arc<Self> {
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        Arc::new(Self { url, config, client: Mutex::new(None) })
    }

    fn client(&self) -> Result<Client, String> {
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let made = Client::try_from(self.config.clone()).map_err(|why| whole(&why))?;
        *kept = Some(made.clone());
        Ok(made)
    }

    /// The next use reads the token's file again, at once.
    fn forget_client(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The servers that are asked, and which one at the moment.
struct List {
    servers: Vec<Arc<Server>>,
    current: usize,
    /// When the servers' own addresses were last asked for.
    refreshed: Option<Millis>,
}

pub(crate) struct Servers {
    config: KubernetesConfig,
    /// The service, or what the kubeconfig names; read once.
    first: OnceCell<Arc<Server>>,
    list: Mutex<List>,
    /// Changes when the calls leave a server: the watches leave it, too.
    moved: watch::Sender<()>,
    /// Bypassing was forbidden.
    confined: AtomicBool,
    /// What must not be watched; that was said.
    blind_to: Mutex<Vec<Kind>>,
    refresh_ms: AtomicU64,
}

impl Servers {
    pub fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            first: OnceCell::new(),
            list: Mutex::new(List { servers: Vec::new(), current: 0, refreshed: None }),
            moved: watch::Sender::new(()),
            confined: AtomicBool::new(false),
            blind_to: Mutex::default(),
            refresh_ms: AtomicU64::new(0),
        }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// For messages.
    pub fn store(&self) -> String {
        let list = self.list();
        match list.servers.get(list.current) {
            Some(server) => format!("kubernetes {}", server.url),
            None => "kubernetes".to_owned(),
        }
    }

    async fn first(&self) -> Result<Arc<Server>, DcsError> {
        let read = self.first.get_or_try_init(|| async {
            let mut config = access::resolve(&self.config.access).await?;
            config.connect_timeout = Some(Duration::from_secs(2));
            config.read_timeout = None;
            config.default_retry = false;
            Ok::<_, String>(Server::new(config))
        });
        let first = read.await.map_err(|why| self.hopeless(why))?;
        let mut list = self.list();
        if list.servers.is_empty() {
            list.servers.push(first.clone());
        }
        Ok(first.clone())
    }

    fn hopeless(&self, why: String) -> DcsError {
        DcsError::NotRetriable { store: self.store(), why }
    }

    fn now_asked(&self) -> (usize, usize, Option<Arc<Server>>) {
        let list = self.list();
        (list.current, list.servers.len(), list.servers.get(list.current).cloned())
    }

    fn leave(&self, which: usize, server: &Arc<Server>) {
        let mut list = self.list();
        // Somebody else may have moved on already, or the list is another one.
        let still = list.servers.get(list.current).is_some_and(|now| Arc::ptr_eq(now, server));
        if list.servers.len() > 1 && list.current == which && still {
            list.current = (which + 1) % list.servers.len();
            drop(list);
            self.moved.send_modify(|()| {});
        }
    }

    /// Asks until somebody answers or `by` is there. What the lock depends on goes to several servers
    /// when the first is slow (or to the service again, on another connection); see [`hedged`]. Sending
    /// it twice does no harm: what decides names the version it changes. (DCS-302)
    ///
    /// # Errors
    /// `Refused`: a right is missing, named in one line. `NotRetriable`: the request cannot be right.
    pub async fn call(&self, by: Deadline, call: &Call) -> Result<Answer, DcsError> {
        let began = boottime();
        let first = timeout(by.left(), self.first()).await;
        let first =
            first.map_err(|_| self.unreachable(began, "its files are not read in time"))??;
        self.refresh(&first, by).await;
        if !call.patient {
            return self.in_turn(by, call).await;
        }
        let servers = self.in_order(LANES);
        let last = Mutex::new((false, "no answer".to_owned()));
        let settled = hedged(by, |lane| {
            let (server, last) = (servers.get(lane).cloned(), &last);
            let again = servers
                .iter()
                .take(lane)
                .any(|one| server.as_ref().is_some_and(|this| Arc::ptr_eq(one, this)));
            async move {
                let server = server?;
                if again {
                    // On another connection, which may lead to another one behind the service.
                    server.forget_client();
                }
                let client = match server.client() {
                    Ok(client) => client,
                    Err(why) => return Some(Err(self.hopeless(why))),
                };
                let said = match self.attempt(&client, by.left(), call).await {
                    Ok(Attempt::Answered { status, body }) => return Some(Ok((status, body))),
                    Err(error) => return Some(Err(error)),
                    Ok(Attempt::Unknown401(why)) => {
                        server.forget_client();
                        (true, why)
                    }
                    Ok(Attempt::Forbidden(why)) => (true, why),
                    Ok(Attempt::Unknown(why, _) | Attempt::NotNow(why, _)) => (false, why),
                };
                *last.lock().unwrap_or_else(PoisonError::into_inner) = said;
                None
            }
        });
        match settled.await {
            Some((lane, settled)) => {
                if let Some(server) = servers.get(lane) {
                    self.prefer(server);
                }
                let (status, body) = settled?;
                Ok(Answer { status, body, repeated: lane > 0 })
            }
            None if by.left().is_zero() => {
                Err(match last.into_inner().unwrap_or_else(PoisonError::into_inner) {
                    (true, why) => DcsError::Refused { store: self.store(), why },
                    (false, why) => self.unreachable(began, why),
                })
            }
            None => Ok(Answer { repeated: true, ..self.in_turn(by, call).await? }),
        }
    }

    /// So many servers, beginning with the one that is asked at the moment.
    fn in_order(&self, count: usize) -> Vec<Arc<Server>> {
        let list = self.list();
        list.servers.iter().cycle().skip(list.current).take(count).cloned().collect()
    }

    /// This one answered where another may not have.
    fn prefer(&self, server: &Arc<Server>) {
        let mut list = self.list();
        let place = list.servers.iter().position(|one| Arc::ptr_eq(one, server));
        if let Some(place) = place
            && place != list.current
        {
            list.current = place;
            drop(list);
            self.moved.send_modify(|()| {});
        }
    }

    /// One server after the other.
    async fn in_turn(&self, by: Deadline, call: &Call) -> Result<Answer, DcsError> {
        let began = boottime();
        let mut pauses = Pauses::default();
        let mut repeated = false;
        let mut last = "no time to ask".to_owned();
        let mut asked = 0_usize;
        let mut refused: Option<String> = None;
        loop {
            let left = by.left();
            let (which, count, Some(server)) = self.now_asked() else {
                return Err(self.unreachable(began, "no API server is known"));
            };
            if left.is_zero() {
                break;
            }
            let share = if count <= 1 { left / 2 } else { left / 3 };
            let limit = left.min(share.max(ATTEMPT));
            let client = server.client().map_err(|why| self.hopeless(why))?;
            let mut pause = None;
            match self.attempt(&client, limit, call).await? {
                Attempt::Answered { status, body } => {
                    return Ok(Answer { status, body, repeated });
                }
                Attempt::Unknown(why, wanted) => {
                    (repeated, refused, last, pause) = (true, None, why, wanted);
                }
                Attempt::NotNow(why, wanted) => (refused, last, pause) = (None, why, wanted),
                Attempt::Unknown401(why) => {
                    server.forget_client();
                    (refused, last) = (Some(why.clone()), why);
                }
                Attempt::Forbidden(why) if call.patient => {
                    (refused, last) = (Some(why.clone()), why);
                }
                Attempt::Forbidden(why) => {
                    return Err(DcsError::Refused { store: self.store(), why });
                }
            }
            self.leave(which, &server);
            asked += 1;
            if pause.is_some() || asked.is_multiple_of(count.max(1)) {
                // Refused rights are what matters, also when the time is short.
                let Some(wait) = pauses.next(by, pause) else { break };
                tokio::time::sleep(wait).await;
            }
        }
        Err(match refused {
            Some(why) => DcsError::Refused { store: self.store(), why },
            None => self.unreachable(began, last),
        })
    }

    fn unreachable(&self, began: Millis, why: impl ToString) -> DcsError {
        DcsError::unreachable(self.store(), boottime().since(began), why)
    }

    async fn attempt(
        &self,
        client: &Client,
        limit: Duration,
        call: &Call,
    ) -> Result<Attempt, DcsError> {
        let exchange = async {
            let request = call.request.clone().map(kube::client::Body::from);
            let response = client.send(request).await.map_err(|why| whole(&why))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await;
            let body = body.map_err(|why| why.to_string())?.to_bytes();
            Ok::<_, String>((head, body.to_vec()))
        };
        let (head, body) = match timeout(limit, exchange).await {
            Ok(Ok(both)) => both,
            Ok(Err(why)) => return Ok(Attempt::Unknown(why, None)),
            Err(_elapsed) => {
                let why = format!("no answer within {} ms", limit.as_millis());
                return Ok(Attempt::Unknown(why, None));
            }
        };
        let after = head.headers.get(http::header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        judge(&self.config, call, head.status, body, after.map(Duration::from_secs))
            .map_err(|why| self.hopeless(why))
    }

    /// What happens to objects of this kind from a version on.
    ///
    /// # Errors
    /// Text for the log.
    pub async fn watch(
        &self,
        kind: Kind,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<impl Stream<Item = Result<WatchEvent<Sent>, String>> + use<>, String> {
        let first = timeout(limit, self.first()).await.map_err(|_| "no answer in time")?;
        first.map_err(|error| error.to_string())?;
        let (which, _, Some(server)) = self.now_asked() else {
            return Err("no API server is known".into());
        };
        let client = server.client()?;
        match timeout(limit, client.request_events::<Sent>(request)).await {
            Ok(Ok(stream)) => {
                self.blind_to().retain(|other| *other != kind);
                Ok(stream.map(|next| next.map_err(|why| whole(&why))))
            }
            Ok(Err(why)) => {
                let code = if let kube::Error::Api(status) = &why { status.code } else { 0 };
                match code {
                    401 => server.forget_client(),
                    403 => self.must_not_watch(kind, &why),
                    _ => self.leave(which, &server),
                }
                Err(whole(&why))
            }
            Err(_elapsed) => {
                self.leave(which, &server);
                Err("no answer in time".into())
            }
        }
    }

    fn blind_to(&self) -> MutexGuard<'_, Vec<Kind>> {
        self.blind_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there something that must not be watched?
    pub fn is_blind(&self) -> bool {
        !self.blind_to().is_empty()
    }

    fn must_not_watch(&self, kind: Kind, why: &kube::Error) {
        let mut known = self.blind_to();
        if !known.contains(&kind) {
            known.push(kind);
            tracing::warn!(
                "the verb \"watch\" on {:?} in namespace {:?} is missing in its Role; this node looks \
                 every loop_wait and cannot be woken: {why}",
                kind.resource(),
                self.config.namespace
            );
        }
    }

    /// How often the servers' own addresses are asked for: a little more often than the loop turns.
    pub fn set_loop_wait(&self, ms: u64) {
        self.refresh_ms.store(ms.saturating_sub(500).max(500), Ordering::Relaxed);
    }

    /// The API servers' own addresses, from the Endpoints of the service in front of them; that
    /// service stays as the last to ask. Asked for at most so often as the loop turns. (DCS-178)
    async fn refresh(&self, first: &Arc<Server>, by: Deadline) {
        if !self.config.bypass_api_service || self.confined.load(Ordering::Relaxed) {
            return;
        }
        {
            let every = self.refresh_ms.load(Ordering::Relaxed);
            let mut list = self.list();
            let due = list.refreshed.is_none_or(|at| boottime().since(at) >= every);
            if !due {
                return;
            }
            list.refreshed = Some(boottime());
        }
        let path = "/api/v1/namespaces/default/endpoints/kubernetes";
        let Ok(request) = Request::get(path).body(Vec::new()) else { return };
        let call = Call { verb: "get", kind: "endpoints", request, patient: false };
        // Whoever answers at the moment; the first may be the one that does not.
        let (_, _, Some(asked)) = self.now_asked() else { return };
        let Ok(client) = asked.client() else { return };
        let limit = DISCOVERY.min(by.left() / 4);
        match self.attempt(&client, limit, &call).await {
            Ok(Attempt::Answered { status: 200, body }) => {
                let found = serde_json::from_slice::<Endpoints>(&body).ok();
                self.adopt(first, found.as_ref().map(addresses).unwrap_or_default());
            }
            Ok(Attempt::Forbidden(why)) => {
                self.confined.store(true, Ordering::Relaxed);
                tracing::warn!(
                    "bypass_api_service is switched off: {why}; a ClusterRole must allow get on \
                     endpoints kubernetes in namespace default"
                );
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// The list is these and, last, the first; whoever is asked at the moment goes on being asked.
    fn adopt(&self, first: &Arc<Server>, direct: Vec<String>) {
        if direct.is_empty() {
            return;
        }
        let mut list = self.list();
        let asked = list.servers.get(list.current).map(|server| server.url.clone());
        let known = std::mem::take(&mut list.servers);
        for url in direct {
            let same = known.iter().find(|server| server.url == url && !Arc::ptr_eq(server, first));
            let made = same.cloned().or_else(|| {
                let mut config = first.config.clone();
                config.tls_server_name = access::server_name(&first.config);
                config.cluster_url = url.parse().ok()?;
                Some(Server::new(config))
            });
            list.servers.extend(made);
        }
        list.servers.push(first.clone());
        // The first time nobody has been asked but the service: begin with an address of its own.
        let asked = asked.filter(|url| *url != first.url);
        let found = list.servers.iter().position(|server| Some(&server.url) == asked.as_ref());
        list.current = found.unwrap_or(0);
    }
}

/// `https://ip:port` of every ready address, by the port called https.
fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let mut found = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten();
        let port = ports.clone().find(|port| port.name.as_deref() == Some("https"));
        let Some(port) = port.or_else(|| ports.clone().next()) else { continue };
        for address in subset.addresses.iter().flatten() {
            let ip = match address.ip.contains(':') {
                true => format!("[{}]", address.ip),
                false => address.ip.clone(),
            };
            found.push(format!("https://{ip}:{}", port.port));
        }
    }
    found
}

/// What the server's own `Status` says.
fn message(body: &[u8]) -> String {
    let status = serde_json::from_slice::<Value>(body).ok();
    let said = status.as_ref().and_then(|status| status.get("message")).and_then(Value::as_str);
    let text = said.map(str::to_owned);
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

/// Sorted by what the caller can do about it. (DCS-044 … DCS-046, DCS-179)
fn judge(
    config: &KubernetesConfig,
    call: &Call,
    status: StatusCode,
    body: Vec<u8>,
    after: Option<Duration>,
) -> Result<Attempt, String> {
    let said = || format!("{} {}", status.as_u16(), message(&body));
    Ok(match status.as_u16() {
        200..=299 | 404 | 409 => Attempt::Answered { status: status.as_u16(), body },
        401 => Attempt::Unknown401(format!("{} (is the token still valid?)", said())),
        code if config.retriable_codes.contains(&code) => Attempt::Unknown(said(), after),
        403 => Attempt::Forbidden(format!(
            "{}; the verb {:?} on {:?} in namespace {:?} is missing in its Role",
            message(&body),
            call.verb,
            call.kind,
            config.namespace
        )),
        // It did not even begin.
        429 => Attempt::NotNow(said(), after),
        500..=599 => Attempt::Unknown(said(), after),
        _ if after.is_some() => Attempt::Unknown(said(), after),
        // A page or a version that is gone: asked again from the beginning.
        410 => Attempt::NotNow(said(), None),
        _ => return Err(format!("{} {}: {}", call.verb, call.kind, said())),
    })
}

/// For requests that name a kind of ours.
pub(crate) fn call(verb: &'static str, kind: Kind, request: Request<Vec<u8>>) -> Call {
    Call { verb, kind: kind.resource(), request, patient: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(config: &KubernetesConfig, status: u16, text: &str, after: Option<u64>) -> Attempt {
        let request = Request::get("/").body(Vec::new()).expect("a request");
        let call = call("patch", Kind::Endpoints, request);
        let status = StatusCode::from_u16(status).expect("a status");
        let after = after.map(Duration::from_secs);
        judge(config, &call, status, text.as_bytes().to_vec(), after).expect("retriable")
    }

    /// Proves DCS-044, DCS-045, DCS-046, DCS-179 and DCS-321 as far as an answer tells.
    #[test]
    fn answers_are_sorted_by_what_the_caller_can_do() {
        let plain = KubernetesConfig::default();
        for code in [200, 201, 404, 409] {
            assert!(matches!(ask(&plain, code, "{}", None), Attempt::Answered { .. }), "{code}");
        }
        for code in [500, 502, 503, 504] {
            assert!(matches!(ask(&plain, code, "", None), Attempt::Unknown(..)), "{code}");
        }
        assert!(matches!(ask(&plain, 401, "", None), Attempt::Unknown401(_)));
        assert!(matches!(ask(&plain, 429, "", Some(1)), Attempt::NotNow(_, Some(_))));
        assert!(matches!(ask(&plain, 418, "", Some(1)), Attempt::Unknown(_, Some(_))));
        let more = KubernetesConfig { retriable_codes: vec![403, 418], ..plain.clone() };
        assert!(matches!(ask(&more, 403, "", None), Attempt::Unknown(..)));
        assert!(matches!(ask(&more, 418, "", None), Attempt::Unknown(..)));
        let status = r#"{"kind":"Status","message":"endpoints \"x\" is forbidden"}"#;
        let Attempt::Forbidden(why) = ask(&plain, 403, status, None) else { panic!("403") };
        assert!(why.starts_with("endpoints \"x\" is forbidden;"), "{why}");
        assert!(why.contains(r#"verb "patch" on "endpoints" in namespace "default""#), "{why}");
    }

    /// Proves DCS-178 (which port).
    #[test]
    fn the_port_called_https_is_asked() {
        let endpoints = serde_json::json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
             "ports": [{"name": "x", "port": 1}, {"name": "https", "port": 6443}]},
            {"notReadyAddresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 2}]},
        ]});
        let endpoints: Endpoints = serde_json::from_value(endpoints).expect("Endpoints");
        assert_eq!(addresses(&endpoints), ["https://10.0.0.1:6443", "https://[fd00::1]:6443"]);
    }
}
