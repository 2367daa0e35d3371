//! The suite every backend must pass, on its real store (section 14 of docs/spec/dcs.md).
//!
//! What lives here: what a backend brings to be judged ([`Harness`], [`Store`], [`Fault`]), the
//! list of tests, and the run over all of them. A store that cannot suffer a fault says so with
//! [`Cannot`]; that is counted and printed, never silent.
//!
//! What never enters: anything that knows one store.

pub mod certificates;
pub mod faults;
pub mod lock;
pub mod outage;
pub mod records;
pub mod servers;
mod strict;
pub mod table;
pub mod watching;

use crate::{Dcs, DcsError, Deadline, Timing, around, boottime};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// This store cannot do what the test needs, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cannot(pub &'static str);

impl Cannot {
    /// Of one member no other one is left when it is hurt.
    pub const ALONE: Self = Self("it has one member only");
}

/// A test ran to its end, or the store cannot run it. A failed test panics.
pub type Outcome = Result<(), Cannot>;

/// What a test will do to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing bad: servers may be shared between tests as long as the cluster is a new one.
    Health,
    /// Faults of the servers: servers of its own.
    Faults,
    /// Faults of the network: servers of its own, behind something that can hold and cut answers.
    LostAnswers,
    /// Rights that can be withdrawn: servers of its own.
    Rights,
}

/// Which one of several store members a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that leads the store.
    Leader,
    /// One that does not; the one the handles talk to, if that is possible.
    Follower,
}

/// One direction between a server and those who ask it; in the embedded store, between a member and
/// the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Requests,
    Answers,
}

/// What can happen to a store. Every fault is in force when the call returns.
///
/// The store is embedded in the handle's own process? Then the handles live where `KillOne`,
/// `PauseOne` and `KillMajority` do not strike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every member stops answering and keeps its connections (SIGSTOP).
    PauseAll,
    ResumeAll,
    PauseOne(Target),
    KillOne(Target),
    /// What goes this way to or from one member does not arrive.
    CutOne(Target, Way),
    /// Everything that one member says comes so many milliseconds late.
    SlowOne(Target, u32),
    /// Ends what hit one; returns when the store is whole again.
    RestoreOne,
    /// All but a minority are killed: what is left has no quorum.
    KillMajority,
    /// kill -9 of everything.
    KillAll,
    /// Starts whatever is dead, on its old data; returns when the store answers again.
    StartAll,
    /// The lease, session or record that carries this member's keys is destroyed under its owner.
    LoseLease(String),
    /// Requests still reach the store and are applied; answers do not come back.
    HoldAnswers,
    /// Ends `HoldAnswers`; answers still held may come or may be lost with their connection.
    ReleaseAnswers,
    /// Answers still come, requests do not reach the store.
    HoldRequests,
    /// Ends `HoldRequests`; requests still held may arrive.
    ReleaseRequests,
    /// Everything the store sends comes so many milliseconds late; 0 ends it.
    SlowAnswers(u32),
    /// Whoever has no rights of his own, as all handles, may neither read nor write any more.
    Forbid,
    /// Ends `Forbid`.
    Permit,
    /// So many answers pass, then the connection that carries the next one is cut before it; then
    /// all is well. An answer is whatever the store sends at once.
    CutAnswer(u32),
    /// The history a watch could resume from is thrown away, and all connections are cut.
    Compact,
}

/// One kind of store, in one size.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// For the printed report: `etcd 3.4, three members`.
    fn label(&self) -> String;

    /// An empty store, ready to answer; gone, with all its processes, when the guard is dropped.
    async fn fresh(&self, needs: Needs) -> Box<dyn Store>;

    /// The shortest rhythm this store accepts.
    fn quick(&self) -> Timing {
        Timing { ttl: 2, loop_wait: 1, retry_timeout: 2 }
    }

    /// How many tests may run at the same time.
    fn parallel(&self) -> usize {
        4
    }
}

/// One running store with one empty cluster in it.
#[async_trait]
pub trait Store: Send + Sync {
    /// A new handle for this member, with a lease or session of its own, as a new process would
    /// have.
    async fn open(&self, me: &str, timing: Timing) -> Arc<dyn Dcs>;

    /// How many members the store itself has.
    fn members(&self) -> usize;

    /// How much later than the ttl an abandoned key may vanish. (DCS-T2)
    fn slack_ms(&self) -> u64;

    /// Does a write of the bytes that stand there already make a new version? Where it does not,
    /// such a write is none, and nobody can lose anything by it.
    fn equal_bytes_are_a_write(&self) -> bool {
        true
    }

    /// Do members go with a lease? Where they do not, why.
    fn members_expire(&self) -> Outcome {
        Ok(())
    }

    /// The bytes in the store under a key of the cluster: `leader`, `members/pg1`.
    async fn raw(&self, key: &str) -> Result<Option<Vec<u8>>, Cannot>;

    /// Writes such bytes as a stranger would.
    async fn put_raw(&self, key: &str, value: &str) -> Outcome;

    async fn inflict(&self, fault: Fault) -> Outcome;
}

/// A test by name.
#[derive(Clone, Copy)]
pub struct Test {
    pub name: &'static str,
    pub run: for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, Outcome>,
}

macro_rules! tests {
    ($($module:ident::$name:ident),+ $(,)?) => {
        /// Every test of the suite.
        pub const TESTS: &[Test] = &[$(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            run: |harness| Box::pin($module::$name(harness)),
        }),+];
    };
}

tests! {
    lock::one_of_32_contenders_wins,
    lock::renewal_keeps_the_lock_and_wakes_nobody,
    lock::only_the_owner_renews_and_releases,
    lock::an_abandoned_lock_is_free_after_ttl,
    lock::a_restarted_owner_renews_on_its_new_lease,
    lock::release_shows_the_status_before_the_delete,
    lock::a_pending_acquire_wins_after_a_release,
    lock::take_leader_overrides,
    lock::a_lost_lease_is_replaced_if_nobody_took_the_lock,
    lock::a_lost_lease_loses_the_lock_to_who_took_it,
    lock::a_new_ttl_keeps_the_lock,
    lock::dropped_calls_leave_a_working_handle,
    records::an_empty_store_is_the_empty_view,
    records::every_record_comes_back,
    records::the_bytes_are_patronis,
    records::compare_and_set_compares,
    records::initialize_is_a_race,
    records::one_of_many_writers_wins_a_version,
    records::garbage_costs_nobody_the_view,
    records::a_watched_view_has_my_own_writes,
    records::a_watched_view_follows_the_others,
    records::what_refused_me_is_seen,
    records::delete_cluster_leaves_nothing,
    records::a_member_record_lives_on_the_lease,
    watching::every_record_wakes,
    watching::equal_values_are_not_written,
    watching::every_stream_of_a_handle_wakes,
    watching::an_expired_lock_wakes,
    watching::everybody_is_woken_whoever_leads,
    watching::a_slow_reader_is_bounded,
    watching::a_watch_survives_restarts,
    watching::a_watch_survives_compaction,
    watching::a_silent_watch_is_not_believed,
    outage::a_paused_store_is_unreachable,
    outage::a_dead_store_is_unreachable_and_returns,
    outage::a_pause_past_the_ttl_makes_no_second_owner,
    outage::without_quorum_nothing_is_promised,
    outage::a_short_deadline_is_kept,
    faults::one_killed_follower_costs_nothing,
    faults::one_killed_leader_costs_nothing,
    faults::one_paused_follower_costs_nothing,
    faults::one_paused_leader_costs_nothing,
    faults::one_half_cut_off_costs_nothing,
    faults::a_late_acquire_is_found_by_reading_again,
    faults::a_late_compare_and_set_is_found_by_reading_again,
    faults::a_write_while_paused_is_found_by_reading_again,
    faults::requests_that_do_not_arrive_change_nothing,
    faults::slow_answers_cost_time_only,
    faults::withdrawn_rights_are_no_lost_lock,
    faults::a_lost_answer_is_no_lost_lock,
    faults::a_lost_answer_is_no_second_bootstrap,
    faults::a_lost_answer_costs_no_record,
    faults::a_lost_answer_is_no_half_view,
}

/// How a run of the suite ended, for those that ran to their end.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Which servers they were.
    pub ran_on: Vec<String>,
    pub passed: Vec<&'static str>,
    pub could_not: Vec<(&'static str, Cannot)>,
}

impl Summary {
    /// The tests that this store could not run.
    pub fn impossible(&self) -> Vec<&'static str> {
        self.could_not.iter().map(|(name, _)| *name).collect()
    }
}

/// Runs every test, a few at a time, prints one line each and panics at the end if any failed.
pub async fn run_all(harness: Arc<dyn Harness>) -> Summary {
    run_some(harness, |_| true).await
}

/// Runs the tests whose name is wanted.
pub async fn run_some(harness: Arc<dyn Harness>, wanted: fn(&str) -> bool) -> Summary {
    let label = harness.label();
    let places = Arc::new(tokio::sync::Semaphore::new(harness.parallel().max(1)));
    let running: Vec<_> = TESTS
        .iter()
        .filter(|test| wanted(test.name))
        .map(|test| {
            let (harness, places) = (harness.clone(), places.clone());
            let run = tokio::spawn(async move {
                let _place = places.acquire_owned().await;
                let began = boottime();
                ((test.run)(&*harness).await, boottime().since(began))
            });
            (test.name, run)
        })
        .collect();
    let mut summary = Summary { ran_on: vec![label.clone()], ..Summary::default() };
    let mut failed = Vec::new();
    for (name, run) in running {
        match run.await {
            Ok((Ok(()), ms)) => {
                println!("{label}: {name} passed in {ms} ms");
                summary.passed.push(name);
            }
            Ok((Err(cannot), _)) => {
                println!("{label}: {name} NOT POSSIBLE on this store: {}", cannot.0);
                summary.could_not.push((name, cannot));
            }
            Err(_) => {
                println!("{label}: {name} FAILED");
                failed.push(name);
            }
        }
    }
    println!(
        "{label}: {} passed, {} not possible, {} failed",
        summary.passed.len(),
        summary.could_not.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{label}: failed: {failed:?}");
    summary
}

/// One store with the handles a test opens on it; each handle is checked to keep its deadlines.
pub struct Case {
    pub store: Box<dyn Store>,
    pub timing: Timing,
}

impl Case {
    /// A healthy store at a rhythm slow enough that no lease ends by accident.
    pub async fn healthy(harness: &dyn Harness) -> Self {
        let quick = harness.quick();
        let timing = Timing { ttl: quick.ttl.max(15), ..quick };
        Self { store: harness.fresh(Needs::Health).await, timing }
    }

    /// A healthy store at the shortest rhythm it accepts.
    pub async fn quick(harness: &dyn Harness) -> Self {
        Self { store: harness.fresh(Needs::Health).await, timing: harness.quick() }
    }

    /// A store of its own to be hurt, with a lease that outlives the fault.
    async fn lasting(harness: &dyn Harness, needs: Needs) -> Self {
        let ttl = harness.quick().ttl.max(15);
        let timing = Timing { ttl, loop_wait: 1, retry_timeout: 3 };
        Self { store: harness.fresh(needs).await, timing }
    }

    pub async fn faulty(harness: &dyn Harness) -> Self {
        Self::lasting(harness, Needs::Faults).await
    }

    pub async fn lossy(harness: &dyn Harness) -> Self {
        Self::lasting(harness, Needs::LostAnswers).await
    }

    pub async fn with_rights(harness: &dyn Harness) -> Self {
        Self::lasting(harness, Needs::Rights).await
    }

    pub async fn member(&self, me: &str) -> Arc<dyn Dcs> {
        self.member_with(me, self.timing).await
    }

    /// The two that most tests are about.
    pub async fn pair(&self) -> (Arc<dyn Dcs>, Arc<dyn Dcs>) {
        (self.member("a").await, self.member("b").await)
    }

    pub async fn member_with(&self, me: &str, timing: Timing) -> Arc<dyn Dcs> {
        around::with(strict::Strict, self.store.open(me, timing).await)
    }

    /// How long after its last renewal an abandoned lock may stand.
    pub fn gone_ms(&self) -> u64 {
        self.timing.ttl_ms() + self.store.slack_ms()
    }
}

/// A deadline generous enough that a healthy store on a busy machine never misses it.
pub fn soon() -> Deadline {
    Deadline::in_ms(8_000)
}

/// Waits until `look` gives something, at most `ms`; then panics with `what`.
pub async fn until<T, F>(what: &str, ms: u64, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let end = Deadline::in_ms(ms);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(!end.left().is_zero(), "{what}: not within {ms} ms");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The answer of a store that cannot be asked. (DCS-T4)
pub fn assert_unreachable<T: std::fmt::Debug>(what: &str, answer: Result<T, DcsError>) {
    assert!(
        matches!(answer, Err(DcsError::Unreachable { .. })),
        "{what}: {answer:?} where the store could not be asked"
    );
}

pub fn assert_conflict<T: std::fmt::Debug>(what: &str, answer: Result<T, DcsError>) {
    assert!(matches!(answer, Err(DcsError::Conflict { .. })), "{what}: {answer:?}, not a conflict");
}

pub fn assert_not_owner<T: std::fmt::Debug>(what: &str, answer: Result<T, DcsError>) {
    assert!(matches!(answer, Err(DcsError::NotOwner { .. })), "{what}: {answer:?}, not NotOwner");
}
