//! The one lease of this process: it carries the leader key and my member key. (DCS-082)

use crate::call::{Failure, KeptAlive};
use crate::store::Shared;
use hathi_dcs::{DcsError, Deadline, boottime};

impl Shared {
    /// A lease prolonged by this very call: whoever counts its ttl from before the call is never
    /// late. Granted anew if it was gone.
    pub(crate) async fn prolong_lease(&self, by: Deadline) -> Result<i64, DcsError> {
        if let Some(id) = self.lease.held() {
            let sent = boottime();
            let kept = self
                .endpoints
                .hedged(by, |client| async move {
                    // Opening the stream sends one keepalive and waits for its answer.
                    client.lease_client().keep_alive(id).await.map(|_stream| KeptAlive)
                })
                .await;
            match kept {
                Ok(_) => {
                    self.lease.kept(&id, sent);
                    return Ok(id);
                }
                Err(Failure::LeaseGone) => self.lease.forget(&id),
                Err(Failure::Failed(error)) => return Err(error),
            }
        }
        self.grant_lease(by).await
    }

    /// A lease that lives, prolonged at most once per loop_wait. (DCS-082)
    pub(crate) async fn lease_for_member(&self, by: Deadline) -> Result<i64, DcsError> {
        match self.lease.recently_kept() {
            Some(id) => Ok(id),
            None => self.prolong_lease(by).await,
        }
    }

    async fn grant_lease(&self, by: Deadline) -> Result<i64, DcsError> {
        let _making = self.lease.make("etcd", by).await?;
        loop {
            if let Some(id) = self.lease.held() {
                return Ok(id);
            }
            let ttl = self.lease.timing().ttl;
            let sent = boottime();
            let granted = self
                .endpoints
                .call(by, |client| async move {
                    client.lease_client().grant(i64::from(ttl), None).await
                })
                .await;
            let id = match granted {
                Ok(answer) => answer.value.id(),
                Err(failure) => return Err(failure.into_error()),
            };
            if self.lease.begin(id, ttl, sent) {
                return Ok(id);
            }
        }
    }
}
