//! The one lease of this process: it carries the leader key and my member key. (DCS-082)

use crate::endpoints::{Failure, KeptAlive};
use crate::store::Shared;
use hathi_dcs::{DcsError, Deadline, Millis, Timing, boottime};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct State {
    timing: Timing,
    /// The lease, and when the last confirmed grant or keepalive was sent.
    held: Option<(i64, Millis)>,
}

pub(crate) struct Lease {
    state: Mutex<State>,
    /// Two calls that find no lease must not make two.
    granting: tokio::sync::Mutex<()>,
}

impl Lease {
    pub fn new(timing: Timing) -> Self {
        Self {
            state: Mutex::new(State { timing, held: None }),
            granting: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another ttl needs another lease; the old one ends by itself. (DCS-083)
    pub fn set_timing(&self, timing: Timing) {
        let mut state = self.state();
        if state.timing.ttl != timing.ttl {
            state.held = None;
        }
        state.timing = timing;
    }

    /// The store says that this lease is gone.
    pub fn forget(&self, id: i64) {
        let mut state = self.state();
        if state.held.is_some_and(|(held, _)| held == id) {
            state.held = None;
        }
    }

    fn held(&self) -> Option<i64> {
        self.state().held.map(|(id, _)| id)
    }

    /// The lease, if it was prolonged less than about one loop_wait ago. The tenth that is missing
    /// lets a loop that turns every loop_wait prolong it in each turn and never skip one.
    fn recently_kept(&self) -> Option<i64> {
        let state = self.state();
        let fresh_ms = state.timing.loop_wait_ms() * 9 / 10;
        state.held.filter(|(_, kept)| boottime().since(*kept) < fresh_ms).map(|(id, _)| id)
    }

    fn kept(&self, id: i64, sent: Millis) {
        let mut state = self.state();
        if let Some((held, kept)) = &mut state.held
            && *held == id
        {
            *kept = (*kept).max(sent);
        }
    }
}

impl Shared {
    /// A lease prolonged by this very call: whoever counts its ttl from before the call is never
    /// late. Granted anew if it was gone.
    pub async fn prolong_lease(&self, by: Deadline) -> Result<i64, DcsError> {
        if let Some(id) = self.lease.held() {
            let sent = boottime();
            let kept = self
                .endpoints
                .call(by, |client| async move {
                    // Opening the stream sends one keepalive and waits for its answer.
                    client.lease_client().keep_alive(id).await.map(|_stream| KeptAlive)
                })
                .await;
            match kept {
                Ok(_) => {
                    self.lease.kept(id, sent);
                    return Ok(id);
                }
                Err(Failure::LeaseGone) => self.lease.forget(id),
                Err(Failure::Failed(error)) => return Err(error),
            }
        }
        self.grant_lease(by).await
    }

    /// A lease that lives, prolonged at most once per loop_wait. (DCS-082)
    pub async fn lease_for_member(&self, by: Deadline) -> Result<i64, DcsError> {
        match self.lease.recently_kept() {
            Some(id) => Ok(id),
            None => self.prolong_lease(by).await,
        }
    }

    async fn grant_lease(&self, by: Deadline) -> Result<i64, DcsError> {
        let one_at_a_time = tokio::time::timeout(by.left(), self.lease.granting.lock());
        let Ok(_granting) = one_at_a_time.await else {
            return Err(DcsError::unreachable("etcd", 0, "waited for another call's lease"));
        };
        loop {
            if let Some(id) = self.lease.held() {
                return Ok(id);
            }
            let ttl = self.lease.state().timing.ttl;
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
            let mut state = self.lease.state();
            // The ttl may have changed meanwhile; then this lease ends by itself.
            if state.timing.ttl == ttl {
                state.held = Some((id, sent));
                return Ok(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-083 and the thrift of DCS-082.
    #[test]
    fn a_lease_is_kept_until_the_ttl_changes() {
        let timing = Timing { ttl: 30, loop_wait: 10, retry_timeout: 10 };
        let lease = Lease::new(timing);
        lease.state().held = Some((7, boottime()));
        lease.set_timing(Timing { loop_wait: 5, ..timing });
        assert_eq!((lease.held(), lease.recently_kept()), (Some(7), Some(7)));
        lease.state().held = Some((7, boottime().minus(4_600)));
        assert_eq!((lease.held(), lease.recently_kept()), (Some(7), None));
        lease.kept(8, boottime());
        assert_eq!(lease.recently_kept(), None, "another lease's answer");
        lease.kept(7, boottime());
        assert_eq!(lease.recently_kept(), Some(7));
        lease.forget(8);
        assert_eq!(lease.held(), Some(7));
        lease.set_timing(Timing { ttl: 20, ..timing });
        assert_eq!(lease.held(), None);
    }
}
