//! One call over however many connections it takes, and the barrier before a read that decides.
//! (DCS-042, DCS-043, DCS-301, DCS-305)

use crate::session::Session;
use crate::store::Shared;
use hathi_dcs::{DcsError, Deadline, boottime};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use zookeeper_client::{CheckWriteError, Error, Stat};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// What an error means for the call that met it.
enum Meaning {
    /// The store answered: the node is not as the request wanted it.
    Said,
    /// Nobody knows whether it was carried out; the next connection may tell.
    Again,
    /// Our rights or credentials.
    Refused,
    /// The request itself is wrong, or the server too old.
    Hopeless,
}

fn meaning(error: &Error) -> Meaning {
    match error {
        Error::NoNode | Error::NodeExists | Error::BadVersion | Error::NotEmpty => Meaning::Said,
        Error::NoAuth | Error::AuthFailed => Meaning::Refused,
        Error::InvalidAcl
        | Error::BadArguments(_)
        | Error::MarshallingError
        | Error::NoChildrenForEphemerals
        | Error::Unimplemented
        | Error::QuotaExceeded => Meaning::Hopeless,
        _ => Meaning::Again,
    }
}

impl Shared {
    /// Runs the steps on a session until the store has answered them or `by` is there. They begin
    /// again when the connection or the session was lost meanwhile. The outer error says nothing
    /// about the keys, the inner one is the store's answer.
    pub(crate) async fn call<T, F>(
        &self,
        by: Deadline,
        steps: impl Fn(Arc<Session>) -> F + Send,
    ) -> Result<Result<T, Error>, DcsError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let began = boottime();
        let mut last = "no time to ask".to_owned();
        loop {
            let unreachable = |why: &str| {
                DcsError::unreachable(self.sessions.store(), boottime().since(began), why)
            };
            if by.left().is_zero() {
                return Err(unreachable(&last));
            }
            let session = self.sessions.get(by).await?;
            let mut waiting = self.sessions.waiting(session.clone());
            let answer = async {
                tokio::select! {
                    biased;
                    answer = steps(session.clone()) => answer,
                    () = session.cut() => Err(Error::ConnectionLoss),
                }
            };
            let answer = timeout(by.left(), answer).await;
            waiting.answered = answer.is_ok();
            drop(waiting);
            match answer {
                Err(_elapsed) => return Err(unreachable("no answer in time")),
                Ok(Ok(value)) => return Ok(Ok(value)),
                Ok(Err(error)) => match meaning(&error) {
                    Meaning::Said => return Ok(Err(error)),
                    Meaning::Refused => {
                        let why = error.to_string();
                        return Err(DcsError::Refused { store: self.sessions.store(), why });
                    }
                    Meaning::Hopeless => {
                        let why = error.to_string();
                        return Err(DcsError::NotRetriable { store: self.sessions.store(), why });
                    }
                    Meaning::Again => last = error.to_string(),
                },
            }
            tokio::time::sleep(PAUSE.min(by.left())).await;
        }
    }

    /// A write that changes nothing, and that a majority has to take nevertheless. Requests of one
    /// session are answered in order: what is asked after it is answered as of it, or later. It also
    /// proves that the session lives, as the leading server knows it. (A `sync` proves neither.)
    ///
    /// The request is sent by this call, not by waiting for its answer.
    pub(crate) fn barrier<'s>(
        &self,
        session: &'s Session,
    ) -> Result<impl Future<Output = Result<(), Error>> + Send + use<'s>, Error> {
        let sent = session.client.new_check_writer(&self.root, None)?.commit();
        Ok(async move {
            match sent.await {
                Err(CheckWriteError::RequestFailed { source }) => Err(source),
                // The cluster's node need not be there: a refusal is the majority's answer, too.
                Ok(_) | Err(_) => Ok(()),
            }
        })
    }

    /// One node as of now.
    pub(crate) async fn look(
        &self,
        session: &Session,
        name: &str,
    ) -> Result<Option<(String, Stat)>, Error> {
        let barrier = self.barrier(session)?;
        let read = session.client.get_data(&self.path(name));
        barrier.await?;
        match read.await {
            Ok((data, stat)) => Ok(Some((text(data), stat))),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Bytes of the store as text; what is not UTF-8 is garbage anyway and read as such. (DCS-050)
pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned())
}
