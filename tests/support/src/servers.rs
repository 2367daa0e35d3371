//! The servers of one store as processes: paused, killed, behind proxies.

use crate::process::Process;
use crate::proxy::Proxy;
use rustix::process::Signal;
use std::ops::DerefMut;

/// The place of one server, whether it runs or not.
#[derive(Default)]
pub struct Seat {
    pub process: Option<Process>,
    /// What clients connect to instead, if there is one.
    pub proxy: Option<Proxy>,
}

/// All of them, by number.
#[derive(Default)]
pub struct Seats(pub Vec<Seat>);

impl Seats {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn runs(&self, which: usize) -> bool {
        self.0[which].process.is_some()
    }

    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.0.iter().filter_map(|seat| seat.proxy.as_ref())
    }

    /// What clients reach this one through.
    pub fn proxy(&self, which: usize) -> &Proxy {
        self.0[which].proxy.as_ref().expect("started behind proxies")
    }

    /// SIGSTOP: it is there and silent.
    pub fn pause_member(&self, which: usize) {
        self.0[which].process.iter().for_each(Process::pause);
    }

    pub fn resume_member(&self, which: usize) {
        self.0[which].process.iter().for_each(|process| process.signal(Signal::CONT));
    }

    pub fn pause(&self) {
        (0..self.count()).for_each(|which| self.pause_member(which));
    }

    pub fn resume(&self) {
        (0..self.count()).for_each(|which| self.resume_member(which));
    }

    /// kill -9.
    pub fn kill_member(&mut self, which: usize) {
        self.0[which].process = None;
    }

    pub fn kill_all(&mut self) {
        self.0.iter_mut().for_each(|seat| seat.process = None);
    }
}

/// The servers of one kind of store, for whoever hurts them without knowing which it is.
pub trait StoreServers: DerefMut<Target = Seats> + Send + Sync + 'static {
    /// Starts every server that does not run, on its old data.
    fn start_all(&mut self);

    /// Waits until every server that runs serves.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// Which one leads the store, if one says so.
    fn leader(&self) -> impl Future<Output = Option<usize>> + Send;

    /// SIGSTOP for the servers and for what stands behind them, if something does.
    fn pause_whole(&self) {
        self.pause();
    }

    fn resume_whole(&self) {
        self.resume();
    }

    /// kill -9 for all of that.
    fn kill_whole(&mut self) {
        self.kill_all();
    }

    /// kill -9 for all but a minority, so that what is left has no quorum. Whether that is possible:
    /// of one server nothing would be left.
    fn kill_majority(&mut self) -> bool {
        let possible = self.count() >= 3;
        if possible {
            self.kill_member(0);
            self.kill_member(2);
        }
        possible
    }
}

/// The methods of [`Seats`] for a store with a field of that name.
macro_rules! seated {
    ($store:ident) => {
        impl std::ops::Deref for $store {
            type Target = Seats;

            fn deref(&self) -> &Seats {
                &self.seats
            }
        }

        impl std::ops::DerefMut for $store {
            fn deref_mut(&mut self) -> &mut Seats {
                &mut self.seats
            }
        }
    };
}
pub(crate) use seated;
