//! POST and DELETE /restart, POST /reinitialize: bodies, texts, and what is ordered. (sections 8, 9)

use super::{Served, map, replica};
use crate::api::Order;
use crate::api::restart::read_restart;
use crate::ha::manual::Answer;
use crate::ha::operator::Wish;
use crate::ha::restart::Conditions;
use hathi_dcs::Role;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const NOW: &str = "2026-11-23T21:09:00Z";

fn read(body: &Value, paused: bool) -> Result<Wish, Answer> {
    read_restart(&map(&body.to_string()), paused, NOW.parse().expect("a moment"))
}

/// Proves REST-220 (rows 2 and 3), as real Patroni answered (golden/requests.md).
#[test]
fn bad_keys_are_refused_in_the_order_in_which_they_were_sent() {
    let role = "PostgreSQL role should be either primary, standby_leader, or replica";
    let timeout = "Timeout should be a positive number of seconds";
    let format = "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted:";
    let unreadable =
        "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";
    for (body, status, text) in [
        (json!({"color": "red"}), 400, "Unknown filter for the scheduled restart: color".into()),
        (json!({"role": "master"}), 400, role.to_owned()),
        (json!({"role": "king"}), 400, role.into()),
        (json!({"role": 1, "color": 1}), 400, role.into()),
        (json!({"postgres_version": "abc"}), 400, "Invalid PostgreSQL version: abc".into()),
        (json!({"postgres_version": "16"}), 400, format!("{format} 16")),
        (json!({"postgres_version": "9.6"}), 400, format!("{format} 9.6")),
        (json!({"postgres_version": "1.2.3.4"}), 400, format!("{format} 1.2.3.4")),
        (json!({"postgres_version": 16}), 400, format!("{format} 16")),
        (json!({"timeout": "abc"}), 400, timeout.into()),
        (json!({"timeout": 0}), 400, timeout.into()),
        (json!({"timeout": -5}), 400, timeout.into()),
        (json!({"timeout": "500ms"}), 400, timeout.into()),
        (json!({"timeout": null}), 400, timeout.into()),
        (
            json!({"schedule": "2026-11-23T21:05:00+00:00"}),
            422,
            "Cannot schedule restart in the past".into(),
        ),
        (
            json!({"schedule": "2026-11-23T21:16:00"}),
            400,
            "Timezone information is mandatory for the scheduled restart".into(),
        ),
        (json!({"schedule": "soon-ish"}), 422, unreadable.into()),
        (json!({"schedule": null}), 422, unreadable.into()),
        (
            json!({"schedule": "2026-11-23T22:06:01+00:00", "zzz": 1}),
            400,
            "Unknown filter for the scheduled restart: zzz".into(),
        ),
    ] {
        assert_eq!(read(&body, false), Err(Answer { status, text }), "{body}");
    }
    let text = "Can't schedule restart in the paused state".to_owned();
    assert_eq!(read(&json!({"x": 1, "schedule": 1}), true), Err(Answer { status: 500, text }));
}

/// Proves REST-220 (what the keys mean), REST-458 (`restart_pending: false`).
#[test]
fn what_was_asked_is_read() {
    let now =
        |body: Value, conditions| assert_eq!(read(&body, true), Ok(Wish::Restart(conditions)));
    now(json!({}), Conditions::default());
    now(json!({"role": "replica"}), Conditions { role: Some(Role::Replica), ..Default::default() });
    for (text, number) in [("15.18", 150_018), ("9.5.2", 90_502), ("10.1.2", 100_102)] {
        let conditions = Conditions { older_than: Some(number), ..Default::default() };
        now(json!({"postgres_version": text}), conditions);
    }
    for (timeout, seconds) in [
        (json!(30), 30),
        (json!("30"), 30),
        (json!("30s"), 30),
        (json!("1min"), 60),
        (json!("1 h"), 3600),
        (json!("1500ms"), 2),
        (json!(2.5), 2),
    ] {
        let conditions = Conditions { timeout: Some(seconds), ..Default::default() };
        now(json!({"timeout": timeout}), conditions);
    }
    now(json!({"restart_pending": true}), Conditions { pending: true, ..Default::default() });
    now(json!({"restart_pending": false}), Conditions::default());
    let body = json!({"schedule": "2026-11-23T22:06:00Z", "role": "replica",
                      "postgres_version": "16.0", "timeout": "30s", "restart_pending": true});
    let Ok(Wish::ScheduleRestart { at, conditions, request }) = read(&body, false) else {
        panic!("not a schedule")
    };
    assert_eq!(at.timestamp(), 1_795_471_560);
    assert_eq!(conditions.older_than, Some(160_000));
    // As the member record shows it. (golden/requests.md)
    assert_eq!(
        Value::Object(request).to_string(),
        r#"{"schedule":"2026-11-23T22:06:00+00:00","role":"replica","postgres_version":"16.0","timeout":30,"restart_pending":true}"#
    );
}

/// Answers every order and passes the wishes on.
fn agent(mut orders: mpsc::Receiver<Order>, answer: Answer) -> mpsc::UnboundedReceiver<Wish> {
    let (seen, wishes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            if let Order::Member { wish, reply } = order {
                let _ = seen.send(wish);
                let _ = reply.send(answer.clone());
            }
        }
    });
    wishes
}

/// Proves REST-020, REST-021, REST-022, REST-023, REST-024 (second column), REST-354 (verbatim).
/// Proves REST-221 and REST-224 (the answer as it comes), REST-245.
/// Proves REST-246 and REST-458: a bad body does nothing.
#[tokio::test]
async fn bodies_may_be_left_out_and_bad_ones_do_nothing() {
    let mut served = Served::new(replica()).await;
    let orders = std::mem::replace(&mut served.orders, mpsc::channel(1).1);
    let text = "as the agent said".to_owned();
    let mut wishes = agent(orders, Answer { status: 503, text });
    let restart = Wish::Restart(Conditions::default());
    let reinitialize = |force, from_leader| Wish::Reinitialize { force, from_leader };
    for (path, wish) in [("/restart", restart), ("/reinitialize", reinitialize(false, false))] {
        for (headers, body) in
            [("", b"".as_slice()), ("Content-Length: 0\r\n", b""), ("Content-Length: 2\r\n", b"{}")]
        {
            let reply = served.ask("POST", path, headers, body).await;
            assert_eq!((reply.status, reply.body.as_str()), (503, "as the agent said"));
            assert_eq!(wishes.recv().await, Some(wish.clone()), "{path} {headers:?}");
        }
        for body in ["{", "[]", "\"x\"", "null"] {
            assert_eq!(served.send("POST", path, body).await.status, 400, "{path} {body}");
        }
        let short = served.ask("POST", path, "Content-Length: 5\r\n", b"{\"force\": true}").await;
        assert_eq!(short.status, 400, "{path}");
    }
    for (body, wish) in [
        (r#"{"force": true}"#, reinitialize(true, false)),
        (r#"{"force": "on", "from_leader": "1"}"#, reinitialize(true, true)),
        (r#"{"from-leader": "yes"}"#, reinitialize(false, true)),
        (r#"{"force": "no", "zzz": true}"#, reinitialize(false, false)),
    ] {
        served.send("POST", "/reinitialize", body).await;
        assert_eq!(wishes.recv().await, Some(wish), "{body}");
    }
    served.send("DELETE", "/restart", "").await;
    assert_eq!(wishes.recv().await, Some(Wish::CancelRestart));
    assert!(wishes.try_recv().is_err(), "nothing else was ordered");
}

/// Proves REST-225 (an agent that ends answers nobody).
#[tokio::test]
async fn an_agent_that_ends_is_no_answer() {
    let mut served = Served::new(replica()).await;
    let mut orders = std::mem::replace(&mut served.orders, mpsc::channel(1).1);
    let (reply, ()) = tokio::join!(served.send("POST", "/restart", "{}"), async {
        drop(orders.recv().await);
    });
    assert_eq!((reply.status, reply.body.as_str()), (503, "the agent is shutting down"));
}

proptest! {
    #[test]
    fn no_request_panics(body in "\\{(\"(schedule|role|timeout|postgres_version)\": (\"[0-9a-z.:+-]{0,12}\"|[0-9.e-]{1,6}),? ?){0,3}\\}") {
        if let Ok(Value::Object(map)) = serde_json::from_str(&body) {
            let _ = read_restart(&map, false, NOW.parse().expect("a moment"));
        }
    }
}
