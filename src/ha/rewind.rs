//! Has a data directory diverged from the leader? A table over positions. (PG-146 … PG-151)

use crate::ha::ports::{LocalEnd, SourceHistory};
use hathi_dcs::Timeline;

/// Can this data directory follow that source?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// It can follow as it is.
    None,
    /// It holds log that the source never had.
    Diverged(&'static str),
}

/// The rule's number is the second half of the answer.
pub fn diverged(local: &LocalEnd, source: &SourceHistory) -> (Divergence, &'static str) {
    if local.timeline > source.timeline {
        return (Divergence::Diverged("my timeline is ahead of the leader's"), "PG-146");
    }
    if local.timeline == source.timeline {
        return (Divergence::None, "PG-147");
    }
    let Some(switch_lsn) = ended(source, local.timeline) else {
        return (Divergence::Diverged("the leader's history does not know my timeline"), "PG-151");
    };
    if !local.was_primary {
        return if local.lsn > switch_lsn {
            (Divergence::Diverged("I replayed past the point where the timelines part"), "PG-148")
        } else {
            (Divergence::None, "PG-148")
        };
    }
    if local.lsn >= switch_lsn {
        return (Divergence::Diverged("my checkpoint lies past the switch"), "PG-149");
    }
    match local.checkpoint_end {
        Some(end) if end == switch_lsn => (Divergence::None, "PG-150"),
        Some(_) => (Divergence::Diverged("I wrote after the point of the switch"), "PG-150"),
        None => (Divergence::Diverged("the end of my log cannot be read"), "PG-152"),
    }
}

fn ended(source: &SourceHistory, timeline: Timeline) -> Option<hathi_dcs::Lsn> {
    source.ends.iter().find(|end| end.timeline == timeline).map(|end| end.switch_lsn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::ports::TimelineEnd;
    use hathi_dcs::Lsn;

    /// Proves PG-146, PG-147, PG-148, PG-149, PG-150, PG-151, PG-152 (the decision).
    #[test]
    fn the_table_of_divergence() {
        let source = SourceHistory {
            in_recovery: false,
            timeline: Timeline(3),
            ends: vec![
                TimelineEnd {
                    timeline: Timeline(1),
                    switch_lsn: Lsn(100),
                    reason: String::new(),
                    at: None,
                },
                TimelineEnd {
                    timeline: Timeline(2),
                    switch_lsn: Lsn(200),
                    reason: String::new(),
                    at: None,
                },
            ],
            checkpoint_timeline: None,
            oldest: None,
        };
        let standby = |timeline, lsn| LocalEnd {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
            was_primary: false,
            checkpoint_end: None,
        };
        let primary = |timeline, lsn, end: Option<u64>| LocalEnd {
            was_primary: true,
            checkpoint_end: end.map(Lsn),
            ..standby(timeline, lsn)
        };
        for (name, local, needed, rule) in [
            ("ahead", standby(4, 1), true, "PG-146"),
            ("equal", standby(3, 999), false, "PG-147"),
            ("standby before the switch", standby(2, 200), false, "PG-148"),
            ("standby past the switch", standby(2, 201), true, "PG-148"),
            ("primary past the switch", primary(2, 200, Some(300)), true, "PG-149"),
            ("primary, clean", primary(2, 150, Some(200)), false, "PG-150"),
            ("primary, wrote more", primary(2, 150, Some(260)), true, "PG-150"),
            ("primary, unreadable", primary(2, 150, None), true, "PG-152"),
            ("first timeline", standby(1, 100), false, "PG-148"),
        ] {
            let (answer, said) = diverged(&local, &source);
            assert_eq!((answer != Divergence::None, said), (needed, rule), "{name}");
        }
        let unknown = SourceHistory { ends: vec![], ..source };
        assert_eq!(diverged(&standby(2, 1), &unknown).1, "PG-151");
    }
}
