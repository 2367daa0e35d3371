//! Priority mode: every voter holds every confirmed commit, so `/sync` shrinks before the names and
//! grows after them. (HA-098)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::sync::quorum::{Facts, State, Step, is_safe};
use crate::ha::sync::set::Set;

/// The next change on the way to `voters = sync = active`, each commit waiting for all of them.
pub fn next(state: State, facts: Facts) -> Step {
    if state.leader != state.me {
        return Step::Record { voters: Set::EMPTY, quorum: 0 }; // steps 1 and 2
    }
    // A record of quorum mode: its voters do not all hold everything, and readers that are told
    // priority mode would believe it.
    if state.quorum > 0 {
        return Step::Record { voters: Set::EMPTY, quorum: 0 };
    }
    if !is_safe(state.voters, 0, state.sync, state.num) {
        let all = state.num == state.sync.len();
        let held =
            if all { state.voters.common(state.sync).common(facts.confirmed) } else { Set::EMPTY };
        return Step::Record { voters: held, quorum: 0 };
    }
    let (sync, num) = (facts.active, facts.active.len());
    if (state.sync, state.num) == (sync, num) {
        let confirmed = if broken(Breakage::CountUnconfirmed) { sync } else { facts.confirmed };
        let voters = sync.common(state.voters.union(confirmed));
        if voters != state.voters {
            return Step::Record { voters, quorum: 0 }; // steps 3 and 9
        }
        return if voters == sync { Step::Done } else { Step::Wait }; // steps 4 and 8
    }
    if broken(Breakage::RecordGrowsFirst) && !sync.is_within(state.voters) {
        return Step::Record { voters: state.voters.union(sync), quorum: 0 };
    }
    if state.voters.is_within(sync) || broken(Breakage::NamesShrinkFirst) {
        return Step::Names { sync, num }; // steps 6 and 7
    }
    Step::Record { voters: state.voters.common(sync), quorum: 0 } // step 5
}
