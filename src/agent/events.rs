//! Where the loop's reasons to look come from: the store's watch and the signals. (HA-300)

use crate::agent::configuration::InUse;
use crate::ha::run::{Event, Events};
use futures::StreamExt;
use hathi_dcs::Dcs;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hands every change in the store to the loop.
pub async fn watch_store(dcs: Arc<dyn Dcs>, events: Events) {
    let mut changes = dcs.watch();
    while let Some(change) = changes.next().await {
        events.post(Event::Store(change));
    }
}

/// SIGTERM, SIGINT and SIGHUP, held from the start on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Completes with the first SIGTERM or SIGINT; a SIGHUP before it is dropped.
    pub async fn end(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {}
            }
        }
    }

    /// Serves them for as long as the agent lives.
    pub async fn serve(mut self, events: Events, configuration: Arc<InUse>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => events.post(Event::Shutdown),
                _ = self.interrupt.recv() => events.post(Event::Shutdown),
                _ = self.hangup.recv() => reload(&configuration, &events).await,
            }
        }
    }
}

/// SIGHUP and POST /reload. (CFG-070)
pub async fn reload(configuration: &InUse, events: &Events) {
    match configuration.reload().await {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(why) => tracing::error!("configuration not reloaded: {why}"),
    }
    events.post(Event::Poke("reload"));
}
