//! Which list is begun with, and begun again with when nobody in it answers? (CFG-303, DCS-073)
//!
//! Without `srv` it is what the configuration lists. With it DNS is asked at the first use, and again once
//! as many servers were given up as it named, and none answered in between. What was known stays in use
//! until DNS names others: its outage must not become the store's.

use super::{Endpoint, Endpoints};
use crate::srv;
use hathi_dcs::Deadline;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a call that knows servers waits for DNS before it asks those.
const PATIENCE: Duration = Duration::from_secs(2);
/// Less time than this is none.
const LEAST: Duration = Duration::from_millis(50);

impl Endpoints {
    /// Asks DNS if it is to be asked; `by` is the caller's own deadline.
    ///
    /// # Errors
    /// One line: why DNS named nobody. Who was known before is known still.
    pub async fn begin(&self, by: Deadline) -> Result<(), String> {
        let Some(domain) = self.config.srv.as_deref() else { return Ok(()) };
        let Some(known) = self.in_doubt() else { return Ok(()) };
        let left = by.left();
        let share = match (known, self.config.endpoints.is_empty()) {
            (1.., _) => (left / 3).min(PATIENCE),
            (0, false) => left / 2,
            (0, true) => left,
        };
        if share < LEAST {
            return if known == 0 { Err(self.last_words("no time to ask")) } else { Ok(()) };
        }
        let share = Deadline::in_ms(u64::try_from(share.as_millis()).unwrap_or(u64::MAX));
        let Ok(_alone) = timeout(share.left(), self.asking.lock()).await else {
            return Err(self.last_words("no answer yet"));
        };
        if self.in_doubt().is_none() {
            // Whoever was here before has found them.
            return Ok(());
        }
        let found = srv::find(&self.config, domain, share).await;
        // However that ended: as many have to be given up again before it is worth asking again.
        {
            let mut state = self.state();
            state.given_up = 0;
            state.nobody = found.as_ref().err().cloned();
        }
        match found {
            Ok(urls) => {
                self.adopt(urls);
                Ok(())
            }
            Err(why) if known == 0 && !self.config.endpoints.is_empty() => {
                tracing::warn!("{why}; the configured hosts are asked");
                self.begin_with(self.config.urls(), self.spread);
                Ok(())
            }
            Err(why) => {
                let known = self.state().list.iter().map(|endpoint| endpoint.url.clone()).collect();
                self.replace_list(merged(known, self.config.urls()));
                Err(why)
            }
        }
    }

    /// What DNS said last when it named nobody, for whom it is not asked again.
    fn last_words(&self, otherwise: &str) -> String {
        self.state().nobody.clone().unwrap_or_else(|| format!("DNS: {otherwise}"))
    }

    /// Nobody answered: without DNS what the configuration says is the last resort.
    pub fn back_to_configured(&self) {
        if self.config.srv.is_none() {
            self.replace_list(self.config.urls());
        }
    }

    /// How many servers are known, if as many were given up without an answer as the list was begun with:
    /// the others in it are mostly the same ones under the names they have for themselves.
    fn in_doubt(&self) -> Option<usize> {
        let state = self.state();
        (state.given_up >= state.base.len()).then_some(state.list.len())
    }

    /// Their order is DNS's own: the first is asked first. If it names the same ones as before, the next
    /// in the list have their turn.
    fn adopt(&self, urls: Vec<String>) {
        let (before, after) = (self.state().base.clone(), &urls);
        let same = before.len() == after.len() && after.iter().all(|url| before.contains(url));
        if !same {
            tracing::info!("etcd's servers, as DNS names them: {}", urls.join(", "));
            self.begin_with(urls, 0);
        }
    }

    fn begin_with(&self, urls: Vec<String>, first: usize) {
        let mut state = self.state();
        let list = state.listed(urls.clone());
        let first = first.checked_rem(list.len()).unwrap_or(0);
        let now = state.list.get(state.current);
        let moves = !matches!((now, list.get(first)), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        state.base = urls;
        state.list = list;
        state.current = first;
        state.discovered = None;
        drop(state);
        if moves {
            self.moved.send_modify(|count| *count += 1);
        }
    }
}

impl super::State {
    /// The endpoints of these URLs: those that are known keep their connections.
    pub(super) fn listed(&self, urls: Vec<String>) -> Vec<Arc<Endpoint>> {
        let each = urls.into_iter().map(|url| {
            let known = self.list.iter().find(|endpoint| endpoint.url == url).cloned();
            known.unwrap_or_else(|| Endpoint::new(url))
        });
        each.collect()
    }
}

/// Both, each once.
pub(super) fn merged(mut urls: Vec<String>, others: Vec<String>) -> Vec<String> {
    for url in others {
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}
