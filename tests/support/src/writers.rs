//! Clients that never stop writing: one a node, straight to that node's PostgreSQL, whoever is
//! primary. Every row has its own id; what was acknowledged is remembered with the two moments
//! between which it became true.

use crate::cluster::Cluster;
use crate::ports::Place;
use crate::sql::{self, Session};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::SimpleQueryMessage;

/// One acknowledged row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub id: u64,
    pub node: usize,
    /// The timeline the row was written on.
    pub timeline: u32,
    /// Just before the statement was sent; this machine's monotonic clock.
    pub sent: Instant,
    /// Just after its acknowledgement arrived.
    pub acked: Instant,
}

#[derive(Default)]
struct Journal {
    accepted: Vec<Accepted>,
    refused: u64,
    in_doubt: u64,
}

/// What a writer found out, when it was stopped.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub accepted: Vec<Accepted>,
    /// Statements the server refused (a replica, starting up, shutting down).
    pub refused: u64,
    /// Statements without an answer: the row may be there or not.
    pub in_doubt: u64,
}

pub struct Writers {
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// The table all writers share.
pub const TABLE: &str = "hathi_rows";

impl Writers {
    /// Creates the table on the leader and starts one writer a node, each writing every `pause`.
    pub async fn start(cluster: &Cluster, pause: Duration) -> Self {
        cluster
            .wait("the writers' table", Duration::from_secs(20), || async {
                let leader = cluster.leader().await?;
                let ddl = format!(
                    "CREATE TABLE IF NOT EXISTS {TABLE} (id bigint PRIMARY KEY, node int, \
                     at timestamptz DEFAULT clock_timestamp())"
                );
                sql::query(cluster.nodes[leader].pg(), &ddl).await
            })
            .await;
        let places: Vec<SocketAddr> = cluster.nodes.iter().map(|n| n.pg()).collect();
        Self::on_ports(&places, pause)
    }

    /// The writers alone; the table is there already.
    pub fn on_ports<P: Place>(places: &[P], pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let journal = Arc::new(Mutex::new(Journal::default()));
        let next = Arc::new(AtomicU64::new(1));
        let tasks = places
            .iter()
            .enumerate()
            .map(|(node, place)| {
                let (stop, journal, next) = (stop.clone(), journal.clone(), next.clone());
                tokio::spawn(write_on(place.at(), node, pause, stop, journal, next))
            })
            .collect();
        Self { stop, journal, tasks }
    }

    pub fn accepted_count(&self) -> usize {
        self.journal.lock().unwrap_or_else(|e| e.into_inner()).accepted.len()
    }

    /// The newest acknowledged row.
    pub fn last(&self) -> Option<Accepted> {
        self.journal.lock().unwrap_or_else(|e| e.into_inner()).accepted.last().cloned()
    }

    /// The newest row that `node` acknowledged.
    pub fn last_of(&self, node: usize) -> Option<Accepted> {
        let journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        journal.accepted.iter().rev().find(|a| a.node == node).cloned()
    }

    /// Looks at the journal while it is being written; other writers wait meanwhile.
    pub fn look<T>(&self, at: impl FnOnce(&[Accepted]) -> T) -> T {
        at(&self.journal.lock().unwrap_or_else(|e| e.into_inner()).accepted)
    }

    /// Waits until a row sent after `after` is acknowledged, by whichever node.
    ///
    /// # Errors
    /// None was within `within`.
    pub async fn accepts_after(
        &self,
        after: Instant,
        within: Duration,
    ) -> Result<Accepted, String> {
        let deadline = Instant::now() + within;
        loop {
            let found = self.last().filter(|a| a.sent > after);
            if let Some(found) = found {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(format!("no write was accepted for {within:?}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends all writers and hands out what they know.
    pub async fn stop(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        let mut journal = self.journal.lock().unwrap_or_else(|e| e.into_inner());
        let journal = std::mem::take(&mut *journal);
        Written { accepted: journal.accepted, refused: journal.refused, in_doubt: journal.in_doubt }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn write_on(
    place: SocketAddr,
    node: usize,
    pause: Duration,
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
    next: Arc<AtomicU64>,
) {
    let patience = Duration::from_secs(2);
    let mut session: Option<Session> = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = session.as_ref() else {
            session = sql::connect(place, Duration::from_secs(1)).await.ok();
            if session.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            continue;
        };
        let id = next.fetch_add(1, Ordering::Relaxed);
        let insert = format!(
            "INSERT INTO {TABLE} (id, node) VALUES ({id}, {node}) \
             RETURNING pg_walfile_name(pg_current_wal_insert_lsn())"
        );
        let sent = Instant::now();
        let answer = tokio::time::timeout(patience, open.client.simple_query(&insert)).await;
        let acked = Instant::now();
        let keep =
            record(&journal, answer.ok(), open, Accepted { id, node, timeline: 0, sent, acked });
        if !keep {
            session = None;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Notes the outcome of one statement; says whether its session is still of use.
fn record(
    journal: &Mutex<Journal>,
    answer: Option<Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>>,
    session: &Session,
    row: Accepted,
) -> bool {
    let mut journal = journal.lock().unwrap_or_else(|e| e.into_inner());
    match answer {
        Some(Ok(messages)) => {
            let timeline = messages.iter().find_map(|m| match m {
                SimpleQueryMessage::Row(row) => u32::from_str_radix(row.get(0)?.get(..8)?, 16).ok(),
                _ => None,
            });
            let timeline = timeline.expect("the insert returns the WAL file's name");
            journal.accepted.push(Accepted { timeline, ..row });
            true
        }
        Some(Err(e)) => {
            // A refusal with an SQLSTATE rolled back; but class 57 (the server goes down) may
            // arrive after the commit.
            match e.code() {
                Some(code) if !code.code().starts_with("57") => journal.refused += 1,
                _ => journal.in_doubt += 1,
            }
            !session.client.is_closed()
        }
        None => {
            journal.in_doubt += 1;
            false
        }
    }
}
