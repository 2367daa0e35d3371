//! Around a store: what it is asked is counted, how long that took and how it failed, and what it
//! answered about the lock is said. (REST-469, DCS-300)

use crate::api::Meter;
use hathi_dcs::around::{self, Around};
use hathi_dcs::{Dcs, DcsError, Deadline};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub struct Measured {
    /// Which one it is.
    store: &'static str,
    meter: Arc<Meter>,
    /// The last answer about the lock, and to what.
    said: Mutex<Option<(&'static str, &'static str)>>,
}

impl Measured {
    pub fn of(store: Arc<dyn Dcs>, meter: Arc<Meter>) -> Arc<dyn Dcs> {
        around::with(Self { store: store.kind(), meter, said: Mutex::default() }, store)
    }
}

impl Around for Measured {
    async fn call<T: Send>(
        &self,
        operation: &'static str,
        _by: Deadline,
        work: impl Future<Output = Result<T, DcsError>> + Send,
    ) -> Result<T, DcsError> {
        let began = Instant::now();
        let outcome = work.await;
        self.meter.store(operation, outcome.as_ref().err().map(kind), began.elapsed());
        outcome
    }

    /// With one line: what is new is for the operator, the same again is not.
    async fn verdict(
        &self,
        operation: &'static str,
        by: Deadline,
        work: impl Future<Output = Result<(), DcsError>> + Send,
    ) -> Result<(), DcsError> {
        let began = Instant::now();
        let outcome = self.call(operation, by, work).await;
        let took_ms = began.elapsed().as_millis();
        let (verdict, why) = match &outcome {
            Ok(()) => ("done", String::new()),
            Err(error) => (kind(error), error.to_string()),
        };
        let store = self.store;
        let now = Some((operation, verdict));
        let before = {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *said, now)
        };
        if before == now {
            tracing::debug!(store, operation, verdict, took_ms, %why, "the lock");
        } else {
            tracing::info!(store, operation, verdict, took_ms, %why, "the lock");
        }
        outcome
    }
}

fn kind(error: &DcsError) -> &'static str {
    match error {
        DcsError::NotOwner { .. } => "not owner",
        DcsError::Conflict { .. } => "conflict",
        DcsError::Unreachable { .. } => "unreachable",
        DcsError::Refused { .. } => "refused",
        DcsError::NotRetriable { .. } => "not retriable",
    }
}

#[cfg(all(test, feature = "raft"))]
mod tests {
    use super::*;
    use hathi_dcs::{MemberName, Scope, Status, Timing};
    use std::io::Write;

    /// Where the lines go.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        /// The lines about the lock since the last look.
        fn taken(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
            text.lines().filter(|line| line.contains("the lock ")).map(str::to_owned).collect()
        }
    }

    /// Proves DCS-300: each verdict on the lock is one line with the store, what was asked, what was
    /// answered and how long it took; the same again is not said again.
    #[tokio::test]
    async fn a_verdict_is_said_once() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let _said = tracing::subscriber::set_default(subscriber.finish());
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let config = hathi_raft::RaftConfig::new(address, dir.path());
        let scope = Scope::new("service", "batman");
        let (me, timing) = (MemberName::from("a"), Timing::default());
        let store = hathi_raft::RaftStore::start(config, scope, me, timing).await.unwrap();
        let dcs = Measured::of(store.clone(), Arc::default());
        let by = || Deadline::in_ms(20_000);
        dcs.acquire_leader(by()).await.unwrap();
        let said = lines.taken();
        assert_eq!(said.len(), 1, "{said:?}");
        for part in
            [r#"store="raft""#, r#"operation="acquire leader""#, r#"verdict="done""#, "took_ms="]
        {
            assert!(said[0].contains(part), "{part}: {}", said[0]);
        }
        for _ in 0..3 {
            dcs.renew_leader(by()).await.unwrap();
        }
        assert_eq!(lines.taken().len(), 1, "the first renewal is new, the others are not");
        dcs.write_status(&Status::default(), by()).await.unwrap();
        assert!(lines.taken().is_empty(), "no verdict on the lock");
        dcs.release_leader(None, by()).await.unwrap();
        dcs.release_leader(None, by()).await.unwrap_err();
        let said = lines.taken();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].contains(r#"verdict="not owner""#), "{}", said[1]);
        assert!(said[1].contains("held by nobody we know"), "{}", said[1]);
        store.shutdown().await;
    }
}
