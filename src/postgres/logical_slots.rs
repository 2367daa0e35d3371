//! Logical replication slots: made on a primary, copied to a standby, and moved on there.
//! (PG-271 … PG-273)
//!
//! Making one waits for every transaction that runs, and moving one reads all the log in between; so
//! both are done beside the turns, by one worker that ends when its work or the server does.

use crate::ha::ports::{PgError, Stop, StopMode, StopStep, Upstream, WantedLogical};
use crate::postgres::conninfo::Address;
use crate::postgres::room::{LocalPostgres, lock, on_disk};
use crate::postgres::session::{Session, SqlError, Target, literal};
use futures::StreamExt;
use hathi_dcs::{Deadline, Millis, State, boottime};
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

const WHAT: &str = "logical slots";
/// For one slot of the worker's; what is not done by then is begun anew.
const EACH_MS: u64 = 600_000;
/// The log that a copied slot needs may be gone here, until its reader has gone on; it is not copied again,
/// with a restart, before so much time passed; each time twice that.
const UNFIT_MS: u64 = 20_000;
const UNFIT_AT_MOST_MS: u64 = 600_000;
/// For the start after a copy; a longer one goes on without being waited for.
const START_MS: u64 = 60_000;

/// What is kept between the calls.
#[derive(Debug, Default)]
pub(super) struct Logical {
    worker: Option<tokio::task::JoinHandle<()>>,
    /// Slots that could not be moved on and are gone again, by their names.
    unfit: BTreeMap<String, Unfit>,
    /// The last trouble, so that it is said once.
    said: Option<String>,
}

/// When a copied slot could not be used last, and how often that was so.
#[derive(Clone, Copy, Debug, Default)]
struct Unfit {
    at: Millis,
    times: u32,
}

impl Unfit {
    fn pause_ms(self) -> u64 {
        let doubled = UNFIT_MS << self.times.saturating_sub(1).min(16);
        doubled.min(UNFIT_AT_MOST_MS)
    }
}

impl LocalPostgres {
    /// Has the worker make those that are missing on a primary, and move on those of a standby. Returns
    /// at once; while it works on the last plan this one waits for the next turn.
    pub(super) fn work_on_logical(&self, missing: Vec<Todo>) {
        let mut logical = lock(&self.logical);
        if missing.is_empty() || logical.worker.as_ref().is_some_and(|work| !work.is_finished()) {
            return;
        }
        let room = self.clone();
        logical.worker = Some(tokio::spawn(async move {
            for todo in missing {
                if let Err(why) = room.work_on(&todo).await {
                    room.say_once(format!("slot {}: {why}", todo.name));
                }
            }
        }));
    }

    async fn work_on(&self, todo: &Todo) -> Result<(), SqlError> {
        let by = Deadline::in_ms(EACH_MS);
        let target =
            Target { dbname: todo.wanted.database.clone(), ..Target::local(&self.settings(), 0) };
        let session = Session::open(&target, by.earlier(Deadline::in_ms(3_000))).await?;
        let name = literal(&todo.name);
        let Some(to) = todo.wanted.position else {
            let plugin = literal(&todo.wanted.plugin);
            let sql = format!("SELECT pg_create_logical_replication_slot({name}, {plugin})");
            return session.run(&sql, by).await;
        };
        let sql = format!("SELECT pg_replication_slot_advance({name}, '{to}')");
        let Err(why) = session.run(&sql, by).await else { return Ok(()) };
        // The log it needs is not here, or it cannot be used at all: a fresh copy is needed. (PG-273)
        if matches!(why.code(), Some("58P01" | "55000")) {
            self.note_unfit(&todo.name);
            session.run(&format!("SELECT pg_drop_replication_slot({name})"), by).await?;
        }
        Err(why)
    }

    fn note_unfit(&self, name: &str) {
        let mut logical = lock(&self.logical);
        let unfit = logical.unfit.entry(name.to_owned()).or_default();
        *unfit = Unfit { at: boottime(), times: unfit.times.saturating_add(1) };
    }

    fn say_once(&self, trouble: String) {
        let mut logical = lock(&self.logical);
        if logical.said.as_ref() != Some(&trouble) {
            tracing::warn!(target: "hathi::postgres", "{trouble}");
            logical.said = Some(trouble);
        }
    }

    /// PG-272. An error before the stop changes nothing; one after it leaves the server to be started
    /// like any that is down.
    pub(super) async fn copy_slots(
        &self,
        source: &Upstream,
        names: &[String],
    ) -> Result<(), PgError> {
        self.cancel.check()?;
        let now = boottime();
        let fit = |name: &&String| {
            let unfit = lock(&self.logical).unfit.get(*name).copied();
            unfit.is_none_or(|unfit| now.since(unfit.at) > unfit.pause_ms())
        };
        let wanted: Vec<&String> = names.iter().filter(fit).collect();
        if wanted.is_empty() {
            let why = "the log they need was gone here a moment ago; they are copied again later";
            return Err(Self::failed(WHAT, why));
        }
        let states = self.states_at(source, &wanted).await?;
        if states.is_empty() {
            return Err(Self::failed(WHAT, format!("{} has none of them", source.name)));
        }
        let settings = self.settings();
        let recovery = match self.recovery() {
            Some(recovery) => recovery,
            None => self.recovery_on_disk(&settings),
        };
        let _busy = self.busy();
        self.enter(State::Restarting);
        self.callbacks.expect_restart();
        let immediate_at = Some(now.plus(START_MS));
        let how = Stop { mode: StopMode::Fast, checkpoint: true, immediate_at };
        let mut steps = self.stop_server(how);
        while let Some(step) = steps.next().await {
            if let StopStep::Failed(why) = step {
                return Err(Self::failed(WHAT, why));
            }
        }
        let data_dir = settings.data_dir.clone();
        let written = on_disk(move || {
            states.iter().try_for_each(|(name, state)| {
                write_slot(&data_dir, name, state).map_err(|why| format!("{name}: {why}"))
            })
        });
        let written = written.await.unwrap_or(Ok(()));
        // Whatever became of the slots, a standby that stays down helps nobody.
        self.start_with(recovery, State::Restarting, Deadline::in_ms(START_MS)).await?;
        written.map_err(|why| Self::failed(WHAT, why))
    }

    /// The files of these slots, as the source has them on its disk: never newer than what its readers
    /// confirmed.
    async fn states_at(
        &self,
        source: &Upstream,
        names: &[&String],
    ) -> Result<Vec<(String, Vec<u8>)>, PgError> {
        let settings = self.settings();
        let address = Address::from_url(&source.conn_url)
            .ok_or_else(|| Self::failed(WHAT, format!("{} has no usable address", source.name)))?;
        let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let sql = format!(
            "SELECT slot_name, encode(pg_read_binary_file('pg_replslot/' || slot_name || '/state'), 'hex') \
             AS state FROM pg_get_replication_slots() \
             WHERE slot_type = 'logical' AND NOT temporary AND slot_name IN ({})",
            list.join(", ")
        );
        let by = Deadline::in_ms(10_000);
        let mut trouble = SqlError::Other("it has no host".to_owned());
        for target in Target::remote(&address, settings.rewind_login(), 5_000) {
            let asked = async { Session::open(&target, by).await?.rows(&sql, by).await };
            match asked.await {
                Ok(rows) => {
                    let read = rows.iter().filter_map(|row| {
                        let text = |name: &str| row.try_get(name).ok().flatten();
                        Some((text("slot_name")?.to_owned(), bytes_of(text("state")?)?))
                    });
                    return Ok(read.collect());
                }
                Err(why) => trouble = why,
            }
        }
        Err(Self::failed(WHAT, format!("{}: {trouble}", source.name)))
    }
}

/// One slot that is to be made (without a position) or moved on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Todo {
    pub name: String,
    pub wanted: WantedLogical,
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| hex.as_bytes().get(at).and_then(|byte| char::from(*byte).to_digit(16));
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::try_from(digit(at)? << 4 | digit(at + 1)?).ok())
        .collect()
}

/// The whole slot or none of it, also after a crash: PostgreSQL throws directories away that end so.
fn write_slot(data_dir: &Path, name: &str, state: &[u8]) -> std::io::Result<()> {
    let slots = data_dir.join("pg_replslot");
    let (temporary, place) = (slots.join(format!("{name}.tmp")), slots.join(name));
    for old in [&temporary, &place] {
        match std::fs::remove_dir_all(old) {
            Ok(()) => {}
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            Err(why) => return Err(why),
        }
    }
    let mode = std::fs::metadata(&slots)?.permissions().mode() & 0o777;
    std::fs::DirBuilder::new().mode(mode).create(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
    crate::postgres::pgfiles::replace(&temporary.join("state"), state, mode & 0o666)?;
    std::fs::rename(&temporary, &place)?;
    std::fs::File::open(&slots)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-273 (a copy that cannot be used): soon again, then seldom, since each is a restart.
    #[test]
    fn copies_become_seldom() {
        let pause = |times| Unfit { times, ..Unfit::default() }.pause_ms();
        assert_eq!([1, 2, 5, 6, 99].map(pause), [20_000, 40_000, 320_000, 600_000, 600_000]);
    }

    #[test]
    fn hex_is_read_whole_or_not_at_all() {
        assert_eq!(bytes_of("00ff7A"), Some(vec![0, 255, 122]));
        assert_eq!(bytes_of(""), Some(Vec::new()));
        for wrong in ["0", "0g", "ä"] {
            assert_eq!(bytes_of(wrong), None, "{wrong}");
        }
    }

    /// Proves PG-272 (the files): what was there before is gone, and the modes are the directory's.
    #[test]
    fn a_slot_is_written_over_an_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let slots = dir.path().join("pg_replslot");
        std::fs::create_dir_all(slots.join("cdc/snap")).expect("an old slot");
        std::fs::create_dir_all(slots.join("cdc.tmp")).expect("an attempt that failed");
        std::fs::set_permissions(&slots, std::fs::Permissions::from_mode(0o750)).expect("modes");
        write_slot(dir.path(), "cdc", b"new").expect("written");
        let found: Vec<_> = std::fs::read_dir(&slots).expect("slots").flatten().collect();
        assert_eq!(found.len(), 1);
        assert_eq!(std::fs::read(slots.join("cdc/state")).expect("the state"), b"new");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&slots.join("cdc")) & 0o777, 0o750);
        assert_eq!(mode(&slots.join("cdc/state")) & 0o777, 0o640);
    }
}
