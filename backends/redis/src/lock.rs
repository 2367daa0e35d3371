//! The leader key: one script, which compares name and lease before it writes. (DCS-201, DCS-202,
//! DCS-205)

use crate::server::Reply;
use crate::store::Shared;
use async_trait::async_trait;
use hathi_dcs::flat::LeaderKey;
use hathi_dcs::flat::copy::Entry;
use hathi_dcs::{DcsError, Deadline, MemberName, Status, boottime};
use std::sync::atomic::Ordering;

/// What a call may do with the key beyond prolonging what is mine.
struct Claim {
    /// Make one where none is.
    create: bool,
    /// Bind one with my name to my lease.
    renew: bool,
    /// Take it from whoever has it.
    force: bool,
}

impl Shared {
    pub(crate) fn waits(&self, missing_ms: u64) -> DcsError {
        let why = format!(
            "this server was started or promoted lately and may have lost the lock: it is given away \
             in {missing_ms} ms at the latest"
        );
        self.servers.unreachable(0, why)
    }

    /// False: there is none, and none was made.
    async fn claim(&self, claim: Claim, by: Deadline) -> Result<bool, DcsError> {
        let ttl = self.timing().ttl_ms();
        let sent = boottime();
        let flag = |yes: bool| if yes { "1".to_owned() } else { "0".to_owned() };
        let words = |missing: &dyn Fn(u64) -> u64| {
            let missing = missing(ttl);
            let trusted = missing == 0;
            // A lock that is back although it was given up looks like mine, too.
            if !trusted && boottime().0 >= self.held_until.load(Ordering::Acquire) {
                return Err(self.waits(missing));
            }
            Ok(vec![
                "lock".to_owned(),
                self.me.as_str().to_owned(),
                self.lease.clone(),
                ttl.to_string(),
                flag(claim.create && trusted),
                flag(claim.renew && trusted),
                flag(claim.force && trusted),
            ])
        };
        match self.servers.call_on(by, words).await?.reply {
            Reply::Done(revision) => {
                self.held_until.store(sent.plus(ttl).0, Ordering::Release);
                self.kept.wrote(revision);
                if self.bound.swap(revision, Ordering::AcqRel) != revision {
                    // The key was made anew: what hung on me before may be gone, too.
                    self.doubt_member();
                }
                Ok(true)
            }
            Reply::Found(holder, _) => {
                self.held_until.store(0, Ordering::Release);
                Err(DcsError::NotOwner { holder: Some(MemberName(holder)) })
            }
            Reply::Nothing => Ok(false),
            Reply::All(_) => Err(self.waits(ttl)),
        }
    }

    /// The same where there has to be one afterwards: this server does not make any yet.
    async fn have(&self, claim: Claim, by: Deadline) -> Result<(), DcsError> {
        match self.claim(claim, by).await? {
            true => Ok(()),
            false => Err(self.waits(self.timing().ttl_ms())),
        }
    }
}

#[async_trait]
impl LeaderKey for Shared {
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError> {
        self.have(Claim { create: true, renew: false, force: false }, by).await
    }

    async fn take(&self, by: Deadline) -> Result<(), DcsError> {
        self.have(Claim { create: true, renew: true, force: true }, by).await
    }

    /// What is sent at every renewal creates nothing: a copy of it that is held up on its way may come after
    /// I gave the lock up. Only where one has vanished another step makes it. (DCS-003, HA-326)
    async fn renew(&self, by: Deadline) -> Result<(), DcsError> {
        if self.claim(Claim { create: false, renew: true, force: false }, by).await? {
            return Ok(());
        }
        self.have(Claim { create: true, renew: true, force: false }, by).await
    }

    /// The status and the delete are one step: nobody sees the lock free without it.
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let wire = status.map(Status::to_wire);
        if wire.is_some() {
            self.kept.forget("status");
        }
        let has = if wire.is_some() { "1" } else { "0" };
        let value = wire.clone().unwrap_or_default();
        let answer = self.servers.call(by, &["release", self.me.as_str(), has, &value]).await?;
        self.held_until.store(0, Ordering::Release);
        match answer.reply {
            Reply::Done(revision) => {
                self.kept.wrote(revision);
                if let Some(value) = wire {
                    let entry = Entry { value, version: revision, lease: String::new() };
                    self.kept.remember("status", entry);
                }
                Ok(())
            }
            // The first sending deleted it.
            Reply::Nothing if answer.repeated => Ok(()),
            Reply::Found(holder, _) => Err(DcsError::NotOwner { holder: Some(MemberName(holder)) }),
            Reply::Nothing | Reply::All(_) => Err(DcsError::NotOwner { holder: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RedisConfig, open};
    use hathi_dcs::conformance::{soon, until};
    use hathi_dcs::flat::Flat;
    use hathi_dcs::{Dcs, Scope, Timing};
    use hathi_test_support::{Redis, RedisOptions};

    /// Proves DCS-003 and HA-326: what a renewal sends does not bring back a lock that was given up, however
    /// late it arrives; a renewal itself does, if nobody took it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_late_renewal_creates_nothing() {
        let redis = Redis::start(RedisOptions::default()).await;
        let config = RedisConfig { hosts: redis.hosts(), ..RedisConfig::default() };
        let timing = Timing { ttl: 3, loop_wait: 1, retry_timeout: 3 };
        let handle = open(config, Scope::new("service", "batman"), "a".into(), timing);
        let a = handle.store();
        until("it is given away", 20_000, || async { handle.acquire_leader(soon()).await.ok() })
            .await;
        handle.release_leader(None, soon()).await.expect("mine");
        let late = a.claim(Claim { create: false, renew: true, force: false }, soon()).await;
        assert_eq!(late, Ok(false));
        let view = a.read(soon()).await.expect("a healthy Redis");
        assert_eq!(view.leader_name(), None);
        handle.renew_leader(soon()).await.expect("nobody took it");
        let view = a.read(soon()).await.expect("a healthy Redis");
        assert_eq!(view.leader_name(), Some(&MemberName::from("a")));
    }
}
