//! The listening side: who may connect, and what each question gets.

use crate::config::{StartError, node_id};
use crate::node::{Node, Phase, lock};
use crate::peers::{Answer, Ask, Question, Response};
use crate::types::{AppendReply, VoteReply};
use crate::wire::{self, Conn, WireError};
use crate::{elect, join, keep};
use hathi_dcs::boottime;
use openraft::LogId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};

/// Connections at the same time; three per member would do.
const CONNECTIONS: usize = 64;
/// Questions of one connection being answered at the same time; the next one waits unread.
const QUESTIONS: usize = 64;
const IDLE: Duration = Duration::from_secs(120);

pub(crate) fn listen(addr: SocketAddr) -> Result<TcpListener, StartError> {
    let open = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(128)
    };
    open().map_err(|error| StartError::Listen { addr, why: error.to_string() })
}

pub(crate) async fn accept(node: Arc<Node>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut said = 0;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("raft: accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let node = node.clone();
        said += 1;
        let number: u64 = said;
        tokio::spawn(async move {
            let _place = place;
            match greeted(&node, stream).await {
                Ok((peer, conn)) => {
                    let why = answer_all(node, peer, conn).await;
                    tracing::debug!("raft: connection {number} from {from} ended: {why}");
                }
                // Port scans and health checks end here, too.
                Err(WireError::Io(why)) => tracing::debug!("raft: {from} left: {why}"),
                Err(WireError::Refused(why)) => tracing::warn!("raft: refused {from}: {why}"),
                Err(error) => tracing::warn!("raft: refused {from}: {error}"),
            }
        });
    }
}

/// Who it is, once it has proved that it may talk to us.
async fn greeted(node: &Node, stream: TcpStream) -> Result<(u64, Conn), WireError> {
    stream.set_nodelay(true)?;
    let password = node.config.password.as_deref().unwrap_or_default();
    let greeting = wire::welcome(stream, password, |hello| {
        if hello.cluster != node.cluster {
            return Err(format!(
                "a member of cluster {:?} asked cluster {:?}",
                hello.cluster, node.cluster
            ));
        }
        if hello.to != node.config.self_addr {
            return Err(format!("{:?} was asked for {:?}", node.config.self_addr, hello.to));
        }
        if !node.config.partner_addrs.contains(&hello.from) {
            return Err(format!(
                "{:?} is not in raft.partner_addrs of {:?}",
                hello.from, node.config.self_addr
            ));
        }
        Ok(())
    });
    let (hello, conn) =
        tokio::time::timeout(wire::GREETING, greeting).await.map_err(|_| WireError::Timeout)??;
    Ok((node_id(&hello.from), conn))
}

async fn answer_all(node: Arc<Node>, peer: u64, mut conn: Conn) -> WireError {
    let (done, mut answers) = mpsc::channel::<Response>(QUESTIONS);
    let places = Arc::new(Semaphore::new(QUESTIONS));
    let why = loop {
        tokio::select! {
            question = conn.recv::<Question>(), if places.available_permits() > 0 => {
                let Question { id, ask } = match question {
                    Ok(question) => question,
                    Err(error) => break error,
                };
                // What an idle member lives by: answered on the spot.
                let quick = match &ask {
                    Ask::Alive { vote, applied } => {
                        Some(elect::hears_leader(&node, peer, vote, *applied))
                    }
                    Ask::Keep { vote, applied, lease } => {
                        Some(keep::told(&node, peer, vote, *applied, *lease))
                    }
                    _ => None,
                };
                if let Some(answer) = quick {
                    let limit = Duration::from_secs(5);
                    match tokio::time::timeout(limit, conn.send(&Response { id, answer })).await {
                        Ok(Ok(())) => continue,
                        Ok(Err(error)) => break error,
                        Err(_) => break WireError::Timeout,
                    }
                }
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let (node, done) = (node.clone(), done.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let answer = answer(&node, peer, ask).await;
                    // The connection may be gone: nobody waits any more.
                    let _ = done.send(Response { id, answer }).await;
                });
            }
            Some(response) = answers.recv() => {
                match tokio::time::timeout(Duration::from_secs(5), conn.send(&response)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break error,
                    Err(_) => break WireError::Timeout,
                }
            }
            () = tokio::time::sleep(IDLE) => break WireError::Timeout,
        }
    };
    elect::connection_broke(&node, peer);
    why
}

async fn answer(node: &Arc<Node>, from: u64, ask: Ask) -> Answer {
    match ask {
        Ask::Append(append) => {
            join::hears_of_a_leader(node);
            if let Err(why) = join::may_follow(node, &append.vote) {
                return Answer::No(why);
            }
            let (vote, commit) = (append.vote, append.leader_commit);
            match node.engine.append_entries(append).await {
                Err(error) => Answer::No(error.to_string()),
                Ok(reply) => {
                    if !matches!(reply, AppendReply::HigherVote(_)) {
                        elect::sign_of_life(node, from);
                    }
                    if matches!(reply, AppendReply::Success | AppendReply::PartialSuccess(_)) {
                        join::has_caught_up(node, &vote, commit);
                    }
                    Answer::Append(reply)
                }
            }
        }
        Ask::Chunk(chunk) => {
            join::hears_of_a_leader(node);
            if let Err(why) = join::may_follow(node, &chunk.vote) {
                return Answer::No(why);
            }
            match node.engine.install_snapshot(chunk).await {
                Err(error) => Answer::No(error.to_string()),
                Ok(reply) => {
                    elect::sign_of_life(node, from);
                    Answer::Chunk(reply)
                }
            }
        }
        Ask::Vote(vote) => {
            let phase = *lock(&node.phase);
            match phase {
                Phase::Unknown | Phase::Rejoining => {
                    let mine = node.log.vote().unwrap_or_default();
                    let last: Option<LogId<u64>> = node.log.last_log_id();
                    Answer::Vote(VoteReply::new(mine, last, false))
                }
                Phase::Member => match node.engine.vote(vote).await {
                    Err(error) => Answer::No(error.to_string()),
                    Ok(reply) => Answer::Vote(reply),
                },
            }
        }
        Ask::Alive { vote, applied } => elect::hears_leader(node, from, &vote, applied),
        Ask::Keep { vote, applied, lease } => keep::told(node, from, &vote, applied, lease),
        Ask::TakeOver => match elect::take_over(node).await {
            Ok(()) => Answer::TakeOver,
            Err(why) => Answer::No(why),
        },
        Ask::WouldVote(last) => Answer::WouldVote(elect::would_vote(node, last, boottime())),
        Ask::Who => join::who(node, from),
        Ask::Write(command) => match node.write_here(command).await {
            Ok((index, reply)) => Answer::Written { index, reply },
            Err(why) => Answer::No(why),
        },
        Ask::ReadIndex => match node.read_index_here().await {
            Ok(index) => Answer::ReadIndex(index),
            Err(why) => Answer::No(why),
        },
    }
}
