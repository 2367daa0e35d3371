//! The truth about every log ever written: a tree of branches. A position on it says exactly which
//! commits a data directory holds.

use hathi::ha::ports::TimelineEnd;
use hathi_dcs::{Lsn, Timeline};

/// A place in the tree: which branch, and how far along it (the log position).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    pub branch: usize,
    pub lsn: u64,
}

#[derive(Clone, Debug)]
struct Branch {
    timeline: u32,
    /// Where it leaves its parent.
    parent: Option<Tip>,
}

/// What a walsender would do with a standby at some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Sends,
    /// Ahead of it, or past the point where the timelines part.
    Refuses,
    /// The numbers match and the content does not: both wrote a timeline of the same number.
    SendsAnotherHistory,
}

#[derive(Clone, Debug, Default)]
pub struct Wal {
    branches: Vec<Branch>,
}

impl Wal {
    /// A new cluster.
    pub fn plant(&mut self) -> usize {
        self.branches.push(Branch { timeline: 1, parent: None });
        self.branches.len() - 1
    }

    /// A promotion.
    pub fn fork(&mut self, at: Tip) -> usize {
        let timeline = self.timeline(at) + 1;
        self.branches.push(Branch { timeline, parent: Some(at) });
        self.branches.len() - 1
    }

    pub fn timeline(&self, tip: Tip) -> u32 {
        self.branches[tip.branch].timeline
    }

    /// The way back from a tip to the root, each branch with the position where it was left.
    fn way_back(&self, tip: Tip) -> impl Iterator<Item = Tip> + '_ {
        std::iter::successors(Some(tip), |at| self.branches[at.branch].parent)
    }

    /// Does a data directory that ends at `tip` hold everything up to `other`?
    pub fn holds(&self, tip: Tip, other: Tip) -> bool {
        self.way_back(tip).any(|at| at.branch == other.branch && other.lsn <= at.lsn)
    }

    pub fn stream(&self, from: Tip, to: Tip) -> Stream {
        let wanted = self.timeline(to);
        match self.way_back(from).find(|at| self.timeline(*at) == wanted) {
            Some(at) if to.lsn > at.lsn => Stream::Refuses,
            Some(_) if self.holds(from, to) => Stream::Sends,
            Some(_) => Stream::SendsAnotherHistory,
            None => Stream::Refuses,
        }
    }

    /// Did both write a timeline of this number, from different points? pg_rewind sees nothing to do.
    pub fn only_share_the_number(&self, one: Tip, other: Tip) -> bool {
        let wanted = self.timeline(other);
        let there = self.way_back(one).find(|at| self.timeline(*at) == wanted);
        there.is_some_and(|at| at.branch != other.branch)
    }

    /// Do the history files of both say the same, though what they wrote differs? Two nodes were
    /// promoted from the very same position, and the first one died before anybody heard of it.
    /// PostgreSQL has nothing that tells them apart.
    pub fn are_twins(&self, one: Tip, other: Tip) -> bool {
        let history = |tip| {
            let mut back: Vec<(u32, u64)> =
                self.way_back(tip).skip(1).map(|at| (self.timeline(at), at.lsn)).collect();
            back.reverse();
            back
        };
        let (one, other) = (history(one), history(other));
        let shared = one.len().min(other.len());
        one[..shared] == other[..shared]
    }

    /// How the timelines before this one ended, oldest first.
    pub fn ends(&self, tip: Tip, wall: &dyn Fn(usize) -> String) -> Vec<TimelineEnd> {
        let mut ends: Vec<TimelineEnd> = Vec::new();
        let mut child = tip.branch;
        for at in self.way_back(tip).skip(1) {
            ends.push(TimelineEnd {
                timeline: Timeline(self.timeline(at)),
                switch_lsn: Lsn(at.lsn),
                reason: "no recovery target specified".to_owned(),
                at: Some(wall(child)),
            });
            child = at.branch;
        }
        ends.reverse();
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip(branch: usize, lsn: u64) -> Tip {
        Tip { branch, lsn }
    }

    #[test]
    fn what_a_data_directory_holds_follows_from_its_place() {
        let mut wal = Wal::default();
        let root = wal.plant();
        let left = wal.fork(tip(root, 100));
        let right = wal.fork(tip(root, 150));
        assert!(wal.holds(tip(left, 300), tip(root, 100)));
        assert!(!wal.holds(tip(left, 300), tip(root, 101)), "written after the switch");
        assert!(!wal.holds(tip(left, 300), tip(right, 1)));
        assert_eq!(wal.stream(tip(left, 300), tip(root, 100)), Stream::Sends);
        assert_eq!(wal.stream(tip(left, 300), tip(root, 101)), Stream::Refuses);
        assert_eq!(wal.stream(tip(left, 300), tip(right, 301)), Stream::Refuses);
        assert_eq!(wal.stream(tip(left, 300), tip(right, 200)), Stream::SendsAnotherHistory);
        let third = wal.fork(tip(left, 300));
        assert_eq!(wal.timeline(tip(third, 0)), 3);
        let ends = wal.ends(tip(third, 400), &|_| "then".into());
        let ends: Vec<_> = ends.iter().map(|end| (end.timeline.0, end.switch_lsn.0)).collect();
        assert_eq!(ends, [(1, 100), (2, 300)]);
    }
}
