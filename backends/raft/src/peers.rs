//! Asking the other members: one connection to each, many questions on it at once.

use crate::machine::{Command, Reply};
use crate::types::{Append, AppendReply, Chunk, ChunkReply, LogId, Vote, VoteAsk, VoteReply};
use crate::wire::{self, Conn, WireError};
use hathi_dcs::{Deadline, boottime};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for one member; more are refused at once.
const WAITING: usize = 256;
/// After a failed connection the next attempt waits this long; what is asked meanwhile fails.
const AGAIN: u64 = 100;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Append(Append),
    Vote(VoteAsk),
    Chunk(Chunk),
    /// I lead by this vote and have applied up to here: a sign of life without openraft's work.
    Alive {
        vote: Vote,
        applied: u64,
    },
    /// The same, and this lease was kept alive just now: note it. Answered as `Alive`.
    Keep {
        vote: Vote,
        applied: u64,
        lease: u64,
    },
    /// Stand for election now; I lead and will vote for you.
    TakeOver,
    /// Would you help to replace the leader by me, whose log ends here? (the pre-vote)
    WouldVote(Option<LogId>),
    /// Does a cluster exist already, as far as you know?
    Who,
    /// Only the leader answers these two.
    Write(Command),
    ReadIndex,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Append(AppendReply),
    Vote(VoteReply),
    Chunk(ChunkReply),
    Alive {
        /// I follow that vote.
        follows: bool,
        /// I have applied as much.
        complete: bool,
    },
    /// Heard; whether it worked shows in the votes.
    TakeOver,
    WouldVote(bool),
    Who {
        /// There has been a leader.
        history: bool,
        /// Its own votes and entries are all there.
        settled: bool,
        /// The highest term it knows.
        term: u64,
        /// Who asks may vote, as far as it knows.
        voter: bool,
    },
    Written {
        index: u64,
        reply: Reply,
    },
    ReadIndex(u64),
    /// Not done, and it will not be done later.
    No(String),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) id: u64,
    pub(crate) ask: Ask,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) answer: Answer,
}

type Waiter = oneshot::Sender<Result<Answer, WireError>>;

struct Pending {
    ask: Ask,
    waiter: Waiter,
}

/// A handle on one other member; the connection lives in its own task.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) addr: String,
    questions: mpsc::Sender<Pending>,
    #[cfg(test)]
    is_cut: std::sync::Arc<std::sync::atomic::AtomicBool>,
    #[cfg(test)]
    late_ms: std::sync::Arc<std::sync::atomic::AtomicU32>,
}

/// What it takes to reach a member.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) cluster: String,
    pub(crate) from: String,
    pub(crate) password: String,
    pub(crate) timeout_ms: u64,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.ask.fmt(f)
    }
}

impl Peer {
    /// Must be called on the raft runtime.
    pub(crate) fn start(addr: String, caller: Caller) -> Self {
        let (questions, asked) = mpsc::channel(WAITING);
        tokio::spawn(run(addr.clone(), caller, asked));
        Self {
            addr,
            questions,
            #[cfg(test)]
            is_cut: Default::default(),
            #[cfg(test)]
            late_ms: Default::default(),
        }
    }

    /// From now on questions are lost on their way.
    #[cfg(test)]
    pub(crate) fn cut(&self, cut: bool) {
        self.is_cut.store(cut, std::sync::atomic::Ordering::SeqCst);
    }

    /// From now on its answers come so late.
    #[cfg(test)]
    pub(crate) fn late(&self, ms: u32) {
        self.late_ms.store(ms, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) async fn ask(&self, ask: Ask, limit: Duration) -> Result<Answer, WireError> {
        #[cfg(test)]
        if self.is_cut.load(std::sync::atomic::Ordering::SeqCst) {
            tokio::time::sleep(limit).await;
            return Err(WireError::Timeout);
        }
        let (waiter, answer) = oneshot::channel();
        #[cfg(test)]
        let answer = {
            let late = self.late_ms.load(std::sync::atomic::Ordering::SeqCst);
            async move {
                let answer = answer.await;
                tokio::time::sleep(Duration::from_millis(late.into())).await;
                answer
            }
        };
        self.questions
            .try_send(Pending { ask, waiter })
            .map_err(|_| WireError::Io("too many questions are waiting".to_owned()))?;
        match tokio::time::timeout(limit, answer).await {
            Err(_) => Err(WireError::Timeout),
            Ok(Err(_)) => Err(WireError::Io("the connection was closed".to_owned())),
            Ok(Ok(answer)) => answer,
        }
    }
}

async fn connect(addr: &str, caller: &Caller) -> Result<Conn, WireError> {
    let limit = Duration::from_millis(caller.timeout_ms);
    let stream = tokio::time::timeout(limit, TcpStream::connect(addr))
        .await
        .map_err(|_| WireError::Timeout)??;
    stream.set_nodelay(true)?;
    let greeting = wire::greet(stream, &caller.cluster, &caller.from, addr, &caller.password);
    tokio::time::timeout(limit.min(wire::GREETING), greeting)
        .await
        .map_err(|_| WireError::Timeout)?
}

async fn run(addr: String, caller: Caller, mut asked: mpsc::Receiver<Pending>) {
    let mut said = None;
    while let Some(first) = asked.recv().await {
        let conn = match connect(&addr, &caller).await {
            Ok(conn) => conn,
            Err(error) => {
                let text = error.to_string();
                // Once per reason, not once per attempt.
                if said.as_ref() != Some(&text) {
                    tracing::warn!("raft: cannot talk to member {addr}: {text}");
                    said = Some(text);
                }
                let _ = first.waiter.send(Err(error.clone()));
                let again = Deadline::in_ms(AGAIN);
                while let Ok(Some(next)) = tokio::time::timeout(again.left(), asked.recv()).await {
                    let _ = next.waiter.send(Err(error.clone()));
                }
                continue;
            }
        };
        if said.take().is_some() {
            tracing::info!("raft: member {addr} is reachable again");
        }
        let why = serve(conn, first, &mut asked, &caller).await;
        tracing::debug!("raft: the connection to member {addr} ended: {why}");
    }
}

/// Runs one connection to its end. Dropping the waiters tells them.
async fn serve(
    mut conn: Conn,
    first: Pending,
    asked: &mut mpsc::Receiver<Pending>,
    caller: &Caller,
) -> WireError {
    let mut waiting: HashMap<u64, (Waiter, Deadline)> = HashMap::new();
    let mut count = 0_u64;
    let mut next = Some(first);
    // An answer this late means that the connection is dead although nobody said so.
    let late_ms = 2 * caller.timeout_ms + 1_000;
    loop {
        if let Some(Pending { ask, waiter }) = next.take() {
            waiting.retain(|_, (waiter, by)| !waiter.is_closed() || boottime() < by.0);
            count += 1;
            waiting.insert(count, (waiter, Deadline::in_ms(late_ms)));
            if waiting.len() > 4 * WAITING {
                return WireError::Timeout;
            }
            let limit = Duration::from_millis(late_ms);
            let sent = tokio::time::timeout(limit, conn.send(&Question { id: count, ask })).await;
            match sent {
                Err(_) => return WireError::Timeout,
                Ok(Err(error)) => return error,
                Ok(Ok(())) => {}
            }
        }
        let oldest = waiting.values().map(|(_, by)| *by).min();
        tokio::select! {
            response = conn.recv::<Response>() => match response {
                Err(error) => return error,
                Ok(Response { id, answer }) => {
                    if let Some((waiter, _)) = waiting.remove(&id) {
                        let _ = waiter.send(Ok(answer));
                    }
                }
            },
            question = asked.recv() => match question {
                None => return WireError::Io("this member stops".to_owned()),
                Some(question) => next = Some(question),
            },
            () = late(oldest) => return WireError::Timeout,
        }
    }
}

async fn late(oldest: Option<Deadline>) {
    match oldest {
        None => std::future::pending().await,
        Some(by) => tokio::time::sleep(by.left()).await,
    }
}
