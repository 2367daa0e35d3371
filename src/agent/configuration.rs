//! The configuration in force: local file under the dynamic document, and what follows a change.
//! (HA-002, HA-019, CFG-007, CFG-038, CFG-039)

use crate::api::{self, RestConfig};
use crate::config::{self, Local, Settings, SynchronousMode};
use crate::ha;
use crate::ha::ports::Configuration;
use crate::postgres::{self, LocalPostgres};
use crate::watchdog::{self, Watchdog};
use async_trait::async_trait;
use hathi_dcs::{Dcs, Timing};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Beside the data: what the store said last, for a start without the store. (CFG-007, PG-357)
const CACHE: &str = "patroni.dynamic.json";
/// Certificates are read and addresses resolved in this time, or the reload is refused.
const REST_RELOAD: Duration = Duration::from_secs(10);

/// Hears of the settings and the dynamic document that were just put in force.
type Changed = Box<dyn Fn(&ha::settings::Settings, Map<String, Value>) + Send + Sync>;

struct InForce {
    local: Local,
    dynamic: Map<String, Value>,
    leases: Leases,
    /// What the document asks for; the lease in force follows what the members agree on.
    asked: Settings,
    settings: Arc<ha::settings::Settings>,
    /// What the cache file holds.
    cached: Option<Map<String, Value>>,
}

/// The agent's [`Configuration`].
pub struct InUse {
    state: Mutex<InForce>,
    /// The file or directory it came from; `None`: only the environment.
    path: Option<PathBuf>,
    /// As it was at the start: a reload merges it again. (CFG-071)
    environment: config::Environment,
    dcs: Arc<dyn Dcs>,
    postgres: LocalPostgres,
    api: api::Handle,
    watchdog: Arc<Watchdog>,
    /// Called after each change that is in force.
    changed: Changed,
}

/// What the REST server is told of this configuration.
pub fn for_api(local: &Local) -> RestConfig {
    let rest = &local.restapi;
    let mut config = RestConfig::on(rest.listen.to_string());
    config.credentials = rest.authentication.as_ref().map(|auth| api::Credentials {
        username: auth.username.clone(),
        password: auth.password.expose().to_owned(),
    });
    config.allowlist.clone_from(&rest.allowlist);
    config.allowlist_include_members = rest.allowlist_include_members;
    config.certfile.clone_from(&rest.certfile);
    config.keyfile.clone_from(&rest.keyfile);
    config.keyfile_password = rest.keyfile_password.as_ref().map(|s| s.expose().to_owned());
    config.cafile.clone_from(&rest.cafile);
    config.ciphers.clone_from(&rest.ciphers);
    config.verify_client = match rest.verify_client {
        config::VerifyClient::None => api::VerifyClient::None,
        config::VerifyClient::Optional => api::VerifyClient::Optional,
        config::VerifyClient::Required => api::VerifyClient::Required,
    };
    config.server_tokens = match rest.server_tokens {
        config::ServerTokens::Original => api::ServerTokens::Original,
        config::ServerTokens::Minimal => api::ServerTokens::Minimal,
        config::ServerTokens::ProductOnly => api::ServerTokens::ProductOnly,
    };
    config.http_extra_headers.clone_from(&rest.http_extra_headers);
    config.https_extra_headers.clone_from(&rest.https_extra_headers);
    config.request_queue_size = rest.request_queue_size;
    config.handshake_timeout = Duration::from_secs(rest.handshake_timeout.into());
    config.request_timeout = Duration::from_secs(rest.request_timeout.into());
    config.max_connections = usize::try_from(rest.max_connections).unwrap_or(usize::MAX);
    config.unix_socket.clone_from(&rest.unix_socket);
    config
}

/// What this version leaves out, and may: worth a warning.
fn left_out(settings: &Settings) -> Vec<String> {
    permanent_slots(settings).1
}

/// The permanent slots, and what is wrong with those that are none. (PG-269)
fn permanent_slots(
    settings: &Settings,
) -> (BTreeMap<String, ha::settings::PermanentSlot>, Vec<String>) {
    let (mut slots, mut wrong) = (BTreeMap::new(), Vec::new());
    for (name, value) in &settings.slots {
        match ha::settings::PermanentSlot::parse(name, value) {
            Ok(slot) => drop(slots.insert(name.clone(), slot)),
            Err(why) => wrong.push(why),
        }
    }
    (slots, wrong)
}

/// The document to begin with: the cached one, else `bootstrap.dcs`. (CFG-007, CFG-008)
pub fn first_document(local: &Local) -> Map<String, Value> {
    let cached = std::fs::read_to_string(local.postgresql.data_dir.join(CACHE)).ok();
    match cached.as_deref().map(serde_json::from_str) {
        Some(Ok(Value::Object(document))) => document,
        Some(Ok(_) | Err(_)) | None => local.first_dynamic(),
    }
}

/// Which lease the members agreed on, and the shortest that the store keeps. (HA-324)
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    pub short: bool,
    pub shortest: u32,
}

impl Leases {
    /// Before anything is known of the other members.
    pub fn of(dcs: &dyn Dcs) -> Self {
        Self { short: false, shortest: dcs.shortest_ttl() }
    }

    /// A required watchdog that such a lease leaves no time for would keep everybody from leading.
    fn short_is_possible(self, local: &Local, now: &Settings) -> bool {
        let wished = now.wished_timing.adjusted_for(self.shortest);
        wished.ttl < Timing::PATRONIS_SHORTEST && for_watchdog(local, wished).allows(wished)
    }

    fn timing(self, now: &Settings) -> Timing {
        if self.short { now.wished_timing.adjusted_for(self.shortest) } else { now.timing }
    }
}

/// The core's settings for this configuration.
pub fn for_core(local: &Local, now: &Settings, leases: Leases) -> ha::settings::Settings {
    let database = &now.postgresql.database;
    let url = |address: &config::Address| format!("postgres://{address}/{database}");
    ha::settings::Settings {
        me: local.name.clone(),
        timing: leases.timing(now),
        short_ttl: leases.short_is_possible(local, now),
        maximum_lag_on_failover: now.maximum_lag_on_failover,
        primary_start_timeout: now.primary_start_timeout,
        check_timeline: now.check_timeline,
        max_timelines_history: now.max_timelines_history,
        member_slots_ttl: now.member_slots_ttl,
        use_slots: now.use_slots,
        pause: now.pause,
        may_bootstrap: local.bootstrap.is_some(),
        remove_data_directory_on_rewind_failure: now
            .postgresql
            .remove_data_directory_on_rewind_failure,
        remove_data_directory_on_diverged_timelines: now
            .postgresql
            .remove_data_directory_on_diverged_timelines,
        tags: local.tags.published.clone(),
        nofailover: local.tags.nofailover,
        failover_priority: local.tags.failover_priority,
        replicatefrom: local.tags.replicatefrom.clone(),
        nostream: local.tags.nostream,
        conn_url: url(&local.postgresql.connect_address),
        api_url: local.api_url(),
        proxy_url: local.postgresql.proxy_address.as_ref().map(url),
        synchronous: synchronous(now),
        nosync: local.tags.nosync,
        sync_priority: local.tags.sync_priority,
        failsafe_mode: now.failsafe_mode,
        standby_cluster: now
            .standby_cluster
            .as_ref()
            .map(|remote| standby_cluster(remote, database)),
        primary_stop_timeout: now.primary_stop_timeout,
        primary_restart_limit: now.primary_restart_limit,
        primary_race_backoff: now.primary_race_backoff,
        reinitialize_without_log: now.postgresql.reinitialize_without_wal,
        disk_timeout_ms: u64::from(now.primary_disk_timeout) * 1000,
        slots: permanent_slots(now).0,
        ignore_slots: now.ignore_slots.iter().map(ha::settings::IgnoredSlot::parse).collect(),
    }
}

/// The watchdog's settings for this configuration. (CFG-145 … CFG-148)
pub fn for_watchdog(local: &Local, timing: Timing) -> watchdog::Settings {
    let section = &local.watchdog;
    watchdog::Settings {
        mode: match section.mode {
            config::WatchdogMode::Off => watchdog::Mode::Off,
            config::WatchdogMode::Automatic => watchdog::Mode::Automatic,
            config::WatchdogMode::Required => watchdog::Mode::Required,
        },
        driver: match section.driver {
            config::WatchdogDriver::Default => watchdog::DriverKind::Linux,
            config::WatchdogDriver::Testing => watchdog::DriverKind::Testing,
        },
        device: section.device.clone(),
        safety_margin: section.safety_margin,
        timing,
    }
}

fn synchronous(now: &Settings) -> ha::settings::Synchronous {
    use ha::settings::SynchronousMode as Mode;
    ha::settings::Synchronous {
        mode: match now.synchronous_mode {
            SynchronousMode::Off => Mode::Off,
            SynchronousMode::On => Mode::Priority,
            SynchronousMode::Quorum => Mode::Quorum,
        },
        strict: now.synchronous_mode_strict,
        node_count: now.synchronous_node_count,
        maximum_lag: now.maximum_lag_on_syncnode,
    }
}

fn standby_cluster(
    remote: &config::StandbyCluster,
    database: &str,
) -> ha::settings::StandbyCluster {
    let port = remote.port.unwrap_or(5432);
    let conn_url = remote.host.as_ref().map(|hosts| {
        let each = hosts.split(',').map(str::trim).filter(|host| !host.is_empty());
        let each: Vec<_> = each.map(|host| format!("{}:{port}", in_url(host))).collect();
        format!("postgres://{}/{database}", each.join(","))
    });
    ha::settings::StandbyCluster { conn_url }
}

/// A host as a URL has it: an IPv6 address in brackets, a socket directory without slashes.
fn in_url(host: &str) -> String {
    let bracketed = host.starts_with('[') || !host.contains(':');
    let host = host.replace('%', "%25").replace('/', "%2F").replace('@', "%40").replace('?', "%3F");
    if bracketed { host } else { format!("[{host}]") }
}

/// A standby cluster ends when its section is gone, not when somebody half wrote another one: a typo
/// must not promote it. (HA-113, CFG-038)
fn half_a_standby_cluster(
    was_one: bool,
    dynamic: &Map<String, Value>,
    is_one: bool,
) -> Option<String> {
    let section = dynamic.get("standby_cluster").filter(|section| !section.is_null())?;
    (was_one && !is_one).then(|| {
        format!(
            "standby_cluster {section} names neither host, port nor restore_command; to make this \
             cluster a primary one remove the section"
        )
    })
}

impl InUse {
    pub fn new(
        local: Local,
        dynamic: Map<String, Value>,
        settings: &Settings,
        source: (Option<PathBuf>, config::Environment),
        dcs: Arc<dyn Dcs>,
        (postgres, api, watchdog): (LocalPostgres, api::Handle, Arc<Watchdog>),
        changed: impl Fn(&ha::settings::Settings, Map<String, Value>) + Send + Sync + 'static,
    ) -> Self {
        let leases = Leases::of(&*dcs);
        let for_core = Arc::new(for_core(&local, settings, leases));
        let asked = settings.clone();
        let state = InForce { local, dynamic, leases, asked, settings: for_core, cached: None };
        let (path, environment) = source;
        Self {
            state: Mutex::new(state),
            path,
            environment,
            dcs,
            postgres,
            api,
            watchdog,
            changed: Box::new(changed),
        }
    }

    fn state(&self) -> MutexGuard<'_, InForce> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads file and environment again; the REST server moves to its new addresses, certificates
    /// and passwords. (CFG-071 … CFG-073, REST-453)
    ///
    /// # Errors
    /// One line; the old configuration stays in force.
    pub async fn reload(&self) -> Result<(), String> {
        let (local, warnings) =
            config::load(self.path.as_deref(), &self.environment).map_err(|e| e.to_string())?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let (dynamic, old_rest) = {
            let state = self.state();
            let old = &state.local;
            let fixed = local.name == old.name
                && local.scope == old.scope
                && local.postgresql.data_dir == old.postgresql.data_dir;
            if !fixed {
                return Err("name, scope and postgresql.data_dir need a restart of hathi".into());
            }
            if local.dcs != old.dcs {
                tracing::warn!("changes of the store's section need a restart");
            }
            (state.dynamic.clone(), old.restapi.clone())
        };
        let (settings, _) = config::effective(&local, &dynamic).map_err(|e| e.to_string())?;
        // Certificates are read again even if only the files changed. (REST-453)
        if local.restapi != old_rest || local.restapi.certfile.is_some() {
            // All of it or nothing: on an error the old listener serves on.
            let moved = self.api.reconfigure(for_api(&local));
            match tokio::time::timeout(REST_RELOAD, moved).await {
                Ok(moved) => moved.map_err(|error| error.to_string())?,
                Err(_) => return Err("the REST server did not take its new settings".into()),
            }
        }
        self.put_in_force(local, dynamic, &settings).await
    }

    async fn put_in_force(
        &self,
        local: Local,
        dynamic: Map<String, Value>,
        settings: &Settings,
    ) -> Result<(), String> {
        for what in left_out(settings) {
            tracing::warn!("{what}");
        }
        let leases = self.state().leases;
        let core = Arc::new(for_core(&local, settings, leases));
        let of_postgres = postgres::Settings::from_config(&local, settings);
        self.watchdog.configure(for_watchdog(&local, core.timing));
        let timing_changed = {
            let mut state = self.state();
            let changed = state.settings.timing != core.timing;
            *state = InForce {
                local,
                dynamic: dynamic.clone(),
                leases,
                asked: settings.clone(),
                settings: core.clone(),
                cached: state.cached.take(),
            };
            changed
        };
        if timing_changed {
            self.dcs.set_timing(core.timing);
        }
        (self.changed)(&core, dynamic);
        self.postgres.set_settings(Arc::new(of_postgres));
        self.postgres.apply_configuration().await.map_err(|error| error.to_string())
    }

    /// What of a dynamic document would not be taken as it was meant; one sentence each. (REST-465)
    pub fn objections(&self, dynamic: &Map<String, Value>) -> Vec<String> {
        let local = self.state().local.clone();
        match config::effective(&local, dynamic) {
            Ok((settings, warnings)) => {
                let warnings = warnings.into_iter().map(|config::Warning(problem)| problem);
                warnings.map(in_document).chain(left_out(&settings)).collect()
            }
            Err(error) => error.problems.into_iter().map(in_document).collect(),
        }
    }

    /// Are such documents refused? (REST-465)
    pub fn is_strict(&self) -> bool {
        self.state().local.restapi.strict_config
    }

    /// Writes the cache file if it is not what is in force and there is a data directory for it.
    pub fn write_cache(&self) {
        let (path, document) = {
            let mut state = self.state();
            let data_dir = state.local.postgresql.data_dir.clone();
            let same = state.cached.as_ref() == Some(&state.dynamic);
            if same || !data_dir.join("global/pg_control").exists() {
                return;
            }
            state.cached = Some(state.dynamic.clone());
            (data_dir.join(CACHE), state.dynamic.clone())
        };
        if let Err(why) = replace(&path, &Value::Object(document).to_string()) {
            tracing::warn!("{}: {why}", path.display());
        }
    }
}

/// Path and reason: whose document it is the asker knows.
fn in_document(problem: config::Problem) -> String {
    config::Problem { origin: None, ..problem }.to_string()
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.persist(path)?;
    Ok(())
}

#[async_trait]
impl Configuration for InUse {
    fn settings(&self) -> Arc<ha::settings::Settings> {
        self.state().settings.clone()
    }

    fn dynamic(&self) -> Map<String, Value> {
        self.state().dynamic.clone()
    }

    async fn apply(&self, dynamic: &Map<String, Value>) -> Result<(), String> {
        if dynamic.is_empty() {
            return Ok(()); // CFG-039
        }
        let local = self.state().local.clone();
        let outcome = match config::effective(&local, dynamic) {
            Ok((settings, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                let was_one = self.settings().standby_cluster.is_some();
                let is_one = settings.standby_cluster.is_some();
                match half_a_standby_cluster(was_one, dynamic, is_one) {
                    Some(why) => Err(why),
                    None => self.put_in_force(local, dynamic.clone(), &settings).await,
                }
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &outcome {
            tracing::error!("/config: {why}");
        }
        outcome
    }

    fn allow_short_ttl(&self, yes: bool) {
        let (core, dynamic, of_watchdog) = {
            let mut state = self.state();
            if state.leases.short == yes {
                return;
            }
            state.leases.short = yes;
            let core = Arc::new(for_core(&state.local, &state.asked, state.leases));
            state.settings = core.clone();
            let of_watchdog = for_watchdog(&state.local, core.timing);
            (core, state.dynamic.clone(), of_watchdog)
        };
        tracing::info!("ttl: {} s from now on", core.timing.ttl);
        self.watchdog.configure(of_watchdog);
        self.dcs.set_timing(core.timing);
        (self.changed)(&core, dynamic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Proves CFG-277: several hosts share the port; every kind of host fits into a URL.
    #[test]
    fn the_remote_member_has_a_url() {
        for (hosts, url) in [
            ("10.0.0.1", Some("postgres://10.0.0.1:5433/app")),
            ("a, b", Some("postgres://a:5433,b:5433/app")),
            ("::1", Some("postgres://[::1]:5433/app")),
            ("/var/run/pg", Some("postgres://%2Fvar%2Frun%2Fpg:5433/app")),
            ("", None),
        ] {
            let remote = config::StandbyCluster {
                host: Some(hosts.to_owned()).filter(|hosts| !hosts.is_empty()),
                port: Some(5433),
                ..config::StandbyCluster::default()
            };
            assert_eq!(standby_cluster(&remote, "app").conn_url.as_deref(), url, "{hosts}");
        }
    }

    fn local(restapi: Value) -> Local {
        let document = json!({
            "scope": "demo", "name": "a",
            "restapi": {"listen": "127.0.0.1:8008"},
            "raft": {"self_addr": "127.0.0.1:2222", "data_dir": "/raft"},
            "postgresql": {
                "listen": "127.0.0.1:5432", "connect_address": "127.0.0.1:5432",
                "data_dir": "/data", "bin_dir": "/bin",
                "authentication": {
                    "superuser": {"username": "p", "password": "dummy"},
                    "replication": {"username": "r", "password": "dummy"},
                },
            },
        });
        let (Value::Object(mut document), Value::Object(restapi)) = (document, restapi) else {
            panic!("two objects")
        };
        config::merge(&mut document, Map::from_iter([("restapi".to_owned(), restapi.into())]));
        let document = Value::Object(document);
        let environment = [("PATRONI_CONFIGURATION".to_owned(), document.to_string())];
        let loaded = config::load(None, &environment.into_iter().collect());
        let (local, warnings) = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert!(warnings.is_empty(), "{warnings:?}");
        local
    }

    /// Proves REST-291, REST-292, REST-293, REST-294, REST-295, REST-296, REST-302, REST-303, REST-304.
    /// Proves REST-305, REST-315, REST-363: each key of the section arrives at the server, or is known
    /// and has no meaning here (`thread_pool_size`).
    #[test]
    fn the_section_arrives_at_the_server() {
        let plain = local(json!({}));
        let config = for_api(&plain);
        assert_eq!(plain.api_url(), "http://127.0.0.1:8008/patroni");
        assert_eq!(config.listen, "127.0.0.1:8008");
        assert!(config.credentials.is_none() && config.certfile.is_none());
        assert!(config.allowlist.is_empty() && !config.allowlist_include_members);
        assert_eq!(config.verify_client, api::VerifyClient::None);
        assert_eq!(config.server_tokens, api::ServerTokens::Original);
        let times = (config.handshake_timeout.as_secs(), config.request_timeout.as_secs());
        assert_eq!((times, config.request_queue_size, config.max_connections), ((2, 5), 5, 512));

        let full = local(json!({
            "listen": "a,b:1", "connect_address": "[::1]:2",
            "authentication": {"username": "u", "password": "dummy"},
            "certfile": "/c", "keyfile": "/k", "keyfile_password": "dummy-key", "cafile": "/ca",
            "ciphers": "HIGH", "verify_client": "Required", "allowlist": ["x", "10.0.0.0/8"],
            "allowlist_include_members": "on", "http_extra_headers": {"A": "b"},
            "https_extra_headers": {"C": 1}, "server_tokens": "minimal", "request_queue_size": 7,
            "thread_pool_size": 9, "handshake_timeout": 0, "request_timeout": 8,
            "max_connections": 99, "unix_socket": "/s", "strict_config": true,
        }));
        let config = for_api(&full);
        assert_eq!(full.api_url(), "https://[::1]:2/patroni");
        assert!(full.restapi.strict_config);
        assert_eq!(config.listen, "a,b:1");
        let credentials = config.credentials.expect("credentials");
        assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u", "dummy"));
        let file = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        assert_eq!(file(config.certfile).as_deref(), Some("/c"));
        assert_eq!(file(config.keyfile).as_deref(), Some("/k"));
        assert_eq!(config.keyfile_password.as_deref(), Some("dummy-key"));
        assert_eq!(file(config.cafile).as_deref(), Some("/ca"));
        assert_eq!(file(config.unix_socket).as_deref(), Some("/s"));
        assert_eq!(config.ciphers.as_deref(), Some("HIGH"));
        assert_eq!(config.verify_client, api::VerifyClient::Required);
        assert_eq!(config.server_tokens, api::ServerTokens::Minimal);
        assert_eq!(config.allowlist, ["x", "10.0.0.0/8"]);
        assert!(config.allowlist_include_members);
        assert_eq!(config.http_extra_headers, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(config.https_extra_headers, [("C".to_owned(), "1".to_owned())]);
        let times = (config.handshake_timeout.as_secs(), config.request_timeout.as_secs());
        assert_eq!((times, config.request_queue_size, config.max_connections), ((1, 8), 7, 99));
    }

    /// Proves HA-113 (what is no order to promote): a section that is still there and says nothing.
    #[test]
    fn half_a_section_does_not_end_a_standby_cluster() {
        let half = |document: Value, was_one: bool, is_one: bool| {
            let document = document.as_object().unwrap().clone();
            half_a_standby_cluster(was_one, &document, is_one).is_some()
        };
        for document in [
            json!({"standby_cluster": {}}),
            json!({"standby_cluster": {"primary_slot_name": "x"}}),
            json!({"standby_cluster": "far"}),
        ] {
            assert!(half(document.clone(), true, false), "{document}");
            assert!(!half(document, false, false), "a primary cluster is not concerned");
        }
        assert!(!half(json!({"standby_cluster": null}), true, false), "an order to promote");
        assert!(!half(json!({"ttl": 30}), true, false), "an order to promote");
        assert!(!half(json!({"standby_cluster": {"host": "other"}}), true, true));
    }
}
