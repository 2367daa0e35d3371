//! The agent stops: what becomes of PostgreSQL and the key. (HA-140)
//!
//! The keeper goes on renewing while PostgreSQL shuts down, so a slow shutdown does not lose the
//! lock on the way; the key is given up only when nothing can be written here any more.

use crate::ha::lease::Lease;
use crate::ha::member;
use crate::ha::memory::Memory;
use crate::ha::ports::{Ports, Stop, StopMode, StopStep};
use crate::ha::run::Exit;
use crate::ha::task::{Context, Report, stop_and_release, stop_limit, unwatch};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::stream::StreamExt;
use hathi_dcs::Deadline;
use std::sync::Arc;

/// How long a cancelled task gets to end. (PG-091)
const CANCEL_MS: u64 = 12_000;

/// The orderly end after SIGTERM.
pub async fn stop(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    task: Option<oneshot::Receiver<Report>>,
) -> Exit {
    if let Some(task) = task {
        ports.postgres.cancel();
        let at = ports.clock.now().plus(CANCEL_MS);
        with_progress(ports, lease, async {
            let mut late = ports.clock.sleep_until(at).fuse();
            let mut task = task.fuse();
            futures::select_biased! { _ = task => {}, () = late => {} }
        })
        .await;
        // It stays cancelled: a restart whose stop took longer than we waited would otherwise start a
        // primary again after the key was given up. (INV-2)
    }
    if ports.configuration.settings().pause {
        ports.fence.stand_down();
        ports.watchdog.disable();
        lease.close();
        return Exit::Stopped;
    }
    let exit = match stop_postgres(ports, lease, memory).await {
        Ok(()) => Exit::Stopped,
        Err(why) => Exit::Fatal(format!("PostgreSQL could not be stopped: {why}")),
    };
    lease.close();
    exit
}

/// The end after something an operator must mend.
pub async fn after_fatal(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    exit: Exit,
) -> Exit {
    match &exit {
        Exit::Left(_) => {}
        Exit::Fatal(_) | Exit::Stopped => {
            // What brought us here is what the operator must read; a failed stop shows in the log.
            let _ = stop_postgres(ports, lease, memory).await;
        }
    }
    lease.close();
    exit
}

async fn stop_postgres(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
) -> Result<(), String> {
    let now = ports.clock.now();
    let pg = ports.postgres.observe(Deadline(now.plus(2_000))).await;
    let owner = lease.until(now).is_some();
    if pg.alive && owner {
        let view = memory.view.as_ref().map(|(view, _)| view.clone()).unwrap_or_default();
        let context = Context { ports: ports.clone(), lease: lease.clone(), view };
        let handed_over =
            with_progress(ports, lease, stop_and_release(&context, false, stop_limit(ports))).await;
        if let Err(why) = handed_over {
            // PostgreSQL down and the key not given up is an orderly end: the key runs out.
            let now = ports.clock.now();
            if ports.postgres.observe(Deadline(now.plus(1_000))).await.alive {
                return Err(why);
            }
        }
    } else if pg.alive {
        memory.off_duty = true;
        member::leave_duty(ports).await; // HA-197
        let how = Stop { mode: StopMode::Fast, checkpoint: false, immediate_at: None };
        let mut steps = ports.postgres.stop(how);
        while let Some(step) = steps.next().await {
            unwatch(ports, &step);
            if let StopStep::Failed(why) = step {
                return Err(why);
            }
        }
    } else if owner {
        let timing = ports.configuration.settings().timing;
        let by = Deadline(now.plus(timing.retry_timeout_ms()));
        let _ = lease.release(ports, None, by).await;
    }
    ports.fence.stand_down();
    ports.watchdog.disable();
    let now = ports.clock.now();
    let pg = ports.postgres.observe(Deadline(now.plus(1_000))).await;
    let settings = ports.configuration.settings();
    memory.published = None;
    let by = Deadline(now.plus(settings.timing.retry_timeout_ms()));
    member::publish(ports, memory, &settings, &pg, false, by).await;
    Ok(())
}

/// The keeper renews only while the loop shows progress; here this is the progress.
async fn with_progress<T>(
    ports: &Ports,
    lease: &Lease,
    work: impl std::future::Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work.fuse());
    loop {
        lease.turn_done(ports.clock.now());
        let mut tick = ports.clock.sleep_until(ports.clock.now().plus(1_000)).fuse();
        futures::select_biased! {
            done = work => return done,
            () = tick => {}
        }
    }
}
