//! The replicated state and the commands that change it. (DCS-192)
//!
//! What never enters: a clock, a file, a socket, anything random. The same log gives the same
//! state on every member.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// How many answers are remembered so that a repeated command is not applied twice. Repeats come
/// within one call's deadline; this many commands do not.
const REMEMBERED: usize = 1024;

/// One command as it stands in the log. The same `id` is applied once, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub id: RequestId,
    pub op: Op,
}

/// Who asked (a random number per process) and its how-manieth question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64, pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cond {
    Any,
    Absent,
    /// The key's `mod_index` is this.
    Index(u64),
}

/// A lease as the command that uses it wants it: granted if unknown, kept alive if known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWish {
    pub id: u64,
    pub ttl_ms: u64,
    pub owner: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Take `key` with the value `lease.owner`, if it is absent or carries that value already; the
    /// lease lives on. `force`: whoever holds it. `renewal`: only if it is this lease's already, because
    /// a renewal that comes late, after a release, must create nothing. (DCS-002, DCS-003, DCS-005,
    /// DCS-027)
    Hold {
        key: String,
        lease: LeaseWish,
        force: bool,
        #[serde(default)]
        renewal: bool,
    },
    /// Delete `key` if its value is `me`, after writing `first`. (DCS-004)
    Release {
        key: String,
        me: String,
        first: Option<(String, String)>,
    },
    Put {
        key: String,
        value: String,
        cond: Cond,
        lease: Option<LeaseWish>,
    },
    Delete {
        key: String,
        cond: Cond,
    },
    DeletePrefix {
        prefix: String,
    },
    KeepAlive {
        lease: LeaseWish,
    },
    /// What its owner lost; every lease of `owner`.
    Revoke {
        owner: String,
    },
    /// The leader saw the lease end, having last seen it kept alive at `seen`; a later keepalive
    /// wins. (DCS-193)
    Expire {
        lease: u64,
        seen: u64,
    },
    /// Nothing; its index orders a read.
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done; the key's new `mod_index`.
    Done(u64),
    /// The key is held by this one.
    Held(Option<String>),
    /// The condition was not met.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub value: String,
    pub create_index: u64,
    pub mod_index: u64,
    pub lease: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub ttl_ms: u64,
    pub owner: String,
    /// The index of the command that last kept it alive.
    pub kept_at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub keys: BTreeMap<String, Entry>,
    pub leases: BTreeMap<u64, Lease>,
    answers: VecDeque<(RequestId, Reply)>,
}

/// What one command did, for whoever watches this member: never part of the state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Keys whose value appeared, changed, was written again or vanished.
    pub keys: Vec<String>,
    pub leases: Vec<u64>,
}

impl Machine {
    /// Applies the command that stands at `index`.
    pub fn apply(&mut self, index: u64, command: &Command, effects: &mut Effects) -> Reply {
        let repeated = self.answers.iter().rev().find(|(id, _)| *id == command.id);
        if let Some((_, reply)) = repeated {
            return reply.clone();
        }
        let reply = self.run(index, &command.op, effects);
        self.answers.push_back((command.id, reply.clone()));
        if self.answers.len() > REMEMBERED {
            self.answers.pop_front();
        }
        reply
    }

    fn run(&mut self, index: u64, op: &Op, effects: &mut Effects) -> Reply {
        match op {
            Op::Hold { key, lease, force, renewal } => {
                let held = self.keys.get(key);
                let its =
                    |entry: &Entry| entry.value == lease.owner && entry.lease == Some(lease.id);
                match held {
                    held if *renewal && !held.is_some_and(its) => {
                        Reply::Held(held.map(|entry| entry.value.clone()))
                    }
                    Some(entry) if entry.value == lease.owner => {
                        let bound = entry.lease == Some(lease.id);
                        let mod_index = entry.mod_index;
                        self.keep(index, lease, effects);
                        if !bound && let Some(entry) = self.keys.get_mut(key) {
                            entry.lease = Some(lease.id);
                        }
                        Reply::Done(mod_index)
                    }
                    Some(entry) if !force => Reply::Held(Some(entry.value.clone())),
                    Some(_) | None => {
                        self.keep(index, lease, effects);
                        self.set(index, key, &lease.owner, Some(lease.id), effects);
                        Reply::Done(index)
                    }
                }
            }
            Op::Release { key, me, first } => match self.keys.get(key) {
                Some(entry) if entry.value == *me => {
                    if let Some((other, value)) = first {
                        self.set(index, other, value, None, effects);
                    }
                    self.unset(key, effects);
                    Reply::Done(index)
                }
                Some(entry) => Reply::Held(Some(entry.value.clone())),
                None => Reply::Held(None),
            },
            Op::Put { key, value, cond, lease } => {
                if !self.meets(key, *cond) {
                    return Reply::Refused;
                }
                if let Some(lease) = lease {
                    self.keep(index, lease, effects);
                }
                self.set(index, key, value, lease.as_ref().map(|lease| lease.id), effects);
                Reply::Done(index)
            }
            Op::Delete { key, cond } => {
                if !self.meets(key, *cond) {
                    return Reply::Refused;
                }
                self.unset(key, effects);
                Reply::Done(index)
            }
            Op::DeletePrefix { prefix } => {
                let keys = self.keys.keys().filter(|key| key.starts_with(prefix)).cloned();
                for key in keys.collect::<Vec<_>>() {
                    self.unset(&key, effects);
                }
                Reply::Done(index)
            }
            Op::KeepAlive { lease } => {
                self.keep(index, lease, effects);
                Reply::Done(index)
            }
            Op::Revoke { owner } => {
                let theirs = self.leases.iter().filter(|(_, lease)| lease.owner == *owner);
                for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.end(id, effects);
                }
                Reply::Done(index)
            }
            Op::Expire { lease, seen } => {
                let due = self.leases.get(lease).is_some_and(|lease| lease.kept_at == *seen);
                if due {
                    self.end(*lease, effects);
                }
                Reply::Done(index)
            }
            Op::Nothing => Reply::Done(index),
        }
    }

    fn meets(&self, key: &str, cond: Cond) -> bool {
        match (cond, self.keys.get(key)) {
            (Cond::Any, Some(_) | None) | (Cond::Absent, None) => true,
            (Cond::Absent, Some(_)) | (Cond::Index(_), None) => false,
            (Cond::Index(index), Some(entry)) => entry.mod_index == index,
        }
    }

    fn keep(&mut self, index: u64, wish: &LeaseWish, effects: &mut Effects) {
        let lease = Lease { ttl_ms: wish.ttl_ms.max(1), owner: wish.owner.clone(), kept_at: index };
        self.leases.insert(wish.id, lease);
        effects.leases.push(wish.id);
    }

    fn end(&mut self, id: u64, effects: &mut Effects) {
        self.leases.remove(&id);
        let bound = self.keys.iter().filter(|(_, entry)| entry.lease == Some(id));
        for key in bound.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.unset(&key, effects);
        }
        effects.leases.push(id);
    }

    fn set(&mut self, at: u64, key: &str, value: &str, lease: Option<u64>, effects: &mut Effects) {
        let create_index = self.keys.get(key).map_or(at, |entry| entry.create_index);
        let entry = Entry { value: value.to_owned(), create_index, mod_index: at, lease };
        self.keys.insert(key.to_owned(), entry);
        effects.keys.push(key.to_owned());
    }

    fn unset(&mut self, key: &str, effects: &mut Effects) {
        if self.keys.remove(key).is_some() {
            effects.keys.push(key.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u64, owner: &str) -> LeaseWish {
        LeaseWish { id, ttl_ms: 1000, owner: owner.to_owned() }
    }

    struct Log(Machine, u64);

    impl Log {
        fn run(&mut self, op: Op) -> Reply {
            self.1 += 1;
            let command = Command { id: RequestId(1, self.1), op };
            self.0.apply(self.1, &command, &mut Effects::default())
        }
    }

    fn hold(id: u64, owner: &str) -> Op {
        Op::Hold { key: "leader".into(), lease: lease(id, owner), force: false, renewal: false }
    }

    /// Proves DCS-192, DCS-002, DCS-003.
    #[test]
    fn one_holds_and_a_renewal_is_no_write() {
        let mut log = Log(Machine::default(), 0);
        assert_eq!(log.run(hold(1, "a")), Reply::Done(1));
        assert_eq!(log.run(hold(2, "b")), Reply::Held(Some("a".into())));
        assert_eq!(log.0.leases.len(), 1, "a loser leaves no lease");
        assert_eq!(log.run(hold(1, "a")), Reply::Done(1), "same version");
        assert_eq!(log.0.leases[&1].kept_at, 3);
        assert_eq!(log.run(hold(9, "a")), Reply::Done(1), "another life of the same member");
        assert_eq!(log.run(Op::Expire { lease: 1, seen: 3 }), Reply::Done(5));
        assert_eq!(log.0.keys["leader"].lease, Some(9), "the old lease takes nothing with it");
        let release = |me: &str| Op::Release { key: "leader".into(), me: me.into(), first: None };
        assert_eq!(log.run(release("b")), Reply::Held(Some("a".into())));
        assert_eq!(log.run(release("a")), Reply::Done(7));
        assert_eq!(log.run(release("a")), Reply::Held(None));
    }

    /// Proves DCS-027: a renewal that was held up creates nothing and binds nothing to its lease.
    #[test]
    fn a_late_renewal_makes_no_key() {
        let mut log = Log(Machine::default(), 0);
        let renew = |id| Op::Hold {
            key: "leader".into(),
            lease: lease(id, "a"),
            force: false,
            renewal: true,
        };
        log.run(hold(1, "a"));
        assert_eq!(log.run(renew(1)), Reply::Done(1));
        log.run(Op::Release { key: "leader".into(), me: "a".into(), first: None });
        assert_eq!(log.run(renew(1)), Reply::Held(None));
        log.run(hold(2, "a"));
        assert_eq!(log.run(renew(1)), Reply::Held(Some("a".into())), "of a former life");
        assert_eq!(log.0.keys["leader"].lease, Some(2));
        log.run(Op::Revoke { owner: "a".into() });
        log.run(hold(3, "b"));
        assert_eq!(log.run(renew(1)), Reply::Held(Some("b".into())));
        assert_eq!(log.0.leases.len(), 1, "it leaves no lease");
    }

    /// What stood in a log before renewals were told apart is read as it was meant.
    #[test]
    fn an_older_log_is_read() {
        let text = r#"{"Hold":{"key":"k","lease":{"id":1,"ttl_ms":2,"owner":"a"},"force":true}}"#;
        let op: Op = serde_json::from_str(text).expect("an older entry");
        assert!(matches!(op, Op::Hold { force: true, renewal: false, .. }), "{op:?}");
    }

    /// Proves DCS-193 (a racing keepalive wins).
    #[test]
    fn an_expiry_loses_to_a_later_keepalive() {
        let mut log = Log(Machine::default(), 0);
        log.run(hold(1, "a"));
        log.run(Op::KeepAlive { lease: lease(1, "a") });
        log.run(Op::Expire { lease: 1, seen: 1 });
        assert!(log.0.keys.contains_key("leader"));
        log.run(Op::Expire { lease: 1, seen: 2 });
        assert!(log.0.keys.is_empty() && log.0.leases.is_empty());
    }

    /// Proves DCS-025 (a repeated command is one command).
    #[test]
    fn a_repeated_command_is_applied_once() {
        let mut machine = Machine::default();
        let put = Op::Put { key: "k".into(), value: "v".into(), cond: Cond::Absent, lease: None };
        let command = Command { id: RequestId(7, 1), op: put };
        let mut effects = Effects::default();
        assert_eq!(machine.apply(4, &command, &mut effects), Reply::Done(4));
        assert_eq!(machine.apply(5, &command, &mut effects), Reply::Done(4));
        assert_eq!(effects.keys, ["k"]);
        let other = Command { id: RequestId(7, 2), ..command };
        assert_eq!(machine.apply(6, &other, &mut effects), Reply::Refused);
    }

    /// Proves DCS-012 (the compare), INV-25.
    #[test]
    fn versions_compare() {
        let mut log = Log(Machine::default(), 10);
        let put = |cond| Op::Put { key: "sync".into(), value: "{}".into(), cond, lease: None };
        assert_eq!(log.run(put(Cond::Index(0))), Reply::Refused);
        assert_eq!(log.run(put(Cond::Absent)), Reply::Done(12));
        assert_eq!(log.run(put(Cond::Index(11))), Reply::Refused);
        assert_eq!(log.run(put(Cond::Index(12))), Reply::Done(14));
        let delete = |cond| Op::Delete { key: "sync".into(), cond };
        assert_eq!(log.run(delete(Cond::Index(12))), Reply::Refused);
        assert_eq!(log.run(delete(Cond::Absent)), Reply::Refused);
        assert_eq!(log.run(delete(Cond::Index(14))), Reply::Done(17));
        assert_eq!(log.run(delete(Cond::Any)), Reply::Done(18));
    }
}
