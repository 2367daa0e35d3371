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
            Some(kv) if kv.lease() == lease && kv.value() == self.me.as_str().as_bytes() => Ok(()),
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
        let rebind = |lease: i64| {
            let still_bound = Compare::lease(self.key(LEADER), CompareOp::Equal, lease);
            let take_back = Txn::new()
                .when([self.mine()])
                .and_then([self.put_leader(lease)])
                .or_else([TxnOp::txn(self.create_leader(lease))]);
            Txn::new().when([self.mine(), still_bound]).or_else([TxnOp::txn(take_back)])
        };
        let (answer, _) = self.bind_leader(by, lease, rebind).await?;
        match read_in(&answer.value) {
            Some(other) => Err(owned_by(Some(&other))),
            None => Ok(()),
        }
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
