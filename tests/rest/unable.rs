//! Switchovers that cannot be, and synchronous replication: the other half of Patroni's captured
//! answers, on a live cluster. See golden.rs.

use crate::SETTLED;
use crate::play::{Play, SOON, text};
use rustix::process::Signal;
use serde_json::json;

/// Proves REST-190 (14, 16, 17, 18), REST-191, REST-192 and REST-362 by the answers of Patroni to the
/// same requests, and REST-088 on real synchronous standbys.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_cannot_take_over_is_refused_as_by_patroni() {
    let mut play = Play::new(json!({"synchronous_mode": true, "ttl": 40})).await;
    with_synchronous_standbys(&mut play).await;
    candidates_that_are_none(&mut play).await;
    a_leader_that_does_not_act(&mut play).await;
    assert_eq!(play.compared, 14, "answers compared");
}

/// Casts the leader and its synchronous standby, as the members themselves tell of it; the third one
/// is neither.
async fn cast(play: &mut Play, leader: &'static str, standby: &'static str, third: &'static str) {
    let leads = play.cluster.healthy(SETTLED).await;
    let is_sync = play
        .cluster
        .wait("one synchronous standby", SETTLED, || async {
            let mut found = Vec::new();
            for i in (0..3).filter(|i| *i != leads) {
                let document = play.cluster.get(i, "/patroni").await?.json();
                if play.cluster.get(i, "/sync").await?.status == 200 {
                    assert_eq!(document["sync_standby"], true, "REST-088: {document}");
                    found.push(i);
                } else {
                    assert!(document["sync_standby"].is_null(), "REST-088: {document}");
                }
            }
            match found.as_slice() {
                [one] => Ok(*one),
                _ => Err(format!("{found:?}")),
            }
        })
        .await;
    let other = (0..3).find(|i| *i != leads && *i != is_sync).expect("three nodes");
    play.cast = [(leader, leads), (standby, is_sync), (third, other)].into();
}

async fn with_synchronous_standbys(play: &mut Play) {
    cast(play, "gamma", "beta", "alpha").await;
    for request in play.requests("POST /switchover and /failover with synchronous_mode: true") {
        match text(&request, "case") {
            "failover to the asynchronous replica" => {
                cast(play, "beta", "alpha", "gamma").await;
                play.same(&request).await;
                play.settled("gamma").await;
            }
            "switchover, no synchronous standby (all have nosync)" => {
                for name in ["alpha", "beta"] {
                    play.tags(name, json!({"nosync": true})).await;
                }
                let leader = play.cast["gamma"];
                play.cluster
                    .wait("nobody is synchronous", SOON, || async {
                        let shown = play.cluster.get(leader, "/cluster").await?.body;
                        if shown.contains("sync_standby") { Err(shown) } else { Ok(()) }
                    })
                    .await;
                play.same(&request).await;
            }
            _ => play.same(&request).await,
        }
    }
    for name in ["alpha", "beta"] {
        play.tags(name, json!({})).await;
    }
    play.patch(json!({"synchronous_mode": null}), |config| config["synchronous_mode"].is_null())
        .await;
}

async fn candidates_that_are_none(play: &mut Play) {
    let leader = play.cluster.healthy(SETTLED).await;
    play.cast = [("beta", leader), ("alpha", (leader + 1) % 3), ("gamma", (leader + 2) % 3)].into();
    play.tags("alpha", json!({"nofailover": true})).await;
    for request in play.requests("POST /switchover with a candidate that can not take over") {
        match text(&request, "case") {
            "candidate does not answer on its REST API" => {
                play.cluster.signal_agent(play.cast["gamma"], Signal::STOP);
                play.same(&request).await;
            }
            "the leader is the only member" => {
                play.cluster.signal_agent(play.cast["gamma"], Signal::CONT);
                for name in ["alpha", "gamma"] {
                    play.cluster.stop_agent(play.cast[name]).await;
                }
                play.cluster
                    .wait("the keys of the others are gone", SETTLED, || async {
                        let shown = play.cluster.get(leader, "/cluster").await?.json();
                        let members = shown["members"].as_array().map_or(0, Vec::len);
                        if members == 1 { Ok(()) } else { Err(shown.to_string()) }
                    })
                    .await;
                play.same(&request).await;
            }
            _ => play.same(&request).await,
        }
    }
    for name in ["alpha", "gamma"] {
        play.cluster.start_agent(play.cast[name]);
    }
}

/// Its agent is held, so nobody gives the lock up; the key stays, and is carried out later.
async fn a_leader_that_does_not_act(play: &mut Play) {
    let leader = play.cluster.healthy(SETTLED).await;
    play.cast = [("alpha", leader), ("beta", (leader + 1) % 3), ("gamma", (leader + 2) % 3)].into();
    play.tags("beta", json!({})).await;
    play.cluster.signal_agent(leader, Signal::STOP);
    for request in play.requests("POST /switchover, the leader does not act") {
        play.same(&request).await;
    }
    play.cluster.signal_agent(leader, Signal::CONT);
    play.settled("beta").await;
}
