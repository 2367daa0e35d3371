//! How many connections are open, and which one goes when there are too many: the one that has been
//! idle longest, and before a newcomer is turned away the oldest reader. Only an order under way keeps
//! its place, and orders are counted. So whoever only sends half of something, or nothing, or asks for
//! much at once, never keeps a load balancer out. (REST-320, REST-451)

use crate::api::tally::Tally;
use hathi_dcs::boottime;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug)]
pub struct Connections {
    most: usize,
    tally: Arc<Tally>,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Line>>>,
}

/// One open connection.
#[derive(Debug)]
pub struct Line {
    doing: AtomicU8,
    /// Milliseconds of the clock when it began to wait for its client.
    idle_since: AtomicU64,
    /// Told to make room.
    dropped: Notify,
}

/// It waits for its client: nothing was sent, half of a request, or the answer is being read.
const WAITING: u8 = 0;
/// A question is being answered.
const ANSWERING: u8 = 1;
/// An order is carried out; whoever gave it wants to know what came of it.
const ORDERED: u8 = 2;

impl Line {
    pub fn answers(&self) {
        self.doing.store(ANSWERING, Ordering::Relaxed);
    }

    /// The whole of an order is here, and whoever sent it may give it.
    pub fn obeys(&self) {
        self.doing.store(ORDERED, Ordering::Relaxed);
    }

    pub fn waits(&self) {
        self.idle_since.store(boottime().0, Ordering::Relaxed);
        self.doing.store(WAITING, Ordering::Relaxed);
    }

    /// Who goes first; `None`: not this one.
    fn rank(&self) -> Option<(u8, u64)> {
        let doing = self.doing.load(Ordering::Relaxed);
        (doing < ORDERED).then(|| (doing, self.idle_since.load(Ordering::Relaxed)))
    }

    pub async fn told_to_go(&self) {
        self.dropped.notified().await;
    }
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    pub line: Arc<Line>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.remove(&self.id);
        self.connections.tally.open.store(open.len() as u64, Ordering::Relaxed);
    }
}

impl Connections {
    pub fn new(most: usize, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self { most, tally, next: AtomicU64::new(0), open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Line>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn most(&self) -> usize {
        self.most
    }

    pub fn is_full(&self) -> bool {
        self.lock().len() >= self.most
    }

    /// A place for a new connection; `None` when all of them carry out orders.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.len() >= self.most {
            let oldest = open
                .iter()
                .filter_map(|(id, line)| Some((line.rank()?, *id)))
                .min()
                .map(|(_, id)| id)?;
            if let Some(line) = open.remove(&oldest) {
                line.dropped.notify_one();
                self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let line = Arc::new(Line {
            doing: AtomicU8::new(WAITING),
            idle_since: AtomicU64::new(boottime().0),
            dropped: Notify::new(),
        });
        open.insert(id, Arc::clone(&line));
        self.tally.open.store(open.len() as u64, Ordering::Relaxed);
        Some(Place { connections: Arc::clone(self), id, line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// Proves REST-451 (who goes: the idle before the readers, orders never).
    #[tokio::test]
    async fn the_oldest_idle_one_makes_room() {
        let connections = Connections::new(2, Arc::default());
        let goes = |place: &Place| place.line.told_to_go().now_or_never().is_some();
        let first = connections.admit().expect("room");
        let second = connections.admit().expect("room");
        first.line.answers();
        let third = connections.admit().expect("room is made");
        assert!(goes(&second) && !goes(&first), "the idle one");
        third.line.obeys();
        let fourth = connections.admit().expect("room is made");
        assert!(goes(&first) && !goes(&third), "the reader");
        fourth.line.obeys();
        assert!(connections.admit().is_none(), "orders keep their places");
        fourth.line.waits();
        assert!(connections.admit().is_some());
        assert!(goes(&fourth) && !goes(&third));
    }
}
