//! Until the guard's room lands: nothing is fenced.

use crate::ha::ports::Fence;
use hathi_dcs::Millis;
use std::path::Path;
use std::sync::Arc;

#[derive(Debug)]
pub struct NoGuard;

impl Fence for NoGuard {
    fn protect_until(&self, _: Millis) {}
    fn stand_down(&self) {}
    fn broken(&self) -> Option<String> {
        None
    }
}

#[derive(Debug)]
pub struct GuardClient;

impl GuardClient {
    pub fn start(_: &Path, _: &Path) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self))
    }

    pub fn postmaster(&self, _: Option<(i32, u64)>) {}
}

impl Fence for GuardClient {
    fn protect_until(&self, _: Millis) {}
    fn stand_down(&self) {}
    fn broken(&self) -> Option<String> {
        None
    }
}
