//! Reads `global/pg_control` without starting a process. (PG-467)
//!
//! The layout is the same from 13 to 18 but for one byte that 18 added before the nonce. A file that
//! fails its checksum (the server may be writing it) is read again by the caller, and in the end the
//! `pg_controldata` program decides.

use crate::ha::ports::ControlState;
use hathi_dcs::{Lsn, SystemId, Timeline};
use std::path::Path;

/// The facts of the control file that somebody here asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub system_id: Option<SystemId>,
    pub state: ControlState,
    pub checkpoint: Lsn,
    pub checkpoint_redo: Lsn,
    pub checkpoint_timeline: Timeline,
    pub min_recovery_end: Lsn,
    pub min_recovery_timeline: Timeline,
    pub wal_log_hints: bool,
    pub data_checksums: bool,
    /// The settings a standby must not be below, by parameter name. (PG-190)
    pub limits: [(&'static str, i64); 5],
}

/// Why a control file could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("pg_control has {0} bytes")]
    Short(usize),
    #[error("pg_control has an unknown version {0}")]
    Version(u32),
    #[error("pg_control has a wrong checksum")]
    Checksum,
    #[error("pg_control cannot be read: {0}")]
    Io(String),
    #[error("pg_controldata: {0}")]
    Tool(String),
}

/// Reads and parses the file of this data directory. Blocks on the disk.
pub fn read(data_dir: &Path) -> Result<Control, ControlError> {
    let mut last = ControlError::Checksum;
    for attempt in 0..5 {
        if attempt > 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let path = data_dir.join("global/pg_control");
        let bytes = std::fs::read(path).map_err(|why| ControlError::Io(why.to_string()))?;
        match parse(&bytes) {
            Ok(control) => return Ok(control),
            // Torn: the server writes it at this moment.
            Err(why @ (ControlError::Checksum | ControlError::Short(_))) => last = why,
            Err(why @ (ControlError::Version(_) | ControlError::Io(_) | ControlError::Tool(_))) => {
                return Err(why);
            }
        }
    }
    Err(last)
}

/// Parses the bytes of a control file of PostgreSQL 13 to 18, little or big endian as this machine.
pub fn parse(bytes: &[u8]) -> Result<Control, ControlError> {
    let short = || ControlError::Short(bytes.len());
    let u32_at = |at: usize| -> Result<u32, ControlError> {
        let raw = bytes.get(at..at + 4).ok_or_else(short)?;
        Ok(u32::from_ne_bytes(raw.try_into().map_err(|_| short())?))
    };
    let u64_at = |at: usize| -> Result<u64, ControlError> {
        let raw = bytes.get(at..at + 8).ok_or_else(short)?;
        Ok(u64::from_ne_bytes(raw.try_into().map_err(|_| short())?))
    };
    let i32_at = |at: usize| u32_at(at).map(|value| i64::from(value.cast_signed()));
    let version = u32_at(8)?;
    let crc_at = match version {
        1300 => 288, // 13 … 17
        1800 => 292, // 18: default_char_signedness
        other => return Err(ControlError::Version(other)),
    };
    let covered = bytes.get(..crc_at).ok_or_else(short)?;
    if crc32c(covered) != u32_at(crc_at)? {
        return Err(ControlError::Checksum);
    }
    Ok(Control {
        system_id: SystemId::parse(&u64_at(0)?.to_string()),
        state: match u32_at(16)? {
            0 => ControlState::StartingUp,
            1 => ControlState::ShutDown,
            2 => ControlState::ShutDownInRecovery,
            3 => ControlState::ShuttingDown,
            4 => ControlState::InCrashRecovery,
            5 => ControlState::InArchiveRecovery,
            6 => ControlState::InProduction,
            _ => ControlState::Unknown,
        },
        checkpoint: Lsn(u64_at(32)?),
        checkpoint_redo: Lsn(u64_at(40)?),
        checkpoint_timeline: Timeline(u32_at(48)?),
        min_recovery_end: Lsn(u64_at(136)?),
        min_recovery_timeline: Timeline(u32_at(144)?),
        wal_log_hints: bytes.get(176).is_some_and(|byte| *byte != 0),
        data_checksums: u32_at(252)? != 0,
        limits: [
            ("max_connections", i32_at(180)?),
            ("max_worker_processes", i32_at(184)?),
            ("max_wal_senders", i32_at(188)?),
            ("max_prepared_transactions", i32_at(192)?),
            ("max_locks_per_transaction", i32_at(196)?),
        ],
    })
}

/// Reads what `pg_controldata` printed under `LANG=C`. (PG-007)
pub fn parse_tool_output(text: &str) -> Result<Control, ControlError> {
    let find = |label: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let name = name.strip_prefix("Current ").unwrap_or(name);
            (name == label).then(|| value.trim())
        })
    };
    let missing = |label: &str| ControlError::Tool(format!("no line {label:?}"));
    let need = |label: &str| find(label).ok_or_else(|| missing(label));
    let lsn = |label: &str| need(label).map(|value| Lsn::parse(value).unwrap_or_default());
    let number = |label: &str| find(label).and_then(|v| v.parse::<i64>().ok()).unwrap_or_default();
    let timeline = |label: &str| Timeline(u32::try_from(number(label)).unwrap_or_default());
    Ok(Control {
        system_id: find("Database system identifier").and_then(SystemId::parse),
        state: match need("Database cluster state")? {
            "starting up" => ControlState::StartingUp,
            "shut down" => ControlState::ShutDown,
            "shut down in recovery" => ControlState::ShutDownInRecovery,
            "shutting down" => ControlState::ShuttingDown,
            "in crash recovery" => ControlState::InCrashRecovery,
            "in archive recovery" => ControlState::InArchiveRecovery,
            "in production" => ControlState::InProduction,
            _ => ControlState::Unknown,
        },
        checkpoint: lsn("Latest checkpoint location")?,
        checkpoint_redo: lsn("Latest checkpoint's REDO location")?,
        checkpoint_timeline: timeline("Latest checkpoint's TimeLineID"),
        min_recovery_end: lsn("Minimum recovery ending location")?,
        min_recovery_timeline: timeline("Min recovery ending loc's timeline"),
        wal_log_hints: find("wal_log_hints setting") == Some("on"),
        data_checksums: number("Data page checksum version") != 0,
        limits: [
            ("max_connections", number("max_connections setting")),
            ("max_worker_processes", number("max_worker_processes setting")),
            ("max_wal_senders", number("max_wal_senders setting")),
            ("max_prepared_transactions", number("max_prepared_xacts setting")),
            ("max_locks_per_transaction", number("max_locks_per_xact setting")),
        ],
    })
}

/// CRC-32C (Castagnoli), as PostgreSQL computes it; 300 bytes, so bit by bit is enough.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc = (crc >> 1) ^ (0x82F6_3B78 * carry);
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: u32, crc_at: usize) -> Vec<u8> {
        let mut bytes = vec![0_u8; 8192];
        bytes[0..8].copy_from_slice(&7_711_468_355_016_940_526_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&version.to_ne_bytes());
        bytes[16..20].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x0400_0060_u64.to_ne_bytes());
        bytes[40..48].copy_from_slice(&0x0400_0028_u64.to_ne_bytes());
        bytes[48..52].copy_from_slice(&2_u32.to_ne_bytes());
        bytes[136..144].copy_from_slice(&0x0407_8FC8_u64.to_ne_bytes());
        bytes[144..148].copy_from_slice(&3_u32.to_ne_bytes());
        bytes[176] = 1;
        for (at, value) in [(180, 40_u32), (184, 8), (188, 10), (192, 0), (196, 64)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[252..256].copy_from_slice(&1_u32.to_ne_bytes());
        let crc = crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_ne_bytes());
        bytes
    }

    /// Proves PG-467 (layouts of 13 … 17 and of 18).
    #[test]
    fn both_layouts_are_read() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the check value of CRC-32C");
        for (version, crc_at) in [(1300, 288), (1800, 292)] {
            let control = parse(&image(version, crc_at)).unwrap();
            assert_eq!(control.system_id, SystemId::parse("7711468355016940526"));
            assert_eq!(control.state, ControlState::InArchiveRecovery);
            assert_eq!(control.checkpoint, Lsn(0x0400_0060));
            assert_eq!(control.checkpoint_timeline, Timeline(2));
            assert_eq!(control.min_recovery_end, Lsn(0x0407_8FC8));
            assert_eq!(control.min_recovery_timeline, Timeline(3));
            assert!(control.wal_log_hints && control.data_checksums);
            assert_eq!(control.limits[0], ("max_connections", 40));
            assert_eq!(control.limits[4], ("max_locks_per_transaction", 64));
        }
    }

    #[test]
    fn a_damaged_file_is_told_from_an_unknown_one() {
        let mut bytes = image(1300, 288);
        bytes[33] ^= 1;
        assert_eq!(parse(&bytes), Err(ControlError::Checksum));
        assert_eq!(parse(&image(1201, 288)), Err(ControlError::Version(1201)));
        assert_eq!(parse(&bytes[..100]), Err(ControlError::Short(100)));
        assert_eq!(parse(&[]), Err(ControlError::Short(0)));
    }

    /// Proves PG-007.
    #[test]
    fn the_output_of_the_program_is_read() {
        let text = "pg_control version number:            1300\n\
             Database system identifier:           7711468355016940526\n\
             Database cluster state:               shut down in recovery\n\
             Latest checkpoint location:           0/4000060\n\
             Latest checkpoint's REDO location:    0/4000028\n\
             Latest checkpoint's TimeLineID:       2\n\
             Minimum recovery ending location:     0/4078FC8\n\
             Min recovery ending loc's timeline:   3\n\
             Current wal_log_hints setting:        on\n\
             max_connections setting:              40\n\
             Data page checksum version:           0\n";
        let control = parse_tool_output(text).unwrap();
        assert_eq!(control.state, ControlState::ShutDownInRecovery);
        assert_eq!(control.min_recovery_end, Lsn(0x0407_8FC8));
        assert!(control.wal_log_hints && !control.data_checksums);
        assert_eq!(control.limits[0], ("max_connections", 40));
        assert!(parse_tool_output("nonsense").is_err());
    }

    proptest::proptest! {
        /// Whatever lies there is read without a panic, and nothing damaged is believed.
        #[test]
        fn no_bytes_are_too_strange(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600),
            at in 0_usize..288,
            flip in 1_u8..=255,
            text in ".*",
        ) {
            let _ = parse(&bytes);
            let _ = parse_tool_output(&text);
            let mut damaged = image(1300, 288);
            damaged[at] ^= flip;
            proptest::prop_assert!(parse(&damaged).is_err());
        }
    }
}
