//! What Patroni 4.1.5 answered to requests that change something (tests/golden/rest/requests.json),
//! asked of a live cluster of three on etcd, in the order of the capture. Where we answer otherwise on
//! purpose, the rule stands beside it.

use crate::SETTLED;
use crate::play::{Play, SOON, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_test_support::rest;
use hathi_test_support::yaml::SCOPE;
use rustix::process::Signal;
use serde_json::json;

/// Proves REST-163, REST-164, REST-165 (what is stored is what was sent, however senseless).
/// Proves REST-190, REST-191, REST-193, REST-194, REST-220, REST-224, REST-240, REST-245, REST-251.
/// Proves REST-255, REST-352, REST-353 and REST-354: all by the answers of Patroni to the same requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_are_answered_as_by_patroni() {
    // What the servers of the capture were started with, or a restart would be pending.
    let started_with = json!({"postgresql": {"parameters": {"max_connections": 40}}});
    let mut play = Play::new(started_with).await;
    configuration(&mut play).await;
    restarts(&mut play).await;
    refusals(&mut play).await;
    changes_of_the_leader(&mut play).await;
    the_rest(&mut play).await;
    assert!(play.compared > 120, "{} answers compared", play.compared);
}

async fn configuration(play: &mut Play) {
    let whole = play.requests("PUT /config").remove(0);
    play.same(&whole).await;
    play.all("PATCH /config").await;
    play.all("PUT /config").await;
    from_two_sides(play).await;
    without_the_key(play).await;
    play.same(&whole).await;
    // The agents heard all of that, and none of the senseless values is in force.
    play.settled("alpha").await;
}

/// Two write at the same moment on two members, again and again, until one of them loses; the other one's
/// value is the one stored.
async fn from_two_sides(play: &mut Play) {
    let request = play.requests("PATCH /config from two sides at once").remove(0);
    for value in 1..200 {
        let sides = [("alpha", 2 * value), ("beta", 2 * value + 1)].map(|(to, value)| {
            let mut one = request.clone();
            one["to"] = json!(to);
            one["body"] = json!(text(&request, "body").replace("...", &value.to_string()));
            (one, value)
        });
        let (one, other) = tokio::join!(play.send(&sides[0].0), play.send(&sides[1].0));
        let (lost, won) = match (one.code(), other.code()) {
            (200, 200) => continue,
            (409, 200) => (one, sides[1].1),
            (200, 409) => (other, sides[0].1),
            codes => panic!("{codes:?}: {} {}", one.body, other.body),
        };
        play.judge(&request, &lost, text(&request, "status"), text(&request, "answer"));
        play.shows_config("alpha", |config| config["maximum_lag_on_failover"] == won).await;
        return;
    }
    panic!("nobody ever lost");
}

/// The leader's agent is held, so nobody writes the key again; a replica is asked.
async fn without_the_key(play: &mut Play) {
    let before = play.cast.clone();
    let leader = before["alpha"];
    play.cast.extend([("alpha", before["beta"]), ("beta", leader)]);
    play.cluster.signal_agent(leader, Signal::STOP);
    let etcd = play.cluster.etcd.as_ref().expect("its etcd").client_ports()[0];
    let key = STANDARD.encode(format!("/service/{SCOPE}/config"));
    let delete = Some(json!({ "key": key }));
    let gone = rest::request("POST", etcd, "/v3/kv/deleterange", delete.as_ref(), SOON).await;
    assert_eq!(gone.expect("etcd's answer").json()["deleted"], "1");
    let section = "PATCH /config and others while the cluster has no /config key";
    for request in play.requests(section) {
        let reply = play
            .cluster
            .wait("the replica knows", SOON, || async {
                let reply = play.send(&request).await;
                // It hears of it by its watch.
                let early = text(&request, "case") == "GET" && reply.code() == 200;
                if early { Err(reply.body) } else { Ok(reply) }
            })
            .await;
        play.judge(&request, &reply, text(&request, "status"), text(&request, "answer"));
    }
    play.cluster.signal_agent(leader, Signal::CONT);
    play.cast = before;
}

async fn restarts(play: &mut Play) {
    play.all("POST /reload").await;
    for request in play.requests("POST /restart and DELETE /restart") {
        match text(&request, "case") {
            // Answered at all. (REST-457)
            "postgres_version as a number" => {
                let answer = "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 16";
                play.other(&request, "400 Bad Request", answer).await;
            }
            // False is false. (REST-458)
            "restart_pending false, none pending (the key alone counts)" => {
                play.other(&request, "200 OK", "restarted successfully").await;
            }
            // At the same time, below. Schedules that are carried out: tests/blackbox.
            "second while the first runs"
            | "reinitialize while a restart runs"
            | "first of two at the same time"
            | "scheduled 6 s ahead" => {}
            case if case.starts_with("paused") => {
                play.pause(true).await;
                play.same(&request).await;
                play.pause(false).await;
            }
            _ => play.same(&request).await,
        }
    }
    let both = play.requests("POST /restart and DELETE /restart").remove(1);
    let (one, other) = tokio::join!(play.send(&both), play.send(&both));
    let mut said = [(one.code(), one.body), (other.code(), other.body)];
    said.sort();
    let [done, busy] = &said;
    assert_eq!((done.0, done.1.as_str()), (200, "restarted successfully"));
    assert_eq!((busy.0, busy.1.as_str()), (503, "restart already in progress"));
    play.settled("alpha").await;
    for request in play.requests("POST /reinitialize") {
        if text(&request, "case") == "body is not JSON" {
            // The capture shows its two answers elsewhere; here is one, and nothing happens. (REST-246)
            play.other(&request, "400 Bad Request", "(html error page) Error code: 400").await;
            continue;
        }
        let before = play.started_at(text(&request, "to")).await;
        play.same(&request).await;
        if text(&request, "status").starts_with("200") {
            // Until its server is another one the records of the old one look healthy.
            play.is_started_anew(text(&request, "to"), &before).await;
        }
        play.settled("alpha").await;
    }
}

async fn refusals(play: &mut Play) {
    let mut refused = false;
    for request in play.requests("POST /switchover, refusals") {
        match text(&request, "case") {
            // Checked like any other. (REST-462)
            "scheduled, wrong leader and unknown candidate: not checked" => {
                play.other(&request, "412 Precondition Failed", "leader name does not match").await;
                refused = true;
            }
            "DELETE" if refused => refused = false,
            _ => play.same(&request).await,
        }
    }
}

async fn changes_of_the_leader(play: &mut Play) {
    play.pause(true).await;
    for request in play.requests("POST /switchover while paused") {
        play.same(&request).await;
    }
    play.pause(false).await;
    play.settled("beta").await;
    for request in play.requests("POST /switchover, carried out") {
        match text(&request, "case") {
            "no candidate: any healthy replica" => {
                let reply = play.send(&request).await;
                assert_eq!(reply.code(), 200, "{}", reply.body);
                // Either may be the one; from here on it plays beta.
                let new = play.cluster.healthy(SETTLED).await;
                let expected =
                    format!("Successfully switched over to \"{}\"", play.cluster.nodes[new].name);
                assert_eq!(reply.body, expected);
                if play.cast["beta"] != new {
                    let beta = play.cast["beta"];
                    play.cast.extend([("beta", new), ("gamma", beta)]);
                }
                play.settled("beta").await;
            }
            // Carried out at its moment: tests/blackbox. Here by two at the same time.
            "scheduled 6 s ahead" => {
                let mut now = request.clone();
                now["body"] = json!(r#"{"leader": "alpha", "candidate": "beta"}"#);
                let (one, other) = tokio::join!(play.send(&now), play.send(&now));
                let answer = play.ours("Successfully switched over to \"beta\"");
                for reply in [one, other] {
                    assert_eq!((reply.code(), &reply.body), (200, &answer), "REST-193");
                }
                play.settled("beta").await;
            }
            _ => {
                play.same(&request).await;
                play.settled("alpha").await;
            }
        }
    }
    for request in play.requests("POST /failover") {
        play.same(&request).await;
        let leads = match text(&request, "case") {
            "to a replica" => "alpha",
            "leader and candidate right: carried out as a switchover" => "gamma",
            _ => continue,
        };
        play.settled(leads).await;
    }
}

async fn the_rest(play: &mut Play) {
    let failsafe = play.requests("POST /failsafe");
    play.same(&failsafe[0]).await;
    play.patch(json!({"failsafe_mode": true}), |config| config["failsafe_mode"] == true).await;
    for request in &failsafe[1..] {
        match text(request, "case") {
            // Answered at all. (REST-457)
            "to a replica, without a name" => {
                let reply = play.send(request).await;
                assert_eq!(reply.code(), 400, "{}", reply.body);
            }
            "GET" => {
                let to = play.cast["alpha"];
                play.cluster
                    .wait("everybody in the failsafe record", SOON, || async {
                        let record = play.cluster.get(to, "/failsafe").await?.json();
                        let named = play.cluster.nodes.iter().all(|n| record[&n.name].is_string());
                        if named { Ok(()) } else { Err(record.to_string()) }
                    })
                    .await;
            }
            _ => {
                // The mode has to be in force, not only stored.
                let reply = play
                    .cluster
                    .wait("failsafe mode in force", SOON, || async {
                        let reply = play.send(request).await;
                        if reply.code() == 502 { Err(reply.body) } else { Ok(reply) }
                    })
                    .await;
                play.judge(request, &reply, text(request, "status"), text(request, "answer"));
            }
        }
    }
    play.patch(json!({"failsafe_mode": null}), |config| config["failsafe_mode"].is_null()).await;
    play.all("POST /sigterm").await;
    no_group_was_told(play).await;
    play.all("POST /citus and POST /mpp").await;
    play.settled("gamma").await;
}

/// Proves REST-348: through all restarts, switchovers and failovers before, no member told another one
/// of a group's change. Whoever is told counts it.
async fn no_group_was_told(play: &Play) {
    for i in 0..3 {
        let page = play.cluster.get(i, "/metrics").await.expect("an answer").body;
        let counted = |endpoint: &str| page.contains(&format!("endpoint=\"{endpoint}\""));
        assert!(counted("patroni"), "what members ask each other is counted\n{page}");
        assert!(!counted("citus") && !counted("mpp"), "{page}");
    }
}
