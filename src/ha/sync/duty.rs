//! A standby that is about to stop or restart first lets go of commits that would wait for it.
//! (HA-197, PG-060)

use crate::ha::ports::Ports;
use crate::ha::sync::active;
use futures::FutureExt;
use futures::stream::StreamExt;
use hathi_dcs::{Change, Deadline, Freshness, MemberData};

/// The store is asked again after this time even if it tells nothing.
const LOOK_AGAIN_MS: u64 = 2_000;

/// The tags of a member that commits must not wait for.
pub fn off_duty(mut data: MemberData) -> MemberData {
    data.tags.insert("nosync".into(), true.into());
    data.tags.insert("sync_priority".into(), 0.into());
    data
}

/// Waits until `/sync` does not name this standby, at most two turns long. The record that says so
/// (`nosync`) is written already. A store that does not answer is not waited for.
pub async fn wait_until_relieved(ports: &Ports) {
    let settings = ports.configuration.settings();
    if settings.nosync {
        return;
    }
    let end = ports.clock.now().plus(2 * settings.timing.loop_wait_ms());
    let mut changes = ports.dcs.watch();
    loop {
        let now = ports.clock.now();
        if now >= end {
            return;
        }
        let by = Deadline(now.plus(settings.timing.retry_timeout_ms())).earlier(Deadline(end));
        let Ok(view) = ports.dcs.load(Freshness::Latest, by).await else { return };
        let named = active(&settings, &view).is_some_and(|sync| {
            sync.value.names(&settings.me)
                && sync.value.leader.as_ref().is_none_or(|leader| *leader != settings.me)
        });
        if !named || view.leader.is_none() {
            return;
        }
        let again = ports.clock.now().plus(LOOK_AGAIN_MS).min(end);
        let mut later = ports.clock.sleep_until(again).fuse();
        loop {
            futures::select_biased! {
                change = changes.next().fuse() => match change {
                    Some(Change::Sync | Change::Everything | Change::Leader) => break,
                    Some(_) => {}
                    None => { later.await; break; }
                },
                () = later => break,
            }
        }
    }
}
