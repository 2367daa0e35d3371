//! The leader's object: whose name stands there, and who has seen it renewed. (DCS-170 … DCS-174)
//!
//! Nobody answers "not mine" from memory: that word comes from an object just read, or from a write
//! that named its version and was refused. (DCS-305)

use crate::layout::{LeaderRecord, Place, now, status as status_changes};
use crate::objects::Object;
use crate::pod;
use crate::store::{Done, Over, Shared};
use async_trait::async_trait;
use hathi_dcs::flat::LeaderKey;
use hathi_dcs::flat::copy::Entry;
use hathi_dcs::{DcsError, Deadline, MemberName, Status};
use serde_json::{Value, json};
use std::time::Duration;

/// Between two tries on an object that changed under me; some controllers touch Endpoints often.
const PAUSE: Duration = Duration::from_millis(10);
/// An object that changed between the look and the write is looked at again, so often.
const ROUNDS: u32 = 20;

fn not_owner(holder: Option<String>) -> DcsError {
    DcsError::NotOwner { holder: holder.map(MemberName) }
}

fn record(object: Option<&Object>) -> LeaderRecord {
    object.map(|object| LeaderRecord::read(&object.annotations)).unwrap_or_default()
}

impl Shared {
    fn restless(&self) -> DcsError {
        let why = "the leader's object changed at every look";
        DcsError::unreachable(self.servers.store(), 0, why)
    }

    /// The address to write with the record, if the Endpoints do not have it. (DCS-153)
    fn subsets(&self, there: Option<&Object>) -> Option<Value> {
        if !self.config.use_endpoints {
            return None;
        }
        let pod = self.seen.pod(self.me.as_str());
        let wanted = pod::subsets(&self.config, self.me.as_str(), pod.as_ref())?;
        let right = there.is_some_and(|there| pod::points_at(&wanted, there));
        (!right).then_some(wanted)
    }

    /// Writes my claim over what was read, or where nothing is.
    async fn claim(&self, over: Option<&Object>, by: Deadline) -> Result<Done, DcsError> {
        if self.config.use_endpoints && self.seen.pod(self.me.as_str()).is_none() {
            // My address stands in my Pod; without it the Endpoints would lead nowhere.
            self.list_all(by).await?;
        }
        let ttl = self.timing().ttl;
        let changes = record(over).claimed(self.me.as_str(), ttl, now());
        let subsets = self.subsets(over);
        match over {
            Some(object) => {
                let over = Over::Version(object.version);
                self.patch(Place::Leader, &changes, subsets, over, true, by).await
            }
            None => self.create(Place::Leader, &changes, subsets, true, by).await,
        }
    }

    async fn look(&self, by: Deadline) -> Result<Option<Object>, DcsError> {
        self.get(Place::Leader, true, by).await
    }
}

#[async_trait]
impl LeaderKey for Shared {
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError> {
        for _ in 0..ROUNDS {
            let there = self.look(by).await?;
            // Of what was just read, or newer; the claim names the version that was read.
            if let Some(holder) = self.seen.holder(self.timing().ttl)
                && !holder.expired
                && holder.name != self.me.as_str()
            {
                return Err(not_owner(Some(holder.name)));
            }
            match self.claim(there.as_ref(), by).await? {
                Done::Written(_) => return Ok(()),
                Done::Conflict { .. } | Done::Absent { .. } => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(self.restless())
    }

    async fn take(&self, by: Deadline) -> Result<(), DcsError> {
        for _ in 0..ROUNDS {
            let there = self.look(by).await?;
            match self.claim(there.as_ref(), by).await? {
                Done::Written(_) => return Ok(()),
                Done::Conflict { .. } | Done::Absent { .. } => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(self.restless())
    }

    /// One write in the good case. What is remembered decides nothing but whether that write is tried
    /// before a look. (DCS-172, DCS-173)
    async fn renew(&self, by: Deadline) -> Result<(), DcsError> {
        let mine = |record: &LeaderRecord| record.leader.as_deref() == Some(self.me.as_str());
        let remembered = self.seen.object(Place::Leader);
        let mut there = remembered.filter(|object| mine(&record(Some(object))));
        for _ in 0..ROUNDS {
            let object = match there.take() {
                Some(remembered) => Some(remembered),
                None => self.look(by).await?,
            };
            let record = record(object.as_ref());
            if record.leader.is_some() && !mine(&record) {
                return Err(not_owner(record.leader));
            }
            match self.claim(object.as_ref(), by).await? {
                Done::Written(_) => return Ok(()),
                Done::Conflict { .. } | Done::Absent { .. } => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(self.restless())
    }

    /// The status and the release are one write: nobody sees the lock free without it. (DCS-174)
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let mut changes = vec![("leader", None)];
        if let Some(status) = status {
            self.kept.forget("status");
            changes.extend(status_changes(status));
        }
        let subsets = self.config.use_endpoints.then(|| json!([]));
        let mut sent_before = false;
        for _ in 0..ROUNDS {
            let there = self.look(by).await?;
            let object = match (record(there.as_ref()).leader, there) {
                (Some(leader), Some(object)) if leader == self.me.as_str() => object,
                // The first sending released it.
                (None, _) if sent_before => return Ok(()),
                (leader, _) => return Err(not_owner(leader)),
            };
            let over = Over::Version(object.version);
            match self.patch(Place::Leader, &changes, subsets.clone(), over, true, by).await? {
                Done::Written(_) => {
                    if let Some(status) = status {
                        let value = status.to_wire();
                        self.kept.remember("status", Entry { value, version: 0, lease: () });
                    }
                    return Ok(());
                }
                Done::Conflict { repeated } | Done::Absent { repeated } => {
                    sent_before |= repeated;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Err(self.restless())
    }
}
