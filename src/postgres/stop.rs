//! Stopping the server, step by step. (PG-040 … PG-048, PG-450)

use crate::ha::ports::{ControlState, Stop, StopMode, StopStep};
use crate::postgres::callbacks::Action;
use crate::postgres::child::{Run, command_line};
use crate::postgres::control;
use crate::postgres::process::{
    self, PidFile, Postmaster, children, descendants, is_auxiliary, title,
};
use crate::postgres::room::{LocalPostgres, lock, on_disk, wait_for_exit};
use crate::postgres::session::{Session, Target};
use crate::postgres::waldump::announced_position;
use futures::StreamExt;
use futures::stream::BoxStream;
use hathi_dcs::{Deadline, Millis, State, boottime};
use rustix::process::Signal;
use std::time::Duration;
use tokio::sync::mpsc;

/// "As long as it takes" for waits that need a number.
const LONG: u64 = 24 * 3600 * 1000;
/// Between two looks at the control file and the children, for the first seconds.
const TICK: Duration = Duration::from_millis(5);
/// Later: an archiver may drain for hours.
const SLOW_TICK: Duration = Duration::from_millis(50);

/// How many of the last fast stops are kept.
const FAST_STOPS: usize = 8;

impl LocalPostgres {
    /// The work goes on in a task of its own whether or not anybody reads the steps.
    pub(super) fn stop_server(&self, how: Stop) -> BoxStream<'static, StopStep> {
        // At most three steps are ever sent.
        let (steps, reader) = mpsc::channel(4);
        let room = self.clone();
        tokio::spawn(async move {
            let last = {
                let _busy = room.busy();
                room.stop_now(how, &steps).await
            };
            // A reader that went away needs no answer.
            let _ = steps.send(last).await;
        });
        futures::stream::unfold(reader, |mut reader| async move {
            reader.recv().await.map(|step| (step, reader))
        })
        .boxed()
    }

    async fn stop_now(&self, how: Stop, steps: &mpsc::Sender<StopStep>) -> StopStep {
        let settings = self.settings();
        let restarting = self.state() == State::Restarting;
        let single = PidFile::read(&settings.data_dir).filter(|file| file.pid < 0);
        if let Some(file) = single
            && process::ProcessId::of(-file.pid).is_some()
        {
            return StopStep::Failed("a single-user backend works on the data directory".into());
        }
        let Some(postmaster) = self.look_for_postmaster().await else {
            if !restarting {
                self.enter(State::Stopped);
            }
            return StopStep::Stopped;
        };
        let began = boottime();
        if how.checkpoint && how.mode == StopMode::Fast && self.state() != State::Starting {
            self.checkpoint_before_stop(&how, &postmaster).await;
        }
        if !restarting {
            self.enter(State::Stopping);
        }
        self.run_before_stop(&how, &postmaster).await;
        self.close_session();
        let signal = match how.mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        let sent = match postmaster.signal(signal) {
            Ok(sent) => sent,
            Err(why) => {
                self.enter(State::StopFailed);
                return StopStep::Failed(why);
            }
        };
        let mut watch = Progress { safe: false, shut_down: false, since: boottime() };
        let mut signalled = how.mode;
        let mut kill_at = match how.mode {
            StopMode::Fast => None,
            StopMode::Immediate => how.immediate_at,
        };
        let mut tick = TICK;
        let exit = wait_for_exit(&postmaster);
        tokio::pin!(exit);
        loop {
            tokio::select! {
                biased;
                () = &mut exit => break,
                () = tokio::time::sleep(tick) => {}
            }
            tick = if boottime().since(began) < 5_000 { TICK } else { SLOW_TICK };
            self.report(&postmaster, signalled, &mut watch, steps).await;
            let now = boottime();
            if signalled == StopMode::Fast && how.immediate_at.is_some_and(|at| now >= at) {
                tracing::warn!(target: "hathi::postgres", "the stop takes too long; stopping immediately");
                signalled = StopMode::Immediate;
                // The same time again, then without mercy. (PG-046)
                kill_at = Some(now.plus(now.since(began).max(500)));
                if let Err(why) = postmaster.signal(Signal::QUIT) {
                    self.enter(State::StopFailed);
                    return StopStep::Failed(why);
                }
            }
            if kill_at.is_some_and(|at| now >= at) {
                tracing::warn!(target: "hathi::postgres", "the immediate stop takes too long; killing");
                kill_tree(&postmaster).await;
                kill_at = Some(Millis(u64::MAX));
            }
        }
        self.report(&postmaster, signalled, &mut watch, steps).await;
        if !watch.safe {
            let _ = steps.send(StopStep::SafePoint).await;
        }
        if !restarting {
            self.enter(State::Stopped);
            if sent {
                self.fire(Action::Stop); // PG-048
            }
        }
        StopStep::Stopped
    }

    /// Tells what has been reached since the last look.
    async fn report(
        &self,
        postmaster: &Postmaster,
        mode: StopMode,
        watch: &mut Progress,
        steps: &mpsc::Sender<StopStep>,
    ) {
        let pid = postmaster.id.pid;
        if !watch.safe && on_disk(move || serves_nobody(pid)).await == Some(true) {
            watch.safe = true;
            self.note_fast_stop(mode, watch.since);
            let _ = steps.send(StopStep::SafePoint).await;
        }
        if watch.shut_down || mode == StopMode::Immediate {
            return;
        }
        let settings = self.settings();
        let data_dir = settings.data_dir.clone();
        let Some(Ok(control)) = on_disk(move || control::read(&data_dir)).await else { return };
        if control.state != ControlState::ShutDown {
            return;
        }
        watch.shut_down = true;
        if !watch.safe {
            watch.safe = true;
            self.note_fast_stop(mode, watch.since);
            let _ = steps.send(StopStep::SafePoint).await;
        }
        let archives = self.facts().row.is_some_and(|row| row.archive_mode != "off");
        let checkpoint = control.checkpoint;
        let previous = if archives {
            let limit = Deadline::in_ms(2000);
            announced_position(&settings, control.checkpoint_timeline, checkpoint, limit).await
        } else {
            checkpoint
        };
        let _ = steps.send(StopStep::ShutDown { checkpoint, previous }).await;
    }

    /// Nobody is served any more: that is how long a fast stop takes here. (HA-321)
    fn note_fast_stop(&self, mode: StopMode, since: Millis) {
        if mode == StopMode::Fast {
            let mut last = lock(&self.fast_stops);
            last.truncate(FAST_STOPS - 1);
            last.push_front(boottime().since(since));
        }
    }

    /// The longest of the last ones, in milliseconds.
    pub(super) fn longest_fast_stop(&self) -> Option<u64> {
        lock(&self.fast_stops).iter().max().copied()
    }

    /// PG-042, PG-466: its error is no reason not to stop.
    async fn checkpoint_before_stop(&self, how: &Stop, postmaster: &Postmaster) {
        let by = how.immediate_at.map_or_else(|| Deadline::in_ms(LONG), Deadline);
        let work = self.run_checkpoint(by);
        tokio::select! {
            result = work => if let Err(why) = result {
                tracing::warn!(target: "hathi::postgres", "checkpoint before the stop: {why}");
            },
            () = wait_for_exit(postmaster) => {}
        }
    }

    pub(super) async fn run_checkpoint(&self, by: Deadline) -> Result<(), String> {
        let target = Target::local(&self.settings(), 0);
        let session = Session::open(&target, by).await.map_err(|why| why.to_string())?;
        session.run("CHECKPOINT", by).await.map_err(|why| why.to_string())
    }

    /// PG-080: waited for, its exit code only logged.
    async fn run_before_stop(&self, how: &Stop, postmaster: &Postmaster) {
        let Some(text) = self.settings().before_stop.clone() else { return };
        let by = how.immediate_at.map_or_else(|| Deadline::in_ms(LONG), Deadline);
        let script = async {
            match command_line("before_stop", &text) {
                Ok(command) => Run::new("before_stop").by(by).success(command).await.map(|_| ()),
                Err(why) => Err(why),
            }
        };
        tokio::select! {
            result = script => if let Err(why) = result {
                tracing::warn!(target: "hathi::postgres", "{why}");
            },
            () = wait_for_exit(postmaster) => {}
        }
    }
}

struct Progress {
    safe: bool,
    shut_down: bool,
    /// When the signal was sent.
    since: Millis,
}

/// No child that could still answer a client. (PG-043)
fn serves_nobody(postmaster: i32) -> bool {
    children(postmaster).into_iter().all(|child| {
        let title = title(child.pid);
        // It ended between the two looks.
        title.is_empty() || is_auxiliary(&title)
    })
}

/// PG-046. The postmaster is stopped first, so that it cannot start new children.
async fn kill_tree(postmaster: &Postmaster) {
    let _ = postmaster.signal(Signal::STOP);
    let pid = postmaster.id.pid;
    let family = on_disk(move || descendants(pid)).await.unwrap_or_default();
    let _ = postmaster.signal(Signal::KILL);
    for member in &family {
        process::kill(*member, Signal::KILL);
    }
    let limit = Deadline::in_ms(5000);
    while family.iter().any(|member| member.alive().is_some()) && !limit.left().is_zero() {
        tokio::time::sleep(TICK).await;
    }
}
