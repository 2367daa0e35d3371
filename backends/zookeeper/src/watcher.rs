//! The one watch of this process: it covers everything below the cluster's node. (DCS-138, DCS-304)
//!
//! ```text
//!  watch ── read everything ── event, or a write of mine: read everything again, say what differs
//!    ▲                              │
//!    └── connection or session lost ┘   the copy dies
//! ```
//! The client does not renew such a watch on a new connection, and ZooKeeper would not say what was
//! missed in between; so it is begun anew, with a reading.

use crate::session::Session;
use crate::store::{Keys, Shared};
use futures::FutureExt;
use hathi_dcs::flat::copy::differences;
use hathi_dcs::flat::{Ended, Wake};
use hathi_dcs::{Change, Deadline};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use zookeeper_client::{AddWatchMode, EventType, PersistentWatcher};

/// How long one reading, or the beginning of the watch, may take.
const STEP_MS: u64 = 3_000;

fn late<E>(_: E) -> String {
    "no answer in time".to_owned()
}

impl Shared {
    pub(crate) async fn follow(&self, wake: &Wake) -> Ended {
        let mut served = false;
        let why = match self.follow_nodes(wake, &mut served).await {
            Ok(()) => "the connection is lost".to_owned(),
            Err(why) => why,
        };
        Ended { served, why }
    }

    async fn take_in(&self, session: &Session, agreed: bool) -> Result<Keys, String> {
        let began = self.kept.own();
        let step = Duration::from_millis(STEP_MS);
        let read = timeout(step, self.read_on(session, agreed)).await.map_err(late)?;
        let keys = read.map_err(|error| error.to_string())?;
        self.kept.copy.replace(began, keys.clone());
        self.kept.copy.lives();
        Ok(keys)
    }

    /// Ends with the connection.
    async fn follow_nodes(&self, wake: &Wake, served: &mut bool) -> Result<(), String> {
        let by = Deadline::in_ms(STEP_MS);
        let session = self.sessions.get(by).await.map_err(|error| error.to_string())?;
        let watching = session.client.watch(&self.root, AddWatchMode::PersistentRecursive);
        let events = timeout(by.left(), watching).await.map_err(late)?;
        let mut events = events.map_err(|error| error.to_string())?;
        let mut keys = self.take_in(&session, true).await?;
        *served = true;
        wake.say(Change::Everything);
        // The session is closed when nobody prolongs it; this must not keep it open.
        let weak = Arc::downgrade(&session);
        let mut cut = session.cuts();
        drop(session);
        loop {
            tokio::select! {
                biased;
                // Cut, or closed.
                _ = cut.wait_for(|cut| *cut) => return Ok(()),
                event = events.changed() => {
                    if event.event_type == EventType::Session {
                        return Ok(());
                    }
                }
                () = self.stirred.notified() => {}
            }
            if !drained(&mut events, &cut) {
                return Ok(());
            }
            let Some(session) = weak.upgrade() else { return Ok(()) };
            let read = self.take_in(&session, false).await?;
            differences(&keys, &read).into_iter().for_each(|change| wake.say(change));
            keys = read;
        }
    }
}

/// Takes the events that are there already: one reading answers them all. False: the connection went.
fn drained(events: &mut PersistentWatcher, cut: &watch::Receiver<bool>) -> bool {
    while !*cut.borrow()
        && let Some(event) = events.changed().now_or_never()
    {
        if event.event_type == EventType::Session {
            return false;
        }
    }
    true
}
