//! Every state of a small cluster, every change, every interruption.
//!
//! The truth that is checked is not the formula of the code: for each possible set of members that
//! may hold a confirmed commit it is asked whether an election could miss it.

use crate::ha::sync::quorum::{Facts, State, Step, is_safe};
use crate::ha::sync::set::Set;
use crate::ha::sync::{priority, quorum};

/// The sets of standbys that may be the holders of some confirmed commit; one bit each.
type Holders = u32;

struct Room {
    standbys: u32,
}

impl Room {
    fn sets(&self) -> impl Iterator<Item = Set> + use<> {
        (0..1_u128 << self.standbys).map(Set)
    }

    fn me(&self) -> Set {
        Set(1 << self.standbys)
    }

    fn which(&self, holds: impl Fn(Set) -> bool) -> Holders {
        self.sets().filter(|set| holds(*set)).fold(0, |all, set| all | 1 << set.0)
    }

    /// What may have been confirmed while these names were in force.
    fn confirmed_under(&self, sync: Set, num: u32) -> Holders {
        self.which(|holders| holders.common(sync).len() >= num)
    }

    /// All of them catch up.
    fn catch_up(&self, holders: Holders, who: Set) -> Holders {
        let every = self.sets().filter(|set| holders >> set.0 & 1 == 1);
        every.fold(0, |all, set| all | 1 << set.union(who).0)
    }

    /// Can an election under this record miss a commit of these? Without voters nobody is elected
    /// but the primary itself.
    fn election_misses(&self, voters: Set, quorum: u32, holders: Holders) -> bool {
        let reached = |set: Set| set.common(voters).len() + quorum >= voters.len();
        !voters.is_empty() && self.sets().any(|set| holders >> set.0 & 1 == 1 && !reached(set))
    }
}

struct Tally {
    states: u64,
    steps: u64,
    longest: u32,
}

/// Follows one start to its end; every standby confirms only after the code says that it waits, or
/// at once.
fn follow(
    room: &Room,
    start: State,
    facts: Facts,
    next: fn(State, Facts) -> Step,
    target: impl Fn(State) -> bool,
    tally: &mut Tally,
) {
    tally.states += 1;
    let mut state = start;
    let mut facts = facts;
    // Confirmed before the names in force: by the record, and held by those who are confirmed.
    let by_record = |holders: Set| {
        holders.common(start.voters).len() + start.quorum >= start.voters.len()
            && facts.confirmed.is_within(holders)
    };
    let mut past = room.which(by_record);
    let mut waited = false;
    for count in 1.. {
        let step = next(state, facts);
        tally.steps += 1;
        assert!(count <= 8, "{start:?} {facts:?} does not come to an end");
        tally.longest = tally.longest.max(count);
        match step {
            Step::Record { voters, quorum } => {
                state = State { leader: state.me, voters, quorum, ..state };
            }
            Step::Names { sync, num } => {
                past |= room.confirmed_under(state.sync, state.num);
                state = State { sync, num, ..state };
                facts.confirmed = Set::EMPTY;
            }
            Step::Wait => {
                assert!(!waited, "{start:?} {facts:?} waits for ever, {state:?}");
                waited = true;
                facts.confirmed = state.sync.common(facts.active);
                past = room.catch_up(past, facts.confirmed);
            }
            Step::Done => break,
        }
        let all = past | room.confirmed_under(state.sync, state.num);
        assert!(
            is_safe(state.voters, state.quorum, state.sync, state.num),
            "QS: {start:?} {facts:?}: {step:?} leads to {state:?}"
        );
        assert!(
            !room.election_misses(state.voters, state.quorum, all),
            "an election may miss a commit: {start:?} {facts:?}: {step:?} leads to {state:?}"
        );
        assert!(state.quorum <= state.voters.len(), "{start:?}: {state:?}");
        assert!(state.sync.is_empty() == (state.num == 0), "{start:?}: {state:?}");
        assert!(state.num <= state.sync.len(), "{start:?}: {state:?}");
    }
    assert!(target(state), "{start:?} {facts:?} ends in {state:?}");
}

fn states(room: &Room, leader: Set) -> Vec<State> {
    let mut all = Vec::new();
    for voters in room.sets() {
        for sync in room.sets() {
            for quorum in 0..=voters.len() {
                let least = u32::from(!sync.is_empty());
                for num in least..=sync.len() {
                    if is_safe(voters, quorum, sync, num) {
                        all.push(State { me: room.me(), leader, voters, quorum, sync, num });
                    }
                }
            }
        }
    }
    all
}

fn everything(standbys: u32, next: fn(State, Facts) -> Step, is_quorum: bool) -> Tally {
    let room = Room { standbys };
    let mut tally = Tally { states: 0, steps: 0, longest: 0 };
    for state in states(&room, room.me()) {
        for active in room.sets() {
            for confirmed in room.sets().filter(|set| set.is_within(state.sync)) {
                for wanted in 1..=3 {
                    let facts = Facts { active, confirmed, wanted };
                    if !is_quorum && active.len() > wanted {
                        continue;
                    }
                    let num = if is_quorum { wanted.min(active.len()) } else { active.len() };
                    let quorum = active.len() - num;
                    follow(
                        &room,
                        state,
                        facts,
                        next,
                        |end| {
                            (end.voters, end.quorum, end.sync, end.num)
                                == (active, quorum, active, num)
                        },
                        &mut tally,
                    );
                }
            }
        }
    }
    tally
}

/// Proves HA-200 … HA-211, HA-309, INV-10, INV-11: in no state of three or four standbys is there a
/// change after which an election could miss a commit, and every state reaches its target.
#[test]
fn quorum_mode_is_total_and_safe() {
    for standbys in [3, 4] {
        let tally = everything(standbys, quorum::next, true);
        let Tally { states, steps, longest } = tally;
        println!("{standbys} standbys: {states} states, {steps} steps, at most {longest} in a row");
        assert!(states > 3_264);
    }
}

/// Proves HA-098, INV-9 (voters are always among the names), INV-11.
#[test]
fn priority_mode_is_total_and_safe() {
    for standbys in [3, 4] {
        let tally = everything(standbys, priority::next, false);
        assert!(tally.states > 3_264);
        assert!(tally.longest <= 6);
    }
}

/// Proves HA-212: there is nothing to merge. No change is followed at once by another one of its kind, in
/// no state of three standbys; so none is written that the next one would undo.
#[test]
fn no_change_is_made_twice_in_a_row() {
    let room = Room { standbys: 3 };
    let mut pairs = 0;
    for state in states(&room, room.me()) {
        for active in room.sets() {
            for confirmed in room.sets().filter(|set| set.is_within(state.sync)) {
                for wanted in 1..=3 {
                    let all = changes(state, Facts { active, confirmed, wanted });
                    for pair in all.windows(2) {
                        pairs += 1;
                        let same =
                            std::mem::discriminant(&pair[0]) == std::mem::discriminant(&pair[1]);
                        assert!(!same, "{state:?} active {active:?} {confirmed:?}: {all:?}");
                    }
                }
            }
        }
    }
    assert!(pairs > 3_264, "{pairs}");
}

/// Proves HA-200: the successor's first changes, from the record of its predecessor, with whatever
/// its own names were. The commits of the predecessor are those its record speaks of.
#[test]
fn a_successor_takes_the_record_over() {
    let room = Room { standbys: 3 };
    let (old, me) = (Set(1), room.me());
    let standbys = |voters: Set| voters.without(old);
    for voters in room.sets().map(standbys) {
        for mine in [Set::EMPTY, me] {
            let voters = voters.union(mine);
            for quorum in 0..=voters.len() {
                for sync in room.sets() {
                    for num in u32::from(!sync.is_empty())..=sync.len() {
                        let mut state = State { me, leader: old, voters, quorum, sync, num };
                        let step = quorum::next(
                            state,
                            Facts { active: sync, confirmed: Set::EMPTY, wanted: 1 },
                        );
                        if let Step::Names { sync, num } = step {
                            (state.sync, state.num) = (sync, num);
                        }
                        let facts = Facts { active: sync, confirmed: Set::EMPTY, wanted: 1 };
                        let Step::Record { voters: new, quorum: q } = quorum::next(state, facts)
                        else {
                            panic!("{state:?}");
                        };
                        assert!(!me.is_within(new) && old.is_within(new), "{state:?}");
                        assert!(
                            q <= new.len() && is_safe(new, q, state.sync, state.num),
                            "{state:?}"
                        );
                        // Of the old record's members `#members - quorum` hold each commit, I among
                        // them if it names me.
                        let before = voters.union(old).len().saturating_sub(quorum);
                        let held = before.saturating_sub(mine.len());
                        assert!(
                            held + q >= new.len() || quorum >= voters.len(),
                            "{state:?} {new:?} {q}"
                        );
                    }
                }
            }
        }
    }
}

/// Proves HA-201: a record that says more than is true is corrected by what was seen.
#[test]
fn a_record_that_nobody_vouches_for_is_corrected() {
    let room = Room { standbys: 3 };
    for voters in room.sets() {
        for sync in room.sets() {
            for quorum in 0..=5 {
                for num in 0..=sync.len() {
                    for confirmed in room.sets().filter(|set| set.is_within(sync)) {
                        let state =
                            State { me: room.me(), leader: room.me(), voters, quorum, sync, num };
                        let facts = Facts { active: sync, confirmed, wanted: 1 };
                        for next in [quorum::next, priority::next] {
                            if let Step::Record { voters, quorum } = next(state, facts) {
                                assert!(quorum <= voters.len(), "{state:?}");
                                assert!(is_safe(voters, quorum, sync, num), "{state:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The changes from here to the end; a standby confirms when the code waits for it.
fn changes(state: State, facts: Facts) -> Vec<Step> {
    let (mut state, mut facts, mut all) = (state, facts, Vec::new());
    loop {
        let step = quorum::next(state, facts);
        match step {
            Step::Record { voters, quorum } => {
                state = State { leader: state.me, voters, quorum, ..state };
            }
            Step::Names { sync, num } => {
                state = State { sync, num, ..state };
                facts.confirmed = Set::EMPTY;
            }
            Step::Wait => facts.confirmed = state.sync.common(facts.active),
            Step::Done => return all,
        }
        all.push(step);
        assert!(all.len() < 9, "{all:?}");
    }
}

/// Proves HA-203, HA-204, HA-205, HA-206, HA-207, HA-208, HA-209, HA-210: which of the two records
/// changes first.
#[test]
fn the_order_of_the_changes() {
    let (b, c, d) = (Set(1), Set(2), Set(4));
    let (none, bc, bcd) = (Set::EMPTY, b.union(c), b.union(c).union(d));
    let names = |sync, num| Step::Names { sync, num };
    let record = |voters, quorum| Step::Record { voters, quorum };
    let from = |voters: Set, quorum: u32, sync: Set, num: u32, active: Set, wanted: u32| {
        let me = Set(8);
        let state = State { me, leader: me, voters, quorum, sync, num };
        changes(state, Facts { active, confirmed: sync.common(active), wanted })
    };
    let wait = Step::Wait;
    let table: Vec<(&str, Vec<Step>, Vec<Step>)> = vec![
        (
            "HA-203: fewer names than voters",
            from(bcd, 2, b, 1, bc, 1),
            vec![names(bc, 1), record(bc, 2), wait, record(bc, 1)],
        ),
        (
            "HA-204: more names than voters",
            from(b, 0, bcd, 3, bc, 1),
            vec![record(bc, 1), names(bc, 1)],
        ),
        ("HA-205: slack in the names", from(bc, 1, bc, 2, bc, 1), vec![names(bc, 1)]),
        ("HA-205: slack in the record", from(bc, 1, bc, 2, bc, 2), vec![record(bc, 0)]),
        ("HA-206: all go", from(b, 0, b, 1, none, 1), vec![record(none, 0), names(none, 0)]),
        (
            "HA-207: some go, the quorum allows it",
            from(bc, 1, bc, 1, b, 1),
            vec![names(b, 1), record(b, 1), wait, record(b, 0)],
        ),
        (
            "HA-207: some go, the record first",
            from(bc, 0, bc, 2, b, 2),
            vec![record(b, 0), names(b, 1)],
        ),
        (
            "HA-208: some come, more confirm",
            from(none, 0, none, 0, bc, 2),
            vec![names(bc, 2), wait, record(bc, 0)],
        ),
        (
            "HA-209: some come, as many confirm",
            from(b, 0, b, 1, bc, 1),
            vec![record(bc, 1), names(bc, 1)],
        ),
        (
            "HA-210: more are to confirm",
            from(bc, 1, bc, 1, bc, 2),
            vec![names(bc, 2), wait, record(bc, 0)],
        ),
        (
            "HA-210: fewer are to confirm",
            from(bc, 0, bc, 2, bc, 1),
            vec![record(bc, 1), names(bc, 1)],
        ),
    ];
    for (what, came, expected) in table {
        assert_eq!(came, expected, "{what}");
    }
}
