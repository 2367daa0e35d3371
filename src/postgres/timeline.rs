//! Which timeline a standby is on. (PG-305, PG-312)
//!
//! While it streams, its receiver says so. When the primary is dead there is no receiver, and just
//! then the race is decided by timelines: the control file still names the one of the last
//! restartpoint, minutes ago, with which the rightful successor would call itself outdated.

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
        let started = row.details.postmaster_start_time.clone();
        if let Some(streamed) = row.received_timeline {
            self.with_facts(|facts| facts.streamed = Some((started, streamed)));
            return row;
        }
        let asked = self.replayed_timeline(by.earlier(Deadline::in_ms(PATIENCE_MS))).await;
        let earlier = self.facts().streamed.filter(|(server, _)| *server == started);
        let earlier = earlier.map(|(_, timeline)| timeline);
        standby.timeline = newest(standby.timeline, asked, earlier);
        row
    }
}

/// What was received may not be replayed yet, what was replayed may not have been received.
fn newest(control: Timeline, replayed: Option<Timeline>, received: Option<Timeline>) -> Timeline {
    replayed.max(received).map_or(control, |known| known.max(control))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-312 (without a receiver).
    #[test]
    fn the_newest_that_is_known_counts() {
        let t = Timeline;
        let table = [
            ("the control file is old", t(1), Some(t(2)), None, t(2)),
            ("received and not replayed", t(1), Some(t(1)), Some(t(2)), t(2)),
            ("nothing else is known", t(3), None, None, t(3)),
            ("replayed from an archive", t(1), Some(t(4)), Some(t(2)), t(4)),
        ];
        for (name, control, replayed, received, expected) in table {
            assert_eq!(newest(control, replayed, received), expected, "{name}");
        }
    }
}
