//! Every record but the lock: annotations of an object, compared by that object's version.
//! (DCS-150, DCS-151, DCS-180)

use crate::layout::{MARK, Place, nothing, read, written};
use crate::objects::Object;
use crate::pod::{labels, says};
use crate::store::{Done, Over, Shared};
use async_trait::async_trait;
use hathi_dcs::flat::Records;
use hathi_dcs::flat::copy::Entry;
use hathi_dcs::{DcsError, Deadline, Expect, MemberData, Version};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two tries on an object that changed under me.
const PAUSE: Duration = Duration::from_millis(10);
/// An object that changed between the look and the write is looked at again, so often.
const ROUNDS: u32 = 20;

fn restless(name: &str) -> DcsError {
    DcsError::unreachable("kubernetes", 0, format!("the object of {name} changed at every look"))
}

impl Shared {
    fn place(&self, name: &str) -> Result<Place, DcsError> {
        Place::of(name).ok_or_else(|| self.hopeless(format!("there is no record {name}")))
    }

    async fn set_here(
        &self,
        name: &str,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<Object, DcsError> {
        let place = self.place(name)?;
        let changes = written(name, value);
        let same = |object: &Object| read(name, &object.annotations).as_deref() == Some(value);
        let mut tried = false;
        for _ in 0..ROUNDS {
            match expect {
                Expect::Anything => {
                    match self.patch(place, &changes, None, Over::Anything, false, by).await? {
                        Done::Written(object) => return Ok(object),
                        Done::Conflict { .. } => {}
                        Done::Absent { .. } => {
                            if let Done::Written(object) =
                                self.create(place, &changes, None, false, by).await?
                            {
                                return Ok(object);
                            }
                        }
                    }
                }
                // A version of 0 would be none at all to the API server. (INV-25)
                Expect::Version(Version(0)) => return Err(DcsError::conflict(name)),
                Expect::Version(Version(version)) => {
                    let over = Over::Version(version);
                    match self.patch(place, &changes, None, over, false, by).await? {
                        Done::Written(object) => return Ok(object),
                        // The store holds what I wanted, and a sending of mine went unanswered: it
                        // was me, or somebody who wanted the same. (DCS-025)
                        Done::Conflict { repeated: true } => {
                            let there = self.get(place, false, by).await?;
                            let mine = there.filter(same);
                            return mine.ok_or_else(|| DcsError::conflict(name));
                        }
                        Done::Conflict { repeated: false } | Done::Absent { .. } => {
                            return Err(DcsError::conflict(name));
                        }
                    }
                }
                Expect::Absent => {
                    let there = self.get(place, false, by).await?;
                    let done = match there {
                        None => self.create(place, &changes, None, false, by).await?,
                        Some(object) if tried && same(&object) => return Ok(object),
                        Some(object) if read(name, &object.annotations).is_some() => {
                            return Err(DcsError::conflict(name));
                        }
                        Some(object) => {
                            let over = Over::Version(object.version);
                            self.patch(place, &changes, None, over, false, by).await?
                        }
                    };
                    match done {
                        Done::Written(object) => return Ok(object),
                        Done::Conflict { repeated } | Done::Absent { repeated } => {
                            tried |= repeated;
                        }
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(restless(name))
    }

    async fn delete_here(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        let place = self.place(name)?;
        let changes = nothing(name);
        let there = |object: &Object| read(name, &object.annotations).is_some();
        let over = match expect {
            Expect::Absent => {
                return match self.get(place, false, by).await?.filter(there) {
                    Some(_) => Err(DcsError::conflict(name)),
                    None => Ok(()),
                };
            }
            Expect::Version(Version(0)) => return Err(DcsError::conflict(name)),
            Expect::Version(Version(version)) => Over::Version(version),
            Expect::Anything => Over::Anything,
        };
        for _ in 0..ROUNDS {
            match (self.patch(place, &changes, None, over, false, by).await?, expect) {
                (Done::Written(_), _) | (Done::Absent { .. }, Expect::Anything) => return Ok(()),
                (Done::Conflict { .. }, Expect::Anything) => tokio::time::sleep(PAUSE).await,
                (Done::Conflict { repeated: true } | Done::Absent { repeated: true }, _) => {
                    let gone = self.get(place, false, by).await?.is_none_or(|o| !there(&o));
                    return if gone { Ok(()) } else { Err(DcsError::conflict(name)) };
                }
                (Done::Conflict { .. } | Done::Absent { .. }, _) => {
                    return Err(DcsError::conflict(name));
                }
            }
        }
        Err(restless(name))
    }

    /// All contenders write the same empty value, so mine carries a mark beside it, until the system
    /// identifier takes its place. (DCS-006, DCS-025)
    async fn begin_here(&self, by: Deadline) -> Result<(), DcsError> {
        let name = "initialize";
        let changes = vec![(name, Some(String::new())), (MARK, Some(self.mark.clone()))];
        for _ in 0..ROUNDS {
            let done = match self.get(Place::Config, false, by).await? {
                None => self.create(Place::Config, &changes, None, false, by).await?,
                Some(object) => match object.annotations.get(name) {
                    Some(value) => {
                        let mark = object.annotations.get(MARK);
                        let mine = value.is_empty() && mark == Some(&self.mark);
                        return if mine { Ok(()) } else { Err(DcsError::conflict(name)) };
                    }
                    None => {
                        let over = Over::Version(object.version);
                        self.patch(Place::Config, &changes, None, over, false, by).await?
                    }
                },
            };
            match done {
                Done::Written(_) => return Ok(()),
                Done::Conflict { .. } | Done::Absent { .. } => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(restless(name))
    }

    async fn ensure_service(&self, by: Deadline) {
        if self.service_done.load(Ordering::Relaxed) {
            return;
        }
        match self.create_service(by).await {
            Ok(()) => {}
            Err(DcsError::Refused { why, .. }) => tracing::info!(
                "the headless Service of the cluster's Endpoints is not mine to make ({why}); \
                 without one the control plane may delete them"
            ),
            Err(_) => return,
        }
        self.service_done.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Records for Shared {
    async fn set(
        &self,
        name: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.kept.forget(name);
        match self.set_here(name, &value, expect, by).await {
            Ok(object) => {
                let version = Version(object.version);
                self.kept.remember(name, Entry { value, version: 0, lease: () });
                Ok(version)
            }
            Err(error) => {
                if let DcsError::Unreachable { .. } = error {
                    self.wrote_something();
                }
                Err(error)
            }
        }
    }

    /// My Pod: labels and record in one patch, none if it says all that already. (DCS-155)
    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError> {
        let data = MemberData::parse(&value);
        let holder = self.seen.holder(self.timing().ttl);
        let leads = holder.is_some_and(|h| !h.expired && h.name == self.me.as_str());
        let labels = labels(&self.config, &data, leads);
        let pod = self.seen.pod(self.me.as_str());
        if !pod.is_some_and(|pod| says(&pod, &labels, &value)) {
            let me = self.me.as_str();
            match self.patch_pod(me, &labels, Some(&value), by).await {
                Ok(Done::Written(_)) => {}
                Ok(Done::Absent { .. } | Done::Conflict { .. }) => {
                    return Err(self.hopeless(format!(
                        "there is no Pod {me:?} in namespace {:?}; a member's name must be that of \
                         its Pod",
                        self.config.namespace
                    )));
                }
                Err(error) => {
                    if let DcsError::Unreachable { .. } = error {
                        self.seen.forget_pod(me);
                    }
                    return Err(error);
                }
            }
        }
        self.ensure_service(by).await;
        Ok(())
    }

    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError> {
        self.begin_here(by).await
    }

    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget(name);
        self.delete_here(name, expect, by).await
    }

    /// The objects go; the Pods are not ours to delete, but what they say of the cluster is. (DCS-017)
    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget_all();
        self.delete_objects(by).await?;
        self.list_all(by).await?;
        for name in self.seen.members() {
            self.patch_pod(&name, &Default::default(), None, by).await?;
        }
        Ok(())
    }
}
