//! The thread a member lives on, and the way into it from the agent's own runtime. (DCS-197)

use crate::config::{RaftConfig, StartError};
use crate::node::{Node, Own, lock};
use crate::state::{Copy, Event};
use hathi_dcs::{DcsError, Deadline, boottime};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::sync::{PoisonError, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, broadcast};

/// Wake-ups kept for one slow reader.
const WAKES: usize = 128;
/// After an engine failed (a disk full, say) it is started again from its disk this much later.
const AGAIN: Duration = Duration::from_secs(5);

enum Slot {
    Up(Arc<Node>),
    Down(String),
}

pub(crate) struct Hub {
    config: RaftConfig,
    cluster: String,
    slot: Arc<RwLock<Slot>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) own: Own,
    stop: Arc<(AtomicBool, Notify)>,
    thread: Mutex<Option<JoinHandle<()>>>,
    #[cfg(test)]
    pub(crate) faults: Arc<crate::tests::Faults>,
}

impl Hub {
    /// Starts the member and returns once it listens. Blocks for as long as its disk needs.
    pub(crate) fn start(config: RaftConfig, cluster: String) -> Result<Self, StartError> {
        let config = config.checked()?;
        if config.password.as_deref().unwrap_or_default().is_empty()
            && !config.partner_addrs.is_empty()
        {
            tracing::warn!("raft.password is not set: whoever reaches the port can write");
        }
        if config.partner_addrs.len() == 1 {
            tracing::warn!(
                "raft: of two members both must live; add a third, a witness without PostgreSQL \
                 is enough, or there is no automatic failover"
            );
        }
        let (events, _) = broadcast::channel(WAKES);
        let hub = Self {
            config,
            cluster,
            slot: Arc::new(RwLock::new(Slot::Down("it is starting".to_owned()))),
            events,
            own: Own::default(),
            stop: Arc::default(),
            thread: Mutex::new(None),
            #[cfg(test)]
            faults: Arc::default(),
        };
        hub.run()?;
        Ok(hub)
    }

    /// Starts the thread; used again by tests that killed it.
    pub(crate) fn run(&self) -> Result<(), StartError> {
        self.stop.0.store(false, Ordering::SeqCst);
        let (say, started) = std::sync::mpsc::channel();
        let (config, cluster, events) =
            (self.config.clone(), self.cluster.clone(), self.events.clone());
        let (slot, stop, own) = (self.slot.clone(), self.stop.clone(), self.own.clone());
        #[cfg(test)]
        let faults = self.faults.clone();
        let thread = std::thread::Builder::new().name("hathi-raft".to_owned()).spawn(move || {
            let mut say = Some(say);
            while !stop.0.load(Ordering::SeqCst) {
                let outcome = live(
                    &config,
                    &cluster,
                    &events,
                    &own,
                    &slot,
                    &stop,
                    &mut say,
                    #[cfg(test)]
                    &faults,
                );
                let why = match outcome {
                    Ok(why) => why,
                    Err(error) => match say.take() {
                        // The starter hears it; there is nothing to keep alive.
                        Some(say) => {
                            let _ = say.send(Err(error));
                            return;
                        }
                        None => error.to_string(),
                    },
                };
                if !stop.0.load(Ordering::SeqCst) {
                    tracing::error!("raft: this member stopped: {why}; it starts again");
                    let end = boottime().plus(AGAIN.as_millis() as u64);
                    while boottime() < end && !stop.0.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        });
        let thread = thread.map_err(|error| StartError::Runtime(error.to_string()))?;
        *lock(&self.thread) = Some(thread);
        started.recv().unwrap_or_else(|_| Err(StartError::Runtime("its thread ended".to_owned())))
    }

    fn slot(&self) -> RwLockReadGuard<'_, Slot> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn node(&self) -> Result<Arc<Node>, String> {
        match &*self.slot() {
            Slot::Up(node) => Ok(node.clone()),
            Slot::Down(why) => Err(format!("this member's store does not run: {why}")),
        }
    }

    /// Runs `work` on the raft thread until it is done or `by` has passed. `work` gets the place
    /// where it says how its last attempt went.
    pub(crate) async fn call<T, F>(
        &self,
        by: Deadline,
        work: impl FnOnce(Arc<Node>, Arc<Mutex<String>>) -> F,
    ) -> Result<T, DcsError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let began = boottime();
        let unreachable = |why: String| DcsError::unreachable("raft", boottime().since(began), why);
        let why = Arc::new(Mutex::new("this member's store does not answer".to_owned()));
        let node = match self.node() {
            Ok(node) => node,
            Err(down) => {
                tokio::time::sleep(Duration::from_millis(50).min(by.left())).await;
                return Err(unreachable(down));
            }
        };
        let runtime = node.runtime.clone();
        let work = work(node, why.clone());
        let mut task = runtime.spawn(tokio::time::timeout(by.left(), work));
        let answer = tokio::time::timeout(by.left(), &mut task).await;
        match answer {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => {
                task.abort();
                let why = lock(&why).clone();
                Err(unreachable(why))
            }
        }
    }

    /// Reads this member's own copy, if it is known to be as new as a living leader makes it.
    pub(crate) fn peek<T>(&self, read: impl FnOnce(&Copy) -> T) -> Option<T> {
        let node = self.node().ok()?;
        node.in_touch().then(|| read(&node.state.copy()))
    }

    /// Stops the member and waits until its port and its directory are free.
    pub(crate) fn stop(&self) {
        self.stop.0.store(true, Ordering::SeqCst);
        self.stop.1.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::SeqCst);
        self.stop.1.notify_one();
    }
}

/// One life of the member: until it is told to stop or its engine fails, and why.
#[allow(clippy::too_many_arguments)]
fn live(
    config: &RaftConfig,
    cluster: &str,
    events: &broadcast::Sender<Event>,
    own: &Own,
    slot: &RwLock<Slot>,
    stop: &(AtomicBool, Notify),
    say: &mut Option<std::sync::mpsc::Sender<Result<(), StartError>>>,
    #[cfg(test)] faults: &Arc<crate::tests::Faults>,
) -> Result<String, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|error| StartError::Runtime(error.to_string()))?;
    let set = |new: Slot| {
        *slot.write().unwrap_or_else(PoisonError::into_inner) = new;
        // Whatever was missed meanwhile.
        let _ = events.send(Event::Everything);
    };
    let why = runtime.block_on(async {
        let node = Node::start(
            config.clone(),
            cluster.to_owned(),
            events.clone(),
            own.clone(),
            #[cfg(test)]
            faults.clone(),
        )
        .await?;
        set(Slot::Up(node.clone()));
        if let Some(say) = say.take() {
            let _ = say.send(Ok(()));
        }
        let mut metrics = node.engine.metrics();
        let mut failed = std::pin::pin!(metrics.wait_for(|metrics| metrics.running_state.is_err()));
        tokio::select! {
            () = stop.1.notified() => {
                #[cfg(test)]
                let planned = !faults.crash.load(Ordering::SeqCst);
                #[cfg(not(test))]
                let planned = true;
                if planned {
                    crate::elect::hand_over(&node).await;
                }
                Ok("it was told to".to_owned())
            }
            failed = &mut failed => Ok(match failed {
                Ok(metrics) => match &metrics.running_state {
                    Err(error) => error.to_string(),
                    Ok(()) => "its engine ended".to_owned(),
                },
                Err(_) => "its engine ended".to_owned(),
            }),
        }
    });
    if let Ok(why) = &why {
        set(Slot::Down(why.clone()));
    }
    // Ends every task where it stands; what is on disk is whole at any moment.
    runtime.shutdown_timeout(Duration::from_secs(2));
    why
}
