//! The wheel: waits for a reason to look, lets one turn happen, starts the task it asks for.

use crate::ha::lease::Lease;
use crate::ha::ports::Ports;
use futures::channel::mpsc;
use hathi_dcs::Change;
use std::sync::{Arc, Mutex, PoisonError};

/// A reason to look now. It never says what to do. (HA-300)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record in the store changed.
    Store(Change),
    /// The postmaster we watched is gone.
    PostmasterExited,
    /// The keeper's verdict on the lease changed.
    Lease,
    /// An operator's command or a reload asks for a turn now.
    Poke(&'static str),
    /// The long task ended; its report lies in the core's memory.
    TaskEnded,
    /// Stop for good: SIGTERM.
    Shutdown,
}

/// The bounded way into the loop. A full queue loses nothing: the loop is about to look anyway, and
/// shutdown and task reports have places of their own.
#[derive(Clone, Debug)]
pub struct Events {
    queue: Arc<Mutex<mpsc::Sender<Event>>>,
}

impl Events {
    /// The queue and its reading end.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (queue, reader) = mpsc::channel(256);
        (Self { queue: Arc::new(Mutex::new(queue)) }, reader)
    }

    pub fn post(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = queue.try_send(event);
    }
}

/// How the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// After [`Event::Shutdown`]: PostgreSQL is stopped, the key released (or everything left as it
    /// is, in pause). Exit code 0.
    Stopped,
    /// Something an operator must mend; one clear line. PostgreSQL is stopped unless the rule says
    /// otherwise. Exit code 1.
    Fatal(String),
}

/// Runs the core until it ends. `lease` is shared with [`crate::ha::lease::keep`], which the shell
/// runs beside it; `events` is the reading end of the queue that every source posts to.
pub async fn run(
    ports: Ports,
    lease: Arc<Lease>,
    sender: Events,
    events: mpsc::Receiver<Event>,
) -> Exit {
    let _ = (ports, lease, sender, events);
    Exit::Fatal("the core is being built".into())
}
