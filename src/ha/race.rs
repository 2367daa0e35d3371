//! Am I the healthiest? Pure rules over the answers of the others. (section 8 of ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::{PeerAnswer, Probe};
use crate::ha::sync::votes::Bound;
use hathi_dcs::{Lsn, MemberName, Timeline};

/// What I bring to the race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Myself {
    pub lsn: Lsn,
    pub timeline: Timeline,
    pub failover_priority: i64,
}

/// What the cluster demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demands {
    /// The leader's last known position, and how much of it may be missing; `None` for a manual
    /// failover. (HA-095 a)
    pub leader_lsn_and_lag: Option<(Lsn, u64)>,
    /// Zero when unknown or not checked. (HA-095 b)
    pub cluster_timeline: Timeline,
    /// Whose equal position with a higher priority does not count. (HA-095 f)
    pub former_leader: Option<MemberName>,
    /// The record of synchronous members, if it binds. (HA-095 e, f, g)
    pub bound: Option<Bound>,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// (HA-095 a)
    Lags { behind: u64 },
    /// (HA-095 b)
    OldTimeline { mine: Timeline, cluster: Timeline },
    /// (HA-095 d)
    PrimaryAlive(MemberName),
    /// (HA-095 e)
    Behind { peer: MemberName, lsn: Lsn },
    /// (HA-322)
    NewerTimeline { peer: MemberName, mine: Timeline, theirs: Timeline },
    /// (HA-095 f)
    LowerPriority(MemberName),
}

impl Unfit {
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NewerTimeline { .. } => "HA-322",
            Self::Lags { .. }
            | Self::OldTimeline { .. }
            | Self::PrimaryAlive(_)
            | Self::Behind { .. }
            | Self::LowerPriority(_) => "HA-095",
        }
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lags { behind } => {
                write!(f, "my log is {behind} bytes behind the leader's last known position")
            }
            Self::OldTimeline { mine, cluster } => {
                write!(f, "my timeline {mine} is behind the cluster's {cluster}")
            }
            Self::PrimaryAlive(peer) => write!(f, "{peer} is still running as a primary"),
            Self::NewerTimeline { peer, mine, theirs } => {
                write!(f, "{peer} is on timeline {theirs}, I am on {mine}")
            }
            Self::Behind { peer, lsn } => write!(f, "{peer} is ahead of me at {lsn}"),
            Self::LowerPriority(peer) => {
                write!(f, "{peer} has the same position and a higher failover priority")
            }
        }
    }
}

/// What can be said before anybody is asked. (HA-095 a, b)
pub fn alone(me: &Myself, demands: &Demands) -> Result<(), Unfit> {
    if let Some((leader_lsn, maximum_lag)) = demands.leader_lsn_and_lag {
        let behind = leader_lsn.0.saturating_sub(me.lsn.0);
        if behind > maximum_lag && !broken(Breakage::LagIsIgnored) {
            return Err(Unfit::Lags { behind });
        }
    }
    if me.timeline < demands.cluster_timeline {
        let (mine, cluster) = (me.timeline, demands.cluster_timeline);
        return Err(Unfit::OldTimeline { mine, cluster });
    }
    Ok(())
}

/// One who is not a member of this race and may go on as a primary all the same: only that counts of
/// what it says. (HA-095 d)
pub fn is_no_primary(peer: &MemberName, probe: &Probe) -> Result<(), Unfit> {
    match probe {
        Probe::Answered(answer) => primary_alive(peer, answer),
        Probe::Unreachable(_) => Ok(()),
    }
}

/// A running primary finds the key free: its log needs no comparison, but somebody may lead all the
/// same. A store that stood still can take a living leader's lease away. (HA-087, INV-14)
pub fn leads_instead(mine: Timeline, peer: &MemberName, probe: &Probe) -> Result<(), Unfit> {
    let Probe::Answered(answer) = probe else { return Ok(()) };
    primary_alive(peer, answer)?;
    match elder(mine, answer.timeline) {
        Some(Elder::Me) => {
            let theirs = answer.timeline;
            Err(Unfit::NewerTimeline { peer: peer.clone(), mine, theirs })
        }
        Some(Elder::Peer) | None => Ok(()),
    }
}

/// Does this answer keep me from the key? One that does decides at once. (HA-095 c … f)
pub fn against(
    me: &Myself,
    demands: &Demands,
    peer: &MemberName,
    probe: &Probe,
) -> Result<(), Unfit> {
    let Probe::Answered(answer) = probe else { return Ok(()) };
    if answer.nofailover || answer.watchdog_failed {
        return primary_alive(peer, answer);
    }
    primary_alive(peer, answer)?;
    // It cannot win itself (a, b): were it to keep others from winning, nobody would.
    let lags = demands
        .leader_lsn_and_lag
        .is_some_and(|(at, most)| at.0.saturating_sub(answer.lsn.0) > most);
    if lags || answer.timeline != Timeline(0) && answer.timeline < demands.cluster_timeline {
        return Ok(());
    }
    match elder(me.timeline, answer.timeline) {
        // What is longer on an older timeline is what the leader who began the newer one left behind.
        Some(Elder::Peer) => return Ok(()), // HA-322
        Some(Elder::Me) => {
            let (mine, theirs) = (me.timeline, answer.timeline);
            return Err(Unfit::NewerTimeline { peer: peer.clone(), mine, theirs }); // HA-322
        }
        None => {}
    }
    // Who may be elected by the record holds what was confirmed; what the former leader has beyond
    // that was confirmed to nobody. (HA-095 e)
    if demands.bound.as_ref().is_some_and(|bound| bound.is_leader(peer)) {
        return Ok(());
    }
    if answer.lsn > me.lsn {
        return Err(Unfit::Behind { peer: peer.clone(), lsn: answer.lsn });
    }
    let former_leader = demands.former_leader.as_ref() == Some(peer)
        || demands.bound.as_ref().is_some_and(|bound| bound.needs_votes && !bound.is_voter(peer));
    if answer.lsn == me.lsn && answer.failover_priority > me.failover_priority && !former_leader {
        return Err(Unfit::LowerPriority(peer.clone()));
    }
    Ok(())
}

enum Elder {
    Me,
    Peer,
}

/// Whose timeline is the older one; `None` if they are the same, or one is not known.
fn elder(mine: Timeline, theirs: Timeline) -> Option<Elder> {
    if mine == Timeline(0) || theirs == Timeline(0) {
        return None;
    }
    match mine.cmp(&theirs) {
        std::cmp::Ordering::Less => Some(Elder::Me),
        std::cmp::Ordering::Greater => Some(Elder::Peer),
        std::cmp::Ordering::Equal => None,
    }
}

/// Also a peer that may never be promoted keeps everybody from the key while it is a primary: its
/// clients are writing. (HA-095 d; stricter than the peer's rule, which ignores it)
fn primary_alive(peer: &MemberName, answer: &PeerAnswer) -> Result<(), Unfit> {
    if answer.in_recovery { Ok(()) } else { Err(Unfit::PrimaryAlive(peer.clone())) }
}

/// Can this member take over from me, as far as its answer says? (HA-076)
pub fn can_take_over(
    probe: &Probe,
    my_lsn: Lsn,
    maximum_lag: u64,
    cluster_timeline: Timeline,
) -> Result<(), String> {
    match probe {
        Probe::Unreachable(why) => Err(format!("not reachable: {why}")),
        Probe::Answered(answer) if answer.nofailover => Err("not allowed to promote".into()),
        Probe::Answered(answer) if answer.watchdog_failed => Err("watchdog failed".into()),
        Probe::Answered(answer) if my_lsn.0.saturating_sub(answer.lsn.0) > maximum_lag => {
            Err(format!("lags {} bytes", my_lsn.0.saturating_sub(answer.lsn.0)))
        }
        Probe::Answered(answer) if answer.timeline < cluster_timeline => {
            Err(format!("timeline {} is behind {cluster_timeline}", answer.timeline))
        }
        Probe::Answered(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lsn: u64) -> PeerAnswer {
        PeerAnswer {
            in_recovery: true,
            lsn: Lsn(lsn),
            timeline: Timeline(1),
            nofailover: false,
            failover_priority: 1,
            watchdog_failed: false,
        }
    }

    fn me(lsn: u64) -> Myself {
        Myself { lsn: Lsn(lsn), timeline: Timeline(1), failover_priority: 1 }
    }

    fn demands() -> Demands {
        Demands {
            leader_lsn_and_lag: None,
            cluster_timeline: Timeline(0),
            former_leader: Some("old".into()),
            bound: None,
        }
    }

    /// Proves HA-095 (steps a and b).
    #[test]
    fn lag_and_timeline_are_judged_alone() {
        let lag =
            |leader, limit| Demands { leader_lsn_and_lag: Some((Lsn(leader), limit)), ..demands() };
        assert_eq!(alone(&me(100), &lag(200, 100)), Ok(()));
        assert_eq!(alone(&me(100), &lag(201, 100)), Err(Unfit::Lags { behind: 101 }));
        assert_eq!(alone(&me(300), &lag(200, 0)), Ok(()));
        let timeline = Demands { cluster_timeline: Timeline(2), ..demands() };
        assert!(matches!(alone(&me(1), &timeline), Err(Unfit::OldTimeline { .. })));
    }

    /// Proves HA-095 (steps c to f), INV-14.
    #[test]
    fn answers_are_judged_one_by_one() {
        let peer = MemberName::from("p");
        let old = MemberName::from("old");
        let judge = |who: &MemberName, probe: Probe| against(&me(100), &demands(), who, &probe);
        let table: Vec<(&str, &MemberName, Probe, Result<(), Unfit>)> = vec![
            ("unreachable", &peer, Probe::Unreachable("x".into()), Ok(())),
            ("behind me", &peer, Probe::Answered(answer(99)), Ok(())),
            ("equal", &peer, Probe::Answered(answer(100)), Ok(())),
            (
                "ahead",
                &peer,
                Probe::Answered(answer(101)),
                Err(Unfit::Behind { peer: peer.clone(), lsn: Lsn(101) }),
            ),
            (
                "ahead but never promoted",
                &peer,
                Probe::Answered(PeerAnswer { nofailover: true, ..answer(101) }),
                Ok(()),
            ),
            (
                "primary",
                &peer,
                Probe::Answered(PeerAnswer { in_recovery: false, ..answer(1) }),
                Err(Unfit::PrimaryAlive(peer.clone())),
            ),
            (
                "primary that may not be promoted",
                &peer,
                Probe::Answered(PeerAnswer { in_recovery: false, nofailover: true, ..answer(1) }),
                Err(Unfit::PrimaryAlive(peer.clone())),
            ),
            (
                "equal with higher priority",
                &peer,
                Probe::Answered(PeerAnswer { failover_priority: 2, ..answer(100) }),
                Err(Unfit::LowerPriority(peer.clone())),
            ),
            (
                "the former leader with higher priority",
                &old,
                Probe::Answered(PeerAnswer { failover_priority: 2, ..answer(100) }),
                Ok(()),
            ),
        ];
        for (name, who, probe, expected) in table {
            assert_eq!(judge(who, probe), expected, "{name}");
        }
        let demands = Demands { cluster_timeline: Timeline(2), ..demands() };
        let me = Myself { timeline: Timeline(2), ..me(100) };
        let old = Probe::Answered(answer(101));
        assert_eq!(against(&me, &demands, &peer, &old), Ok(()), "ahead on a timeline that ended");
    }

    /// Proves HA-322: positions count on one timeline only. (chaos, seed 2 on etcd: the lost tail of
    /// a deposed primary was longer than all that its successor had written.)
    #[test]
    fn a_newer_timeline_beats_a_longer_log() {
        let peer = MemberName::from("p");
        let on =
            |timeline: u32, lsn: u64| PeerAnswer { timeline: Timeline(timeline), ..answer(lsn) };
        let (mine, theirs) = (Timeline(2), Timeline(3));
        let newer = Unfit::NewerTimeline { peer: peer.clone(), mine, theirs };
        let behind = Unfit::Behind { peer: peer.clone(), lsn: Lsn(900) };
        let table: Vec<(&str, PeerAnswer, Result<(), Unfit>)> = vec![
            ("older and longer", on(1, 900), Ok(())),
            (
                "older and of higher priority",
                PeerAnswer { failover_priority: 9, ..on(1, 100) },
                Ok(()),
            ),
            ("newer and shorter", on(3, 1), Err(newer)),
            ("newer, but never promoted", PeerAnswer { nofailover: true, ..on(3, 1) }, Ok(())),
            ("unknown and longer", on(0, 900), Err(behind.clone())),
            ("the same and longer", on(2, 900), Err(behind)),
            ("the same and shorter", on(2, 1), Ok(())),
        ];
        let me = Myself { timeline: Timeline(2), ..me(100) };
        for (name, answer, expected) in table {
            let probe = Probe::Answered(answer);
            assert_eq!(against(&me, &demands(), &peer, &probe), expected, "{name}");
        }
        let unknown = Myself { timeline: Timeline(0), ..me };
        let probe = Probe::Answered(on(3, 1));
        assert_eq!(against(&unknown, &demands(), &peer, &probe), Ok(()), "mine is unknown");
    }

    /// Proves HA-095 (steps a and b) with HA-322: a peer that lags too far to win keeps nobody from winning,
    /// on whatever timeline. An operator's failover knows no lag. (the simulator, seed 2241: the data
    /// directory of a former life, on a later timeline, made the rest of the cluster wait)
    #[test]
    fn who_cannot_win_keeps_nobody_from_winning() {
        let peer = MemberName::from("p");
        let me = Myself { timeline: Timeline(2), ..me(10_000) };
        let judge = |limit: Option<(Lsn, u64)>, lsn: u64| {
            let probe = Probe::Answered(PeerAnswer { timeline: Timeline(4), ..answer(lsn) });
            let demands = Demands { leader_lsn_and_lag: limit, ..demands() };
            against(&me, &demands, &peer, &probe)
        };
        let newer = Err(Unfit::NewerTimeline {
            peer: peer.clone(),
            mine: Timeline(2),
            theirs: Timeline(4),
        });
        assert_eq!(judge(Some((Lsn(10_000), 1_000)), 8_999), Ok(()));
        assert_eq!(judge(Some((Lsn(10_000), 1_000)), 9_000), newer);
        assert_eq!(judge(None, 1), newer);
        let primary = PeerAnswer { in_recovery: false, ..answer(1) };
        let demands = Demands { leader_lsn_and_lag: Some((Lsn(10_000), 1_000)), ..demands() };
        let alive = against(&me, &demands, &peer, &Probe::Answered(primary));
        assert_eq!(alive, Err(Unfit::PrimaryAlive(peer)), "a primary does, whatever it lacks");
    }

    /// Proves HA-076 (one candidate).
    #[test]
    fn a_target_must_be_reachable_close_and_allowed() {
        let judge = |probe| can_take_over(&probe, Lsn(1000), 100, Timeline(3)).is_ok();
        let good = PeerAnswer { timeline: Timeline(3), ..answer(950) };
        assert!(judge(Probe::Answered(good.clone())));
        assert!(!judge(Probe::Unreachable("x".into())));
        assert!(!judge(Probe::Answered(PeerAnswer { lsn: Lsn(899), ..good.clone() })));
        assert!(!judge(Probe::Answered(PeerAnswer { timeline: Timeline(2), ..good.clone() })));
        assert!(!judge(Probe::Answered(PeerAnswer { nofailover: true, ..good.clone() })));
        assert!(!judge(Probe::Answered(PeerAnswer { watchdog_failed: true, ..good })));
    }
}
