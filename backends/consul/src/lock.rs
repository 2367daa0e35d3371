//! The leader key: each change is one transaction, and a refusal is looked at before it is believed.
//! (DCS-025, DCS-113 … DCS-117, DCS-305)
//!
//! Patroni binds the key to a new session in two requests, between which somebody else may win and
//! it would not notice (DCS-322); here both are one step.

use crate::store::{Entry, Shared};
use crate::txn::{Done, Op};
use async_trait::async_trait;
use hathi_dcs::flat::LeaderKey;
use hathi_dcs::{DcsError, Deadline, MemberName, Status};

const LEADER: &str = "leader";
/// A key that changes between the look and the step is looked at again, so often.
const ROUNDS: u32 = 4;

fn owned_by(found: Option<&Entry>) -> DcsError {
    let holder = found.map(|entry| MemberName(entry.value.clone()));
    DcsError::NotOwner { holder }
}

fn restless() -> DcsError {
    DcsError::unreachable("consul", 0, "the leader key changed at every look")
}

impl Shared {
    fn create_leader(&self, session: &str) -> [Op; 2] {
        let key = self.key(LEADER);
        [Op::absent(key.clone()), Op::lock(key, self.me.as_str(), session)]
    }

    fn is_mine(&self, entry: &Entry) -> bool {
        entry.value == self.me.as_str()
    }
}

#[async_trait]
impl LeaderKey for Shared {
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError> {
        for _ in 0..ROUNDS {
            let session = self.prolong_session(by).await?;
            match self.txn(by, &self.create_leader(&session)).await? {
                Done::Committed { .. } => return Ok(()),
                Done::SessionGone => self.sessions.tenure.forget(&session),
                Done::Refused { .. } => match self.look(LEADER, by).await? {
                    // Nobody else has my session: an earlier attempt, of this call or of one that was
                    // given up, has won it.
                    Some(entry) if self.is_mine(&entry) && entry.lease == session => return Ok(()),
                    Some(entry) => return Err(owned_by(Some(&entry))),
                    // Given up since the refusal.
                    None => {}
                },
            }
        }
        Err(owned_by(None))
    }

    async fn take(&self, by: Deadline) -> Result<(), DcsError> {
        for _ in 0..ROUNDS {
            let session = self.prolong_session(by).await?;
            let key = self.key(LEADER);
            let ops = [Op::delete(key.clone()), Op::lock(key, self.me.as_str(), &session)];
            match self.txn(by, &ops).await? {
                Done::Committed { .. } => return Ok(()),
                Done::SessionGone => self.sessions.tenure.forget(&session),
                Done::Refused { .. } => {}
            }
        }
        Err(restless())
    }

    /// The session is renewed first, then the key is looked at: what is bound to that session at the
    /// look lives at least as long as the renewal says.
    async fn renew(&self, by: Deadline) -> Result<(), DcsError> {
        for _ in 0..ROUNDS {
            let session = self.prolong_session(by).await?;
            let done = match self.look(LEADER, by).await? {
                Some(entry) if !self.is_mine(&entry) => return Err(owned_by(Some(&entry))),
                Some(entry) if entry.lease == session => return Ok(()),
                Some(entry) => {
                    let key = self.key(LEADER);
                    let index = u64::try_from(entry.version).unwrap_or(0);
                    let rebind = [
                        Op::unchanged(key.clone(), index),
                        Op::delete(key.clone()),
                        Op::lock(key, self.me.as_str(), &session),
                    ];
                    self.txn(by, &rebind).await?
                }
                None => self.txn(by, &self.create_leader(&session)).await?,
            };
            match done {
                Done::Committed { .. } => return Ok(()),
                Done::SessionGone => self.sessions.tenure.forget(&session),
                Done::Refused { .. } => {}
            }
        }
        Err(restless())
    }

    /// The status and the delete are one step: nobody sees the lock free without it.
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let mut sent_before = false;
        for _ in 0..ROUNDS {
            let entry = match self.look(LEADER, by).await? {
                Some(entry) if self.is_mine(&entry) => entry,
                // The first sending deleted it.
                None if sent_before => return Ok(()),
                found => return Err(owned_by(found.as_ref())),
            };
            let key = self.key(LEADER);
            let index = u64::try_from(entry.version).unwrap_or(0);
            let mut ops = vec![Op::unchanged(key.clone(), index)];
            if let Some(status) = status {
                self.kept.forget("status");
                ops.push(Op::set(self.key("status"), &status.to_wire()));
            }
            ops.push(Op::delete(key));
            match self.txn(by, &ops).await? {
                Done::Committed { .. } => {
                    self.wrote(0);
                    return Ok(());
                }
                Done::Refused { repeated } => sent_before |= repeated,
                Done::SessionGone => {}
            }
        }
        Err(restless())
    }
}
