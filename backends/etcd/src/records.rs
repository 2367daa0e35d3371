//! Every record but the leader key: skipped when nothing changes, compared when asked to.

use crate::call::Failure;
use crate::lock::read_in;
use crate::store::{Entry, Shared};
use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp};
use hathi_dcs::flat::Records;
use hathi_dcs::flat::copy::version;
use hathi_dcs::{DcsError, Deadline, Expect, Version};

impl Shared {
    /// What makes a compare-and-set come true. An absent key has modification revision 0, so a
    /// version is only compared on a key that exists. (DCS-088, INV-25)
    fn compare(&self, name: &str, expect: Expect) -> Result<Vec<Compare>, DcsError> {
        let key = self.key(name);
        Ok(match expect {
            Expect::Anything => Vec::new(),
            Expect::Absent => vec![Compare::create_revision(key, CompareOp::Equal, 0)],
            Expect::Version(Version(wanted)) => {
                let wanted = i64::try_from(wanted).map_err(|_| DcsError::conflict(name))?;
                vec![
                    Compare::create_revision(key.clone(), CompareOp::Greater, 0),
                    Compare::mod_revision(key, CompareOp::Equal, wanted),
                ]
            }
        })
    }
}

#[async_trait]
impl Records for Shared {
    /// Writes if the expectation is met. The new version is the revision of the write. (DCS-088)
    async fn set(
        &self,
        name: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let txn = Txn::new()
            .when(self.compare(name, expect)?)
            .and_then([TxnOp::put(self.key(name), value.as_str(), None)])
            .or_else([TxnOp::get(self.key(name), None)]);
        self.kept.forget(name);
        let answer = self.txn(by, txn).await.map_err(Failure::into_error)?;
        if answer.value.succeeded() {
            let revision = self.wrote(answer.value.header());
            self.kept.remember(name, Entry { value, version: revision, lease: 0 });
            return Ok(version(revision));
        }
        match read_in(&answer.value) {
            // The store holds what I wanted, and a sending of mine went unanswered: it was me, or
            // somebody who wanted the same. (DCS-025)
            Some(kv) if answer.repeated && kv.value() == value.as_bytes() => {
                Ok(version(kv.mod_revision()))
            }
            _ => Err(DcsError::conflict(name)),
        }
    }

    /// My member record, on my lease. (DCS-090)
    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError> {
        let name = format!("members/{}", self.me);
        let mut lease = self.lease_for_member(by).await?;
        if self.kept.known(&name).is_some_and(|entry| entry.value == value && entry.lease == lease)
        {
            return Ok(());
        }
        self.kept.forget(&name);
        for last in [false, true] {
            let (key, data) = (self.key(&name), value.as_str());
            let put = self
                .endpoints
                .call(by, |client| {
                    let (key, data) = (key.clone(), data.to_owned());
                    let options = PutOptions::new().with_lease(lease);
                    async move { client.kv_client().put(key, data, Some(options)).await }
                })
                .await;
            match put {
                Ok(answer) => {
                    let revision = self.wrote(answer.value.header());
                    self.kept.remember(&name, Entry { value, version: revision, lease });
                    return Ok(());
                }
                Err(Failure::LeaseGone) if !last => {
                    self.lease.forget(&lease);
                    lease = self.prolong_lease(by).await?;
                }
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Err(DcsError::unreachable("etcd", 0, "the lease was lost twice"))
    }

    /// The race for the right to bootstrap. All contenders write the same empty value, so a lost
    /// answer could not be told from a lost race; the key therefore begins on my lease, which
    /// nobody else has, and is then written again without one. A contender that dies in between
    /// leaves nothing behind. (DCS-006, DCS-025)
    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError> {
        let name = "initialize";
        let lease = self.prolong_lease(by).await?;
        let on_my_lease = Some(PutOptions::new().with_lease(lease));
        let race = Txn::new()
            .when(self.compare(name, Expect::Absent)?)
            .and_then([TxnOp::put(self.key(name), "", on_my_lease)])
            .or_else([TxnOp::get(self.key(name), None)]);
        let answer = self.txn(by, race).await.map_err(Failure::into_error)?;
        let won = answer.value.succeeded()
            || read_in(&answer.value).is_some_and(|kv| kv.lease() == lease);
        if !won {
            return Err(DcsError::conflict(name));
        }
        let settle = Txn::new()
            .when([Compare::lease(self.key(name), CompareOp::Equal, lease)])
            .and_then([TxnOp::put(self.key(name), "", None)])
            .or_else([TxnOp::get(self.key(name), None)]);
        let answer = self.txn(by, settle).await.map_err(Failure::into_error)?;
        if answer.value.succeeded() {
            self.wrote(answer.value.header());
            return Ok(());
        }
        match read_in(&answer.value) {
            Some(kv) if answer.repeated && kv.lease() == 0 && kv.value().is_empty() => Ok(()),
            _ => Err(DcsError::conflict(name)),
        }
    }

    /// Deletes if the expectation is met; deleting what is not there is no error, except with a
    /// version. (DCS-008, DCS-013)
    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        let txn = Txn::new()
            .when(self.compare(name, expect)?)
            .and_then([TxnOp::delete(self.key(name), None)])
            .or_else([TxnOp::get(self.key(name), None)]);
        self.kept.forget(name);
        let answer = self.txn(by, txn).await.map_err(Failure::into_error)?;
        if answer.value.succeeded() {
            self.wrote(answer.value.header());
            return Ok(());
        }
        match read_in(&answer.value) {
            None if answer.repeated => Ok(()),
            _ => Err(DcsError::conflict(name)),
        }
    }

    /// (DCS-017)
    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError> {
        let prefix = self.key("");
        self.kept.forget_all();
        let answer = self
            .endpoints
            .call(by, |client| {
                let prefix = prefix.clone();
                let options = DeleteOptions::new().with_prefix();
                async move { client.kv_client().delete(prefix, Some(options)).await }
            })
            .await
            .map_err(Failure::into_error)?;
        if answer.value.deleted() > 0 {
            self.wrote(answer.value.header());
        }
        Ok(())
    }
}
