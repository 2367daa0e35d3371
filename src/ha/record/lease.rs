//! The lease as a recorded turn sees it. The keeper may prolong the real one while the turn runs, so
//! that each look at it is an answer like any other.

use crate::ha::lease::{Lease, Verdict};
use crate::ha::ports::Ports;
use crate::ha::record::tape::Tape;
use futures::FutureExt;
use futures::future::BoxFuture;
use hathi_dcs::{DcsError, Deadline, Millis, Status};
use std::sync::Arc;

/// Stands before a [`Lease`]: asks the real one and notes what it said, or says what was noted.
pub struct Front {
    tape: Arc<Tape>,
    /// With the ports that are not recorded: an operation on the key is one answer.
    real: Option<(Arc<Lease>, Ports)>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

impl Front {
    pub(super) fn new(tape: Arc<Tape>, real: Option<(Arc<Lease>, Ports)>) -> Self {
        Self { tape, real }
    }

    pub fn until(&self, now: Millis) -> Option<Millis> {
        let real = self.real.as_ref().map(|(lease, _)| lease.until(now));
        self.tape.ask("lease.until", now, real, || None)
    }

    pub fn verdict(&self) -> Verdict {
        let real = self.real.as_ref().map(|(lease, _)| lease.verdict());
        self.tape.ask("lease.verdict", (), real, || Verdict::None)
    }

    pub fn is_disowned(&self) -> bool {
        let real = self.real.as_ref().map(|(lease, _)| lease.is_disowned());
        self.tape.ask("lease.is_disowned", (), real, || false)
    }

    /// # Errors
    /// Those of the real one, or those that were recorded.
    pub fn acquire(&self, by: Deadline) -> BoxFuture<'_, Result<(), DcsError>> {
        let real = self.real.as_ref().map(|(lease, ports)| lease.acquire(ports, by).boxed());
        self.tape.wait("lease.acquire", by, real).boxed()
    }

    /// # Errors
    /// As for [`Front::acquire`].
    pub fn take(&self, by: Deadline) -> BoxFuture<'_, Result<(), DcsError>> {
        let real = self.real.as_ref().map(|(lease, ports)| lease.take(ports, by).boxed());
        self.tape.wait("lease.take", by, real).boxed()
    }

    /// # Errors
    /// As for [`Front::acquire`].
    pub fn renew(&self, by: Deadline) -> BoxFuture<'_, Result<(), DcsError>> {
        let real = self.real.as_ref().map(|(lease, ports)| lease.renew(ports, by).boxed());
        self.tape.wait("lease.renew", by, real).boxed()
    }

    /// # Errors
    /// As for [`Front::acquire`].
    pub fn release<'a>(
        &'a self,
        status: Option<&'a Status>,
        by: Deadline,
    ) -> BoxFuture<'a, Result<(), DcsError>> {
        let real =
            self.real.as_ref().map(|(lease, ports)| lease.release(ports, status, by).boxed());
        self.tape.wait("lease.release", (status, by), real).boxed()
    }

    pub fn license(&self, sent: Millis) -> bool {
        let real = self.real.as_ref().map(|(lease, ports)| lease.license(ports, sent));
        self.tape.ask("lease.license", sent, real, || false)
    }

    pub fn licensed_until(&self, now: Millis) -> Option<Millis> {
        let real = self.real.as_ref().map(|(lease, _)| lease.licensed_until(now));
        self.tape.ask("lease.licensed_until", now, real, || None)
    }

    pub fn shorten(&self) {
        self.tape.done("lease.shorten", ());
        if let Some((lease, ports)) = &self.real {
            lease.shorten(ports);
        }
    }

    pub fn forget(&self) {
        self.tape.done("lease.forget", ());
        if let Some((lease, _)) = &self.real {
            lease.forget();
        }
    }

    pub fn read_only(&self, yes: bool) {
        self.tape.done("lease.read_only", yes);
        if let Some((lease, ports)) = &self.real {
            lease.read_only(ports, yes);
        }
    }

    pub fn close(&self) {
        if let Some((lease, _)) = &self.real {
            lease.close();
        }
    }

    pub fn turn_done(&self, now: Millis) {
        if let Some((lease, _)) = &self.real {
            lease.turn_done(now);
        }
    }
}
