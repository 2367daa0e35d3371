//! Every port, with the tape before it. A new method of a port needs one line here.

use crate::ha::ports::*;
use crate::ha::promise::{Call, Promise, Vow};
use crate::ha::record::tape::Tape;
use crate::ha::settings::Settings;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, MemberName, Millis, Role, State, Status, Sync as SyncRecord, Timeline, Timing,
    Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

/// All ports of one turn. `real` is there while it is recorded, and not while it is replayed.
struct Taped {
    tape: Arc<Tape>,
    real: Option<Ports>,
}

/// The ports that a recorded or replayed turn works through.
pub fn taped(tape: &Arc<Tape>, real: Option<Ports>) -> Ports {
    let taped = Arc::new(Taped { tape: tape.clone(), real });
    Ports {
        dcs: taped.clone(),
        postgres: taped.clone(),
        peers: taped.clone(),
        promises: taped.clone(),
        fence: taped.clone(),
        watchdog: taped.clone(),
        clock: taped.clone(),
        configuration: taped.clone(),
        publish: taped.clone(),
        spawn: taped,
    }
}

/// A question that takes time: its name on the tape, what is written down of it, the call.
macro_rules! wait {
    ($self:ident, $name:literal, $asked:expr, $port:ident.$method:ident($($argument:expr),*)) => {{
        let real = $self.real.as_ref().map(|real| real.$port.$method($($argument),*));
        $self.tape.wait($name, $asked, real).await
    }};
}

/// Something done that has no answer.
macro_rules! done {
    ($self:ident, $name:literal, $asked:expr, $port:ident.$method:ident($($argument:expr),*)) => {{
        if let Some(real) = &$self.real {
            real.$port.$method($($argument),*);
        }
        $self.tape.done($name, $asked);
    }};
}

#[async_trait]
impl Clock for Taped {
    fn now(&self) -> Millis {
        let real = self.real.as_ref().map(|real| real.clock.now());
        self.tape.ask("clock.now", (), real, Millis::default)
    }

    fn wall(&self) -> DateTime<Utc> {
        let real = self.real.as_ref().map(|real| real.clock.wall());
        self.tape.ask("clock.wall", (), real, DateTime::default)
    }

    async fn sleep_until(&self, at: Millis) {
        wait!(self, "clock.sleep_until", at, clock.sleep_until(at))
    }

    fn random(&self, below: u64) -> u64 {
        let real = self.real.as_ref().map(|real| real.clock.random(below));
        self.tape.ask("clock.random", below, real, || 0)
    }
}

impl Spawn for Taped {
    /// A turn starts nothing by itself.
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        done!(self, "spawn.spawn", name, spawn.spawn(name, work));
    }
}

#[async_trait]
impl Configuration for Taped {
    fn settings(&self) -> Arc<Settings> {
        self.tape.settings(self.real.as_ref().map(|real| real.configuration.settings()))
    }

    fn dynamic(&self) -> Map<String, Value> {
        let real = self.real.as_ref().map(|real| real.configuration.dynamic());
        self.tape.ask("configuration.dynamic", (), real, Map::new)
    }

    async fn apply(&self, dynamic: &Map<String, Value>) -> Result<(), String> {
        wait!(self, "configuration.apply", dynamic, configuration.apply(dynamic))
    }

    fn allow_short_ttl(&self, yes: bool) {
        done!(self, "configuration.allow_short_ttl", yes, configuration.allow_short_ttl(yes));
    }
}

impl Publish for Taped {
    fn publish(&self, seen: Seen) {
        if let Some(real) = &self.real {
            real.publish.publish(seen);
        }
    }
}

impl Fence for Taped {
    fn protect_until(&self, until: Millis) {
        done!(self, "fence.protect_until", until, fence.protect_until(until));
    }

    fn stand_down(&self) {
        done!(self, "fence.stand_down", (), fence.stand_down());
    }

    fn broken(&self) -> Option<String> {
        let real = self.real.as_ref().map(|real| real.fence.broken());
        self.tape.ask("fence.broken", (), real, || None)
    }
}

impl Watchdog for Taped {
    fn activate(&self, until: Millis) -> Result<(), String> {
        let real = self.real.as_ref().map(|real| real.watchdog.activate(until));
        self.tape.ask("watchdog.activate", until, real, || Ok(()))
    }

    fn keep_alive(&self, until: Millis) {
        done!(self, "watchdog.keep_alive", until, watchdog.keep_alive(until));
    }

    fn disable(&self) {
        done!(self, "watchdog.disable", (), watchdog.disable());
    }

    fn unhealthy(&self) -> Option<String> {
        let real = self.real.as_ref().map(|real| real.watchdog.unhealthy());
        self.tape.ask("watchdog.unhealthy", (), real, || None)
    }
}

/// Answers that come one by one, each noted when it comes.
fn answers<T: Serialize + DeserializeOwned + Send + 'static>(
    tape: &Arc<Tape>,
    name: &'static str,
    real: Option<BoxStream<'static, T>>,
) -> BoxStream<'static, T> {
    let tape = tape.clone();
    match real {
        Some(real) => real
            .map(Some)
            .chain(stream::once(async { None }))
            .map(move |answer| {
                tape.note(name, &(), &answer);
                answer
            })
            .take_while(|answer| std::future::ready(answer.is_some()))
            .filter_map(std::future::ready)
            .boxed(),
        None => {
            stream::poll_fn(move |context| tape.poll(name, &Value::Null, context.waker())).boxed()
        }
    }
}

impl Peers for Taped {
    fn probe(
        &self,
        members: Vec<(MemberName, String)>,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Probe)> {
        self.tape.done("peers.probe", (&members, by));
        let real = self.real.as_ref().map(|real| real.peers.probe(members, by));
        answers(&self.tape, "peers.answer", real)
    }

    fn failsafe(
        &self,
        members: Vec<(MemberName, String)>,
        call: Call,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Vow)> {
        self.tape.done("peers.failsafe", (&members, &call, by));
        let real = self.real.as_ref().map(|real| real.peers.failsafe(members, call, by));
        answers(&self.tape, "peers.vow", real)
    }
}

impl Promises for Taped {
    fn promised(&self, now: Millis) -> Option<Promise> {
        let real = self.real.as_ref().map(|real| real.promises.promised(now));
        self.tape.ask("promises.promised", now, real, || None)
    }

    fn claim(&self, now: Millis) -> bool {
        let real = self.real.as_ref().map(|real| real.promises.claim(now));
        self.tape.ask("promises.claim", now, real, || false)
    }

    fn disclaim(&self) {
        done!(self, "promises.disclaim", (), promises.disclaim());
    }

    fn forget_promise(&self) {
        done!(self, "promises.forget_promise", (), promises.forget_promise());
    }
}

#[async_trait]
impl Dcs for Taped {
    fn kind(&self) -> &'static str {
        self.real.as_ref().map_or("recording", |real| real.dcs.kind())
    }

    fn set_timing(&self, timing: Timing) {
        done!(self, "dcs.set_timing", timing, dcs.set_timing(timing));
    }

    /// No turn asks for it: the configuration does.
    fn shortest_ttl(&self) -> u32 {
        self.real.as_ref().map_or(Timing::SHORTEST, |real| real.dcs.shortest_ttl())
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        wait!(self, "dcs.load", (freshness, by), dcs.load(freshness, by))
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.acquire_leader", by, dcs.acquire_leader(by))
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.take_leader", by, dcs.take_leader(by))
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.renew_leader", by, dcs.renew_leader(by))
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.release_leader", (status, by), dcs.release_leader(status, by))
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.write_member", (data, by), dcs.write_member(data, by))
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.write_status", (status, by), dcs.write_status(status, by))
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.write_failsafe", (failsafe, by), dcs.write_failsafe(failsafe, by))
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        let asked = (value, expect, by);
        wait!(self, "dcs.write_initialize", asked, dcs.write_initialize(value, expect, by))
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.delete_initialize", by, dcs.delete_initialize(by))
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let asked = (config, expect, by);
        wait!(self, "dcs.write_config", asked, dcs.write_config(config, expect, by))
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let asked = (failover, expect, by);
        wait!(self, "dcs.write_failover", asked, dcs.write_failover(failover, expect, by))
    }

    async fn write_sync(
        &self,
        sync: &SyncRecord,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        wait!(self, "dcs.write_sync", (sync, expect, by), dcs.write_sync(sync, expect, by))
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.delete_sync", (expect, by), dcs.delete_sync(expect, by))
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.write_history", (history, by), dcs.write_history(history, by))
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        wait!(self, "dcs.delete_cluster", by, dcs.delete_cluster(by))
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        match &self.real {
            Some(real) => real.dcs.watch(),
            None => stream::pending().boxed(),
        }
    }
}

#[async_trait]
impl Postgres for Taped {
    async fn observe(&self, by: Deadline) -> Observation {
        wait!(self, "postgres.observe", by, postgres.observe(by))
    }

    async fn control(&self, by: Deadline) -> Option<ControlData> {
        wait!(self, "postgres.control", by, postgres.control(by))
    }

    fn set_role(&self, role: Role) {
        done!(self, "postgres.set_role", role, postgres.set_role(role));
    }

    fn set_state(&self, state: State) {
        done!(self, "postgres.set_state", state, postgres.set_state(state));
    }

    fn tell_role_change(&self) {
        done!(self, "postgres.tell_role_change", (), postgres.tell_role_change());
    }

    async fn archives(&self, by: Deadline) -> bool {
        wait!(self, "postgres.archives", by, postgres.archives(by))
    }

    async fn archive_shutdown_checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        wait!(
            self,
            "postgres.archive_shutdown_checkpoint",
            by,
            postgres.archive_shutdown_checkpoint(by)
        )
    }

    async fn follow_change(&self, upstream: Option<&Upstream>, by: Deadline) -> FollowChange {
        wait!(self, "postgres.follow_change", (upstream, by), postgres.follow_change(upstream, by))
    }

    async fn follow_by_reload(
        &self,
        upstream: Option<&Upstream>,
        by: Deadline,
    ) -> Result<(), PgError> {
        let asked = (upstream, by);
        wait!(self, "postgres.follow_by_reload", asked, postgres.follow_by_reload(upstream, by))
    }

    async fn set_sync_names(&self, names: Option<&str>, by: Deadline) -> Result<(), PgError> {
        wait!(self, "postgres.set_sync_names", (names, by), postgres.set_sync_names(names, by))
    }

    async fn set_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError> {
        wait!(self, "postgres.set_slots", (plan, by), postgres.set_slots(plan, by))
    }

    async fn copy_logical_slots(&self, source: &Upstream, names: &[String]) -> Result<(), PgError> {
        let asked = (source, names);
        wait!(
            self,
            "postgres.copy_logical_slots",
            asked,
            postgres.copy_logical_slots(source, names)
        )
    }

    async fn checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        wait!(self, "postgres.checkpoint", by, postgres.checkpoint(by))
    }

    async fn local_history(&self, timeline: Timeline, by: Deadline) -> Option<Vec<TimelineEnd>> {
        wait!(self, "postgres.local_history", (timeline, by), postgres.local_history(timeline, by))
    }

    async fn local_end(&self, by: Deadline) -> Option<LocalEnd> {
        wait!(self, "postgres.local_end", by, postgres.local_end(by))
    }

    async fn source_history(
        &self,
        source: &Upstream,
        by: Deadline,
    ) -> Result<SourceHistory, PgError> {
        wait!(self, "postgres.source_history", (source, by), postgres.source_history(source, by))
    }

    fn cancel(&self) {
        done!(self, "postgres.cancel", (), postgres.cancel());
    }

    fn clear_cancel(&self) {
        done!(self, "postgres.clear_cancel", (), postgres.clear_cancel());
    }

    // Long effects belong to tasks. They are here because the trait has them.

    async fn bootstrap(&self) -> Result<(), PgError> {
        wait!(self, "postgres.bootstrap", (), postgres.bootstrap())
    }

    async fn post_bootstrap(&self) -> Result<(), PgError> {
        wait!(self, "postgres.post_bootstrap", (), postgres.post_bootstrap())
    }

    async fn set_data_dir_aside(&self) -> Result<(), PgError> {
        wait!(self, "postgres.set_data_dir_aside", (), postgres.set_data_dir_aside())
    }

    async fn clone_from(&self, source: &Upstream, by: CopyBy) -> Result<(), PgError> {
        let real = self.real.as_ref().map(|real| Postgres::clone_from(&*real.postgres, source, by));
        self.tape.wait("postgres.clone_from", (source, by), real).await
    }

    async fn start(&self, how: Start, by: Deadline) -> Result<Started, PgError> {
        wait!(self, "postgres.start", (how.clone(), by), postgres.start(how.clone(), by))
    }

    fn stop(&self, how: Stop) -> BoxStream<'static, StopStep> {
        self.tape.done("postgres.stop", how);
        match &self.real {
            Some(real) => real.postgres.stop(how),
            None => stream::empty().boxed(),
        }
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        wait!(self, "postgres.pre_promote", (), postgres.pre_promote())
    }

    async fn promote(&self, by: Deadline) -> Result<(), PgError> {
        wait!(self, "postgres.promote", by, postgres.promote(by))
    }

    async fn recover_in_single_user_mode(&self) -> Result<(), PgError> {
        wait!(self, "postgres.single_user", (), postgres.recover_in_single_user_mode())
    }

    async fn rewind(&self, source: &Upstream) -> Result<(), PgError> {
        wait!(self, "postgres.rewind", source, postgres.rewind(source))
    }

    async fn remove_data_dir(&self) -> Result<(), PgError> {
        wait!(self, "postgres.remove_data_dir", (), postgres.remove_data_dir())
    }
}
