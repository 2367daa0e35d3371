//! Timeline history: our own files, our own end, and those of a possible rewind source.
//! (PG-144, PG-145, PG-314)

use crate::ha::ports::{
    ControlState, LocalEnd, PgError, Server, SourceHistory, TimelineEnd, Upstream,
};
use crate::postgres::conninfo::Address;
use crate::postgres::replication::Replication;
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::session::{Session, SqlError, Target};
use crate::postgres::settings::Settings;
use crate::postgres::waldump::end_of_last_record;
use chrono::{DateTime, Local};
use hathi_dcs::{Deadline, Lsn, Timeline};

const WHAT: &str = "asking for the history";

/// The lines of a history file; comments and what is not understood are left out.
pub fn parse(text: &str) -> Vec<TimelineEnd> {
    let line = |line: &str| {
        let mut fields = line.trim_start().splitn(3, '\t');
        let timeline = fields.next()?.trim().parse().ok()?;
        let switch_lsn = Lsn::parse(fields.next()?)?;
        let reason = fields.next().unwrap_or_default().trim_end().to_owned();
        Some(TimelineEnd { timeline: Timeline(timeline), switch_lsn, reason, at: None })
    };
    text.lines().filter(|text| !text.trim_start().starts_with('#')).filter_map(line).collect()
}

fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// ISO 8601 in the local zone; no fraction if it is zero. (PG-314)
fn iso(at: DateTime<Local>) -> String {
    at.format("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string().replace(".000000", "")
}

impl LocalPostgres {
    pub(super) async fn history_file(
        &self,
        timeline: Timeline,
        by: Deadline,
    ) -> Option<Vec<TimelineEnd>> {
        if timeline.0 < 2 {
            return Some(Vec::new());
        }
        let path = self.settings().data_dir.join("pg_wal").join(file_name(timeline));
        let read = on_disk(move || -> std::io::Result<_> {
            let written = std::fs::metadata(&path)?.modified()?;
            Ok((std::fs::read_to_string(&path)?, written))
        });
        let (text, written) = tokio::time::timeout(by.left(), read).await.ok()??.ok()?;
        let mut ends = parse(&text);
        if let Some(last) = ends.last_mut() {
            last.at = Some(iso(DateTime::<Local>::from(written)));
        }
        Some(ends)
    }

    pub(super) async fn end_of_local_log(&self, by: Deadline) -> Option<LocalEnd> {
        if self.postmaster().is_some()
            && let Ok(row) = self.monitor(by).await
        {
            return match row.server {
                Server::Standby(standby) => Some(LocalEnd {
                    timeline: self.replayed_timeline(by).await.unwrap_or(standby.timeline),
                    lsn: standby.replayed.unwrap_or_default(),
                    was_primary: false,
                    checkpoint_end: None,
                }),
                Server::Primary { .. } | Server::Down | Server::Starting | Server::Silent(_) => {
                    None
                }
            };
        }
        let control = self.control_data(by).await?;
        match control.state {
            ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery
                if control.min_recovery_end > Lsn(0) && control.min_recovery_timeline.0 > 0 =>
            {
                Some(LocalEnd {
                    timeline: control.min_recovery_timeline,
                    lsn: control.min_recovery_end,
                    was_primary: false,
                    checkpoint_end: None,
                })
            }
            ControlState::ShutDown
            | ControlState::ShutDownInRecovery
            | ControlState::InArchiveRecovery => {
                let (timeline, lsn) = (control.checkpoint_timeline, control.checkpoint);
                let end = end_of_last_record(&self.settings(), timeline, lsn, by).await;
                Some(LocalEnd { timeline, lsn, was_primary: true, checkpoint_end: end })
            }
            ControlState::StartingUp
            | ControlState::ShuttingDown
            | ControlState::InCrashRecovery
            | ControlState::InProduction
            | ControlState::Unknown => None,
        }
    }

    /// The timeline a running standby has replayed; the control file lags behind it. (PG-144)
    pub(super) async fn replayed_timeline(&self, by: Deadline) -> Option<Timeline> {
        let target = Target::local_replication(&self.settings());
        let mut link = Replication::open(&target, by).await.ok()?;
        link.identify(by).await.ok().map(|identity| identity.timeline)
    }

    /// PG-145: is it a primary, says the user for rewinding; the rest is said to the replication user.
    pub(super) async fn ask_source(
        &self,
        source: &Upstream,
        by: Deadline,
    ) -> Result<SourceHistory, PgError> {
        let address = Address::from_url(&source.conn_url)
            .ok_or_else(|| Self::failed(WHAT, format!("{} has no usable address", source.name)))?;
        let settings = self.settings();
        let mut last = SqlError::Other("no host".into());
        let mut in_recovery = None;
        let logins = Target::remote(&address, settings.rewind_login(), 2000);
        let links = Target::remote(&address, &settings.replication, 0);
        let count = u32::try_from(logins.len().max(1)).unwrap_or(1);
        for (at, (target, link)) in (0..).zip(logins.iter().zip(&links)) {
            // One that does not answer leaves time for the others.
            let share = by.left() / count.saturating_sub(at).max(1);
            let share = u64::try_from(share.as_millis()).unwrap_or(u64::MAX);
            let by = by.earlier(Deadline::in_ms(share));
            match ask(target, link, source.remote, by).await {
                Ok(answer) if answer.in_recovery => in_recovery = in_recovery.or(Some(answer)),
                Ok(answer) => {
                    self.checkpoint_there(&settings, source, target, &answer, by).await;
                    return Ok(answer);
                }
                Err(why) => last = why,
            }
        }
        in_recovery.ok_or_else(|| Self::failed(WHAT, format!("{}: {last}", source.name)))
    }

    /// Nobody may rewind to a remote primary before its checkpoint after the promotion; the superuser
    /// may ask for it. It goes on there whether we wait or not. (PG-154)
    async fn checkpoint_there(
        &self,
        settings: &Settings,
        source: &Upstream,
        target: &Target,
        answer: &SourceHistory,
        by: Deadline,
    ) {
        let due = answer.checkpoint_timeline.is_some_and(|done| done < answer.timeline);
        if !source.remote || !due || settings.rewind.is_some() {
            return;
        }
        if let Ok(session) = Session::open(target, by).await {
            let asked = session.run("CHECKPOINT", by).await;
            tracing::info!(target: "hathi::postgres", ?asked, "asked {} for a checkpoint", source.name);
        }
    }
}

/// A remote primary may let us stream and nothing else: then it does not say whether it is one.
async fn ask(
    target: &Target,
    link: &Target,
    remote: bool,
    by: Deadline,
) -> Result<SourceHistory, SqlError> {
    let (in_recovery, checkpoint_timeline, oldest) = match look(target, by).await {
        Ok(answer) => answer,
        Err(why) if remote && why.code().is_some() => (true, None, None),
        Err(why) => return Err(why),
    };
    let mut link = Replication::open(link, by).await?;
    let timeline = link.identify(by).await?.timeline;
    let mut ends = Vec::new();
    if timeline.0 >= 2 {
        match link.history(timeline, by).await {
            Ok(text) => ends = parse(&text),
            // A standby need not have the file.
            Err(_) if in_recovery => {}
            Err(why) => return Err(why),
        }
    }
    Ok(SourceHistory { in_recovery, timeline, ends, checkpoint_timeline, oldest })
}

/// The oldest segment, whatever its timeline, and how long one is. The function is the one that a user
/// for pg_rewind is granted.
const OLDEST: &str = "SELECT (SELECT min(substr(name, 9)) \
     FROM pg_ls_dir('pg_wal', true, false) AS name \
     WHERE name ~ '^[0-9A-F]{24}$'), \
     (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size')";

/// Where a segment begins: sixteen hexadecimal digits of its name, after those of the timeline.
fn begin_of_segment(name: &str, segment_size: &str) -> Option<Lsn> {
    let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    let (log, segment) = (part(0..8)?, part(8..16)?);
    let size: u64 = segment_size.parse().ok()?;
    Some(Lsn((log << 32).checked_add(segment.checked_mul(size)?)?))
}

async fn look(
    target: &Target,
    by: Deadline,
) -> Result<(bool, Option<Timeline>, Option<Lsn>), SqlError> {
    let session = Session::open(target, by).await?;
    let sql = "SELECT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint())";
    let row = session.row(sql, by).await?;
    let text = |at: usize| row.try_get(at).ok().flatten();
    let timeline = text(1).and_then(|text| text.parse().ok()).map(Timeline);
    let in_recovery = text(0) != Some("f");
    // A user who may not list the directory has no answer, and the check goes on without. (HA-316)
    let oldest = session.row(OLDEST, by).await.ok().and_then(|row| {
        let text = |at: usize| row.try_get(at).ok().flatten();
        begin_of_segment(text(0)?, text(1)?)
    });
    Ok((in_recovery, timeline, oldest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-316 (where the oldest log begins).
    #[test]
    fn segments_begin_where_their_names_say() {
        for (name, size, begin) in [
            ("0000000000000001", "16777216", Some(0x0100_0000)),
            ("0000000A000000FF", "16777216", Some(0xA_FF00_0000)),
            ("0000000000000003", "1048576", Some(0x30_0000)),
            ("00000000", "16777216", None),
            ("zzzzzzzz00000001", "16777216", None),
        ] {
            assert_eq!(begin_of_segment(name, size), begin.map(Lsn), "{name}");
        }
    }

    /// Proves PG-145, PG-314 (history files).
    #[test]
    fn history_files_are_read() {
        let text =
            "1\t0/4078FC8\tno recovery target specified\n\n# note\n2\t1/5000000\tx\ty\nbad\n";
        let ends = parse(text);
        assert_eq!(ends.len(), 2);
        assert_eq!(ends[0].timeline, Timeline(1));
        assert_eq!(ends[0].switch_lsn, Lsn(0x0407_8FC8));
        assert_eq!(ends[0].reason, "no recovery target specified");
        assert_eq!((ends[1].timeline, ends[1].reason.as_str()), (Timeline(2), "x\ty"));
        assert_eq!(file_name(Timeline(26)), "0000001A.history");
        assert!(parse("").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_history_file_is_too_strange(text in "[0-9/\\t\\n A-F#]*") {
            for end in parse(&text) {
                proptest::prop_assert!(!end.reason.contains('\n'));
            }
        }
    }
}
