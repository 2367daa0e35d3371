//! The wheel: waits for a reason to look, lets one turn happen, starts the task it asks for.
//! (section 2 of docs/design.md, section 19 of docs/spec/ha-loop.md)

use crate::ha::failsafe;
use crate::ha::journal::{Began, Calls, Decision, entry};
use crate::ha::lease::Lease;
use crate::ha::lineage;
use crate::ha::manual::Answer;
use crate::ha::memory::{AfterPromotion, Memory, Rewind, Running};
use crate::ha::operator::{Order, Said, Wish};
use crate::ha::ports::{Observation, Ports, Reason, Seen, Server, Start};
use crate::ha::record::recorded_turn;
use crate::ha::restart;
use crate::ha::shutdown;
use crate::ha::task::{self, Context, Demotion, Kind, Outcome, Report, Task};
use crate::ha::turn::{Decided, Turned};
use futures::FutureExt;
use futures::channel::{mpsc, oneshot};
use futures::stream::{FusedStream, StreamExt};
use hathi_dcs::{Change, Deadline, MemberName, Millis};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A reason to look now. It never says what to do. (HA-300)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record in the store changed.
    Store(Change),
    /// The postmaster we watched is gone.
    PostmasterExited,
    /// The keeper's verdict on the lease changed.
    Lease,
    /// An operator's command or a reload asks for a turn now.
    Poke(&'static str),
    /// Stop for good: SIGTERM.
    Shutdown,
}

/// The bounded way into the loop. A full queue loses nothing: the loop is about to look anyway, and
/// the shutdown has a place of its own.
#[derive(Clone, Debug)]
pub struct Events {
    queue: Arc<Mutex<mpsc::Sender<Event>>>,
    orders: Arc<Mutex<VecDeque<Order>>>,
    shutdown: Arc<AtomicBool>,
}

impl Events {
    /// The queue and its reading end.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (queue, reader) = mpsc::channel(256);
        let queue = Arc::new(Mutex::new(queue));
        let events = Self { queue, orders: Arc::default(), shutdown: Arc::default() };
        (events, reader)
    }

    pub fn post(&self, event: Event) {
        if event == Event::Shutdown {
            self.shutdown.store(true, Ordering::SeqCst);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = queue.try_send(event);
    }

    /// Asks for something of this member. The answer comes when it is done or refused; a reader
    /// that is cancelled means that the agent ends, or that too many wait already.
    pub fn order(&self, wish: Wish) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.len() < MOST_ORDERS {
            orders.push_back(Order { wish, reply });
        }
        drop(orders);
        self.post(Event::Poke("an operator's order"));
        answer
    }

    fn next_order(&self) -> Option<Order> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn has_orders(&self) -> bool {
        !self.orders.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn is_shutdown(&self) -> bool {
        self.shutdown.load(Ordering::SeqCst)
    }
}

/// How the loop ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// After [`Event::Shutdown`]: PostgreSQL is stopped, the key released (or everything left as it
    /// is, in pause). Exit code 0.
    Stopped,
    /// Something an operator must mend; one clear line. PostgreSQL is stopped. Exit code 1.
    Fatal(String),
    /// The same, and PostgreSQL runs on untouched. Exit code 1. (HA-038)
    Left(String),
}

/// How urgent the reasons are that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    None,
    /// Another member said something: soon, many of these together.
    Soon,
    Now,
}

/// Turns for members' news are at least this far apart.
const SOON_MS: u64 = 100;
/// Turns nobody asked for are at least this far apart.
const BREATH_MS: u64 = 20;
/// Runs of pg_rewind before it counts as failed.
const REWIND_ATTEMPTS: u32 = 3;
/// Orders that may wait for their turn.
const MOST_ORDERS: usize = 16;

/// The long task and the checkpoint that run beside the loop.
#[derive(Default)]
struct Beside {
    task: Option<oneshot::Receiver<Report>>,
    checkpoint: Option<oneshot::Receiver<bool>>,
    /// A kind of task that failed, how often in a row, and when it may be tried again.
    failed: Option<(Kind, u32, Millis)>,
    /// Waits for the outcome of the running task.
    asker: Option<oneshot::Sender<Answer>>,
    /// Comes again when the running task has ended.
    postponed: Option<Order>,
}

/// Runs the core until it ends. `lease` is shared with [`crate::ha::lease::keep`], which the shell
/// runs beside it; `events` is the reading end of the queue that every source posts to.
pub async fn run(
    ports: Ports,
    lease: Arc<Lease>,
    sender: Events,
    mut events: mpsc::Receiver<Event>,
) -> Exit {
    let mut memory = Memory::default();
    let mut beside = Beside::default();
    let mut next = ports.clock.now();
    let mut why = Why { urgency: Urgency::Now, calls: Calls::default() };
    let mut number = 0;
    loop {
        let ended = wait(&ports, &mut events, &mut beside, next, &mut why).await;
        if let Some(ended) = ended {
            why.urgency = Urgency::Now;
            if let Ended::Task(report) = &ended {
                why.calls.task_ended(report);
            }
            if let Some(exit) = note(&ports, &lease, &mut memory, &mut beside, ended).await {
                return shutdown::after_fatal(&ports, &lease, &mut memory, exit).await;
            }
        }
        if sender.is_shutdown() {
            let task = beside.task.take();
            return shutdown::stop(&ports, &lease, &mut memory, task).await;
        }
        let started = ports.clock.now();
        number += 1;
        let began = Began { number, at: started, wall: ports.clock.wall() };
        let order = beside.next_order(&sender, &memory);
        memory.wish = order.as_ref().map(|order| order.wish.clone());
        let urgent = std::mem::replace(&mut why.urgency, Urgency::None) == Urgency::Now;
        let urgent = urgent || order.is_some();
        let (turned, recording) = recorded_turn(&ports, &lease, &mut memory, urgent).await;
        let calls = std::mem::take(&mut why.calls);
        let decision = ports
            .publish
            .keeps_decisions()
            .then(|| entry(began, ports.clock.now(), &calls, &turned, recording));
        let Turned { mut decided, pg, view, reasons, said, lock: _ } = turned;
        if let (Some(order), Some(said)) = (order, said) {
            beside.reply(order, said);
        }
        if let Some(task) = decided.start.take() {
            start(&ports, &lease, &mut memory, &mut beside, view.clone(), task, &mut decided);
        }
        if memory.after_promotion == AfterPromotion::CheckpointRuns && beside.checkpoint.is_none() {
            beside.checkpoint = Some(checkpoint(&ports));
        }
        let now = ports.clock.now();
        lease.turn_done(now);
        let task = memory.task.map(|task| task.kind);
        if lease.until(now).is_none() && needs_no_fence(&pg.server, task) {
            ports.fence.stand_down();
            ports.watchdog.disable();
        }
        next = next_turn(&ports, &lease, &decided, started);
        // What waits for the end of a task is woken by that.
        if beside.postponed.is_none() && sender.has_orders() {
            why.urgency = Urgency::Now;
        }
        let times = (started, next);
        publish(&ports, &lease, &memory, &decided, (pg, reasons, decision), times);
        if let Some(exit) = decided.exit {
            return shutdown::after_fatal(&ports, &lease, &mut memory, exit).await;
        }
    }
}

/// Nothing here can write, and nothing is about to. The look is from before the turn, and the end of a task
/// is heard after it: a promotion or a bootstrap may have made a primary since. (INV-26; the simulator,
/// seed 3687)
pub(super) fn needs_no_fence(seen: &Server, task: Option<Kind>) -> bool {
    cannot_write(seen) && !task.is_some_and(Kind::concerns_a_primary)
}

/// Seen not to be a primary; a server that does not answer may be one.
fn cannot_write(server: &Server) -> bool {
    match server {
        Server::Down | Server::Standby(_) => true,
        Server::Starting | Server::Primary { .. } | Server::Silent(_) => false,
    }
}

/// Why the loop is to look.
struct Why {
    urgency: Urgency,
    calls: Calls,
}

impl Why {
    fn hear(&mut self, event: Event, me: &MemberName) {
        let urgency = weigh(&event, me);
        if urgency > Urgency::None {
            self.calls.heard(event);
        }
        self.urgency = self.urgency.max(urgency);
    }
}

/// Something beside the loop ended.
enum Ended {
    Task(Report),
    Checkpoint(bool),
}

/// Waits for the first good reason to look: the time, an event, the end of the task.
async fn wait(
    ports: &Ports,
    events: &mut mpsc::Receiver<Event>,
    beside: &mut Beside,
    mut next: Millis,
    why: &mut Why,
) -> Option<Ended> {
    let me = ports.configuration.settings().me.clone();
    loop {
        while let Ok(event) = events.try_recv() {
            why.hear(event, &me);
        }
        let now = ports.clock.now();
        match why.urgency {
            Urgency::Now => next = now,
            Urgency::Soon => next = next.min(now.plus(SOON_MS)),
            Urgency::None => {}
        }
        if let Some(ended) = beside.poll_ended() {
            return Some(ended);
        }
        if next <= now {
            return None;
        }
        let woken = {
            let mut time = ports.clock.sleep_until(next).fuse();
            let Beside { task, checkpoint, .. } = beside;
            let mut task_ended = std::pin::pin!(or_never(task.as_mut()).fuse());
            let mut checkpoint_ended = std::pin::pin!(or_never(checkpoint.as_mut()).fuse());
            let mut event = std::pin::pin!(or_silence(events).fuse());
            futures::select_biased! {
                event = event => Woken::Event(event),
                report = task_ended => Woken::Task(report),
                done = checkpoint_ended => Woken::Checkpoint(done),
                () = time => Woken::Time,
            }
        };
        match woken {
            Woken::Time => {}
            Woken::Event(event) => why.hear(event, &me),
            Woken::Task(report) => {
                beside.task = None;
                let lost = Outcome::Failed("the task was dropped".to_owned());
                let lost = Report { kind: Kind::Follow, outcome: lost };
                return Some(Ended::Task(report.unwrap_or(lost)));
            }
            Woken::Checkpoint(done) => {
                beside.checkpoint = None;
                return Some(Ended::Checkpoint(done.unwrap_or(false)));
            }
        }
    }
}

enum Woken {
    Time,
    Event(Event),
    Task(Option<Report>),
    Checkpoint(Option<bool>),
}

/// The next event; when every sender is gone only the other reasons are left.
async fn or_silence(events: &mut mpsc::Receiver<Event>) -> Event {
    if events.is_terminated() {
        return futures::future::pending().await;
    }
    match events.next().await {
        Some(event) => event,
        None => futures::future::pending().await,
    }
}

async fn or_never<T>(receiver: Option<&mut oneshot::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.await.ok(),
        None => futures::future::pending().await,
    }
}

impl Beside {
    /// One wish per turn; a postponed one goes first, and not before the task has ended.
    fn next_order(&mut self, sender: &Events, memory: &Memory) -> Option<Order> {
        match self.postponed.take() {
            Some(order) if memory.task.is_some() => {
                self.postponed = Some(order);
                None
            }
            Some(order) => Some(order),
            None => sender.next_order(),
        }
    }

    /// An asker that went away needs no answer.
    fn reply(&mut self, order: Order, said: Said) {
        match said {
            Said::Now(answer) => {
                let _ = order.reply.send(answer);
            }
            Said::WhenDone => self.asker = Some(order.reply),
            Said::Again => self.postponed = Some(order),
        }
    }

    fn poll_ended(&mut self) -> Option<Ended> {
        if let Some(Ok(Some(report))) = self.task.as_mut().map(oneshot::Receiver::try_recv) {
            self.task = None;
            return Some(Ended::Task(report));
        }
        if let Some(Ok(Some(done))) = self.checkpoint.as_mut().map(oneshot::Receiver::try_recv) {
            self.checkpoint = None;
            return Some(Ended::Checkpoint(done));
        }
        None
    }
}

/// What an event is worth. Our own records and what no decision waits for are not worth a turn.
fn weigh(event: &Event, me: &MemberName) -> Urgency {
    match event {
        Event::Store(change) => match change {
            Change::Leader | Change::Failover | Change::Initialize | Change::Everything => {
                Urgency::Now
            }
            Change::Config | Change::Sync => Urgency::Now,
            Change::Member(name) if name == me => Urgency::None,
            Change::Member(_) => Urgency::Soon,
            Change::Status | Change::History | Change::Failsafe => Urgency::None,
        },
        Event::PostmasterExited | Event::Lease | Event::Poke(_) | Event::Shutdown => Urgency::Now,
    }
}

/// Takes the report of what ended into the memory. `Some`: the agent cannot go on.
async fn note(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    beside: &mut Beside,
    ended: Ended,
) -> Option<Exit> {
    let report = match ended {
        Ended::Checkpoint(true) => {
            memory.after_promotion = AfterPromotion::Nothing;
            return None;
        }
        Ended::Checkpoint(false) => {
            memory.after_promotion = AfterPromotion::CheckpointDue;
            return None;
        }
        Ended::Task(report) => report,
    };
    memory.task = None;
    memory.task_cancelled = false;
    let gave_up = std::mem::take(&mut memory.giving_up);
    if let Some(asker) = beside.asker.take() {
        let _ = asker.send(restart::answer(&report.outcome));
    }
    memory.off_duty = false;
    memory.want_latest = true;
    ports.postgres.clear_cancel();
    let failed = match &report.outcome {
        Outcome::Done | Outcome::StillStarting => false,
        Outcome::Failed(_) | Outcome::PromotionRefused(_) | Outcome::Fatal(_) => true,
    };
    beside.failed = failed.then(|| {
        let again = match beside.failed {
            Some((kind, times, _)) if kind == report.kind => times.saturating_add(1),
            Some(_) | None => 0,
        };
        let wait = (500_u64 << again.min(5)).min(10_000);
        (report.kind, again, ports.clock.now().plus(wait))
    });
    match report.kind {
        Kind::Bootstrap => {
            memory.bootstrapping = false;
            memory.joined = !failed;
        }
        Kind::Clone => {
            lineage::forget(memory);
            memory.rewind = Rewind::NotAsked;
        }
        Kind::Rewind => {
            lineage::forget(memory);
            memory.recovering = !failed;
            memory.rewinds_failed =
                if failed { memory.rewinds_failed.saturating_add(1) } else { 0 };
            // What the leader or the network spoiled may work the next time. (HA-315)
            memory.rewind = match (failed, memory.rewinds_failed < REWIND_ATTEMPTS) {
                (false, _) => Rewind::Succeeded,
                (true, true) => Rewind::Needed,
                (true, false) => {
                    memory.rewinds_failed = 0;
                    Rewind::Failed
                }
            };
        }
        Kind::Demote => {
            memory.rewind.ask();
            // (HA-026)
            memory.left_to_others_at = (gave_up && !failed).then(|| ports.clock.now());
        }
        Kind::Promote => memory.promoted = !failed,
        Kind::StartAsPrimary
        | Kind::Follow
        | Kind::SingleUser
        | Kind::CopySlots
        | Kind::Restart { .. } => {}
    }
    match report.outcome {
        Outcome::Done | Outcome::StillStarting | Outcome::Failed(_) => None,
        Outcome::PromotionRefused(_) => {
            // HA-100, step 2.
            memory.released_at = Some(ports.clock.now());
            let timing = ports.configuration.settings().timing;
            let by = Deadline(ports.clock.now().plus(timing.retry_timeout_ms()));
            let _ = lease.release(ports, None, by).await;
            None
        }
        Outcome::Fatal(why) => Some(Exit::Fatal(why)),
    }
}

/// Starts a task, unless the same kind failed a moment ago. A demotion never waits.
fn start(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    beside: &mut Beside,
    view: Option<Arc<hathi_dcs::ClusterView>>,
    task: Task,
    decided: &mut Decided,
) {
    let now = ports.clock.now();
    let kind = task.kind();
    if let Some((failed, _, until)) = beside.failed
        && failed == kind
        && kind != Kind::Demote
        && !task.is_ordered()
        && now < until
    {
        decided.line.push_str(" (waiting after a failure)");
        decided.again_at = Some(until);
        memory.recovering = false;
        return;
    }
    memory.task = Some(Running { name: task.name(), kind, since: now });
    memory.off_duty = matches!(
        task,
        Task::Follow { restart: true, .. }
            | Task::Restart { how: Start::AsStandby(_), .. }
            | Task::CopySlots { .. }
    );
    memory.giving_up = match &task {
        // In a demotion to a standby cluster the key may be given up, or stay.
        Task::Demote(Demotion::Graceful | Demotion::Immediate | Demotion::Cluster) => true,
        Task::Demote(Demotion::LostLock | Demotion::Offline { .. })
        | Task::Bootstrap
        | Task::BootstrapStandbyLeader { .. }
        | Task::Clone { .. }
        | Task::Reinitialize { .. }
        | Task::StartAsPrimary { .. }
        | Task::Follow { .. }
        | Task::Promote
        | Task::Rewind { .. }
        | Task::SingleUser
        | Task::CopySlots { .. }
        | Task::Restart { .. } => false,
    };
    let (done, report) = oneshot::channel();
    let context =
        Context { ports: ports.clone(), lease: lease.clone(), view: view.unwrap_or_default() };
    ports.spawn.spawn(
        task.name(),
        async move {
            let _ = done.send(task::run(task, context).await);
        }
        .boxed(),
    );
    beside.task = Some(report);
}

/// PG-065: beside the loop, because nothing waits for it but other members' rewinds.
fn checkpoint(ports: &Ports) -> oneshot::Receiver<bool> {
    let (done, ended) = oneshot::channel();
    let ports = ports.clone();
    let spawn = ports.spawn.clone();
    spawn.spawn(
        "checkpoint after promotion",
        async move {
            let by = Deadline(ports.clock.now().plus(600_000));
            let _ = done.send(ports.postgres.checkpoint(by).await.is_ok());
        }
        .boxed(),
    );
    ended
}

/// `loop_wait` after the last turn began, or earlier if the turn or the lease asks for it.
pub(super) fn next_turn(
    ports: &Ports,
    lease: &Lease,
    decided: &Decided,
    started: Millis,
) -> Millis {
    let settings = ports.configuration.settings();
    let now = ports.clock.now();
    let mut next = started.plus(settings.timing.loop_wait_ms());
    if let Some(again) = decided.again_at {
        next = next.min(again);
    }
    if let Some(until) = lease.until(now) {
        let act_at = failsafe::next_act(&settings, until, now);
        // A turn that was held up until after that moment must not sleep over it. (HA-304)
        next = next.min(act_at.max(now.plus(5 * BREATH_MS)));
    }
    next.max(now.plus(BREATH_MS))
}

fn publish(
    ports: &Ports,
    lease: &Lease,
    memory: &Memory,
    decided: &Decided,
    (postgres, reasons, decision): (Observation, Vec<Reason>, Option<Decision>),
    (observed_at, next_turn): (Millis, Millis),
) {
    ports.publish.publish(Seen {
        view: memory.view.clone(),
        postgres,
        observed_at,
        leader_until: lease.until(ports.clock.now()),
        task: memory.task.map(|task| task.name),
        line: decided.line.clone(),
        reasons,
        demoting: memory.task.is_some_and(|task| task.kind == Kind::Demote),
        next_turn,
        checkpoint_pending: memory.after_promotion != AfterPromotion::Nothing,
        failsafe_until: lease.licensed_until(ports.clock.now()),
        decision,
        watchdog_failed: ports.watchdog.unhealthy().is_some(),
        scheduled_restart: memory.scheduled_restart.as_ref().map(restart::Planned::to_wire),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-180, HA-300 and HA-302 (what an event is worth), HA-317 (our own record is no news).
    #[test]
    fn what_an_event_is_worth() {
        let me = MemberName::from("a");
        for (event, urgency) in [
            (Event::Store(Change::Leader), Urgency::Now),
            (Event::Store(Change::Failover), Urgency::Now),
            (Event::Store(Change::Config), Urgency::Now),
            (Event::Store(Change::Sync), Urgency::Now),
            (Event::Store(Change::Initialize), Urgency::Now),
            (Event::Store(Change::Everything), Urgency::Now),
            (Event::Store(Change::Member("b".into())), Urgency::Soon),
            (Event::Store(Change::Member("a".into())), Urgency::None),
            (Event::Store(Change::Status), Urgency::None),
            (Event::Store(Change::History), Urgency::None),
            (Event::PostmasterExited, Urgency::Now),
            (Event::Lease, Urgency::Now),
            (Event::Poke("an operator's order"), Urgency::Now),
            (Event::Shutdown, Urgency::Now),
        ] {
            assert_eq!(weigh(&event, &me), urgency, "{event:?}");
        }
    }

    /// Proves INV-26 (in the loop): guard and watchdog are not put down by a look at a standby that a task
    /// was making a primary meanwhile. (the simulator, seed 3687: a slow store, and the promotion ended
    /// while the turn waited for it)
    #[test]
    fn what_a_task_makes_of_a_standby_stays_fenced() {
        let standby = || Server::Standby(crate::ha::ports::Standby::default());
        assert!(needs_no_fence(&standby(), None));
        for (task, put_down) in [
            (Kind::Promote, false),
            (Kind::Bootstrap, false),
            (Kind::StartAsPrimary, false),
            (Kind::Restart { primary: true }, false),
            (Kind::Demote, false),
            (Kind::Restart { primary: false }, true),
            (Kind::Follow, true),
            (Kind::Clone, true),
            (Kind::Rewind, true),
            (Kind::SingleUser, true),
            (Kind::CopySlots, true),
        ] {
            assert_eq!(needs_no_fence(&standby(), Some(task)), put_down, "{task:?}");
            assert_eq!(needs_no_fence(&Server::Down, Some(task)), put_down, "{task:?}");
        }
        for may_write in [Server::Starting, Server::Silent("frozen".into())] {
            assert!(!needs_no_fence(&may_write, None), "{may_write:?}");
        }
    }

    /// Proves REST-225 (orders wait in a bounded queue; who finds it full is told at once).
    #[test]
    fn orders_wait_in_a_bounded_queue() {
        let (events, _queue) = Events::new();
        let mut answers: Vec<_> =
            (0..MOST_ORDERS).map(|_| events.order(Wish::CancelRestart)).collect();
        let mut one_more = events.order(Wish::CancelRestart);
        assert!(one_more.try_recv().is_err(), "refused");
        assert!(answers.iter_mut().all(|answer| answer.try_recv() == Ok(None)), "these wait");
        let order = events.next_order().expect("the first");
        let answer = Answer::new(404, "no restarts are scheduled");
        let _ = order.reply.send(answer.clone());
        assert_eq!(answers[0].try_recv(), Ok(Some(answer)));
    }
}
