//! How each timeline ended, written by the leader. (HA-120)

use crate::ha::ports::TimelineEnd;
use hathi_dcs::{History, HistoryEntry, MemberName, Timeline};

/// Does `/history` lack the timeline this primary is on?
pub fn is_stale(stored: &History, mine: Timeline) -> bool {
    if mine == Timeline(1) {
        return !stored.entries.is_empty();
    }
    stored.entries.last().is_none_or(|last| {
        last.timeline.0.saturating_add(1) != mine.0
            || last.at.is_none()
            || last.new_leader.is_none()
    })
}

/// The rows for the local history file; only the newest is stamped here, older ones keep what the
/// store says of them. `max`: how many rows are kept, 0 for all.
pub fn merged(stored: &History, local: &[TimelineEnd], me: &MemberName, max: u32) -> History {
    let newest = local.len().saturating_sub(1);
    let mut entries: Vec<HistoryEntry> = local
        .iter()
        .enumerate()
        .map(|(at, end)| {
            let known = stored
                .entries
                .iter()
                .find(|entry| entry.timeline == end.timeline && entry.switch_lsn == end.switch_lsn);
            let stamp =
                known.and_then(|entry| Some((entry.at.clone()?, entry.new_leader.clone()?)));
            let stamp = match stamp {
                Some(stamp) => Some(stamp),
                None if at == newest => end.at.clone().map(|at| (at, me.clone())),
                None => None,
            };
            let (at, new_leader) = stamp.unzip();
            HistoryEntry {
                timeline: end.timeline,
                switch_lsn: end.switch_lsn,
                reason: end.reason.clone(),
                at,
                new_leader,
            }
        })
        .collect();
    if max > 0 {
        let surplus = entries.len().saturating_sub(max as usize);
        entries.drain(..surplus);
    }
    History { entries, readable: true }
}

/// The rows without that of the promotion to this timeline: [`merged`] stamps it anew.
pub fn without_row(stored: &History, timeline: Timeline) -> History {
    let mut rest = stored.clone();
    rest.entries.retain(|row| row.timeline.0.saturating_add(1) != timeline.0);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use hathi_dcs::Lsn;

    fn end(timeline: u32, lsn: u64) -> TimelineEnd {
        TimelineEnd {
            timeline: Timeline(timeline),
            switch_lsn: Lsn(lsn),
            reason: "no recovery target specified".into(),
            at: Some(format!("2026-01-0{timeline}T00:00:00+00:00")),
        }
    }

    /// Proves HA-120.
    #[test]
    fn the_newest_row_is_stamped_and_older_ones_keep_theirs() {
        let stored = History::parse(r#"[[1,100,"r","2025-01-01T00:00:00+00:00","a"]]"#);
        assert!(is_stale(&stored, Timeline(3)));
        assert!(!is_stale(&stored, Timeline(2)));
        assert!(is_stale(&stored, Timeline(1)));
        assert!(!is_stale(&History::parse("[]"), Timeline(1)));
        let new = merged(&stored, &[end(1, 100), end(2, 200)], &"b".into(), 0);
        assert_eq!(new.entries[0].new_leader, Some("a".into()));
        assert_eq!(new.entries[1].new_leader, Some("b".into()));
        assert_eq!(new.cluster_timeline(), Timeline(3));
        let other_branch = merged(&stored, &[end(1, 101), end(2, 200)], &"b".into(), 0);
        assert_eq!(other_branch.entries[0].new_leader, None);
        assert_eq!(merged(&stored, &[end(1, 100), end(2, 200)], &"b".into(), 1).entries.len(), 1);
    }
}
