//! Which record is which annotation of which object, in Patroni's bytes. (DCS-150)
//!
//! The rest of the crate speaks of records as a flat store has them (`status`, `sync`); here they
//! become annotations and back. Reading never fails, as with every store. (DCS-051 … DCS-058)

use hathi_dcs::{Failover, Status, Sync, json};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub(crate) type Annotations = BTreeMap<String, String>;
/// What a patch does to annotations; `None` removes one.
pub(crate) type Changes = Vec<(&'static str, Option<String>)>;

/// Marks the call that began the bootstrap, until the system identifier stands there: all contenders
/// write the same empty value. Patroni does not look at it. (DCS-006, DCS-025)
pub(crate) const MARK: &str = "hathi-bootstrap";

/// The objects of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Leader,
    Config,
    Failover,
    Sync,
}

impl Place {
    pub const ALL: [Self; 4] = [Self::Leader, Self::Config, Self::Failover, Self::Sync];

    /// Where a record stands.
    pub fn of(record: &str) -> Option<Self> {
        match record {
            "leader" | "status" | "failsafe" => Some(Self::Leader),
            "config" | "initialize" | "history" => Some(Self::Config),
            "failover" => Some(Self::Failover),
            "sync" => Some(Self::Sync),
            _ => None,
        }
    }

    /// The records it holds; `leader` is not one of them, for it ends by the clock.
    pub fn records(self) -> &'static [&'static str] {
        match self {
            Self::Leader => &["status", "failsafe"],
            Self::Config => &["config", "initialize", "history"],
            Self::Failover => &["failover"],
            Self::Sync => &["sync"],
        }
    }

    pub fn object(self, base: &str, endpoints: bool) -> String {
        match self {
            Self::Leader if endpoints => base.to_owned(),
            Self::Leader => format!("{base}-leader"),
            Self::Config => format!("{base}-config"),
            Self::Failover => format!("{base}-failover"),
            Self::Sync => format!("{base}-sync"),
        }
    }
}

/// The scope as objects are named after it.
pub(crate) fn base(scope: &str) -> String {
    scope.replace('/', "-")
}

fn text_of<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// The annotations that hold a record's value.
pub(crate) fn written(record: &str, value: &str) -> Changes {
    match record {
        "status" => status(&Status::parse(value)),
        "sync" => {
            let Ok(Value::Object(map)) = serde_json::from_str::<Value>(value) else {
                return nothing(record);
            };
            let field = |name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
            let quorum = text_of(map.get("quorum").and_then(Value::as_u64));
            vec![
                ("leader", field("leader")),
                ("quorum", quorum),
                ("sync_standby", field("sync_standby")),
            ]
        }
        "failover" => {
            let map = serde_json::from_str::<Map<String, Value>>(value).unwrap_or_default();
            let field = |name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
            vec![
                ("leader", field("leader")),
                ("member", field("member")),
                ("scheduled_at", field("scheduled_at")),
            ]
        }
        "initialize" => vec![("initialize", Some(value.to_owned())), (MARK, None)],
        "config" => vec![("config", Some(value.to_owned()))],
        "history" => vec![("history", Some(value.to_owned()))],
        "failsafe" => vec![("failsafe", Some(value.to_owned()))],
        _ => Vec::new(),
    }
}

/// The annotations of a record, removed.
pub(crate) fn nothing(record: &str) -> Changes {
    let names: &[&'static str] = match record {
        "status" => &["optime", "slots", "retain_slots"],
        "sync" => &["leader", "quorum", "sync_standby"],
        "failover" => &["leader", "member", "scheduled_at"],
        "initialize" => &["initialize", MARK],
        "config" => &["config"],
        "history" => &["history"],
        "failsafe" => &["failsafe"],
        _ => &[],
    };
    names.iter().map(|name| (*name, None)).collect()
}

pub(crate) fn status(status: &Status) -> Changes {
    let slots = (!status.slots.is_empty()).then(|| json::compact(&status.slots));
    // As Python prints a list: with a space after each comma. [R]
    let names: Vec<String> = status.retain_slots.iter().map(json::compact).collect();
    let retained = (!names.is_empty()).then(|| format!("[{}]", names.join(", ")));
    vec![
        ("optime", Some(status.optime.0.to_string())),
        ("slots", slots),
        ("retain_slots", retained),
    ]
}

/// A record's value from its object's annotations; `None` if it is not there.
pub(crate) fn read(record: &str, annotations: &Annotations) -> Option<String> {
    let pick = |names: &[&str]| {
        let there = names.iter().filter_map(|name| {
            let value = annotations.get(*name)?;
            Some(((*name).to_owned(), Value::from(value.clone())))
        });
        there.collect::<Map<String, Value>>()
    };
    match record {
        "status" => {
            let map = pick(&["optime", "slots", "retain_slots"]);
            (!map.is_empty()).then(|| Status::parse(&json::compact(&map)).to_wire())
        }
        "sync" => {
            let map = pick(&["leader", "quorum", "sync_standby"]);
            (!map.is_empty()).then(|| Sync::parse(&json::compact(&map)).to_wire())
        }
        // There as long as its object is.
        "failover" => {
            let map = pick(&["leader", "member", "scheduled_at"]);
            Some(Failover::parse(&json::compact(&map)).to_wire())
        }
        other => annotations.get(other).cloned(),
    }
}

/// What says who holds the lock; two that are equal are the same moment of the same holder. (DCS-170)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaderRecord {
    pub leader: Option<String>,
    pub ttl: Option<String>,
    pub renewed: Option<String>,
    pub acquired: Option<String>,
    pub transitions: Option<String>,
}

impl LeaderRecord {
    pub fn read(annotations: &Annotations) -> Self {
        let text = |name: &str| annotations.get(name).filter(|text| !text.is_empty()).cloned();
        Self {
            leader: text("leader"),
            ttl: text("ttl"),
            renewed: text("renewTime"),
            acquired: text("acquireTime"),
            transitions: text("transitions"),
        }
    }

    pub fn ttl_ms(&self, default: u32) -> u64 {
        let seconds = self.ttl.as_deref().and_then(|text| text.trim().parse::<u32>().ok());
        u64::from(seconds.filter(|seconds| *seconds > 0).unwrap_or(default)) * 1_000
    }

    /// The record with which `me` takes or keeps the lock: acquired anew and counted when it changes
    /// hands, otherwise as it was. (DCS-171, DCS-172)
    pub fn claimed(&self, me: &str, ttl: u32, now: String) -> Changes {
        let mine = self.leader.as_deref() == Some(me);
        let before = self.transitions.as_deref().and_then(|text| text.parse::<u64>().ok());
        // Released or new: the count goes on from what stands there.
        let changes = match (before, &self.leader) {
            (None, _) => 0,
            (Some(count), _) if mine => count,
            (Some(count), _) => count.saturating_add(1),
        };
        let acquired = self.acquired.clone().filter(|_| mine).unwrap_or_else(|| now.clone());
        vec![
            ("leader", Some(me.to_owned())),
            ("ttl", Some(ttl.to_string())),
            ("renewTime", Some(now)),
            ("acquireTime", Some(acquired)),
            ("transitions", Some(changes.to_string())),
        ]
    }
}

/// Now, as the records have it; informative only, no decision reads it. (DCS-T14)
pub(crate) fn now() -> String {
    chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hathi_dcs::Lsn;

    fn stored(changes: &Changes) -> Annotations {
        let there = changes.iter().filter_map(|(name, value)| {
            value.as_ref().map(|value| ((*name).to_owned(), value.clone()))
        });
        there.collect()
    }

    fn there(changes: &Changes) -> Vec<(&str, &str)> {
        let there = changes.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        there.collect()
    }

    /// Proves DCS-150: the annotations are those that 4.1.5 was recorded to write. [R]
    #[test]
    fn records_are_patronis_annotations() {
        let status = r#"{"optime":67108960,"slots":{"alpha":67108960,"beta":67108960},"retain_slots":["alpha","beta"]}"#;
        for (record, value, expected) in [
            (
                "status",
                status,
                vec![
                    ("optime", "67108960"),
                    ("slots", r#"{"alpha":67108960,"beta":67108960}"#),
                    ("retain_slots", r#"["alpha", "beta"]"#),
                ],
            ),
            ("status", r#"{"optime":83886520}"#, vec![("optime", "83886520")]),
            (
                "sync",
                r#"{"leader":"alpha","quorum":0,"sync_standby":null}"#,
                vec![("leader", "alpha"), ("quorum", "0")],
            ),
            (
                "sync",
                r#"{"leader":"alpha","quorum":1,"sync_standby":"beta,gamma"}"#,
                vec![("leader", "alpha"), ("quorum", "1"), ("sync_standby", "beta,gamma")],
            ),
            (
                "failover",
                r#"{"leader":"alpha","member":"beta","scheduled_at":"2026-11-24T00:43:22+00:00"}"#,
                vec![
                    ("leader", "alpha"),
                    ("member", "beta"),
                    ("scheduled_at", "2026-11-24T00:43:22+00:00"),
                ],
            ),
            ("failover", "{}", vec![]),
            ("initialize", "", vec![("initialize", "")]),
            ("initialize", "7711483843506703379", vec![("initialize", "7711483843506703379")]),
            ("config", r#"{"ttl":20}"#, vec![("config", r#"{"ttl":20}"#)]),
            ("history", "[]", vec![("history", "[]")]),
            ("failsafe", r#"{"a":"b"}"#, vec![("failsafe", r#"{"a":"b"}"#)]),
        ] {
            let changes = written(record, value);
            assert_eq!(there(&changes), expected, "{record}");
            assert_eq!(read(record, &stored(&changes)).as_deref(), Some(value), "{record} read");
            let removed = nothing(record);
            for (name, _) in &expected {
                assert!(removed.contains(&(*name, None)), "{record}: {name} is removed");
            }
        }
        let empty = Annotations::new();
        for record in ["status", "sync", "config", "initialize", "history", "failsafe"] {
            assert_eq!(read(record, &empty), None, "{record}");
        }
    }

    /// Proves DCS-054, DCS-057 for annotations, and that garbage costs only itself.
    #[test]
    fn garbage_is_read_as_nothing_of_its_kind() {
        let odd = |pairs: &[(&str, &str)]| -> Annotations {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        let status = read("status", &odd(&[("optime", "{ not"), ("slots", "[]")]));
        assert_eq!(Status::parse(&status.expect("there")), Status::default());
        let status = read("status", &odd(&[("slots", r#"{"a":5}"#)])).expect("there");
        assert_eq!(Status::parse(&status).slots.get("a"), Some(&Lsn(5)));
        let sync = read("sync", &odd(&[("quorum", "x")])).expect("there");
        assert_eq!(Sync::parse(&sync), Sync::default());
    }

    /// Proves DCS-171 and DCS-172 (transitions, acquireTime) and DCS-170 (whose ttl counts).
    #[test]
    fn a_change_of_hands_is_counted_and_dated() {
        let now = || "2026-11-23T21:49:37.921083+00:00".to_owned();
        let fresh = LeaderRecord::default().claimed("alpha", 20, now());
        assert_eq!(
            there(&fresh),
            [
                ("leader", "alpha"),
                ("ttl", "20"),
                ("renewTime", "2026-11-23T21:49:37.921083+00:00"),
                ("acquireTime", "2026-11-23T21:49:37.921083+00:00"),
                ("transitions", "0"),
            ]
        );
        let first = LeaderRecord::read(&stored(&fresh));
        assert_eq!((first.ttl_ms(30), first.leader.as_deref()), (20_000, Some("alpha")));
        let again = LeaderRecord::read(&stored(&first.claimed("alpha", 30, "later".into())));
        assert_eq!(again.acquired, first.acquired, "renewed, not acquired");
        assert_eq!(again.transitions.as_deref(), Some("0"));
        assert_ne!(again, first, "a renewal is another moment");
        let other = LeaderRecord::read(&stored(&again.claimed("beta", 30, "then".into())));
        assert_eq!(other.transitions.as_deref(), Some("1"));
        assert_eq!(other.acquired.as_deref(), Some("then"));
        let broken = LeaderRecord { ttl: Some("soon".into()), ..other };
        assert_eq!(broken.ttl_ms(30), 30_000);
    }

    /// Proves DCS-150 (names).
    #[test]
    fn objects_are_named_after_the_scope() {
        assert_eq!(Place::Leader.object(&base("a/b"), true), "a-b");
        assert_eq!(Place::Leader.object("golden", false), "golden-leader");
        assert_eq!(Place::of("members/x"), None);
        for place in Place::ALL {
            for record in place.records() {
                assert_eq!(Place::of(record), Some(place));
            }
            assert!(place == Place::Leader || place.object("g", true).starts_with("g-"));
        }
    }
}
