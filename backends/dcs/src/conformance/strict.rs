//! A check of what holds for every call of every test: it returns by its deadline, whatever the backend
//! asks besides. (Proves HA-024, DCS-301)

use crate::around::Around;
use crate::{DcsError, Deadline, boottime};

/// For the scheduler of a busy machine, not for the store.
const SLACK_MS: u64 = 500;

pub struct Strict;

impl Around for Strict {
    async fn call<T: Send>(
        &self,
        what: &'static str,
        by: Deadline,
        work: impl Future<Output = Result<T, DcsError>> + Send,
    ) -> Result<T, DcsError> {
        let began = boottime();
        let answer = work.await;
        let late = boottime().since(by.0.max(began));
        assert!(late <= SLACK_MS, "{what} came back {late} ms after its deadline");
        answer
    }
}
