//! The member record: what this node says about itself in the store. (HA-121)

use crate::ha::memory::{AfterPromotion, Memory};
use crate::ha::ports::{Observation, Ports, Server};
use crate::ha::restart::Planned;
use crate::ha::settings::{EMULATED_VERSION, Settings};
use crate::ha::sync::duty;
use hathi_dcs::{Deadline, MemberData, Millis, Role};

/// The record for this observation. `with_positions`: no task owns PostgreSQL, or only a promotion.
pub fn record(
    settings: &Settings,
    pg: &Observation,
    checkpoint_pending: bool,
    with_positions: bool,
    scheduled_restart: Option<&Planned>,
) -> MemberData {
    let mut data = MemberData {
        conn_url: Some(settings.conn_url.clone()),
        api_url: Some(settings.api_url.clone()),
        state: Some(pg.state),
        role: Some(pg.role),
        version: Some(EMULATED_VERSION.to_owned()),
        proxy_url: settings.proxy_url.clone(),
        checkpoint_after_promote: checkpoint_pending.then_some(false),
        tags: settings.tags.clone(),
        pending_restart: !pg.pending_restart.is_empty(),
        pending_restart_reason: pg.pending_restart.clone(),
        scheduled_restart: scheduled_restart.map(Planned::to_wire),
        pause: settings.pause,
        short_ttl: settings.short_ttl,
        ..MemberData::default()
    };
    if !(with_positions && pg.state.answers()) {
        return data;
    }
    match &pg.server {
        Server::Primary { timeline, lsn } => {
            data.xlog_location = Some(*lsn);
            data.timeline = (timeline.0 != 0).then_some(*timeline);
        }
        Server::Standby(standby) => {
            data.xlog_location = Some(standby.lsn());
            data.replay_lsn = standby.replayed;
            data.receive_lsn = standby.received;
            data.replication_state = if standby.streaming {
                Some("streaming".to_owned())
            } else if standby.from_archive {
                Some("in archive recovery".to_owned())
            } else {
                None
            };
            data.timeline = (standby.timeline.0 != 0).then_some(standby.timeline);
        }
        Server::Down | Server::Starting | Server::Silent(_) => {}
    }
    data
}

/// Is there more to tell than that the log went on? Positions alone are written once per
/// `loop_wait`, so that members do not wake each other for ever. (HA-317)
pub fn worth_writing(
    old: Option<&(MemberData, Millis)>,
    new: &MemberData,
    now: Millis,
    loop_wait_ms: u64,
) -> bool {
    let Some((old, at)) = old else { return true };
    let without_positions = |data: &MemberData| MemberData {
        xlog_location: None,
        replay_lsn: None,
        receive_lsn: None,
        ..data.clone()
    };
    now.since(*at) + 500 >= loop_wait_ms || without_positions(old) != without_positions(new)
}

/// Writes the record of this moment; a failure is repeated by the next turn. (HA-018)
pub async fn publish(
    ports: &Ports,
    memory: &mut Memory,
    settings: &Settings,
    pg: &Observation,
    with_positions: bool,
    by: Deadline,
) {
    let now = ports.clock.now();
    let pending = match pg.role {
        Role::Primary => memory.after_promotion != AfterPromotion::Nothing,
        // As Patroni has it: a standby leader never made that checkpoint. (HA-117)
        Role::StandbyLeader => true,
        Role::Promoted | Role::Replica | Role::Demoted | Role::Uninitialized => false,
    };
    let planned = memory.scheduled_restart.as_ref();
    let mut data = record(settings, pg, pending, with_positions, planned);
    if memory.off_duty && crate::ha::sync::is_requested(settings) {
        data = duty::off_duty(data);
    }
    if !worth_writing(memory.published.as_ref(), &data, now, settings.timing.loop_wait_ms()) {
        return;
    }
    let by = by.earlier(Deadline(now.plus(settings.timing.retry_timeout_ms() / 2)));
    memory.published = match ports.dcs.write_member(&data, by).await {
        Ok(()) => Some((data, now)),
        Err(_) => None,
    };
}

/// Writes the record in the middle of a task, when the state just changed. (PG-129)
pub async fn publish_now(ports: &Ports) {
    let settings = ports.configuration.settings();
    let now = ports.clock.now();
    let pg = ports.postgres.observe(Deadline(now.plus(1_000))).await;
    let data = record(&settings, &pg, false, false, None);
    let by = Deadline(now.plus(settings.timing.retry_timeout_ms() / 2));
    // The next turn publishes again; here it only has to be early.
    let _ = ports.dcs.write_member(&data, by).await;
}

/// Says that commits must not wait for this standby, and waits until they do not. (HA-197)
pub async fn leave_duty(ports: &Ports) {
    let settings = ports.configuration.settings();
    if !crate::ha::sync::is_requested(&settings) || settings.nosync {
        return;
    }
    let now = ports.clock.now();
    let pg = ports.postgres.observe(Deadline(now.plus(1_000))).await;
    if pg.is_primary {
        return;
    }
    let data = duty::off_duty(record(&settings, &pg, false, true, None));
    let by = Deadline(now.plus(settings.timing.retry_timeout_ms() / 2));
    if ports.dcs.write_member(&data, by).await.is_ok() {
        duty::wait_until_relieved(ports).await;
    }
}
