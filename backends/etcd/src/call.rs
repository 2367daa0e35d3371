//! One request over however many servers it takes, under one deadline. (DCS-030 … DCS-036, DCS-070, DCS-072,
//! DCS-301, DCS-302)

use crate::endpoints::{Before, Endpoint, Endpoints, Held};
use crate::trouble::{Trouble, classify, never_sent, whole_text};
use etcd_client::{
    Client, DeleteResponse, GetResponse, LeaseGrantResponse, MemberListResponse, PutResponse,
    ResponseHeader, TxnResponse,
};
use hathi_dcs::flat::{LANES, Pauses, hedged};
use hathi_dcs::{DcsError, Deadline, Millis, boottime};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
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

impl Endpoints {
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
        let mut pauses = Pauses::default();
        let mut failures = 0;
        let mut logins = 0;
        let mut repeated = false;
        let mut why = String::from("the deadline had passed");
        let mut named = self.begin(by).await;
        loop {
            let Some((endpoint, count)) = self.current() else {
                let Err(nobody) = named else {
                    let why = "no endpoints are configured".into();
                    let store = "etcd".into();
                    return Err(Failure::Failed(DcsError::NotRetriable { store, why }));
                };
                match pauses.next(by, None) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        let tried_ms = boottime().since(began);
                        let error = DcsError::unreachable("etcd", tried_ms, nobody);
                        return Err(Failure::Failed(error));
                    }
                }
                named = self.begin(by).await;
                continue;
            };
            let left = by.left();
            if left.is_zero() {
                return Err(unreachable(&endpoint, began, &told(&why, &named)));
            }
            let mut sent = None;
            let attempt = self.attempt(&endpoint, &ask, &mut sent);
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
                    // What was said once in this call is told at its end.
                    named = self.begin(by).await.and(named);
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
            match pauses.next(by, None) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(unreachable(&endpoint, began, &told(&why, &named))),
            }
        }
    }

    /// The same for what a lock depends on: see [`hedged`]. Whoever answers is asked from then on.
    /// (DCS-302)
    pub async fn hedged<T, A, F>(
        self: &Arc<Self>,
        by: Deadline,
        ask: A,
    ) -> Result<Answer<T>, Failure>
    where
        T: Stamped,
        A: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let began = boottime();
        // Who does not know whom to ask says so below.
        let _ = self.begin(by).await;
        let endpoints = self.in_order(LANES);
        let why = Mutex::new("no answer".to_owned());
        let settled = hedged(by, |lane| {
            let (endpoint, ask, why) = (endpoints.get(lane), &ask, &why);
            let earlier = endpoints.iter().take(lane);
            let again =
                endpoint.is_some_and(|this| earlier.clone().any(|one| Arc::ptr_eq(one, this)));
            async move {
                let endpoint = endpoint?;
                if again {
                    // Itself, on another connection.
                    endpoint.forget();
                }
                let said = self.attempt(endpoint, ask, &mut None).await;
                self.verdict(endpoint, said, why)
            }
        });
        match (settled.await, endpoints.first()) {
            (Some((lane, settled)), _) => {
                if let Some(endpoint) = endpoints.get(lane) {
                    self.prefer(endpoint);
                }
                self.discover_if_due();
                settled.map(|value| Answer { value, repeated: lane > 0 })
            }
            (None, Some(endpoint)) if by.left().is_zero() => {
                Err(unreachable(endpoint, began, &why.into_inner().unwrap_or_default()))
            }
            // The usual way knows what to do about what they said, and meets it again.
            (None, _) => {
                let answer = self.call(by, &ask).await?;
                Ok(Answer { repeated: true, ..answer })
            }
        }
    }

    /// What a single attempt settles, if it does.
    fn verdict<T: Stamped>(
        &self,
        endpoint: &Arc<Endpoint>,
        said: Result<T, Before>,
        why: &Mutex<String>,
    ) -> Option<Result<T, Failure>> {
        let (trouble, text) = match &said {
            Ok(value) if !self.is_stale(value.header()) => return said.ok().map(Ok),
            Ok(_) => (Trouble::OtherEndpoint, "it missed an election".to_owned()),
            Err(Before::Etcd(error)) => (classify(error), whole_text(error)),
            Err(Before::Config(text)) => (Trouble::Wrong, text.clone()),
        };
        tracing::debug!(endpoint = endpoint.url, why = text, ?trouble, "etcd gave no answer");
        *why.lock().unwrap_or_else(PoisonError::into_inner) = text;
        match trouble {
            Trouble::LeaseGone => Some(Err(Failure::LeaseGone)),
            Trouble::OtherEndpoint => {
                self.give_up(endpoint);
                None
            }
            Trouble::Later
            | Trouble::Login
            | Trouble::NoLogin
            | Trouble::Refused
            | Trouble::Hopeless
            | Trouble::Wrong => None,
        }
    }

    /// One request to one server; `sent` is by whom, once there is a connection.
    async fn attempt<T, A, F>(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: &A,
        sent: &mut Option<Held>,
    ) -> Result<T, Before>
    where
        A: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let held = self.client_of(endpoint).await?;
        let asked = ask(held.client.clone());
        *sent = Some(held);
        asked.await.map_err(Before::Etcd)
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

/// What the last server said, and DNS, if it was asked in vain.
fn told(why: &str, named: &Result<(), String>) -> String {
    match named {
        Ok(()) => why.to_owned(),
        Err(nobody) => format!("{why}; {nobody}"),
    }
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
}
