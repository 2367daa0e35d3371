//! Which timeline a standby is on. (PG-305, PG-312)
//!
//! While it streams, its receiver says so. When the primary is dead there is no receiver, and just
//! then the race is decided by timelines: the control file still names the one of the last
//! restartpoint, minutes ago, with which the rightful successor would call itself outdated. A server
//! never goes back to an older timeline: what it once said holds when it is too busy to say it again.

use crate::ha::ports::Server;
use crate::postgres::monitor::Row;
use crate::postgres::room::LocalPostgres;
use crate::postgres::session::SqlError;
use hathi_dcs::{Deadline, Timeline};

/// A local answer takes a millisecond; a server that is too busy for it is not waited for.
const PATIENCE_MS: u64 = 500;

impl LocalPostgres {
    /// The monitoring query, and the timeline it cannot know.
    pub(super) async fn monitor_timeline(&self, by: Deadline) -> Result<Row, SqlError> {
        let row = self.monitor(by).await?;
        Ok(self.with_timeline(row, by).await)
    }

    /// Puts the true timeline into the row of a standby whose receiver does not tell.
    async fn with_timeline(&self, mut row: Row, by: Deadline) -> Row {
        let Server::Standby(standby) = &mut row.server else { return row };
        let asked = match row.received_timeline {
            Some(_) => None,
            None => self.replayed_timeline(by.earlier(Deadline::in_ms(PATIENCE_MS))).await,
        };
        let said = row.received_timeline.max(asked);
        let started = &row.details.postmaster_start_time;
        let known = self.with_facts(|facts| known(&mut facts.timeline, started, said));
        if row.received_timeline.is_none() {
            standby.timeline = newest(standby.timeline, known);
        }
        row
    }
}

/// The newest timeline that the server which started then ever said it was on.
fn known(
    memory: &mut Option<(String, Timeline)>,
    started: &str,
    said: Option<Timeline>,
) -> Option<Timeline> {
    let earlier = memory.as_ref().filter(|(server, _)| server == started);
    let known = said.max(earlier.map(|(_, timeline)| *timeline));
    if let Some(known) = known {
        *memory = Some((started.to_owned(), known));
    }
    known
}

/// What was received may not be replayed yet, what was replayed may not have been received.
fn newest(control: Timeline, known: Option<Timeline>) -> Timeline {
    known.map_or(control, |known| known.max(control))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-312 (without a receiver).
    #[test]
    fn the_newest_that_is_known_counts() {
        let t = Timeline;
        let table = [
            ("the control file is old", t(1), None, Some(t(2)), t(2)),
            ("received and not replayed", t(1), Some(t(2)), Some(t(1)), t(2)),
            ("nothing else is known", t(3), None, None, t(3)),
            ("replayed from an archive", t(1), Some(t(2)), Some(t(4)), t(4)),
            ("replayed, and now too busy to answer", t(1), Some(t(2)), None, t(2)),
        ];
        for (name, control, before, now, expected) in table {
            let mut memory = None;
            known(&mut memory, "today", before);
            assert_eq!(newest(control, known(&mut memory, "today", now)), expected, "{name}");
        }
    }

    /// Proves PG-312: another server in this data directory may have gone another way, by pg_rewind.
    #[test]
    fn another_server_begins_anew() {
        let mut memory = None;
        assert_eq!(known(&mut memory, "today", Some(Timeline(3))), Some(Timeline(3)));
        assert_eq!(known(&mut memory, "tomorrow", None), None);
        assert_eq!(known(&mut memory, "tomorrow", Some(Timeline(2))), Some(Timeline(2)));
    }
}
