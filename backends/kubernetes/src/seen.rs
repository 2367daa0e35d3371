//! What was last seen of the objects and the Pods, and since when the leader's record stands.
//! (DCS-170, DCS-175)
//!
//! Fed by every answer and by both watches; a version never goes back, except when the store did.
//! The flat copy that [`hathi_dcs::Freshness::Watched`] reads is made from it.

use crate::layout::{LeaderRecord, Place, read};
use crate::objects::{Object, Sent};
use hathi_dcs::flat::Kept;
use hathi_dcs::flat::copy::Entry;
use hathi_dcs::{Millis, boottime};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing hangs on a lease here.
pub(crate) type Keys = BTreeMap<String, Entry<()>>;

/// Which of the two watches: the cluster's objects, or its Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Objects,
    Pods,
}

/// One thing, or its absence, as of a version.
#[derive(Clone, Debug)]
struct Slot {
    version: u64,
    object: Option<Object>,
}

#[derive(Default)]
struct Known {
    slots: BTreeMap<String, Slot>,
    /// The newest version that was ever seen.
    newest: u64,
    /// Of the last list: what it did not name was gone by then.
    listed: u64,
}

impl Known {
    fn get(&self, name: &str) -> Option<&Object> {
        self.slots.get(name)?.object.as_ref()
    }

    fn put(&mut self, name: String, version: u64, object: Option<Object>) {
        self.newest = self.newest.max(version);
        let known = self.slots.get(&name).map_or(self.listed, |slot| slot.version);
        let newer = known < version;
        if newer {
            self.slots.insert(name, Slot { version, object });
        }
    }
}

#[derive(Default)]
struct Inner {
    objects: Known,
    pods: Known,
    /// The leader's record, and when it was first seen like that. (DCS-170)
    observed: Option<(LeaderRecord, Millis)>,
    /// Both watches are there.
    alive: bool,
}

impl Inner {
    fn holder(&self, ttl: u32) -> Option<Holder> {
        let (record, since) = self.observed.as_ref()?;
        let name = record.leader.clone()?;
        Some(Holder { name, expired: boottime().since(*since) > record.ttl_ms(ttl) })
    }
}

pub(crate) struct Seen {
    inner: Mutex<Inner>,
    /// What the four objects are called.
    names: [(Place, String); 4],
}

/// Who holds the lock by what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub name: String,
    /// Not renewed for its ttl, by my clock.
    pub expired: bool,
}

impl Seen {
    pub fn new(base: &str, endpoints: bool) -> Self {
        let names = Place::ALL.map(|place| (place, place.object(base, endpoints)));
        Self { inner: Mutex::default(), names }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn name(&self, place: Place) -> &str {
        let found = self.names.iter().find(|(known, _)| *known == place);
        found.map_or("", |(_, name)| name)
    }

    pub fn object(&self, place: Place) -> Option<Object> {
        self.inner().objects.get(self.name(place)).cloned()
    }

    pub fn pod(&self, name: &str) -> Option<Object> {
        self.inner().pods.get(name).cloned()
    }

    /// The Pods that said something.
    pub fn members(&self) -> Vec<String> {
        let inner = self.inner();
        let said = inner.pods.slots.iter().filter(|(_, slot)| {
            slot.object.as_ref().is_some_and(|pod| pod.annotations.contains_key("status"))
        });
        said.map(|(name, _)| name.clone()).collect()
    }

    /// Nobody knows what this Pod says now: its next record is written whatever it is.
    pub fn forget_pod(&self, name: &str) {
        if let Some(slot) = self.inner().pods.slots.get_mut(name)
            && let Some(pod) = &mut slot.object
        {
            pod.annotations.remove("status");
        }
    }

    /// The newest version that was seen; a reading that begins now cannot be older, unless the store
    /// itself went back.
    pub fn newest(&self, side: Side) -> u64 {
        let inner = self.inner();
        match side {
            Side::Objects => inner.objects.newest,
            Side::Pods => inner.pods.newest,
        }
    }

    /// Takes what an answer or a watch said; `None` is a deletion.
    pub fn put(&self, side: Side, name: String, version: u64, object: Option<Object>) {
        let mut inner = self.inner();
        match side {
            Side::Objects => inner.objects.put(name, version, object),
            Side::Pods => inner.pods.put(name, version, object),
        }
        self.observe(&mut inner);
    }

    /// It is not there, says an answer to a question that was asked when `began` was the newest version.
    pub fn absent(&self, side: Side, name: &str, began: u64) {
        let mut inner = self.inner();
        let known = match side {
            Side::Objects => &mut inner.objects,
            Side::Pods => &mut inner.pods,
        };
        if known.slots.get(name).is_none_or(|slot| slot.version <= began) {
            known.slots.insert(name.to_owned(), Slot { version: began, object: None });
        }
        self.observe(&mut inner);
    }

    /// Takes a list of everything as of `version`; what it does not name is gone. `began`: the newest
    /// version when it was asked for.
    ///
    /// # Errors
    /// Something in it has no version that can be compared.
    pub fn took(
        &self,
        side: Side,
        version: u64,
        began: u64,
        items: Vec<Sent>,
    ) -> Result<(), String> {
        let items: Result<Vec<_>, _> = items.into_iter().map(Object::of).collect();
        let items = items?;
        let mut inner = self.inner();
        let known = match side {
            Side::Objects => &mut inner.objects,
            Side::Pods => &mut inner.pods,
        };
        if version < began {
            // Restored from a copy, or another one: what was seen before says nothing of it.
            *known = Known::default();
        }
        let named = |name: &String| items.iter().any(|(there, _)| there == name);
        known.slots.retain(|name, slot| slot.version > version || named(name));
        for (name, object) in items {
            let newer = known.slots.get(&name).is_none_or(|slot| slot.version < object.version);
            if newer {
                known.slots.insert(name, Slot { version: object.version, object: Some(object) });
            }
        }
        known.listed = known.listed.max(version);
        known.newest = known.newest.max(version);
        self.observe(&mut inner);
        Ok(())
    }

    /// A record that changed is one that somebody renewed just now, as far as I can know.
    fn observe(&self, inner: &mut Inner) {
        let object = inner.objects.get(self.name(Place::Leader));
        let record = object.map(|object| LeaderRecord::read(&object.annotations));
        if inner.observed.as_ref().map(|(known, _)| known) != record.as_ref() {
            inner.observed = record.map(|record| (record, boottime()));
        }
    }

    /// Who holds the lock, by the clock of this machine; `ttl` (seconds) where the record has none.
    pub fn holder(&self, ttl: u32) -> Option<Holder> {
        self.inner().holder(ttl)
    }

    /// When the lock ends unless somebody renews it; `None` if nobody holds it.
    pub fn ends(&self, ttl: u32) -> Option<Millis> {
        let inner = self.inner();
        let (record, since) = inner.observed.as_ref()?;
        let ends = since.plus(record.ttl_ms(ttl) + 1);
        (record.leader.is_some() && boottime() < ends).then_some(ends)
    }

    /// The records as a flat store would have them.
    pub fn keys(&self, ttl: u32) -> Keys {
        self.keys_of(&self.inner(), ttl)
    }

    fn keys_of(&self, inner: &Inner, ttl: u32) -> Keys {
        let holder = inner.holder(ttl);
        let mut keys = Keys::new();
        let mut add = |name: String, value: String, version: u64| {
            let version = i64::try_from(version).unwrap_or(i64::MAX);
            keys.insert(name, Entry { value, version, lease: () });
        };
        for (place, name) in &self.names {
            let Some(object) = inner.objects.get(name) else { continue };
            if let (Place::Leader, Some(holder)) = (place, &holder)
                && !holder.expired
            {
                add("leader".to_owned(), holder.name.clone(), object.version);
            }
            for record in place.records() {
                if let Some(value) = read(record, &object.annotations) {
                    add((*record).to_owned(), value, object.version);
                }
            }
        }
        for (name, slot) in &inner.pods.slots {
            // A Pod that never said anything is no member yet.
            let said = slot.object.as_ref().and_then(|pod| pod.annotations.get("status"));
            if let Some(status) = said {
                add(format!("members/{name}"), status.clone(), slot.version);
            }
        }
        keys
    }

    /// Both watches are there, or one of them is not any more.
    pub fn lives(&self, yes: bool) {
        self.inner().alive = yes;
    }

    /// Makes the copy anew.
    pub fn publish(&self, kept: &Kept<()>, ttl: u32) {
        // Under the lock, so that two of these do not overtake each other.
        let inner = self.inner();
        kept.copy.replace(0, self.keys_of(&inner, ttl));
        if inner.alive {
            kept.copy.lives();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Annotations;

    fn sent(name: &str, version: u64, annotations: &[(&str, &str)]) -> Sent {
        let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
        let object = serde_json::json!({"metadata": {
            "name": name, "resourceVersion": version.to_string(), "annotations": annotations,
        }});
        serde_json::from_value(object).expect("an object")
    }

    fn put(seen: &Seen, version: u64, annotations: &[(&str, &str)]) {
        let (name, object) = Object::of(sent("golden", version, annotations)).expect("right");
        seen.put(Side::Objects, name, version, Some(object));
    }

    /// Proves DCS-170: who renews is heard, who does not is forgotten a ttl after the last change
    /// that I saw; a status written meanwhile is no renewal.
    #[tokio::test]
    async fn a_lock_ends_a_ttl_after_its_last_change() {
        let seen = Seen::new("golden", true);
        assert_eq!((seen.holder(30), seen.ends(30)), (None, None));
        let record = |renewed| [("leader", "a"), ("ttl", "1"), ("renewTime", renewed)];
        put(&seen, 1, &record("1"));
        let held = |expired| Some(Holder { name: "a".into(), expired });
        let first = seen.ends(30).expect("it ends");
        assert_eq!(seen.holder(30), held(false));
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        put(&seen, 2, &[record("1").as_slice(), &[("optime", "5")]].concat());
        assert_eq!(seen.ends(30), Some(first), "the status is no renewal");
        put(&seen, 3, &record("2"));
        assert!(seen.ends(30).expect("it ends") >= first.plus(500), "renewed");
        put(&seen, 2, &record("1"));
        assert!(seen.ends(30).expect("it ends") >= first.plus(500), "an old event is dropped");
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        assert_eq!((seen.holder(30), seen.ends(30)), (held(true), None));
        assert!(!seen.keys(30).contains_key("leader"), "nobody holds it");
        put(&seen, 4, &record("3"));
        assert_eq!(seen.keys(30).get("leader").map(|e| e.value.as_str()), Some("a"));
        put(&seen, 5, &[("optime", "5"), ("transitions", "0")]);
        assert_eq!(seen.holder(30), None, "released");
    }

    /// Proves DCS-175: a list counts as of its version, older events do not, and a store that went
    /// back is believed.
    #[test]
    fn versions_never_go_back_unless_the_store_did() {
        let seen = Seen::new("golden", true);
        put(&seen, 5, &[("leader", "a")]);
        let began = seen.newest(Side::Objects);
        seen.took(Side::Objects, 9, began, vec![]).expect("a list");
        assert_eq!(seen.object(Place::Leader), None, "the list does not have it");
        put(&seen, 7, &[("leader", "a")]);
        assert_eq!(seen.object(Place::Leader), None, "a late answer from before the list");
        put(&seen, 12, &[("leader", "b")]);
        seen.took(Side::Objects, 10, 9, vec![sent("golden", 8, &[])]).expect("a list");
        let there = seen.object(Place::Leader).expect("there");
        assert_eq!(there.annotations.get("leader").map(String::as_str), Some("b"), "mine is newer");
        seen.took(Side::Objects, 3, 12, vec![sent("golden", 2, &[])]).expect("a list");
        let there = seen.object(Place::Leader).expect("there");
        assert_eq!((there.version, there.annotations), (2, Annotations::new()), "restored");
        let bad = serde_json::json!({"metadata": {"name": "x", "resourceVersion": "abc"}});
        let bad = serde_json::from_value(bad).expect("an object");
        assert!(seen.took(Side::Objects, 13, 3, vec![bad]).is_err());
        put(&seen, 20, &[("leader", "c")]);
        seen.absent(Side::Objects, "golden", 19);
        assert!(seen.object(Place::Leader).is_some(), "seen after the question");
        seen.absent(Side::Objects, "golden", 20);
        assert_eq!(seen.object(Place::Leader), None);
        put(&seen, 21, &[("leader", "c")]);
        assert!(seen.object(Place::Leader).is_some(), "made again");
    }
}
