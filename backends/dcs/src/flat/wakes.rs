//! The one watch of this process: begun again for ever, and the streams of changes fed by it.

use super::Flat;
use crate::Change;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// How many changes may wait for a slow reader before it gets `Everything` instead.
const BACKLOG: usize = 64;
/// Between the end of a watch and the next try; doubles while there is none.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Where a watch says what changed.
pub struct Wake(broadcast::Sender<Change>);

impl Wake {
    pub fn say(&self, change: Change) {
        // Nobody listening is no error.
        let _ = self.0.send(change);
    }
}

/// How one watch ended.
pub struct Ended {
    /// It had begun: the copy lived.
    pub served: bool,
    pub why: String,
}

pub(super) struct Wakes {
    changes: broadcast::Sender<Change>,
    task: tokio::task::AbortHandle,
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wakes {
    pub fn start<S: Flat>(store: Arc<S>) -> Arc<Self> {
        let changes = broadcast::Sender::new(BACKLOG);
        let task = tokio::spawn(run(store, Wake(changes.clone()))).abort_handle();
        Arc::new(Self { changes, task })
    }

    /// Keeps the watch alive, also when the handle is gone; never ends.
    pub fn stream(self: Arc<Self>) -> BoxStream<'static, Change> {
        // Lagging is the only error: the reader missed something.
        BroadcastStream::new(self.changes.subscribe())
            .map(|change| change.unwrap_or(Change::Everything))
            .chain(futures::stream::pending())
            .map(move |change| {
                let _keep = &self;
                change
            })
            .boxed()
    }
}

async fn run<S: Flat>(store: Arc<S>, wake: Wake) {
    let mut pause = SHORTEST;
    loop {
        let Ended { served, why } = tokio::select! {
            ended = store.watch_once(&wake) => ended,
            () = store.kept().is_to_begin_anew() => {
                Ended { served: true, why: "it did not show what the store said".to_owned() }
            }
        };
        store.kept().copy.dies();
        if served {
            pause = SHORTEST;
            tracing::info!(%why, "the watch on {} ended", S::KIND);
        } else {
            tracing::debug!(%why, "no watch on {} yet", S::KIND);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}
