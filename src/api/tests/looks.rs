//! How old an answer about PostgreSQL may be, and who waits for a younger one.

use super::{Served, observation, primary, replica, standby};
use crate::api::{Order, Snapshot};
use crate::ha::manual::Answer;
use crate::ha::ports::{Observation, Server};
use hathi_dcs::{Lsn, Role, Timeline, boottime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Proves REST-452: who asks `/patroni` after a silence gets it as of now, and all who ask at one moment
/// share one look.
#[tokio::test]
async fn patroni_is_fresh_and_shared() {
    let mut served =
        Served::new(Snapshot { observed_at: boottime().minus(5000), ..primary() }).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    let looks = tokio::spawn(async move {
        let mut looks = 0;
        while let Some(order) = orders.recv().await {
            let Order::FreshStatus { reply } = order else { panic!("{order:?}") };
            looks += 1;
            // Long enough for all of them to have asked.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let fresh: Observation = observation(Role::Replica, Server::Standby(standby()));
            let _ = reply.send(fresh);
        }
        looks
    });
    // A machine that stalls for longer than a look may take gets the old truth: it asks again.
    let mut rounds = 0;
    loop {
        rounds += 1;
        let asking = (0..10).map(|_| served.get("/patroni"));
        let replies = futures::future::join_all(asking).await;
        assert!(replies.iter().all(|reply| reply.status == 200));
        if replies.iter().all(|reply| reply.json()["role"] == "replica") {
            break;
        }
        assert!(rounds < 20, "no look arrives");
    }
    assert_eq!(served.get("/").await.json()["role"], "replica", "the checks know it, too");
    // What the agent publishes later counts more than the look before.
    let newer = Snapshot { observed_at: boottime().plus(1), ..primary() };
    served.snapshots.send_replace(Arc::new(newer));
    assert_eq!(served.get("/").await.json()["role"], "primary");
    served.stop();
    (&mut served.running).await.expect("the server ends");
    drop(served);
    let looks = tokio::time::timeout(super::PATIENCE, looks).await.expect("ends").expect("looks");
    assert!(looks <= 3 * rounds, "{looks} looks for ten askers at once, {rounds} times");
}

/// Proves REST-346, REST-452: a look that a health check had taken in the background, and nobody waited
/// for, does not stand in for the one a member wants now.
#[tokio::test]
async fn a_finished_look_is_not_taken_for_a_new_one() {
    let mut served =
        Served::new(Snapshot { observed_at: boottime().minus(5000), ..replica() }).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    assert_eq!(served.get("/replica").await.status, 200);
    let Some(Order::FreshStatus { reply }) = orders.recv().await else {
        panic!("a look is asked for")
    };
    let background = observation(Role::Demoted, Server::Down);
    reply.send(background).expect("it waits");
    // The answer has arrived once a check shows it; then the look is over.
    while served.get("/").await.json()["role"] != "demoted" {}
    let asking = async {
        tokio::join!(served.ask("GET", "/patroni", OUR_MEMBER, b""), async {
            let Some(Order::FreshStatus { reply }) = orders.recv().await else { panic!("no look") };
            reply.send(primary().postgres).expect("it waits");
        })
    };
    let (reply, ()) = tokio::time::timeout(super::PATIENCE, asking).await.expect("a new look");
    assert_eq!(reply.json()["role"], "primary");
}

const OUR_MEMBER: &str = "User-Agent: hathi/0.1.0\r\n";
const THEIR_MEMBER: &str = "User-Agent: Patroni/4.1.5 Python/3.11.2 Linux\r\n";

/// Proves REST-346, REST-452: a member that decides by the answer does not get what PostgreSQL said before
/// it asked, not even from a look that was under way at that moment.
#[tokio::test]
async fn a_look_under_way_is_not_fresh_enough_for_a_member() {
    for member in [OUR_MEMBER, THEIR_MEMBER] {
        let mut served =
            Served::new(Snapshot { observed_at: boottime().minus(5000), ..replica() }).await;
        let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
        let mut look = async || match orders.recv().await {
            Some(Order::FreshStatus { reply }) => reply,
            other => panic!("{other:?}"),
        };
        let mut first = served.connect().await;
        let mut second = served.connect().await;
        let asking = async {
            tokio::join!(first.ask("GET", "/patroni", "", b""), async {
                let before = look().await;
                tokio::join!(second.ask("GET", "/patroni", member, b""), async {
                    // One thread serves all: it has read the member's question long before the last
                    // of these is answered.
                    for _ in 0..20 {
                        assert_eq!(served.get("/liveness").await.status, 200);
                    }
                    before.send(replica().postgres).expect("somebody waits");
                    look().await.send(primary().postgres).expect("somebody waits");
                })
                .0
            })
        };
        let (anybody, member) =
            tokio::time::timeout(super::PATIENCE, asking).await.expect("two looks");
        assert_eq!(anybody.expect("an answer").json()["role"], "replica");
        assert_eq!(member.expect("an answer").json()["role"], "primary");
    }
}

/// An agent that counts the looks it takes, and does whatever else it is told.
fn counting_agent(served: &mut Served) -> (Arc<AtomicU64>, JoinHandle<()>) {
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    let looks = Arc::new(AtomicU64::new(0));
    let counted = looks.clone();
    let agent = tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::FreshStatus { reply } => {
                    let seen = Lsn(counted.fetch_add(1, Ordering::Relaxed) + 2000);
                    let server = Server::Primary { timeline: Timeline(1), lsn: seen };
                    let _ = reply.send(observation(Role::Primary, server));
                }
                Order::Member { reply, .. } => {
                    let _ = reply.send(Answer::new(200, "restarted successfully"));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    (looks, agent)
}

/// Proves REST-452: many who ask `/patroni` cost PostgreSQL some looks a second, whatever their number.
#[tokio::test]
async fn looks_do_not_grow_with_the_askers() {
    let mut served = Served::new(primary()).await;
    let (looks, _agent) = counting_agent(&mut served);
    let began = Instant::now();
    let mut talk = served.connect().await;
    for _ in 0..1000 {
        assert_eq!(talk.ask("GET", "/patroni", "", b"").await.expect("an answer").status, 200);
    }
    let (looks, most) = (looks.load(Ordering::Relaxed), began.elapsed().as_millis() / 20 + 2);
    assert!(u128::from(looks) <= most, "{looks} looks in {:?}", began.elapsed());
}

/// Proves REST-452: whoever gave an order sees its effect in `/patroni`, however many ask at that moment.
#[tokio::test]
async fn the_effect_of_an_order_is_seen_at_once() {
    let mut served = Served::new(primary()).await;
    let (looks, _agent) = counting_agent(&mut served);
    let mut talk = served.connect().await;
    for _ in 0..100 {
        let _ = talk.ask("GET", "/patroni", "", b"").await.expect("an answer");
        assert_eq!(served.send("POST", "/restart", "{}").await.status, 200);
        let before = looks.load(Ordering::Relaxed);
        let document = talk.ask("GET", "/patroni", "", b"").await.expect("an answer").json();
        // The n-th look shows 2000 + n, counted from 0.
        let shown = document["xlog"]["location"].as_u64().expect("a position");
        assert!(shown >= 2000 + before, "{shown} after {before} looks");
    }
}

/// Proves REST-452: what the agent noticed by itself is in the next answer of `/patroni`.
#[tokio::test]
async fn what_the_agent_notices_is_seen_at_once() {
    let served = Served::new(primary()).await;
    let mut talk = served.connect().await;
    let mut document =
        async || talk.ask("GET", "/patroni", "", b"").await.expect("an answer").json();
    assert_eq!(document().await["xlog"]["location"], 1000);
    let mut noticed = primary();
    noticed.postgres = observation(Role::Primary, Server::Down);
    served.snapshots.send_replace(Arc::new(noticed));
    assert!(document().await["xlog"].is_null(), "from before the postmaster's end");
}

/// Proves REST-321, REST-452: after one has waited for a PostgreSQL that does not answer, nobody waits for
/// the looks that find out whether it still does not; with one deadline each it would take minutes.
#[tokio::test]
async fn who_comes_after_a_silence_is_known_does_not_wait() {
    let mut frozen = primary();
    frozen.postgres = observation(Role::Primary, Server::Silent("no answer".to_owned()));
    let served = Served::new(frozen).await;
    let mut talk = served.connect().await;
    let asking = async {
        let began = Instant::now();
        let mut answers = 0;
        // As long as the silence is news.
        while began.elapsed() < Duration::from_millis(500) {
            let document = talk.ask("GET", "/patroni", "", b"").await.expect("an answer").json();
            assert_eq!(document["state"], "unknown");
            answers += 1;
        }
        answers
    };
    let answers = tokio::time::timeout(super::PATIENCE, asking).await.expect("in time");
    assert!(answers > 5, "{answers}: they waited for each other's looks");
}

/// Proves REST-452: what a turn saw before PostgreSQL died, and tells afterwards, is no news.
#[test]
fn an_older_look_is_not_shown_again() {
    let mut snapshot = primary();
    let (dead, now) = (observation(Role::Primary, Server::Down), boottime());
    snapshot.set_postgres(&dead, now);
    snapshot.set_postgres(&primary().postgres, now.minus(1));
    assert_eq!(snapshot.postgres.server, Server::Down);
    snapshot.set_postgres(&primary().postgres, now);
    assert_ne!(snapshot.postgres.server, Server::Down);
}

/// Proves REST-321 and REST-081 (do better), REST-452: nobody answers for PostgreSQL, `/patroni` comes within its
/// deadline all the same, and health checks do not wait at all.
#[tokio::test]
async fn a_frozen_postgresql_delays_nobody() {
    let served = Served::new(Snapshot { observed_at: boottime().minus(5000), ..primary() }).await;
    let started = Instant::now();
    let mut talk = served.connect().await;
    for _ in 0..50 {
        assert_eq!(talk.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    }
    let quick = started.elapsed();
    assert_eq!(served.get("/patroni").await.status, 200);
    let slow = started.elapsed();
    assert!(
        quick < Duration::from_millis(400) && slow < Duration::from_secs(3),
        "{quick:?} {slow:?}"
    );
}
