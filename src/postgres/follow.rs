//! Following another server, or nobody. (PG-066, PG-067, PG-210 … PG-223)

use crate::ha::ports::{DataDir, FollowChange, PgError, Server, Upstream};
use crate::postgres::apply::write_signal_files;
use crate::postgres::callbacks::Action;
use crate::postgres::configuration::{Recovery, recovery_parameters, written_recovery};
use crate::postgres::conninfo::{Address, Conninfo, passfile};
use crate::postgres::disk::OF_THIS_TURN;
use crate::postgres::monitor::Row;
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::settings::Settings;
use hathi_dcs::Deadline;
use std::collections::BTreeMap;

impl LocalPostgres {
    /// Compares what the server was told with what it should be told. The answer comes from the last
    /// look at the disk and the last monitoring query while they are of this turn, or else from our file.
    pub(super) async fn compare_follow(
        &self,
        upstream: Option<&Upstream>,
        by: Deadline,
    ) -> FollowChange {
        let settings = self.settings();
        if self.postmaster().is_none() {
            return FollowChange::Restart;
        }
        let Some(disk) = self.disk_of_this_turn(&settings, by).await else {
            return FollowChange::Nothing; // Neither a reload nor a restart could write its files.
        };
        if disk.data_dir == DataDir::Present && !disk.stands_by {
            return FollowChange::Restart; // PG-218
        }
        let recovery = Recovery::Standby(upstream.cloned());
        let major = disk.major;
        let wanted = recovery_parameters(&settings, &recovery, major);
        let current = match self.row_of_this_turn(by).await {
            Some(row) => {
                if !matches!(row.server, Server::Standby(_)) {
                    return FollowChange::Restart;
                }
                BTreeMap::from([
                    ("primary_conninfo".to_owned(), row.primary_conninfo),
                    ("primary_slot_name".to_owned(), row.primary_slot_name),
                    ("restore_command".to_owned(), row.restore_command),
                ])
            }
            None => {
                let file = settings.config_file();
                let text = on_disk(move || std::fs::read_to_string(file)).await;
                written_recovery(&text.and_then(Result::ok).unwrap_or_default())
            }
        };
        let change = difference(major, &current, &wanted);
        let found = disk.passfile;
        if change == FollowChange::Nothing
            && !passfile_is_right(&settings, upstream, found.as_deref())
        {
            return FollowChange::Reload;
        }
        change
    }

    /// The turn began with a look at the server: it is not asked again what it just said.
    async fn row_of_this_turn(&self, by: Deadline) -> Option<Row> {
        let facts = self.facts();
        if let Some(row) = facts.row
            && facts.row_at.is_some_and(|at| at.elapsed() < OF_THIS_TURN)
        {
            return Some(row);
        }
        let row = self.monitor(by).await.ok()?;
        self.answered(&row);
        Some(row)
    }

    pub(super) async fn reload_to_follow(
        &self,
        upstream: Option<&Upstream>,
    ) -> Result<(), PgError> {
        let settings = self.settings();
        let recovery = Recovery::Standby(upstream.cloned());
        self.forget_sync_names();
        if let Some(address) = upstream.and_then(|at| Address::from_url(&at.conn_url)) {
            self.write_passfile(&settings.pgpass, &address, &settings.replication).await?;
        }
        let signals = recovery.clone();
        let prepared = settings.clone();
        let written = on_disk(move || write_signal_files(&prepared, &signals)).await;
        self.disk_written();
        if let Some(Err(why)) = written {
            return Err(Self::failed("follow", why));
        }
        self.write_configuration(&recovery, None).await?;
        self.set_recovery(Some(recovery));
        self.with_facts(|facts| facts.row_at = None);
        if self.role_changed() {
            self.signal_reload().await?;
            self.fire(Action::RoleChange); // PG-067
            Ok(())
        } else {
            self.reload().await
        }
    }
}

/// PG-219: its lines must be ours.
fn passfile_is_right(
    settings: &Settings,
    upstream: Option<&Upstream>,
    found: Option<&str>,
) -> bool {
    let address = upstream.and_then(|upstream| Address::from_url(&upstream.conn_url));
    let wanted = address.and_then(|at| passfile(&at, &settings.replication));
    wanted.is_none_or(|wanted| found == Some(wanted.as_str()))
}

/// What changing `current` into `wanted` needs. (PG-220, PG-221)
fn difference(
    major: u32,
    current: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> FollowChange {
    let of = |map: &BTreeMap<String, String>, name: &str| {
        map.get(name).map(String::as_str).unwrap_or_default().to_owned()
    };
    let mut change = FollowChange::Nothing;
    for name in ["primary_slot_name", "restore_command"] {
        let (is, should) = (of(current, name), of(wanted, name));
        // A restore command that somebody else configured stays. (PG-221)
        let foreign = name == "restore_command" && should.is_empty();
        if is != should && !foreign {
            let restart = name == "restore_command" && major < 14;
            change = if restart { FollowChange::Restart } else { FollowChange::Reload };
            if restart {
                return change;
            }
        }
    }
    let (is, should) = (of(current, "primary_conninfo"), of(wanted, "primary_conninfo"));
    if !same_conninfo(&is, &should, major) {
        change = FollowChange::Reload;
    }
    change
}

/// The same server by the same means, in whatever order; the database counts from 17 on. (PG-219)
fn same_conninfo(one: &str, other: &str, major: u32) -> bool {
    if one == other {
        return true;
    }
    let (Some(mut one), Some(mut other)) = (Conninfo::parse(one), Conninfo::parse(other)) else {
        return false;
    };
    if major < 17 {
        one.0.remove("dbname");
        other.0.remove("dbname");
    }
    one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-219, PG-220, PG-221.
    #[test]
    fn only_what_matters_is_a_difference() {
        let map = |conninfo: &str, slot: &str, restore: &str| {
            let names = ["primary_conninfo", "primary_slot_name", "restore_command"];
            let values = [conninfo, slot, restore];
            let pairs = names.iter().zip(values).map(|(n, v)| ((*n).to_owned(), v.to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let current = map("host=a port=1 dbname=x", "s", "");
        for (major, wanted, change) in [
            (15, map("port=1 host=a dbname=y", "s", ""), FollowChange::Nothing),
            (17, map("port=1 host=a dbname=y", "s", ""), FollowChange::Reload),
            (15, map("port=2 host=a", "s", ""), FollowChange::Reload),
            (15, map("", "", ""), FollowChange::Reload),
            (15, map("port=1 host=a", "t", ""), FollowChange::Reload),
            (13, map("port=1 host=a", "s", "cp"), FollowChange::Restart),
            (14, map("port=1 host=a", "s", "cp"), FollowChange::Reload),
        ] {
            assert_eq!(difference(major, &current, &wanted), change, "{major} {wanted:?}");
        }
        let foreign = map("host=a port=1", "s", "theirs");
        let wanted = map("host=a port=1", "s", "");
        assert_eq!(difference(15, &foreign, &wanted), FollowChange::Nothing);
    }
}
