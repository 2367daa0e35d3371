//! The two watches of this process, and the clock that ends a lock nobody renews.
//! (DCS-175, DCS-176, DCS-304)
//!
//! ```text
//!  list objects and Pods ── watch both from there ── event, answer, or the lock's end:
//!    ▲                                                 compare with what was said last, Change::…
//!    └── an error, 410, another server ── the copy dies
//! ```
//! A watch that ended as it should (the server limits them) goes on where it was.

use crate::objects::{Kind, Object, Sent, version};
use crate::rights::missing;
use crate::seen::{Keys, Side};
use crate::store::Shared;
use futures::StreamExt;
use futures::stream::BoxStream;
use hathi_dcs::flat::{Ended, Wake};
use hathi_dcs::{Change, Deadline};
use kube::core::WatchEvent;
use kube::core::params::WatchParams;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::timeout;

/// How long the lists, or the beginning of a watch, may take.
const SETUP_MS: u64 = 3_000;
/// How long the server holds a watch at the most; a connection that died unseen is found out a little
/// later, and before the ttl is over. (DCS-074)
const HOLD_S: u32 = 15;

/// The same for this ttl, in seconds, and how much later the server may be.
fn hold(ttl: u32) -> (u32, Duration) {
    ((ttl / 2).clamp(1, HOLD_S), Duration::from_secs(u64::from((ttl / 5).clamp(1, 3))))
}
/// Between two tries while watching is forbidden.
const BLIND: Duration = Duration::from_secs(10);

type Events = BoxStream<'static, Result<WatchEvent<Sent>, String>>;

/// What became another value, each record once. Versions do not count: several records share an
/// object, and a renewal is no change.
fn changes(old: &Keys, new: &Keys) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter_map(|name| {
        let value = |keys: &Keys| keys.get(name).map(|entry| entry.value.clone());
        let (before, after) = (value(old), value(new));
        if before == after {
            return None;
        }
        Change::of(name, before.as_deref(), after.as_deref())
    });
    changed.collect()
}

/// Ends what the watch vouches for, however it ends.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        self.0.seen.lives(false);
        self.0.kept.copy.dies();
    }
}

impl Shared {
    pub(crate) async fn follow(&self, wake: &Wake) -> Ended {
        let mut served = false;
        let why = match self.follow_both(wake, &mut served).await {
            Ok(()) => "the calls went to another API server".to_owned(),
            Err(why) => why,
        };
        if self.servers.is_blind() {
            // Asked again and again, only the API server would have the work.
            tokio::time::sleep(BLIND).await;
        }
        Ended { served, why }
    }

    async fn follow_both(&self, wake: &Wake, served: &mut bool) -> Result<(), String> {
        let mut moved = self.servers.moved();
        let lists = self.list_all(Deadline::in_ms(SETUP_MS)).await;
        let (at_object, at_pod) = lists.map_err(|error| error.to_string())?;
        self.look_at_rights().await;
        let (objects, pods) = tokio::try_join!(
            self.watch_one(self.objects(), at_object),
            self.watch_one(Kind::Pods, at_pod)
        )?;
        let _alive = Alive(self);
        self.seen.lives(true);
        self.publish();
        *served = true;
        wake.say(Change::Everything);
        let ttl = || self.timing().ttl;
        let mut said = self.seen.keys(ttl());
        let mut objects = pin!(self.follow_one(self.objects(), Side::Objects, at_object, objects));
        let mut pods = pin!(self.follow_one(Kind::Pods, Side::Pods, at_pod, pods));
        loop {
            let left = self.seen.ends(ttl()).map(|ends| Deadline(ends).left());
            let end = async {
                match left {
                    Some(left) => tokio::time::sleep(left + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                why = &mut objects => return Err(why),
                why = &mut pods => return Err(why),
                _ = moved.changed() => return Ok(()),
                () = self.stirred.notified() => {}
                // The lock is free now, and nobody writes that down.
                () = end => self.seen.publish(&self.kept, ttl()),
            }
            let now = self.seen.keys(ttl());
            changes(&said, &now).into_iter().for_each(|change| wake.say(change));
            said = now;
        }
    }

    /// Once: one line for all that is missing.
    async fn look_at_rights(&self) {
        if self.rights_known.load(Ordering::Relaxed) {
            return;
        }
        let by = Deadline::in_ms(SETUP_MS);
        if let Ok(lacking) = missing(&self.servers, &self.config, by).await {
            self.rights_known.store(true, Ordering::Relaxed);
            if !lacking.is_empty() {
                tracing::warn!(
                    "the Role of this node in namespace {:?} does not allow: {}; add it, or it will \
                     be missed when this node has to lead",
                    self.config.namespace,
                    lacking.join(", ")
                );
            }
        }
    }

    async fn watch_one(&self, kind: Kind, from: u64) -> Result<Events, String> {
        let params = WatchParams {
            label_selector: Some(self.selector.clone()),
            timeout: Some(hold(self.timing().ttl).0),
            ..WatchParams::default()
        };
        let request = self.requests(kind.resource()).watch(&params, &from.to_string());
        let request = request.map_err(|why| why.to_string())?;
        let events = self.servers.watch(kind, request, Duration::from_millis(SETUP_MS)).await;
        Ok(events.map_err(|why| format!("watch {}: {why}", kind.resource()))?.boxed())
    }

    /// Watches one kind from a version on, until it cannot.
    async fn follow_one(
        &self,
        kind: Kind,
        side: Side,
        mut from: u64,
        mut events: Events,
    ) -> String {
        loop {
            let (seconds, late) = hold(self.timing().ttl);
            let limit = Duration::from_secs(u64::from(seconds)) + late;
            let taken = match timeout(limit, events.next()).await {
                Err(_elapsed) => Err("silence".to_owned()),
                // It was held long enough; it goes on where it was.
                Ok(None) => match self.watch_one(kind, from).await {
                    Ok(next) => {
                        events = next;
                        continue;
                    }
                    Err(why) => return why,
                },
                Ok(Some(event)) => event.and_then(|event| self.take_event(side, event)),
            };
            match taken {
                Ok(version) => from = from.max(version),
                Err(why) => return format!("watch {}: {why}", kind.resource()),
            }
        }
    }

    /// Takes an event in, and says of which version it is.
    fn take_event(&self, side: Side, event: WatchEvent<Sent>) -> Result<u64, String> {
        let (sent, gone) = match event {
            WatchEvent::Added(sent) | WatchEvent::Modified(sent) => (sent, false),
            WatchEvent::Deleted(sent) => (sent, true),
            WatchEvent::Bookmark(mark) => return version(Some(&mark.metadata.resource_version)),
            // 410: what it would resume from is gone.
            WatchEvent::Error(status) => {
                return Err(format!("{} {}", status.code, status.message));
            }
        };
        let (name, object) = Object::of(sent)?;
        let version = object.version;
        self.seen.put(side, name, version, (!gone).then_some(object));
        self.publish();
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-074: silence is found out within the ttl.
    #[test]
    fn silence_is_shorter_than_the_ttl() {
        for ttl in 3..200 {
            let (seconds, late) = hold(ttl);
            assert!(u64::from(seconds) + late.as_secs() < u64::from(ttl), "{ttl}");
        }
        assert_eq!(hold(30), (15, Duration::from_secs(3)));
    }
}
