//! The port of the core, answered by the files beside this one.

use crate::ha::ports::{
    ControlData, CopyBy, FollowChange, LocalEnd, Observation, PgError, Postgres, SlotPlan,
    SourceHistory, Start, Started, Stop, StopStep, TimelineEnd, Upstream,
};
use crate::postgres::LocalPostgres;
use crate::postgres::callbacks::Action;
use async_trait::async_trait;
use futures::stream::BoxStream;
use hathi_dcs::{Deadline, Role, State, Timeline};

#[async_trait]
impl Postgres for LocalPostgres {
    async fn observe(&self, by: Deadline) -> Observation {
        self.look(by).await
    }

    async fn control(&self, by: Deadline) -> Option<ControlData> {
        self.control_data(by).await
    }

    fn set_role(&self, role: Role) {
        self.become_role(role);
    }

    fn set_state(&self, state: State) {
        self.enter(state);
    }

    async fn follow_change(&self, upstream: Option<&Upstream>, by: Deadline) -> FollowChange {
        self.compare_follow(upstream, by).await
    }

    async fn follow_by_reload(
        &self,
        upstream: Option<&Upstream>,
        by: Deadline,
    ) -> Result<(), PgError> {
        limited("follow", by, self.reload_to_follow(upstream)).await
    }

    async fn set_sync_names(&self, names: Option<&str>, by: Deadline) -> Result<(), PgError> {
        limited("synchronous_standby_names", by, self.change_sync_names(names, by)).await
    }

    async fn set_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError> {
        self.bring_slots(plan, by).await
    }

    async fn copy_logical_slots(&self, source: &Upstream, names: &[String]) -> Result<(), PgError> {
        self.copy_slots(source, names).await
    }

    async fn checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        self.run_checkpoint(by).await.map_err(|why| Self::failed("checkpoint", why))
    }

    async fn local_history(&self, timeline: Timeline, by: Deadline) -> Option<Vec<TimelineEnd>> {
        self.history_file(timeline, by).await
    }

    async fn local_end(&self, by: Deadline) -> Option<LocalEnd> {
        self.end_of_local_log(by).await
    }

    async fn source_history(
        &self,
        source: &Upstream,
        by: Deadline,
    ) -> Result<SourceHistory, PgError> {
        self.ask_source(source, by).await
    }

    fn tell_role_change(&self) {
        if self.role_changed() {
            self.fire(Action::RoleChange);
        }
    }

    async fn archives(&self, _by: Deadline) -> bool {
        self.archive_command().await.is_some()
    }

    async fn archive_shutdown_checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        limited("archive_command", by, self.archive_last_segment(by)).await
    }

    fn cancel(&self) {
        self.cancel.set(true);
    }

    fn clear_cancel(&self) {
        self.cancel.set(false);
    }

    async fn bootstrap(&self) -> Result<(), PgError> {
        self.bootstrap_server().await
    }

    async fn post_bootstrap(&self) -> Result<(), PgError> {
        self.finish_bootstrap().await
    }

    async fn set_data_dir_aside(&self) -> Result<(), PgError> {
        self.rename_data_dir().await
    }

    async fn clone_from(&self, source: &Upstream, by: CopyBy) -> Result<(), PgError> {
        self.copy_from(source, by).await
    }

    async fn start(&self, how: Start, by: Deadline) -> Result<Started, PgError> {
        self.start_server(how, by).await
    }

    fn stop(&self, how: Stop) -> BoxStream<'static, StopStep> {
        self.stop_server(how)
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        self.run_pre_promote().await
    }

    async fn promote(&self, by: Deadline) -> Result<(), PgError> {
        self.promote_server(by).await
    }

    async fn recover_in_single_user_mode(&self) -> Result<(), PgError> {
        self.recover_alone().await
    }

    async fn rewind(&self, source: &Upstream) -> Result<(), PgError> {
        self.rewind_to(source).await
    }

    async fn remove_data_dir(&self) -> Result<(), PgError> {
        self.delete_data_dir().await
    }
}

/// Ends by `by`, whatever the work waits for.
async fn limited<T>(
    what: &'static str,
    by: Deadline,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let left = by.left();
    let waited_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let late = Err(PgError::TimedOut { what, waited_ms });
    tokio::time::timeout(left, work).await.unwrap_or(late)
}
