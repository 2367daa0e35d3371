//! What is rendered once per change, so that an answer costs a look-up: the status document's bytes
//! and the words the checks judge by. (REST-452)

use crate::api::cluster;
use crate::api::document::{self, Told};
use crate::api::order::Order;
use crate::api::pyjson;
use crate::api::snapshot::Snapshot;
use crate::ha::ports::{Observation, Server};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hathi_dcs::{Millis, boottime};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

/// How long `GET /patroni` waits for a fresh look at PostgreSQL: what the agent is given for it
/// ([`Order::FreshStatus`]), and a little for the way, so that "PostgreSQL does not answer" arrives.
const FRESH_WITHIN: Duration = Duration::from_millis(700);
/// Who asks `/patroni` again and again has a look taken this often, and does not wait for it ...
const RENEWED_AFTER_MS: u64 = 20;
/// ... unless the last one is older than this.
const RECENT_MS: u64 = 50;
/// Positions shown while somebody asks are not older than this. (REST-452)
const STALE_AFTER_MS: u64 = 1000;

/// One snapshot, as it reads during one span of time in which no deadline passes.
#[derive(Debug)]
pub struct Prepared {
    pub snapshot: Arc<Snapshot>,
    pub told: Told,
    /// The status document.
    pub document: Bytes,
    /// `/cluster`, made when first asked for; `None` inside: no valid view.
    cluster: OnceLock<Option<Bytes>>,
    key: Key,
}

/// What the rendering depends on, besides the snapshot's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    looked_at: Millis,
    view_is_valid: bool,
    failsafe: bool,
}

impl Prepared {
    pub fn of(snapshot: Arc<Snapshot>, now: Millis) -> Self {
        let key = Key::of(&snapshot, now);
        let told = Told::of(&snapshot, now);
        let document = Bytes::from(pyjson::text(&document::render(&snapshot, &told, now)));
        Self { snapshot, told, document, cluster: OnceLock::new(), key }
    }

    /// The answer of `/cluster`; `None` while the cluster is not known.
    pub fn cluster(&self) -> Option<Bytes> {
        self.cluster
            .get_or_init(|| {
                let view = self.key.view_is_valid.then_some(self.snapshot.view.as_ref()).flatten();
                view.map(|(view, _)| {
                    Bytes::from(pyjson::text(&cluster::render(&self.snapshot, view)))
                })
            })
            .clone()
    }
}

impl Key {
    fn of(effective: &Snapshot, now: Millis) -> Self {
        Self {
            looked_at: effective.observed_at,
            view_is_valid: effective.valid_view(now).is_some(),
            failsafe: effective.failsafe_active(now),
        }
    }
}

/// A look under way: whether it still is, and its end. The end is only noticed by who waits for it,
/// and perhaps nobody does; so the task itself is asked.
#[derive(Debug)]
struct Look {
    /// Orders answered when it began.
    orders: u64,
    task: AbortHandle,
    end: LookEnd,
}

type LookEnd = Shared<BoxFuture<'static, ()>>;

/// The prepared answers of this node, shared by all routes.
#[derive(Debug)]
pub struct Shelf {
    published: watch::Receiver<Arc<Snapshot>>,
    orders: mpsc::Sender<Order>,
    /// The published snapshot and what was made of it.
    cached: Mutex<Option<(Arc<Snapshot>, Arc<Prepared>)>>,
    /// A look at PostgreSQL newer than the published one, and when it was asked for.
    looked: Mutex<Option<(Observation, Millis)>>,
    /// The look under way, shared by everyone who wants one now.
    looking: Mutex<Option<Look>>,
    /// When the last look was asked for.
    asked_at: Mutex<Millis>,
    /// Orders answered so far; the effect of one is only seen by a look that begins later.
    ordered: AtomicU64,
    /// How many of them the looks taken so far have seen.
    covered: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    pub fn new(
        published: watch::Receiver<Arc<Snapshot>>,
        orders: mpsc::Sender<Order>,
    ) -> Arc<Self> {
        Arc::new(Self {
            published,
            orders,
            cached: Mutex::new(None),
            looked: Mutex::new(None),
            looking: Mutex::new(None),
            asked_at: Mutex::new(Millis(0)),
            ordered: AtomicU64::new(0),
            covered: AtomicU64::new(0),
        })
    }

    pub fn orders(&self) -> &mpsc::Sender<Order> {
        &self.orders
    }

    /// Wakes whoever wants to know of changes.
    pub fn published(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.clone()
    }

    /// The answers as of `now`: whatever the agent published before this call is in them.
    pub fn at(&self, now: Millis) -> Arc<Prepared> {
        let published = self.published.borrow().clone();
        let mut cached = lock(&self.cached);
        if let Some((of, prepared)) = &*cached
            && Arc::ptr_eq(of, &published)
            && prepared.key == Key::of(&prepared.snapshot, now)
            && !self.has_newer_look(prepared.snapshot.observed_at)
        {
            return prepared.clone();
        }
        let effective = self.with_look(&published);
        let prepared = Arc::new(Prepared::of(effective, now));
        *cached = Some((published, prepared.clone()));
        prepared
    }

    fn has_newer_look(&self, than: Millis) -> bool {
        lock(&self.looked).as_ref().is_some_and(|(_, at)| *at > than)
    }

    fn with_look(&self, published: &Arc<Snapshot>) -> Arc<Snapshot> {
        match &*lock(&self.looked) {
            Some((observation, at)) if *at > published.observed_at => {
                let mut snapshot = Snapshot::clone(published);
                snapshot.postgres = observation.clone();
                snapshot.observed_at = *at;
                Arc::new(snapshot)
            }
            Some(_) | None => published.clone(),
        }
    }

    /// Has a look taken in the background when the last one is old: the caller does not wait, the
    /// next one sees it. (REST-452)
    pub fn keep_fresh(self: &Arc<Self>, prepared: &Prepared, now: Millis) {
        if now.since(prepared.snapshot.observed_at) > STALE_AFTER_MS
            && now.since(*lock(&self.asked_at)) > STALE_AFTER_MS
        {
            drop(self.look(now));
        }
    }

    /// An order was carried out, or may have been.
    pub fn ordered(&self) {
        self.ordered.fetch_add(1, Ordering::AcqRel);
    }

    /// The answers as some moments ago at most: with the effect of every order that was answered, and of
    /// whatever the agent noticed. Only who asks after a silence waits for the look that makes them so;
    /// while many ask, looks are taken beside them. (REST-452)
    pub async fn recent(self: &Arc<Self>) -> Arc<Prepared> {
        let now = boottime();
        let prepared = self.at(now);
        let orders = self.ordered.load(Ordering::Acquire);
        let age = now.since(prepared.snapshot.observed_at);
        // Who waited for a PostgreSQL that does not answer waited for all who come after.
        let silent = matches!(prepared.snapshot.postgres.server, Server::Silent(_));
        let bound = if silent { STALE_AFTER_MS } else { RECENT_MS };
        if self.covered.load(Ordering::Acquire) >= orders && age <= bound {
            if age >= RENEWED_AFTER_MS {
                drop(self.look(now));
            }
            return prepared;
        }
        match self.under_way() {
            Some((seen, end)) if seen >= orders => self.within_deadline(end).await,
            Some(_) | None => self.as_of_now().await,
        }
    }

    /// The answers after a look that began after this call; after the deadline, what is known then.
    /// For who decides by them: another member in a leader race. (REST-346)
    pub async fn as_of_now(self: &Arc<Self>) -> Arc<Prepared> {
        self.within_deadline(async {
            // PostgreSQL may have answered the one under way before the question was asked.
            if let Some((_, end)) = self.under_way() {
                end.await;
            }
            self.look(boottime()).await;
        })
        .await
    }

    async fn within_deadline(&self, looking: impl Future<Output = ()>) -> Arc<Prepared> {
        // Too late is an answer, too: the last known one.
        let _ = tokio::time::timeout(FRESH_WITHIN, looking).await;
        self.at(boottime())
    }

    /// How many orders it sees, and its end.
    fn under_way(&self) -> Option<(u64, LookEnd)> {
        let looking = lock(&self.looking);
        let look = looking.as_ref().filter(|look| !look.task.is_finished())?;
        Some((look.orders, look.end.clone()))
    }

    fn look(self: &Arc<Self>, now: Millis) -> LookEnd {
        let mut looking = lock(&self.looking);
        if let Some(under_way) = &*looking
            && !under_way.task.is_finished()
        {
            return under_way.end.clone();
        }
        *lock(&self.asked_at) = now;
        let orders = self.ordered.load(Ordering::Acquire);
        // A look that begins in the millisecond of what was published is still the later one.
        let now = now.max(self.published.borrow().observed_at.plus(1));
        let shelf = Arc::clone(self);
        // A task of its own: the first asker may hang up, the others still get their answer.
        let task = tokio::spawn(async move { shelf.ask_for_look(now, orders).await });
        let handle = task.abort_handle();
        let end = async move {
            let _ = task.await;
        }
        .boxed()
        .shared();
        *looking = Some(Look { orders, task: handle, end: end.clone() });
        end
    }

    async fn ask_for_look(&self, now: Millis, orders: u64) {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.orders.send(Order::FreshStatus { reply }).await.ok()?;
            answer.await.ok()
        };
        if let Ok(Some(observation)) = tokio::time::timeout(FRESH_WITHIN, ask).await {
            let mut looked = lock(&self.looked);
            // Two looks within one millisecond are still two.
            let at = looked.as_ref().map_or(now, |(_, before)| now.max(before.plus(1)));
            *looked = Some((observation, at));
            drop(looked);
            self.covered.fetch_max(orders, Ordering::AcqRel);
        }
    }
}
