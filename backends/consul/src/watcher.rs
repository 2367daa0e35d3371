//! The one watch of this process: a blocking query over the cluster's keys that feeds the copy and
//! wakes the loop. (DCS-121, DCS-304)
//!
//! ```text
//!  read all keys at index i ── ask again "when it is past i" ── answer: compare, copy, Change::…
//!        ▲                                   │
//!        └── error, other agent, index back ─┘   the copy dies
//! ```
//! When the calls leave an agent that does not answer, the watch leaves it, too: nobody would say that
//! it hangs there before the query's own end.

use crate::http::{Call, key_path};
use crate::store::{Keys, Shared};
use hathi_dcs::flat::copy::differences;
use hathi_dcs::flat::{Ended, READ_AGAIN, Wake};
use hathi_dcs::{Change, DcsError, Deadline};
use std::time::Duration;

/// How long the store holds a query without news; a connection that died unseen is found out then.
const WAIT_S: u64 = 10;
/// The store adds up to a sixteenth, to spread the queries of many.
const LIMIT: Duration = Duration::from_millis(WAIT_S * 1_000 * 17 / 16 + 1_500);
/// How long the first reading may take.
const SETUP: Duration = Duration::from_secs(2);

impl Shared {
    pub(crate) async fn follow(&self, wake: &Wake) -> Ended {
        let mut served = false;
        let why = self.follow_keys(wake, &mut served).await.to_string();
        Ended { served, why }
    }

    async fn follow_keys(&self, wake: &Wake, served: &mut bool) -> DcsError {
        let base = format!("{}?recurse=1{}", key_path(&self.key("")), self.agents.flags(false));
        let mut seen: Option<(u64, Keys)> = None;
        let mut moved = self.agents.moved();
        loop {
            let (path, limit) = match &seen {
                None => (base.clone(), SETUP),
                Some((index, _)) => (format!("{base}&index={index}&wait={WAIT_S}s"), LIMIT),
            };
            let call = Call::get(path);
            let asked = tokio::select! {
                asked = self.agents.once(limit, &call) => asked,
                _ = moved.changed() => {
                    return DcsError::unreachable("consul", 0, "the calls went to another agent");
                }
            };
            let answer = match asked {
                Ok(answer) => answer,
                Err(error) => return error,
            };
            let keys = match self.keys_in(&answer) {
                Ok(keys) => keys,
                Err(error) => return error,
            };
            if keys.is_empty()
                && let Err(error) = self.may_read(Deadline::in_ms(SETUP.as_millis() as u64)).await
            {
                return error;
            }
            let index = i64::try_from(answer.index).unwrap_or(0);
            let (woken, went_back) = match &seen {
                None => (vec![Change::Everything], index < self.kept.own()),
                Some((before, _)) if answer.index < *before => (vec![Change::Everything], true),
                Some((_, old)) => (differences(old, &keys), false),
            };
            if went_back && self.kept.own() != READ_AGAIN {
                // A store that does not know my own write is not the one it was.
                self.kept.reset_own(index);
            }
            self.kept.copy.replace(index, keys.clone());
            self.kept.copy.lives();
            *served = true;
            for change in woken {
                wake.say(change);
            }
            // An index of 0 would not block at all.
            seen = Some((answer.index.max(1), keys));
        }
    }
}
