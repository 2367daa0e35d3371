//! Time, chance and tasks of the real world, behind the core's ports.

use crate::ha::ports::{Clock, Spawn};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use hathi_dcs::{Alarm, Deadline, Millis, boottime};
use std::hash::{BuildHasher, Hasher};
use tokio::runtime::Handle;

/// A timer of tokio's that is nearer wakes its thread about as often as one of the kernel's.
const FAR_MS: u64 = 1_000;

/// `CLOCK_BOOTTIME`, timers of the kernel and tokio's.
#[derive(Debug)]
pub struct RealClock;

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Millis {
        boottime()
    }

    fn wall(&self) -> DateTime<Utc> {
        Utc::now()
    }

    /// What is far away is waited for by a timer of the kernel's, which wakes this thread once. tokio
    /// counts on a clock that stands still during suspend, so the boottime is looked at again when
    /// its timer fires.
    async fn sleep_until(&self, at: Millis) {
        if boottime().plus(FAR_MS) < at
            && let Ok(mut alarm) = Alarm::new()
        {
            return alarm.at(at).await;
        }
        loop {
            let left = Deadline(at).left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    fn random(&self, below: u64) -> u64 {
        if below == 0 {
            return 0;
        }
        // Seeded by the system for each new state: chance enough for choosing whom to clone from.
        std::collections::hash_map::RandomState::new().build_hasher().finish() % below
    }
}

/// Puts the core's work on the agent's runtime.
#[derive(Debug)]
pub struct Tasks(pub Handle);

impl Spawn for Tasks {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        tracing::debug!(target: "hathi::task", name, "begins");
        self.0.spawn(work);
    }
}
