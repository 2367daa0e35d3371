//! The one lease or session of this process: it carries the leader key and my member key.
//! (DCS-082, DCS-112)

use crate::{DcsError, Deadline, Millis, Timing, boottime};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct State<Id> {
    timing: Timing,
    /// The lease, and when its last confirmed creation or renewal was sent.
    held: Option<(Id, Millis)>,
}

/// `Id` is how the store names its leases.
pub struct Tenure<Id> {
    state: Mutex<State<Id>>,
    /// Two calls that find no lease must not make two.
    making: tokio::sync::Mutex<()>,
}

impl<Id: Clone + PartialEq> Tenure<Id> {
    pub fn new(timing: Timing) -> Self {
        let state = Mutex::new(State { timing, held: None });
        Self { state, making: tokio::sync::Mutex::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State<Id>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn timing(&self) -> Timing {
        self.state().timing
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
    pub fn forget(&self, id: &Id) {
        let mut state = self.state();
        if state.held.as_ref().is_some_and(|(held, _)| held == id) {
            state.held = None;
        }
    }

    pub fn held(&self) -> Option<Id> {
        self.state().held.as_ref().map(|(id, _)| id.clone())
    }

    /// The same, with the moment at which its last confirmed creation or renewal was sent.
    pub fn held_since(&self) -> Option<(Id, Millis)> {
        self.state().held.clone()
    }

    /// The lease, if it was prolonged less than about one loop_wait ago. The tenth that is missing
    /// lets a loop that turns every loop_wait prolong it in each turn and never skip one.
    pub fn recently_kept(&self) -> Option<Id> {
        let state = self.state();
        let fresh_ms = state.timing.loop_wait_ms() * 9 / 10;
        let held = state.held.as_ref();
        held.filter(|(_, kept)| boottime().since(*kept) < fresh_ms).map(|(id, _)| id.clone())
    }

    /// This lease was prolonged by what was sent at `sent`.
    pub fn kept(&self, id: &Id, sent: Millis) {
        let mut state = self.state();
        if let Some((held, kept)) = &mut state.held
            && held == id
        {
            *kept = (*kept).max(sent);
        }
    }

    /// Waits for its turn to make a lease; whoever has it looks again whether there is one now.
    ///
    /// # Errors
    /// `Unreachable`: another call was making one all the time.
    pub async fn make(
        &self,
        store: &str,
        by: Deadline,
    ) -> Result<tokio::sync::MutexGuard<'_, ()>, DcsError> {
        let turn = tokio::time::timeout(by.left(), self.making.lock()).await;
        turn.map_err(|_elapsed| {
            DcsError::unreachable(store, 0, "waited for another call's lease or session")
        })
    }

    /// Takes a new lease made for this ttl (seconds); false if the ttl has changed meanwhile, and
    /// the lease then ends by itself.
    pub fn begin(&self, id: Id, ttl: u32, sent: Millis) -> bool {
        let mut state = self.state();
        let right = state.timing.ttl == ttl;
        if right {
            state.held = Some((id, sent));
        }
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-083 and the thrift of DCS-082 and DCS-112.
    #[test]
    fn a_lease_is_kept_until_the_ttl_changes() {
        let timing = Timing { ttl: 30, loop_wait: 10, retry_timeout: 10 };
        let tenure = Tenure::new(timing);
        assert!(!tenure.begin(6, 20, boottime()), "made for another ttl");
        assert!(tenure.begin(7, 30, boottime()));
        tenure.set_timing(Timing { loop_wait: 5, ..timing });
        assert_eq!((tenure.held(), tenure.recently_kept()), (Some(7), Some(7)));
        assert!(tenure.begin(7, 30, boottime().minus(4_600)));
        assert_eq!((tenure.held(), tenure.recently_kept()), (Some(7), None));
        assert!(
            tenure
                .held_since()
                .is_some_and(|(id, kept)| id == 7 && boottime().since(kept) >= 4_600)
        );
        tenure.kept(&8, boottime());
        assert_eq!(tenure.recently_kept(), None, "another lease's answer");
        tenure.kept(&7, boottime());
        assert_eq!(tenure.recently_kept(), Some(7));
        tenure.forget(&8);
        assert_eq!(tenure.held(), Some(7));
        tenure.set_timing(Timing { ttl: 20, ..timing });
        assert_eq!(tenure.held(), None);
    }
}
