//! Every record but the leader key. Each call carries a name of its own, which the record keeps: a
//! call that is sent twice finds its own first success. (DCS-025, DCS-201)

use crate::server::{Answer, Reply};
use crate::store::Shared;
use async_trait::async_trait;
use hathi_dcs::flat::copy::{Entry, version};
use hathi_dcs::flat::{READ_AGAIN, Records};
use hathi_dcs::{DcsError, Deadline, Expect, Version, boottime};

fn expected(expect: Expect) -> String {
    match expect {
        Expect::Anything => "any".to_owned(),
        Expect::Absent => "absent".to_owned(),
        Expect::Version(Version(revision)) => revision.to_string(),
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
        let (expect, call) = (expected(expect), self.call_name());
        let args = ["set", name, &value, &expect, &call];
        match self.servers.call(by, &args).await?.reply {
            Reply::Done(revision) => {
                self.kept.wrote(revision);
                let entry = Entry { value, version: revision, lease: String::new() };
                self.kept.remember(name, entry);
                Ok(version(revision))
            }
            Reply::Found(..) | Reply::Nothing | Reply::All(_) => Err(DcsError::conflict(name)),
        }
    }

    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError> {
        let name = format!("members/{}", self.me);
        let timing = self.timing();
        let sent = boottime();
        let fresh = timing.loop_wait_ms() * 9 / 10;
        let same = |entry: Entry<String>| entry.value == value && entry.lease == self.lease;
        if self.member_kept().is_some_and(|(at, ttl)| ttl == timing.ttl && sent.since(at) < fresh)
            && self.kept.known(&name).is_some_and(same)
        {
            return Ok(());
        }
        self.kept.forget(&name);
        let args = ["member", &name, &value, &self.lease, &timing.ttl_ms().to_string()];
        match self.servers.call(by, &args).await?.reply {
            Reply::Done(revision) => {
                self.kept.wrote(revision);
                self.keep_member(sent, timing.ttl);
                let entry = Entry { value, version: revision, lease: self.lease.clone() };
                self.kept.remember(&name, entry);
                Ok(())
            }
            Reply::Found(..) | Reply::Nothing | Reply::All(_) => Err(DcsError::conflict(name)),
        }
    }

    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError> {
        let (ttl, call) = (self.timing().ttl_ms(), self.call_name());
        // Who wins takes the lock next: not before it may be given away.
        let words = |missing: &dyn Fn(u64) -> u64| match missing(ttl) {
            0 => Ok(vec!["begin".to_owned(), call.clone()]),
            missing => Err(self.waits(missing)),
        };
        match self.servers.call_on(by, words).await?.reply {
            Reply::Done(revision) => {
                self.kept.wrote(revision);
                Ok(())
            }
            Reply::Found(..) | Reply::Nothing | Reply::All(_) => {
                Err(DcsError::conflict("initialize"))
            }
        }
    }

    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget(name);
        let Answer { reply, repeated } =
            self.servers.call(by, &["delete", name, &expected(expect)]).await?;
        match reply {
            Reply::Done(revision) => {
                self.kept.wrote(revision);
                Ok(())
            }
            Reply::Nothing if repeated => Ok(()),
            Reply::Found(..) | Reply::Nothing | Reply::All(_) => Err(DcsError::conflict(name)),
        }
    }

    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget_all();
        self.servers.call(by, &["wipe"]).await?;
        self.kept.wrote(READ_AGAIN);
        Ok(())
    }
}
