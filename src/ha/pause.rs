//! A paused cluster is left alone. (section 14 of docs/spec/ha-loop.md)

use crate::ha::follower;
use crate::ha::leader::write_status;
use crate::ha::ports::Server;
use crate::ha::standby;
use crate::ha::turn::{Decided, Lock, Turn};

/// Section 14, as far as a paused cluster must be left alone: the owner keeps the lock while it is a
/// primary, a primary without any leader takes it, and nothing is started, stopped or promoted.
pub async fn paused(turn: &mut Turn<'_>) -> Decided {
    turn.memory.was_paused = true;
    turn.ports.fence.stand_down();
    turn.ports.watchdog.disable(); // HA-004, HA-130
    let me = turn.me().clone();
    match turn.lock.clone() {
        Lock::Mine { .. } if turn.pg.is_primary => {
            write_status(turn).await;
            turn.ports.fence.stand_down();
            Decided::line(format!("PAUSE: no action. I am ({me}), the leader with the lock"))
        }
        Lock::Mine { .. } if turn.settings.standby_cluster.is_some() => {
            // A standby leader keeps the lock, and may follow another remote member. (HA-131, HA-134)
            write_status(turn).await;
            match &turn.pg.server {
                Server::Standby(_) => left_alone(standby::lead(turn).await),
                Server::Primary { .. } | Server::Down | Server::Starting | Server::Silent(_) => {
                    Decided::line(format!("PAUSE: no action. I am ({me}), the standby leader"))
                }
            }
        }
        Lock::Mine { .. } if turn.memory.task.is_none() => {
            turn.because("HA-131", "the lock is mine and PostgreSQL is not a primary");
            let by = turn.store_deadline();
            let _ = turn.lease.release(turn.ports, None, by).await;
            turn.memory.want_latest = true;
            Decided::line("PAUSE: released leader key voluntarily")
        }
        Lock::Free if turn.pg.is_primary && turn.view.system_id() == turn.pg.system_id => {
            turn.because("HA-131", "a primary in a paused cluster without leader");
            let by = turn.store_deadline();
            let _ = turn.lease.acquire(turn.ports, by).await;
            turn.ports.fence.stand_down();
            Decided::line("PAUSE: acquired session lock as a leader")
        }
        Lock::Mine { .. } | Lock::Free | Lock::Lost { .. } | Lock::Unseen { .. } => {
            Decided::line(format!("PAUSE: no action. I am ({me})"))
        }
        Lock::Other { holder } if turn.pg.alive && !turn.pg.is_primary => {
            left_alone(follower::follow(turn, &holder).await)
        }
        Lock::Other { .. } => Decided::line(format!("PAUSE: no action. I am ({me})")),
    }
}

/// Nothing is stopped or started in pause.
fn left_alone(decided: Decided) -> Decided {
    match decided {
        Decided { start: None, line, .. } => Decided::line(format!("PAUSE: {line}")),
        Decided { line, .. } => Decided::line(format!("PAUSE: not done: {line}")),
    }
}
