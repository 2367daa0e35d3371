//! Which check says what, situation by situation. (REST-070, REST-050)

use super::{observation, primary, replica, standby, view};
use crate::api::Snapshot;
use crate::api::asked::Query;
use crate::api::document::{Positions, Told};
use crate::api::health::{Rule, check};
use crate::api::probes::{is_alive, is_ready};
use crate::api::tally::Tally;
use crate::ha::ports::{Server, Standby};
use hathi_dcs::{Lsn, Role, State, Timeline, boottime};
use serde_json::{Value, json};

const COLUMNS: [&str; 13] = [
    "/",
    "/leader",
    "/standby-leader",
    "/replica",
    "/read-only",
    "/sync",
    "/async",
    "/quorum",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
];

fn code(snapshot: &Snapshot, path: &str, query: &str) -> u16 {
    let (now, tally, query) = (boottime(), Tally::default(), Query::parse(query));
    let told = Told::of(snapshot, now);
    let yes = match path {
        "/liveness" => is_alive(snapshot, now),
        "/readiness" => is_ready(&query, snapshot, &told, now, &tally),
        path => check(Rule::of(path), &query, snapshot, &told, now, &tally),
    };
    if yes { 200 } else { 503 }
}

fn row(snapshot: &Snapshot) -> String {
    let cells: Vec<_> = COLUMNS
        .iter()
        .map(|path| if code(snapshot, path, "") == 200 { "2" } else { "5" })
        .collect();
    cells.join(" ")
}

fn with_config(mut snapshot: Snapshot, config: Value, sync: &str) -> Snapshot {
    let keys =
        [("config", config.to_string()), ("leader", "a".to_owned()), ("sync", sync.to_owned())];
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
    snapshot.view = Some((view(&keys), boottime()));
    snapshot.set_dynamic(super::map(&config.to_string()));
    snapshot
}

fn unlocked(mut snapshot: Snapshot, config: Value) -> Snapshot {
    snapshot.view = Some((view(&[("config", &config.to_string())]), boottime()));
    snapshot.set_dynamic(super::map(&config.to_string()));
    snapshot
}

fn without_store(mut snapshot: Snapshot) -> Snapshot {
    snapshot.view = None;
    snapshot
}

fn in_pause(mut snapshot: Snapshot) -> Snapshot {
    snapshot.paused = true;
    snapshot.set_dynamic(super::map(r#"{"pause": true}"#));
    snapshot
}

fn in_failsafe(mut snapshot: Snapshot) -> Snapshot {
    snapshot.failsafe_mode = true;
    snapshot.failsafe_until = Some(boottime().plus(19_000));
    snapshot
}

fn stopped(mut snapshot: Snapshot, state: State) -> Snapshot {
    let role = snapshot.postgres.role;
    snapshot.postgres = observation(role, Server::Down);
    snapshot.postgres.state = state;
    snapshot.leader_until = None;
    snapshot
}

fn not_streaming(mut snapshot: Snapshot) -> Snapshot {
    let standby = Standby { streaming: false, received: None, ..standby() };
    snapshot.postgres = observation(Role::Replica, Server::Standby(standby));
    snapshot
}

/// Proves REST-070, REST-043, REST-044, REST-045, REST-046, REST-456, REST-490. The cells in which we differ on purpose are
/// named: 456 = 200 without a view because the primary is one; 490 = 503 because nobody could write.
#[test]
fn the_matrix() {
    let sync = r#"{"leader":"a","quorum":0,"sync_standby":"b"}"#;
    let priority = json!({"synchronous_mode": true});
    let quorum = json!({"synchronous_mode": "quorum"});
    let standby_cluster = json!({"standby_cluster": {"host": "elsewhere"}});
    let mut asynchronous = with_config(replica(), priority.clone(), sync);
    asynchronous.me = "c".into();
    let mut unbalanced = replica();
    unbalanced.tags = super::map(r#"{"noloadbalance": true}"#);
    let mut standby_leader = with_config(primary(), standby_cluster.clone(), "{}");
    standby_leader.postgres = observation(Role::StandbyLeader, Server::Standby(standby()));
    let paused = json!({"pause": true});
    let mut killed = primary();
    killed.postgres = observation(Role::Primary, Server::Down);
    let mut starting_again = primary();
    starting_again.postgres = observation(Role::Primary, Server::Starting);
    starting_again.postgres.state = State::Starting;

    for (situation, snapshot, expected) in [
        ("primary", primary(), "2 2 5 5 2 5 5 5 2 2 2 2 2"),
        (
            "primary, synchronous",
            with_config(primary(), priority.clone(), sync),
            "2 2 5 5 2 5 5 5 2 2 2 2 2",
        ),
        (
            "primary, quorum",
            with_config(primary(), quorum.clone(), sync),
            "2 2 5 5 2 5 5 5 2 2 2 2 2",
        ),
        ("replica, asynchronous", replica(), "5 5 5 2 2 5 2 5 5 5 2 2 2"),
        ("the same in a synchronous cluster", asynchronous, "5 5 5 2 2 5 2 5 5 5 2 2 2"),
        (
            "synchronous standby",
            with_config(replica(), priority, sync),
            "5 5 5 2 2 2 5 5 2 5 2 2 2",
        ),
        ("quorum standby", with_config(replica(), quorum, sync), "5 5 5 2 2 5 5 2 5 2 2 2 2"),
        ("noloadbalance", unbalanced, "5 5 5 5 5 5 5 5 5 5 2 2 2"),
        (
            "replica without receiver, no leader, paused",
            in_pause(unlocked(not_streaming(replica()), paused.clone())),
            "5 5 5 2 2 5 2 5 5 5 2 2 5",
        ),
        ("standby leader", standby_leader, "5 2 2 5 2 5 5 5 2 2 2 2 2"),
        (
            "replica of a standby cluster",
            with_config(replica(), standby_cluster, "{}"),
            "5 5 5 2 2 5 2 5 5 5 2 2 2",
        ),
        // ros, roq: 456
        ("failsafe, primary", in_failsafe(without_store(primary())), "2 2 5 5 2 5 5 5 2 2 2 2 2"),
        ("failsafe, replica", in_failsafe(without_store(replica())), "5 5 5 2 2 5 5 5 5 5 2 2 2"),
        ("no store, demoted", without_store(not_streaming(replica())), "5 5 5 2 2 5 5 5 5 5 2 2 5"),
        ("no store, still streaming", without_store(replica()), "5 5 5 2 2 5 5 5 5 5 2 2 2"),
        ("paused, primary", in_pause(primary()), "2 2 5 5 2 5 5 5 2 2 2 2 2"),
        ("paused, replica", in_pause(replica()), "5 5 5 2 2 5 2 5 5 5 2 2 2"),
        // ros, roq, rdy: 456
        (
            "paused, no store, primary",
            {
                let mut snapshot = in_pause(without_store(primary()));
                snapshot.leader_until = None;
                snapshot
            },
            "2 2 5 5 2 5 5 5 2 2 2 2 2",
        ),
        (
            "paused, no store, replica",
            in_pause(without_store(replica())),
            "5 5 5 2 2 5 5 5 5 5 2 2 2",
        ),
        (
            "paused, leader's PostgreSQL stopped",
            in_pause(unlocked(stopped(primary(), State::Stopped), paused)),
            "5 5 5 5 5 5 5 5 5 5 5 2 5",
        ),
        ("replica stopped", stopped(replica(), State::Stopped), "5 5 5 5 5 5 5 5 5 5 5 2 5"),
        (
            "being reinitialised",
            stopped(replica(), State::CreatingReplica),
            "5 5 5 5 5 5 5 5 5 5 5 2 5",
        ),
        // pri, ro, ros, roq: 490
        ("primary, postmaster killed", killed, "5 2 5 5 5 5 5 5 5 5 5 2 2"),
        ("primary, starting again", starting_again, "5 2 5 5 5 5 5 5 5 5 5 2 2"),
    ] {
        assert_eq!(row(&snapshot), expected, "{situation}");
    }
}

/// Proves REST-050, REST-051.
#[test]
fn paths_select_rules() {
    for (path, rule) in [
        ("/", Rule::Primary),
        ("/standby_leader", Rule::StandbyLeader),
        ("/standby-leader/x", Rule::StandbyLeader),
        ("/leader", Rule::Leader),
        ("/leaderless", Rule::Leader),
        ("/master", Rule::Primary),
        ("/primary/x", Rule::Primary),
        ("/foo/primary", Rule::Primary),
        ("/read-write", Rule::Primary),
        ("/replica", Rule::Replica),
        ("/not-a-replica-name", Rule::Replica),
        ("/read-only-replica", Rule::Replica),
        ("/read-only", Rule::ReadOnly),
        ("/read-only/x", Rule::ReadOnly),
        ("/health", Rule::Health),
        ("/healthz", Rule::Health),
        ("/sync", Rule::Sync),
        ("/synchronous", Rule::Sync),
        ("/quorum", Rule::Quorum),
        ("/async", Rule::Async),
        ("/asynchronous", Rule::Async),
        ("/read-only-quorum", Rule::ReadOnlyQuorum),
        ("/read-only-sync", Rule::ReadOnlySync),
        ("/read-only-synchronous", Rule::ReadOnlySync),
        ("/sync/", Rule::Never),
        ("/read-only-async", Rule::Never),
        ("/Primary", Rule::Never),
        ("/%72eplica", Rule::Never),
        ("/nosuchpath", Rule::Never),
        ("*", Rule::Never),
        ("", Rule::Never),
    ] {
        assert_eq!(Rule::of(path), rule, "{path}");
    }
}

/// Proves REST-041 (the view's word), REST-042, REST-053, REST-061, REST-067, REST-360.
#[test]
fn lag_and_replication_state_count_where_a_replica_is_asked_for() {
    let mut behind = replica();
    let lagging = Standby { received: Some(Lsn(950)), replayed: Some(Lsn(900)), ..standby() };
    behind.postgres = observation(Role::Replica, Server::Standby(lagging));
    for (path, query, expected) in [
        ("/replica", "lag=100", 200),
        ("/replica", "lag=99", 503),
        ("/replica", "lag=-1", 503),
        ("/replica", "lag=nonsense", 200),
        ("/replica", "lag=", 200),
        ("/read-only", "lag=99", 503),
        ("/async", "lag=99", 503),
        ("/health", "lag=0", 200),
        ("/readiness", "lag=100", 200),
        ("/readiness", "lag=99", 503),
        ("/readiness", "lag=99&mode=write", 200),
        ("/readiness", "lag=49&mode=write", 503),
        ("/readiness", "lag=50&mode=apply", 503),
        ("/readiness", "lag=nonsense", 200),
        ("/replica", "replication_state=streaming", 200),
        ("/replica", "replication_state=in%20archive%20recovery", 503),
        ("/read-only", "replication_state=x", 503),
        ("/health", "replication_state=x", 200),
    ] {
        assert_eq!(code(&behind, path, query), expected, "{path}?{query}");
    }
    assert_eq!(code(&primary(), "/read-only", "lag=0&replication_state=x"), 200);
    behind.maximum_lag_on_failover = 99;
    assert_eq!(code(&behind, "/readiness", "lag=nonsense"), 503);
    assert_eq!(code(&behind, "/readiness", ""), 503);
    behind.maximum_lag_on_failover = 100;
    assert_eq!(code(&behind, "/readiness", ""), 200);
}

/// Proves REST-041: the larger of what the leader published and what the local receiver heard of it;
/// an old view does not count, and without either nobody lags.
#[test]
fn how_far_the_leader_is() {
    let now = boottime();
    let heard = |published: Option<&str>, receiver: Option<u64>| {
        let mut snapshot = replica();
        let status = published.map(|lsn| format!(r#"{{"optime":{lsn}}}"#));
        let keys: Vec<(&str, &str)> = status.iter().map(|text| ("status", text.as_str())).collect();
        snapshot.view = Some((view(&keys), now));
        if let Some(details) = &mut snapshot.postgres.details {
            details.latest_end_lsn = receiver.map(Lsn);
        }
        snapshot
    };
    for (published, receiver, expected) in [
        (Some("1000"), Some(900), 1000),
        (Some("1000"), Some(1100), 1100),
        (None, Some(7), 7),
        (Some("7"), None, 7),
        (None, None, 0),
    ] {
        assert_eq!(heard(published, receiver).leader_lsn(now), Lsn(expected));
    }
    let mut old = heard(Some("1000000"), Some(900));
    let later = now.plus(old.timing.ttl_ms());
    assert_eq!(old.leader_lsn(later), Lsn(900));
    old.postgres.details = None;
    assert_eq!(old.leader_lsn(later), Lsn(0));
    assert_eq!(code(&heard(None, None), "/replica", "lag=0"), 200);
}

/// Proves REST-055, REST-068.
#[test]
fn tags_narrow_the_readers_checks() {
    let mut tagged = replica();
    tagged.tags = super::map(
        r#"{"datacenter": "dc1", "rack": 7, "ratio": 1.4, "spot": true, "list": [1, 2], "none": null}"#,
    );
    for (query, expected) in [
        ("tag_datacenter=dc1", 200),
        ("tag_datacenter=DC1", 503),
        ("tag_datacenter=", 200),
        ("tag_rack=7", 200),
        ("tag_ratio=1.4", 200),
        ("tag_spot=true", 200),
        ("tag_spot=True", 503),
        ("tag_list=[1,%202]", 200),
        ("tag_none=null", 503),
        ("tag_nofailover=false", 503),
        ("tag_=v", 503),
        ("datacenter=dc2", 200),
        ("tag_datacenter=dc1&tag_rack=8", 503),
    ] {
        assert_eq!(code(&tagged, "/replica", query), expected, "{query}");
        assert_eq!(code(&tagged, "/health", query), expected, "{query}");
        assert_eq!(code(&tagged, "/readiness", query), 200, "{query}");
    }
    assert_eq!(code(&primary(), "/primary", "tag_x=y"), 200);
    assert_eq!(code(&primary(), "/leader", "tag_x=y"), 200);
    assert_eq!(code(&primary(), "/read-only", "tag_x=y"), 503);
}

/// Proves REST-455, REST-047 and REST-048 (do better): the lease, the postmaster, recovery and a demotion each end `/primary`, and only
/// the lease ends `/leader`.
#[test]
fn primary_means_that_writes_are_served() {
    let both =
        |snapshot: &Snapshot| (code(snapshot, "/primary", ""), code(snapshot, "/leader", ""));
    assert_eq!(both(&primary()), (200, 200));
    let mut demoting = primary();
    demoting.demoting = true;
    assert_eq!(both(&demoting), (503, 200));
    let mut in_recovery = primary();
    in_recovery.postgres = observation(Role::Promoted, Server::Standby(standby()));
    assert_eq!(both(&in_recovery), (503, 200));
    let mut stopping = primary();
    stopping.postgres.state = State::Stopping;
    assert_eq!(both(&stopping), (503, 200));
    let mut late = primary();
    late.leader_until = Some(boottime());
    assert_eq!(both(&late), (503, 503), "the lease ended this moment");
    let mut frozen = primary();
    frozen.postgres.server = Server::Silent("no answer".to_owned());
    frozen.postgres.is_primary = true;
    assert_eq!(both(&frozen), (200, 200), "one slow query says nothing against the primary");
    assert_eq!(code(&frozen, "/health", ""), 503);
}

/// Proves HA-312: a primary whose loop hangs since before its lease ended says for a ttl more what it
/// was; then it has no position any more, so that nobody who races waits for it.
#[test]
fn a_primary_that_hangs_is_no_primary_for_ever() {
    let now = boottime();
    let told = |lease_ended: u64, turn_due: u64| {
        let mut hung = primary();
        hung.leader_until = Some(now.minus(lease_ended));
        hung.next_turn = now.minus(turn_due);
        let told = Told::of(&hung, now);
        (told.role, told.positions == Positions::Unknown, code(&hung, "/primary", ""))
    };
    assert_eq!(told(19_000, 40_000), (Role::Primary, false, 503));
    assert_eq!(told(21_000, 40_000), (Role::Demoted, true, 503), "a ttl of 20 s is over");
    assert_eq!(told(21_000, 1_000), (Role::Primary, false, 503), "its loop goes round");
}

/// Proves REST-065, REST-066, HA-027.
#[test]
fn probes_follow_the_loop_not_postgresql() {
    let now = boottime();
    let mut late = primary();
    late.next_turn = now.minus(19_000);
    assert_eq!(code(&late, "/liveness", ""), 200);
    late.next_turn = now.minus(21_000);
    assert_eq!(code(&late, "/liveness", ""), 503, "a primary has one ttl");
    late.postgres.alive = false;
    assert_eq!(code(&late, "/liveness", ""), 200, "without a postmaster it is two");
    late.next_turn = now.minus(41_000);
    assert_eq!(code(&late, "/liveness", ""), 503);
    late.paused = true;
    assert_eq!(code(&late, "/liveness", ""), 200);

    let mut lost = without_store(replica());
    assert_eq!(code(&lost, "/readiness", ""), 200, "the receiver still hears the leader");
    if let Some(details) = &mut lost.postgres.details {
        details.latest_end_lsn = None;
    }
    assert_eq!(code(&lost, "/readiness", ""), 503);
    assert_eq!(code(&in_failsafe(lost), "/readiness", ""), 200);
    let primary_without_lease = Snapshot { leader_until: None, ..primary() };
    assert_eq!(code(&primary_without_lease, "/readiness", ""), 503, "it streams from nobody");
}

/// Proves REST-080, REST-084, REST-087, REST-088 (what the checks judge by).
#[test]
fn the_words_of_the_document() {
    let now = boottime();
    let mut unsure = primary();
    unsure.postgres.server = Server::Silent("slow".to_owned());
    let told = Told::of(&unsure, now);
    assert_eq!((told.state_text(), told.role), ("unknown", Role::Primary));
    let mut no_receiver = replica();
    let standby = Standby { received: Some(Lsn(0)), replayed: Some(Lsn(7)), ..standby() };
    no_receiver.postgres = observation(Role::Replica, Server::Standby(standby));
    let crate::api::document::Positions::Standby { received, .. } =
        Told::of(&no_receiver, now).positions
    else {
        panic!("it is in recovery")
    };
    assert_eq!(received, Lsn(7));
    let mut stopped = primary();
    stopped.postgres.state = State::Stopped;
    stopped.postgres.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1) };
    let told = Told::of(&stopped, now);
    assert_eq!(told.positions, crate::api::document::Positions::Unknown);
    assert_eq!(told.state_text(), "stopped");
}
