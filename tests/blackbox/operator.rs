//! What an operator asks of one member, at once or at a moment; and how soon the cluster reacts when
//! nobody may wait for the next turn. `loop_wait` is ten seconds here: whatever has to happen in four
//! cannot have been found by polling.

use crate::{PAUSE, SETTLED, options};
use chrono::{DateTime, TimeDelta, Utc};
use hathi_test_support::check::Loss;
use hathi_test_support::{Cluster, Store, Writers, check, sql};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Far below `loop_wait`, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_secs(30);

async fn slow_wheel(store: Store) -> Cluster {
    let mut options = options(store);
    options.dcs = json!({"ttl": 40, "loop_wait": 20, "retry_timeout": 10});
    Cluster::start(options).await
}

async fn asked(
    cluster: &Cluster,
    node: usize,
    method: &str,
    path: &str,
    body: Value,
) -> (u16, String) {
    let answer = cluster.send(node, method, path, body).await;
    let answer = answer.unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", cluster.report()));
    (answer.status, answer.body)
}

fn said(status: u16, text: &str) -> (u16, String) {
    (status, text.to_owned())
}

async fn started_at(cluster: &Cluster, node: usize) -> DateTime<Utc> {
    let sql = "SELECT to_json(pg_postmaster_start_time() AT TIME ZONE 'UTC')#>>'{}' || 'Z'";
    let text = sql::value(cluster.nodes[node].pg_port, sql).await.expect("its start time");
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Restart of primary and replica: answered when it is done, in place, with every row.
///
/// Proves REST-220, REST-221, PG-060 and HA-163 (that nothing of it is needed) on a real server.
pub async fn restarts(store: Store) {
    let cluster = slow_wheel(store).await;
    let leader = cluster.leader().await.expect("a leader");
    let replica = (leader + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    for node in [replica, leader] {
        let before = cluster.nodes[node].postmaster();
        let begun = Instant::now();
        let answer = asked(&cluster, node, "POST", "/restart", json!({})).await;
        assert_eq!(answer, said(200, "restarted successfully"), "{}", cluster.report());
        assert!(begun.elapsed() < AT_ONCE, "{:?}\n{}", begun.elapsed(), cluster.report());
        assert_ne!(cluster.nodes[node].postmaster(), before, "another server answers now");
        let again = writers.accepts_after(Instant::now(), AT_ONCE).await;
        assert_eq!(again.map(|a| a.node), Ok(leader), "{}", cluster.report());
    }
    for (body, answer) in [
        (json!({"role": "primary"}), said(503, "restart conditions are not satisfied")),
        (json!({"restart_pending": true}), said(503, "restart conditions are not satisfied")),
        (json!({"postgres_version": "9.5.2"}), said(503, "restart conditions are not satisfied")),
        (json!({"color": "red"}), said(400, "Unknown filter for the scheduled restart: color")),
        (json!({"role": "replica", "timeout": "1min"}), said(200, "restarted successfully")),
    ] {
        assert_eq!(
            asked(&cluster, replica, "POST", "/restart", body.clone()).await,
            answer,
            "{body}"
        );
    }
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// A replica gets a new copy; the leader is never thrown away.
///
/// Proves REST-245 and HA-055 on a real server.
pub async fn reinitialize(store: Store) {
    let cluster = slow_wheel(store).await;
    let leader = cluster.leader().await.expect("a leader");
    let replica = (leader + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    let refused = said(503, "I am the leader, can not reinitialize");
    let force = json!({"force": true});
    assert_eq!(asked(&cluster, leader, "POST", "/reinitialize", force).await, refused);

    let mark = cluster.nodes[replica].data().join("marked-by-a-test");
    std::fs::write(&mark, "old").expect("a file in the old directory");
    let answer = asked(&cluster, replica, "POST", "/reinitialize", json!({})).await;
    assert_eq!(answer, said(200, "reinitialize started"), "{}", cluster.report());
    cluster
        .wait("the old directory is gone", SETTLED, || async {
            if mark.exists() { Err("it is there".to_owned()) } else { Ok(()) }
        })
        .await;
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// Schedules are shown, deleted, and carried out at their moment, not with the next turn.
///
/// Proves HA-074, HA-078, REST-195, REST-223, REST-224 on a real server.
pub async fn schedules(store: Store) {
    let cluster = slow_wheel(store).await;
    let leader = cluster.leader().await.expect("a leader");
    let replica = (leader + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");

    let later = Utc::now() + TimeDelta::hours(1);
    let schedule = json!({"schedule": later.to_rfc3339()});
    let answer = asked(&cluster, replica, "POST", "/restart", schedule.clone()).await;
    assert_eq!(answer, said(202, "Restart scheduled"));
    let second = asked(&cluster, replica, "POST", "/restart", schedule).await;
    assert_eq!(second, said(409, "Another restart is already scheduled"));
    planned(&cluster, leader, replica, true).await;
    let deleted = asked(&cluster, replica, "DELETE", "/restart", json!({})).await;
    assert_eq!(deleted, said(200, "scheduled restart deleted"));
    planned(&cluster, leader, replica, false).await;

    let at = Utc::now() + TimeDelta::seconds(3);
    let soon = json!({"schedule": at.to_rfc3339(), "role": "replica"});
    assert_eq!(asked(&cluster, replica, "POST", "/restart", soon).await.0, 202);
    let before = started_at(&cluster, replica).await;
    let began = cluster
        .wait("the scheduled restart", Duration::from_secs(3) + AT_ONCE, || async {
            let sql = "SELECT 1";
            sql::value(cluster.nodes[replica].pg_port, sql).await?;
            let now = started_at_or(&cluster, replica).await?;
            if now == before { Err("not yet".into()) } else { Ok(now) }
        })
        .await;
    assert!(began >= at && began < at + TimeDelta::seconds(8), "{began} for {at}");
    planned(&cluster, leader, replica, false).await;

    let at = Utc::now() + TimeDelta::seconds(3);
    let names = (&cluster.nodes[leader].name, &cluster.nodes[replica].name);
    let order = json!({"leader": names.0, "candidate": names.1, "scheduled_at": at.to_rfc3339()});
    let answer = asked(&cluster, replica, "POST", "/switchover", order).await;
    assert_eq!(answer, said(202, "Switchover scheduled"));
    cluster.healthy(SETTLED).await;
    let new = cluster.another_leader(leader, Duration::from_secs(3) + AT_ONCE).await;
    assert_eq!(new, replica, "{}", cluster.report());
    assert!(Utc::now() >= at, "not before its moment");
    assert_eq!(cluster.healthy(SETTLED).await, replica, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

async fn started_at_or(cluster: &Cluster, node: usize) -> Result<DateTime<Utc>, String> {
    let sql = "SELECT to_json(pg_postmaster_start_time() AT TIME ZONE 'UTC')#>>'{}' || 'Z'";
    let text = sql::value(cluster.nodes[node].pg_port, sql).await?;
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// Another member hears of a schedule, or of its end.
async fn planned(cluster: &Cluster, asked: usize, of: usize, wanted: bool) {
    let name = cluster.nodes[of].name.as_str();
    cluster
        .wait("the schedule in /cluster", AT_ONCE, || async {
            let view = cluster.get(asked, "/cluster").await?.json();
            let members = view["members"].as_array().cloned().unwrap_or_default();
            let member = members.into_iter().find(|member| member["name"] == name);
            let shown = member.ok_or("no such member")?["scheduled_restart"].clone();
            if shown["postmaster_start_time"].is_string() == wanted {
                Ok(())
            } else {
                Err(shown.to_string())
            }
        })
        .await;
}

/// Nobody waits for the next turn: what happened is its own reason to look, on every member.
///
/// Proves HA-180, HA-300, HA-301, HA-302, HA-077 on a real server.
pub async fn reactions(store: Store) {
    let mut cluster = slow_wheel(store).await;
    let first = cluster.leader().await.expect("a leader");
    let (second, third) = ((first + 1) % 3, (first + 2) % 3);
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");

    // A replica's postmaster is killed: it streams again.
    cluster.kill_postmaster(second);
    cluster.wait("the replica streams again", AT_ONCE, || cluster.looks_healthy(2)).await;

    // The primary's is: it takes writes again where it was.
    cluster.kill_postmaster(first);
    let again = writers.accepts_after(Instant::now(), AT_ONCE).await;
    assert_eq!(again.map(|a| a.node), Ok(first), "{}", cluster.report());
    // PostgreSQL itself tries to connect again after five seconds (wal_retrieve_retry_interval).
    cluster.wait("all stream again", SOON, || cluster.looks_healthy(2)).await;

    // A change of the configuration reaches every server.
    let patch = json!({"postgresql": {"parameters": {"work_mem": "7MB"}}});
    assert_eq!(asked(&cluster, third, "PATCH", "/config", patch).await.0, 200);
    for node in &cluster.nodes {
        cluster
            .wait("the new work_mem", AT_ONCE, || async {
                match sql::value(node.pg_port, "SHOW work_mem").await?.as_str() {
                    "7MB" => Ok(()),
                    other => Err(other.to_owned()),
                }
            })
            .await;
    }

    // A switchover, posted on a member that has no part in it.
    let names = (&cluster.nodes[first].name, &cluster.nodes[second].name);
    let order = json!({"leader": names.0, "candidate": names.1});
    let begun = Instant::now();
    let answer = asked(&cluster, third, "POST", "/switchover", order).await;
    assert_eq!(answer.0, 200, "{}\n{}", answer.1, cluster.report());
    assert!(begun.elapsed() < AT_ONCE, "{:?}\n{}", begun.elapsed(), cluster.report());
    let again = writers.accepts_after(Instant::now(), AT_ONCE).await;
    assert_eq!(again.map(|a| a.node), Ok(second), "{}", cluster.report());
    cluster.wait("all follow the new leader", AT_ONCE, || cluster.looks_healthy(2)).await;

    // The leader's agent is stopped: somebody else takes over.
    let stopped = Instant::now();
    let status = cluster.stop_agent(second).await;
    assert!(status.success(), "{status}");
    cluster.another_leader(second, AT_ONCE).await;
    writers.accepts_after(Instant::now(), AT_ONCE).await.expect("a write");
    assert!(stopped.elapsed() < 2 * AT_ONCE, "{:?}\n{}", stopped.elapsed(), cluster.report());
    cluster.start_agent(second);
    cluster.healthy(SETTLED).await;
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[Loss::just_before(stopped)]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}
