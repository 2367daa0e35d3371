//! May what a turn saw still be believed? (HA-325)
//!
//! A look has an age: what a turn waits for after it may take longer than a leadership. What cannot be taken
//! back is done on a young look: to ask for the key or to give it up, to promote, to start a primary or to
//! stop a healthy one, to rewind or to remove data. An older look is made again, once, and has to show the
//! same; otherwise the turn ends here, and the next one decides anew. So a slow store delays such a step by
//! one reading, and never keeps it from being taken for good.

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::{Observation, Server};
use crate::ha::turn::{Decided, Turn};
use hathi_dcs::{ClusterView, Millis, Timeline, Timing};

/// When the looks were made that a turn decides by.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    /// When the store was asked.
    pub asked: Millis,
    /// When its answer was here.
    pub answered: Millis,
    /// When it was seen what PostgreSQL is.
    pub postgres: Millis,
}

/// How old a look may be.
pub fn most_ms(timing: Timing) -> u64 {
    timing.loop_wait_ms().min(timing.ttl_ms() / 6)
}

/// `Some`: what this turn is about to do is not done, because the world is not what it was, or is not seen.
pub async fn first(turn: &mut Turn<'_>) -> Option<Decided> {
    match again_if_old(turn).await {
        Ok(()) => None,
        Err(why) => {
            turn.because("HA-325", why);
            turn.memory.want_latest = true;
            let at = turn.now();
            Some(Decided::line(format!("looking again: {why}")).again_at(at))
        }
    }
}

async fn again_if_old(turn: &mut Turn<'_>) -> Result<(), &'static str> {
    if broken(Breakage::ActsOnOldLooks) {
        return Ok(());
    }
    let most = most_ms(turn.settings.timing);
    let is_old = |at: Millis, now: Millis| now.since(at) > most;
    // The store first: whatever it takes, PostgreSQL is then seen as of now.
    if is_old(turn.looked.answered, turn.now()) {
        let before = turn.view.clone();
        if !turn.read_again().await {
            return Err("the store cannot be read now");
        }
        same_cluster(&before, &turn.view)?;
    }
    if is_old(turn.looked.postgres, turn.now()) {
        let before = turn.pg.clone();
        turn.observe_again().await;
        same_server(&before, &turn.pg)?;
    }
    // Looking again must not cost what is left of the lease. (HA-304)
    if turn.time_is_up() { Err("the lease runs down") } else { Ok(()) }
}

/// Does the store still show what the decision was about? What the leader writes all the time counts only
/// where there should be none.
pub fn same_cluster(before: &ClusterView, now: &ClusterView) -> Result<(), &'static str> {
    if before.leader_name() != now.leader_name() {
        return Err("the leader key changed");
    }
    if before.initialize != now.initialize || before.history != now.history {
        return Err("the cluster went on");
    }
    let version = |view: &ClusterView| view.config.as_ref().map(|config| config.version);
    if version(before) != version(now) {
        return Err("/config changed");
    }
    if before.failover != now.failover {
        return Err("/failover changed");
    }
    if before.sync != now.sync {
        return Err("/sync changed");
    }
    if before.failsafe != now.failsafe {
        return Err("/failsafe changed");
    }
    if now.leader.is_none() && before.status != now.status {
        return Err("somebody led meanwhile");
    }
    Ok(())
}

/// Is PostgreSQL still what it was? That it is further on changes nothing.
pub fn same_server(before: &Observation, now: &Observation) -> Result<(), &'static str> {
    let is = |pg: &Observation| (pg.alive, pg.is_primary, shape(&pg.server));
    if is(before) != is(now) {
        return Err("PostgreSQL is not what it was");
    }
    if before.data_dir != now.data_dir || before.system_id != now.system_id {
        return Err("the data directory is not what it was");
    }
    Ok(())
}

/// What kind of server it is, and on which timeline.
fn shape(server: &Server) -> (u8, Timeline) {
    match server {
        Server::Down => (0, Timeline(0)),
        Server::Starting => (1, Timeline(0)),
        Server::Silent(_) => (2, Timeline(0)),
        Server::Standby(standby) => (3, standby.timeline),
        Server::Primary { timeline, .. } => (4, *timeline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::ports::Standby;
    use crate::ha::tests::stage::Scene;
    use hathi_dcs::{Failover, History, Leader, Lsn, Status, Stored, Version};

    /// Proves HA-325 (how old a look may be).
    #[test]
    fn a_look_is_young_for_a_part_of_the_lease() {
        for (ttl, loop_wait, most) in
            [(30, 10, 5_000), (60, 10, 10_000), (20, 1, 1_000), (3, 1, 500)]
        {
            assert_eq!(most_ms(Timing { ttl, loop_wait, retry_timeout: 1 }), most);
        }
    }

    /// Proves HA-325 (what counts as a change of the cluster).
    #[test]
    fn what_a_change_of_the_cluster_is() {
        let led = Scene::replica().view();
        let free = ClusterView { leader: None, ..led.clone() };
        let leader =
            |name: &str, version| Some(Leader { name: name.into(), version: Version(version) });
        let status = Status { optime: Lsn(7), ..Status::default() };
        let request = Stored { value: Failover::default(), version: Version(3) };
        let table = [
            ("nothing", led.clone(), led.clone(), true),
            (
                "another leader",
                led.clone(),
                ClusterView { leader: leader("c", 2), ..led.clone() },
                false,
            ),
            ("nobody leads", led.clone(), free.clone(), false),
            (
                "the leader says how far it is",
                led.clone(),
                ClusterView { status: status.clone(), ..led.clone() },
                true,
            ),
            (
                "somebody said how far he is",
                free.clone(),
                ClusterView { status, ..free.clone() },
                false,
            ),
            (
                "a request",
                led.clone(),
                ClusterView { failover: Some(request), ..led.clone() },
                false,
            ),
            (
                "a new history",
                led.clone(),
                ClusterView { history: History::parse(r#"[[1,5,"","",""]]"#), ..led.clone() },
                false,
            ),
            ("a member", led.clone(), ClusterView { members: Vec::new(), ..led.clone() }, true),
            ("initialize", led.clone(), ClusterView { initialize: None, ..led }, false),
        ];
        for (what, before, now, same) in table {
            assert_eq!(same_cluster(&before, &now).is_ok(), same, "{what}");
        }
    }

    /// Proves HA-325 (what counts as a change of PostgreSQL).
    #[test]
    fn what_a_change_of_the_server_is() {
        let (_, before) = Scene::replica().facts();
        let on = |timeline, lsn| {
            let (timeline, received) = (Timeline(timeline), Some(Lsn(lsn)));
            let server = Server::Standby(Standby { timeline, received, ..Standby::default() });
            Observation { server, ..before.clone() }
        };
        let primary = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
        for (what, now, same) in [
            ("further on", on(1, 9_000), true),
            ("another timeline", on(2, 1_000), false),
            ("silent", Observation { server: Server::Silent("x".into()), ..before.clone() }, false),
            (
                "a primary",
                Observation { server: primary, is_primary: true, ..before.clone() },
                false,
            ),
            ("down", Observation { server: Server::Down, alive: false, ..before.clone() }, false),
            ("other data", Observation { system_id: None, ..before.clone() }, false),
        ] {
            assert_eq!(same_server(&before, &now).is_ok(), same, "{what}");
        }
    }
}
