//! The state of both records and of the standbys, as sets.

use crate::ha::ports::Observation;
use crate::ha::settings::{Settings, SynchronousMode};
use crate::ha::sync::names::Names;
use crate::ha::sync::quorum::{Facts, State, Step};
use crate::ha::sync::set::{Directory, Set, TooMany};
use crate::ha::sync::{candidates, priority, quorum};
use hathi_dcs::{ClusterView, Lsn, MemberName, Sync};

pub struct Picture {
    pub directory: Directory,
    pub state: State,
    pub facts: Facts,
}

/// One change, with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Record(Sync),
    Names(Names),
    Wait,
    Done,
}

impl Picture {
    pub fn of(
        settings: &Settings,
        view: &ClusterView,
        pg: &Observation,
        mark: Lsn,
    ) -> Result<Self, TooMany> {
        let mut directory = Directory::default();
        let me = directory.set(&settings.me)?;
        let record = view.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
        let leader = directory.sets(&record.leader)?;
        let voters = directory.sets(&record.voters)?;
        // Before the record is mine I may be one of its voters.
        let voters = if leader == me { voters.without(me) } else { voters };
        let (sync, num) = match Names::parse(&pg.replication.names) {
            Names::Nobody | Names::Star => (Set::EMPTY, 0),
            Names::Some { num, names, .. } => {
                let sync = directory.sets(&names)?.without(me);
                (sync, num.min(sync.len()))
            }
        };
        let active = directory.sets(&candidates::choose(settings, view, pg))?.without(me);
        let confirmed = directory.sets(&candidates::confirmed(pg, mark))?.common(sync);
        let quorum = u32::try_from(record.quorum).unwrap_or(u32::MAX);
        let state = State { me, leader, voters, quorum, sync, num };
        let facts = Facts { active, confirmed, wanted: candidates::wanted(settings) };
        Ok(Self { directory, state, facts })
    }

    /// The next change in this mode.
    pub fn next(&self, settings: &Settings) -> Change {
        let step = match settings.synchronous.mode {
            SynchronousMode::Quorum => quorum::next(self.state, self.facts),
            SynchronousMode::Priority => priority::next(self.state, self.facts),
            SynchronousMode::Off => Step::Done,
        };
        self.named(settings, step)
    }

    pub fn named(&self, settings: &Settings, step: Step) -> Change {
        match step {
            Step::Record { voters, quorum } => {
                Change::Record(self.record(&settings.me, voters, quorum))
            }
            Step::Names { sync, num } => Change::Names(self.wanted_names(settings, sync, num)),
            Step::Wait => Change::Wait,
            Step::Done => Change::Done,
        }
    }

    fn record(&self, me: &MemberName, voters: Set, quorum: u32) -> Sync {
        let voters = self.directory.names(voters);
        Sync { leader: Some(me.clone()), quorum: quorum.into(), voters }
    }

    /// (HA-214, PG-281)
    pub fn wanted_names(&self, settings: &Settings, sync: Set, num: u32) -> Names {
        let names = self.directory.names(sync);
        let named = match settings.synchronous.mode {
            SynchronousMode::Quorum => Names::any(num, names),
            SynchronousMode::Priority | SynchronousMode::Off => Names::all(names),
        };
        match named {
            Names::Nobody if settings.synchronous.strict => Names::Star,
            named => named,
        }
    }
}
