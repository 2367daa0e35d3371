//! From the typed configuration to the settings of this room: names change, nothing is decided.

use crate::config;
use crate::ha::settings::{PermanentKind, PermanentSlot};
use crate::postgres::settings::{
    Bootstrap, CustomBootstrap, Login, Remote, ReplicaMethod, Settings, ToolOption,
};
use std::collections::BTreeMap;

impl Settings {
    /// The settings for this node under the configuration in force.
    pub fn from_config(local: &config::Local, now: &config::Settings) -> Self {
        let own = &local.postgresql;
        let shared = &now.postgresql;
        let superuser = login(&own.authentication.superuser);
        let rewind = login(&own.authentication.rewind);
        let methods = match &now.standby_cluster {
            Some(standby) if !standby.create_replica_methods.is_empty() => {
                &standby.create_replica_methods // PG-121
            }
            _ => &shared.create_replica_methods,
        };
        let mut recovery_conf = shared.recovery_conf.clone();
        if let Some(standby) = &now.standby_cluster {
            // PG-217; the delay is the standby leader's alone and comes with it.
            for (name, value) in [
                ("restore_command", &standby.restore_command),
                ("archive_cleanup_command", &standby.archive_cleanup_command),
            ] {
                if let Some(value) = value {
                    recovery_conf.insert(name.into(), value.clone());
                }
            }
        }
        let mut parameters = shared.parameters.clone();
        if now.standby_cluster.is_none() && has_logical_slots(now) {
            // What a slot still needs must not be cleaned away behind it, on any member. (PG-199)
            parameters.insert("hot_standby_feedback".into(), "on".into());
        }
        let mut replica_methods = BTreeMap::new();
        let mut create_replica_methods = Vec::new();
        for method in methods {
            create_replica_methods.push(match method {
                config::ReplicaMethod::Basebackup => "basebackup".to_owned(),
                config::ReplicaMethod::Custom {
                    name,
                    command,
                    keep_data,
                    no_params,
                    no_leader,
                    options,
                } => {
                    let ours = |key: &str| *no_params && ["no_leader", "keep_data"].contains(&key);
                    let arguments = options.iter().filter(|(key, _)| !ours(key)).cloned().collect();
                    let method = ReplicaMethod {
                        command: command.clone(),
                        arguments,
                        no_params: *no_params,
                        no_leader: *no_leader,
                        keep_data: *keep_data,
                    };
                    replica_methods.insert(name.clone(), method);
                    name.clone()
                }
            });
        }
        Self {
            name: local.name.clone(),
            scope: local.scope.scope().to_owned(),
            data_dir: own.data_dir.clone(),
            config_dir: own.config_dir.clone(),
            bin_dir: own.bin_dir.clone(),
            bin_name: shared.bin_name.clone(),
            listen_addresses: own.listen.hosts_text(),
            port: own.listen.port,
            use_unix_socket: shared.use_unix_socket,
            use_unix_socket_repl: shared.use_unix_socket_repl,
            database: shared.database.clone(),
            pgpass: own.pgpass.clone(),
            krbsrvname: shared.krbsrvname.clone(),
            rewind: (rewind != superuser).then_some(rewind),
            superuser,
            replication: login(&own.authentication.replication),
            parameters,
            recovery_conf,
            standby_cluster: now.standby_cluster.as_ref().map(|standby| Remote {
                primary_slot_name: standby.primary_slot_name.clone(),
                recovery_min_apply_delay: standby.recovery_min_apply_delay.clone(),
            }),
            pg_hba: shared.pg_hba.clone(),
            pg_ident: shared.pg_ident.clone(),
            custom_conf: shared.custom_conf.clone(),
            config_base_name: own.config_base_name.clone(),
            pg_ctl_timeout: shared.pg_ctl_timeout,
            callback_timeout: shared.callback_timeout,
            use_pg_rewind: shared.use_pg_rewind,
            use_slots: now.use_slots,
            watch_disk: now.primary_disk_timeout > 0,
            synchronous: now.synchronous_mode != config::SynchronousMode::Off,
            bootstrap: local.bootstrap.as_ref().map(bootstrap).unwrap_or_default(),
            create_replica_methods,
            replica_methods,
            basebackup: shared.basebackup.iter().map(option).collect(),
            callbacks: callbacks(&shared.callbacks),
            pre_promote: shared.pre_promote.clone(),
            before_stop: shared.before_stop.clone(),
            server_output: None,
        }
    }
}

fn has_logical_slots(now: &config::Settings) -> bool {
    let declared = |name: &String, value| PermanentSlot::parse(name, value).map(|slot| slot.kind);
    now.slots
        .iter()
        .any(|(name, value)| matches!(declared(name, value), Ok(PermanentKind::Logical { .. })))
}

fn login(credentials: &config::Credentials) -> Login {
    let options = credentials.options.iter();
    Login {
        username: credentials.username.clone(),
        password: credentials.password.as_ref().map(|secret| secret.expose().to_owned()),
        options: options.map(|(key, value)| ((*key).into(), value.expose().into())).collect(),
    }
}

fn option(option: &config::InitdbOption) -> ToolOption {
    match option {
        config::InitdbOption::Flag(name) => (name.clone(), None),
        config::InitdbOption::Pair(name, value) => (name.clone(), Some(value.clone())),
    }
}

fn bootstrap(section: &config::Bootstrap) -> Bootstrap {
    let mut custom = BTreeMap::new();
    let method = match &section.method {
        config::BootstrapMethod::Initdb => "initdb".to_owned(),
        config::BootstrapMethod::Custom(method) => {
            let settings = CustomBootstrap {
                command: method.command.clone(),
                arguments: method.options.clone(),
                no_params: method.no_params,
                keep_existing_recovery_conf: method.keep_existing_recovery_conf,
                recovery_conf: method.recovery_conf.clone(),
            };
            custom.insert(method.name.clone(), settings);
            method.name.clone()
        }
    };
    Bootstrap {
        method,
        initdb: section.initdb.iter().map(option).collect(),
        custom,
        post_bootstrap: section.post_bootstrap.clone(),
        pg_hba: section.pg_hba.clone(),
    }
}

fn callbacks(section: &config::Callbacks) -> BTreeMap<String, String> {
    let all = [
        ("on_start", &section.on_start),
        ("on_stop", &section.on_stop),
        ("on_restart", &section.on_restart),
        ("on_reload", &section.on_reload),
        ("on_role_change", &section.on_role_change),
    ];
    all.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.clone()?))).collect()
}
