//! What `pg_waldump` says about single records. (PG-045, PG-152)

use crate::ha::ports::PgError;
use crate::postgres::child::Run;
use crate::postgres::settings::Settings;
use hathi_dcs::{Deadline, Lsn, Timeline};

/// One line of its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub rmgr: String,
    pub lsn: Lsn,
    pub prev: Lsn,
    pub description: String,
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("rmgr: ")?;
        let (rmgr, _) = rest.split_once("len ")?;
        let (_, rest) = rest.split_once("lsn: ")?;
        let (lsn, rest) = rest.split_once(", prev ")?;
        let (prev, description) = rest.split_once(", desc: ")?;
        Some(Self {
            rmgr: rmgr.trim().to_owned(),
            lsn: Lsn::parse(lsn)?,
            prev: Lsn::parse(prev)?,
            description: description.to_owned(),
        })
    }

    fn is_shutdown_checkpoint(&self) -> bool {
        self.rmgr == "XLOG"
            && (self.description.starts_with("CHECKPOINT_SHUTDOWN")
                || (self.description.starts_with("checkpoint:")
                    && self.description.contains("shutdown")))
    }

    fn is_switch(&self) -> bool {
        self.rmgr == "XLOG"
            && (self.description.starts_with("SWITCH")
                || self.description.starts_with("xlog switch"))
    }
}

async fn dump(
    settings: &Settings,
    timeline: Timeline,
    start: Lsn,
    count: &str,
    by: Deadline,
) -> Result<(Vec<Record>, String), PgError> {
    let mut command = tokio::process::Command::new(settings.binary("pg_waldump"));
    command
        .arg("-p")
        .arg(settings.data_dir.join("pg_wal"))
        .args(["-t", &timeline.to_string(), "-s", &start.to_string(), "-n", count])
        .env("LANG", "C")
        .env("LC_ALL", "C");
    let ended = Run::new("pg_waldump").by(by).quiet().ended(command).await?;
    Ok((ended.stdout.lines().filter_map(Record::parse).collect(), ended.last_lines))
}

/// The position to announce for a clean shutdown: that of the WAL switch just before the checkpoint
/// at `checkpoint`, or else the checkpoint itself. (PG-044, PG-045)
pub async fn announced_position(
    settings: &Settings,
    timeline: Timeline,
    checkpoint: Lsn,
    by: Deadline,
) -> Lsn {
    let Ok((records, _)) = dump(settings, timeline, checkpoint, "1", by).await else {
        return checkpoint;
    };
    let Some(record) = records.first().filter(|record| record.is_shutdown_checkpoint()) else {
        return checkpoint;
    };
    let Ok((before, _)) = dump(settings, timeline, record.prev, "1", by).await else {
        return checkpoint;
    };
    match before.first() {
        Some(switch) if switch.is_switch() => switch.lsn,
        _ => checkpoint,
    }
}

/// Where the record at `checkpoint` ends, if it is the last one of the WAL. (PG-152)
pub async fn end_of_last_record(
    settings: &Settings,
    timeline: Timeline,
    checkpoint: Lsn,
    by: Deadline,
) -> Option<Lsn> {
    let (records, messages) = dump(settings, timeline, checkpoint, "2", by).await.ok()?;
    if records.len() != 1 {
        return None;
    }
    parse_end(&messages)
}

fn parse_end(messages: &str) -> Option<Lsn> {
    let (_, rest) = messages.split_once("invalid record length at ")?;
    let (lsn, rest) = rest.split_once(": ")?;
    let known = rest.starts_with("wanted 24") || rest.starts_with("expected at least 24");
    Lsn::parse(lsn).filter(|_| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-045, PG-152 (the texts).
    #[test]
    fn records_are_read() {
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, \
                    lsn: 0/04000060, prev 0/04000028, desc: CHECKPOINT_SHUTDOWN redo 0/4000060; tli 1";
        let record = Record::parse(line).unwrap();
        assert!(record.is_shutdown_checkpoint() && !record.is_switch());
        assert_eq!((record.lsn, record.prev), (Lsn(0x0400_0060), Lsn(0x0400_0028)));
        let switch = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, \
                      lsn: 0/03000110, prev 0/030000D8, desc: SWITCH ";
        assert!(Record::parse(switch).unwrap().is_switch());
        assert_eq!(Record::parse("nonsense"), None);
        let text = "pg_waldump: fatal: error in WAL record at 0/4000060: ";
        for (tail, end) in [
            ("invalid record length at 0/40000D8: wanted 24, got 0", Some(Lsn(0x0400_00D8))),
            (
                "invalid record length at 0/40000D8: expected at least 24, got 0",
                Some(Lsn(0x0400_00D8)),
            ),
            ("invalid magic number 0000 in WAL segment", None),
        ] {
            assert_eq!(parse_end(&format!("{text}{tail}")), end, "{tail}");
        }
    }
}
