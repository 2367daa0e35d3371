//! The leader key. Each transaction also reads what stood in its way, so that one answer is both
//! the attempt and the second look: a call that is sent twice finds its own first success.
//! (DCS-025, DCS-085, DCS-086, DCS-087, DCS-305)

use crate::call::{Answer, Failure};
use crate::store::{Shared, text};
use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use hathi_dcs::flat::LeaderKey;
use hathi_dcs::{DcsError, Deadline, MemberName, Status};

const LEADER: &str = "leader";
/// A key that changes between the look and the step is looked at again, so often.
const ROUNDS: u32 = 4;

fn with_lease(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

/// What a transaction read, also inside the ones nested in it.
pub(crate) fn read_in(answer: &TxnResponse) -> Option<KeyValue> {
    answer.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().cloned(),
        TxnOpResponse::Txn(inner) => read_in(&inner),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) => None,
    })
}

/// Did this transaction write?
fn wrote(answer: &TxnResponse) -> bool {
    answer.op_responses().into_iter().any(|response| match response {
        TxnOpResponse::Put(_) => true,
        TxnOpResponse::Txn(inner) => wrote(&inner),
        TxnOpResponse::Get(_) | TxnOpResponse::Delete(_) => false,
    })
}

fn owned_by(found: Option<&KeyValue>) -> DcsError {
    DcsError::NotOwner { holder: found.map(|kv| MemberName(text(kv.value()))) }
}

impl Shared {
    fn mine(&self) -> Compare {
        Compare::value(self.key(LEADER), CompareOp::Equal, self.me.as_str())
    }

    fn put_leader(&self, lease: i64) -> TxnOp {
        TxnOp::put(self.key(LEADER), self.me.as_str(), with_lease(lease))
    }

    fn create_leader(&self, lease: i64) -> Txn {
        Txn::new()
            .when([Compare::create_revision(self.key(LEADER), CompareOp::Equal, 0)])
            .and_then([self.put_leader(lease)])
            .or_else([TxnOp::get(self.key(LEADER), None)])
    }

    /// Is the key mine and on this lease? It writes nothing: what is sent at every renewal may be held up on
    /// its way, and come after I gave the key up, or when a later lease carries it. (DCS-027, HA-326)
    fn is_bound(&self, lease: i64) -> Txn {
        let bound = Compare::lease(self.key(LEADER), CompareOp::Equal, lease);
        Txn::new().when([self.mine(), bound]).or_else([TxnOp::get(self.key(LEADER), None)])
    }

    /// Binds to my lease what was seen at this revision; 0: there was no key.
    fn bind_as_seen(&self, seen: i64, lease: i64) -> Txn {
        Txn::new()
            .when([Compare::mod_revision(self.key(LEADER), CompareOp::Equal, seen)])
            .and_then([self.put_leader(lease)])
            .or_else([TxnOp::get(self.key(LEADER), None)])
    }

    fn holds(&self, kv: &KeyValue, lease: i64) -> bool {
        kv.lease() == lease && kv.value() == self.me.as_str().as_bytes()
    }

    /// Runs a transaction that binds the leader key to my lease; a lease that vanished in between
    /// is replaced once. (DCS-035)
    async fn bind_leader(
        &self,
        by: Deadline,
        lease: i64,
        txn: impl Fn(i64) -> Txn,
    ) -> Result<(Answer<TxnResponse>, i64), DcsError> {
        let mut lease = lease;
        for last in [false, true] {
            // Each of these, sent twice, finds its own first success.
            match self.hedged_txn(by, txn(lease)).await {
                Ok(answer) => {
                    if wrote(&answer.value) {
                        self.wrote(answer.value.header());
                    }
                    return Ok((answer, lease));
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
}

#[async_trait]
impl LeaderKey for Shared {
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError> {
        let lease = self.prolong_lease(by).await?;
        let (answer, lease) =
            self.bind_leader(by, lease, |lease| self.create_leader(lease)).await?;
        if answer.value.succeeded() {
            return Ok(());
        }
        match read_in(&answer.value) {
            // Nobody else has my lease: an earlier attempt, of this call or of one that was given
            // up, has won it.
            Some(kv) if self.holds(&kv, lease) => Ok(()),
            found => Err(owned_by(found.as_ref())),
        }
    }

    async fn take(&self, by: Deadline) -> Result<(), DcsError> {
        let lease = self.prolong_lease(by).await?;
        self.bind_leader(by, lease, |lease| Txn::new().and_then([self.put_leader(lease)])).await?;
        Ok(())
    }

    /// One keepalive; nothing is written as long as the key hangs on my lease.
    async fn renew(&self, by: Deadline) -> Result<(), DcsError> {
        let lease = self.prolong_lease(by).await?;
        if let Some(Some(entry)) = self.kept.copy.entry(LEADER, self.kept.own())
            && entry.lease == lease
            && entry.value == self.me.as_str()
        {
            return Ok(());
        }
        let (answer, mut lease) = self.bind_leader(by, lease, |lease| self.is_bound(lease)).await?;
        if answer.value.succeeded() {
            return Ok(());
        }
        let mut found = read_in(&answer.value);
        for _ in 0..ROUNDS {
            let seen = found.as_ref().map_or(0, KeyValue::mod_revision);
            if let Some(other) = found.filter(|kv| kv.value() != self.me.as_str().as_bytes()) {
                return Err(owned_by(Some(&other)));
            }
            let bind = |lease: i64| self.bind_as_seen(seen, lease);
            let (answer, bound) = self.bind_leader(by, lease, bind).await?;
            if answer.value.succeeded() {
                return Ok(());
            }
            lease = bound;
            found = read_in(&answer.value);
            // An earlier sending of this call has done it.
            if found.as_ref().is_some_and(|kv| self.holds(kv, lease)) {
                return Ok(());
            }
        }
        Err(DcsError::unreachable("etcd", 0, "the leader key changed at every look"))
    }

    /// The status and the delete are one transaction: nobody sees the lock free without it.
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let mut steps = Vec::with_capacity(2);
        if let Some(status) = status {
            self.kept.forget("status");
            steps.push(TxnOp::put(self.key("status"), status.to_wire(), None));
        }
        steps.push(TxnOp::delete(self.key(LEADER), None));
        let txn = Txn::new()
            .when([self.mine()])
            .and_then(steps)
            .or_else([TxnOp::get(self.key(LEADER), None)]);
        let answer = self.txn(by, txn).await.map_err(Failure::into_error)?;
        if answer.value.succeeded() {
            self.wrote(answer.value.header());
            return Ok(());
        }
        match read_in(&answer.value) {
            // The first sending deleted it.
            None if answer.repeated => Ok(()),
            found => Err(owned_by(found.as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Etcd, EtcdConfig, open};
    use hathi_dcs::flat::Flat;
    use hathi_dcs::{Dcs, Scope, Timing};
    use hathi_test_support::EtcdVersion;
    use std::sync::Arc;

    fn member(etcd: &hathi_test_support::Etcd, me: &str) -> Arc<Etcd> {
        let config = EtcdConfig { endpoints: etcd.urls(), ..EtcdConfig::default() };
        let timing = Timing { ttl: 15, loop_wait: 1, retry_timeout: 3 };
        open(config, Scope::new("service", "batman"), MemberName::from(me), timing)
    }

    /// Proves DCS-003 and HA-326: what a renewal sends does not bring back a key that was given up, however
    /// late it arrives; a renewal itself does, if nobody took it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_late_renewal_creates_nothing() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let etcd = hathi_test_support::Etcd::start(EtcdVersion::V35, 1).await;
        let (handle, other) = (member(&etcd, "a"), member(&etcd, "b"));
        let a = handle.store();
        let soon = || Deadline::in_ms(5_000);
        handle.acquire_leader(soon()).await.expect("a free lock");
        let lease = a.prolong_lease(soon()).await.expect("a lease");
        let late = a.is_bound(lease);
        handle.release_leader(None, soon()).await.expect("mine");
        let answer = a.txn(soon(), late.clone()).await.map_err(Failure::into_error);
        let answer = answer.expect("a healthy etcd").value;
        assert!(!answer.succeeded() && read_in(&answer).is_none(), "{answer:?}");
        let view = a.read(soon()).await.expect("a healthy etcd");
        assert_eq!(view.leader_name(), None);

        other.acquire_leader(soon()).await.expect("a free lock");
        let answer = a.txn(soon(), late).await.map_err(Failure::into_error);
        let answer = answer.expect("a healthy etcd").value;
        assert!(!answer.succeeded() && read_in(&answer).is_some(), "{answer:?}");
        other.release_leader(None, soon()).await.expect("mine");

        handle.renew_leader(soon()).await.expect("nobody took it");
        let view = a.read(soon()).await.expect("a healthy etcd");
        assert_eq!(view.leader_name(), Some(&MemberName::from("a")));

        // A later life has it on a lease of its own: the step of the former one names what it saw.
        let seen = view.leader.map_or(0, |leader| i64::try_from(leader.version.0).unwrap_or(0));
        let late = a.bind_as_seen(seen, lease);
        let later = member(&etcd, "a");
        later.renew_leader(soon()).await.expect("my name stands there");
        let answer = a.txn(soon(), late).await.map_err(Failure::into_error);
        let answer = answer.expect("a healthy etcd").value;
        let found = read_in(&answer).expect("the key is there");
        assert!(!answer.succeeded() && found.lease() != lease, "{answer:?}");
    }
}
