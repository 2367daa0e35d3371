//! Bytes from outside, in great number: no panic, no 500, no hang. A fixed number of inputs each time;
//! `HATHI_FUZZ_CASES=10000000 scripts/fuzz` for a night. The inputs are known ones, changed: pieces put
//! in, taken out, doubled; a failure prints the shortest input that still fails.

use super::openapi::obedient;
use super::{map, primary, replica};
use crate::api::asked::Query;
use crate::api::document::Told;
use crate::api::health::{Rule, check};
use crate::api::probes::is_ready;
use crate::api::restart::read_restart;
use crate::api::tally::Tally;
use crate::api::{control, size, write};
use chrono::Utc;
use hathi_dcs::{boottime, moment};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn cases() -> u32 {
    std::env::var("HATHI_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

/// A known input, and what happens to it: where, and which piece is put in (or how much taken out).
fn changed(
    known: &'static [&'static str],
    pieces: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let change = (any::<u16>(), 0..4_u8, prop::sample::select(pieces), 0..6_usize);
    (prop::sample::select(known), prop::collection::vec(change, 0..8)).prop_map(
        |(text, changes)| {
            let mut chars: Vec<char> = text.chars().collect();
            for (place, how, piece, length) in changes {
                let at = usize::from(place) % (chars.len() + 1);
                let end = (at + length).min(chars.len());
                match how {
                    0 => drop(chars.splice(at..at, piece.chars())),
                    1 => drop(chars.drain(at..end)),
                    2 => drop(chars.splice(at..end, piece.chars())),
                    _ => {
                        let again = chars[at..end].to_vec();
                        drop(chars.splice(at..at, again));
                    }
                }
            }
            chars.into_iter().collect()
        },
    )
}

/// For whoever ran it for long.
fn say(inputs: u32, began: Instant) {
    println!("{inputs} inputs in {:.0} s", began.elapsed().as_secs_f64());
}

fn run<S: Strategy>(inputs: S, test: impl Fn(S::Value))
where
    S::Value: std::fmt::Debug,
{
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let began = Instant::now();
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&inputs, |input| {
        test(input);
        Ok(())
    });
    if let Err(why) = outcome {
        panic!("{why}");
    }
    say(cases(), began);
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "-0",
    "10",
    "08",
    "0x",
    "0X1f",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "1e-400",
    "-1e308",
    "1.5",
    ".",
    "..",
    "+",
    "-",
    "e",
    "E",
    "_",
    " ",
    "\t",
    "\u{a0}",
    "\u{661}",
    "\u{0}",
    "kB",
    "KB",
    "MB",
    "GB",
    "TB",
    "PB",
    "B",
    "b",
    "ms",
    "min",
    "s",
    "h",
    "d",
    "us",
    "inf",
    "nan",
    "infinity",
    "ä",
    "\u{1F418}",
];

/// Proves REST-060 (any text): `lag`, read without a panic, and the same with blanks around it.
#[test]
fn sizes() {
    let known = &["16MB", "1048576", "0x10", "010", "1e3kB", ".5MB", "4097.5kB", "-1", "1 TB", ""];
    run(changed(known, NUMBERS), |text| {
        let bytes = size::parse(&text);
        if !text.is_empty() && bytes.is_some() {
            assert_eq!(size::parse(&format!(" {text} ")), bytes, "{text:?}");
        }
    });
}

/// Proves REST-034, REST-055, REST-066 (any query): every check answers, and one that never checks a
/// query does not care.
#[test]
fn queries() {
    let known = &[
        "lag=16MB",
        "replication_state=streaming&tag_a=b",
        "tag_x=1.4&tag_y=[1,%202]",
        "mode=write",
        "tag_=v&lag=&lag=1",
        "a=b;c=d",
        "%7e=%zz",
        "lag=%31%36MB&mode=write",
    ];
    let pieces = &[
        "&", "=", "%", "%0", "%00", "%ff", "%F0%9F", "+", ";", "tag_", "lag", "mode", "#", "?",
        "/", "\u{0}", "ä", "true", "null", "[", "]", "{", "}", "\"", "1e400", "-1", "&&&&", "====",
    ];
    let mut tagged = replica();
    tagged.tags = map(r#"{"a": "b", "x": 1.4, "y": [1, 2], "z": {"a": null}, "": "v", "t": true}"#);
    let tally = Tally::default();
    run(changed(known, pieces), |raw| {
        let query = Query::parse(&raw);
        let now = boottime();
        let told = Told::of(&tagged, now);
        for path in ["/", "/replica", "/read-only", "/health", "/async", "/sync", "/x"] {
            let _ = check(Rule::of(path), &query, &tagged, &told, now, &tally);
        }
        let _ = is_ready(&query, &tagged, &told, now, &tally);
        assert!(!check(Rule::Leader, &query, &tagged, &told, now, &tally));
        for (key, value) in query.iter() {
            assert!(!value.is_empty() && query.get(key) == Some(value), "{raw:?}");
        }
    });
}

/// Proves REST-190 (rows 7 to 9, any text): a time is read, or refused, without a panic; what is read
/// reads the same again.
#[test]
fn times() {
    let known = &[
        "2036-11-24T10:00:00+02:00",
        "Mon Nov 24 2036 10:00 +0200",
        "2036-11-24 10:00:00.5Z",
        "20361124T100000Z",
        "tomorrow",
        "10:00",
        "2036-366",
        "24.11.2036 10:00 UTC",
        "",
    ];
    let pieces = &[
        "-",
        ":",
        "+",
        "Z",
        "T",
        " ",
        "99",
        "00",
        "0000",
        "+99:99",
        "-00:00",
        "24:00",
        "60",
        "Feb",
        "30",
        "29",
        "UTC",
        "EST",
        "9999999999",
        ".",
        "am",
        "pm",
        "\u{0}",
        "ä",
        "W52",
        "-12-31",
    ];
    run(changed(known, pieces), |text| {
        if let moment::Typed::At(at) = moment::read(&text) {
            let moment::Typed::At(again) = moment::read(&moment::iso(&at)) else {
                panic!("{text:?}: {at}")
            };
            // Microseconds are what is shown.
            assert_eq!(again.timestamp_micros(), at.timestamp_micros(), "{text:?}: {at}");
        }
    });
}

fn is_exact(map: &serde_json::Map<String, Value>) -> bool {
    map.values().all(|value| match value {
        Value::Number(number) => !number.is_f64(),
        Value::Object(map) => is_exact(map),
        Value::Array(items) => items.iter().all(|item| !item.is_f64() && !item.is_array()),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    })
}

const BODIES: &[&str] = &[
    r#"{"leader": "a", "candidate": "b", "scheduled_at": "2036-11-24T10:00:00+02:00"}"#,
    r#"{"leader": "a"}"#,
    r#"{"candidate": "b", "member": null}"#,
    r#"{"schedule": "2036-11-24T10:00:00Z", "role": "replica", "postgres_version": "15.3", "timeout": "1min", "restart_pending": true}"#,
    r#"{"timeout": 30, "postgres_version": "9.6.2"}"#,
    r#"{"force": true, "from_leader": "on"}"#,
    r#"{"name": "a", "conn_url": "postgres://h:1/p", "api_url": "http://h:2/patroni", "slots": {"s": 1}}"#,
    r#"{"ttl": 30, "postgresql": {"parameters": {"work_mem": null}}}"#,
    "{}",
    "",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u",
    "\\ud800",
    "\\u0000",
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e400",
    "1E999",
    "0.1",
    "\"leader\"",
    "\"schedule\"",
    "\"timeout\"",
    "\"a\"",
    " ",
    "\n",
    "\u{feff}",
    "\u{0}",
    "ä",
    "{\"a\":",
    "[[[[[[[[",
    "\"postgres_version\"",
    "99999999999999999999",
];

/// Proves REST-022, REST-023, REST-190, REST-220, REST-252 (any body): refused with a 4xx, or understood.
#[test]
fn bodies() {
    run((changed(BODIES, JSON), any::<bool>(), any::<bool>()), |(text, one, other)| {
        let Ok(body) = write::parse(text.as_bytes()) else { return };
        let now = Utc::now();
        if let Err(refusal) = control::parse(one, &body, other, now) {
            assert!((400..500).contains(&refusal.status), "{text}: {refusal:?}");
        }
        if let Err(refusal) = read_restart(&body, other, now) {
            let in_pause = other && body.contains_key("schedule");
            assert!((400..500).contains(&refusal.status) || in_pause, "{text}: {refusal:?}");
        }
        let _ = crate::ha::promise::Call::parse(&body);
        let config = map(r#"{"ttl": 20, "postgresql": {"parameters": {"work_mem": "1MB"}}}"#);
        // serde_json reads a fraction to within its last digit only (no `float_roundtrip`).
        if let Some(merged) = crate::api::merge::merged(&config, &body).filter(is_exact) {
            let text = crate::api::pyjson::text(&merged);
            let again: Value = serde_json::from_str(&text).expect("what we write can be read");
            assert_eq!(again, Value::Object(merged));
        }
    });
}

/// Proves REST-007, REST-457 (any bytes on the wire): an answer below 500 or one of those described, or
/// a close; and the server serves on.
#[tokio::test]
async fn requests() {
    let known = &[
        "GET /primary HTTP/1.1\r\nHost: x\r\n\r\n",
        "HEAD //patroni?lag=1 HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
        "PATCH /config HTTP/1.1\r\nContent-Length: 9\r\n\r\n{\"ttl\":1}",
        "POST /failsafe HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "GET /decisions/1/recording HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST /restart HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        "GET http://x/cluster HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
    ];
    let pieces = &[
        "\r",
        "\n",
        "\r\n",
        "\r\n\r\n",
        " ",
        ":",
        "\u{0}",
        "\u{7f}",
        "ä",
        "HTTP/2.0",
        "HTTP/9.9",
        "PRI * HTTP/2.0",
        "GET",
        "POST",
        "BREW",
        "/",
        "?",
        "%",
        "..",
        "Content-Length: 5\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: y\r\n",
        "ffffffffffffffff",
        "{",
        "}",
        "\"",
        ";",
        "\t",
        "http://",
        "[::1",
        "@",
    ];
    let inputs = changed(known, pieces);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let mut config = crate::api::RestConfig::on("127.0.0.1:0");
    config.request_timeout = Duration::from_millis(200);
    let served = obedient(config, primary()).await;
    let (began, many) = (Instant::now(), (cases() / 40).max(200));
    for n in 0..many {
        if n % 1000 == 0 {
            // A long run outlives its lease.
            served.snapshots.send_replace(Arc::new(primary()));
        }
        let text = inputs.new_tree(&mut runner).expect("an input").current();
        let mut stream = tokio::net::TcpStream::connect(served.address).await.expect("it listens");
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(super::PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "a hang after {text:?}");
        let answer = String::from_utf8_lossy(&answer);
        for line in answer.lines().filter(|line| line.starts_with("HTTP/1.")) {
            let code: u16 = line[9..12].parse().unwrap_or_else(|_| panic!("{line} for {text:?}"));
            let known = code < 500 || [501, 502, 503, 505].contains(&code);
            assert!(known, "{line} for {text:?}");
        }
    }
    served.snapshots.send_replace(Arc::new(primary()));
    assert_eq!(served.get("/primary").await.status, 200);
    say(many, began);
}
