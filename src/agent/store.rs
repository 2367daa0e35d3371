//! The one place where a section of the configuration becomes a store.

use crate::config::{DcsSection, RaftSection};
use hathi_dcs::{Dcs, MemberName, Scope, Timing};
use std::sync::Arc;

/// Why the store could not be opened; one line that says what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Only for a section built by hand: [`crate::config::load`] refuses these.
    #[error(
        "{section}: this hathi was built without it; build with: cargo build --features {feature}"
    )]
    NotCompiledIn { section: &'static str, feature: &'static str },
    #[cfg(feature = "raft")]
    #[error(transparent)]
    Raft(#[from] hathi_raft::StartError),
}

/// The store of this section. (CFG-006, design 1)
///
/// # Errors
/// The operator has to mend something; trying again does not help.
pub async fn open(
    section: &DcsSection,
    scope: Scope,
    me: MemberName,
    timing: Timing,
) -> Result<Arc<dyn Dcs>, StoreError> {
    match section {
        #[cfg(feature = "etcd")]
        DcsSection::Etcd3(etcd) => Ok(hathi_etcd::open(etcd_config(etcd), scope, me, timing)),
        #[cfg(not(feature = "etcd"))]
        DcsSection::Etcd3(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "etcd3", feature: "etcd" })
        }
        #[cfg(feature = "consul")]
        DcsSection::Consul(consul) => {
            Ok(hathi_consul::open(consul_config(consul), scope, me, timing))
        }
        #[cfg(not(feature = "consul"))]
        DcsSection::Consul(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "consul", feature: "consul" })
        }
        #[cfg(feature = "zookeeper")]
        DcsSection::ZooKeeper(zookeeper) => {
            Ok(hathi_zookeeper::open(zookeeper_config(zookeeper), scope, me, timing))
        }
        #[cfg(not(feature = "zookeeper"))]
        DcsSection::ZooKeeper(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "zookeeper", feature: "zookeeper" })
        }
        #[cfg(feature = "redis")]
        DcsSection::Redis(redis) => Ok(hathi_redis::open(redis_config(redis), scope, me, timing)),
        #[cfg(not(feature = "redis"))]
        DcsSection::Redis(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "redis", feature: "redis" })
        }
        #[cfg(feature = "kubernetes")]
        DcsSection::Kubernetes(kubernetes) => {
            Ok(hathi_kubernetes::open(kubernetes_config(kubernetes), scope, me, timing))
        }
        #[cfg(not(feature = "kubernetes"))]
        DcsSection::Kubernetes(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "kubernetes", feature: "kubernetes" })
        }
        #[cfg(feature = "raft")]
        DcsSection::Raft(raft) => {
            Ok(hathi_raft::RaftStore::start(raft_config(raft), scope, me, timing).await?)
        }
        #[cfg(not(feature = "raft"))]
        DcsSection::Raft(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "raft", feature: "raft" })
        }
    }
}

/// A vote in the embedded store, without PostgreSQL, until `shutdown` is done.
///
/// # Errors
/// As for [`open`].
pub async fn witness(
    raft: &RaftSection,
    scope: Scope,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StoreError> {
    #[cfg(feature = "raft")]
    return Ok(hathi_raft::run_witness(raft_config(raft), scope, shutdown).await?);
    #[cfg(not(feature = "raft"))]
    {
        let _ = (raft, scope, shutdown);
        Err(StoreError::NotCompiledIn { section: "raft", feature: "raft" })
    }
}

#[cfg(feature = "raft")]
fn raft_config(raft: &RaftSection) -> hathi_raft::RaftConfig {
    let mut config = hathi_raft::RaftConfig::new(raft.self_addr.to_string(), &raft.data_dir);
    config.bind_addr = Some(raft.bind_addr.to_string());
    config.partner_addrs = raft.partner_addrs.iter().map(ToString::to_string).collect();
    config.password = raft.password.as_ref().map(|secret| secret.expose().to_owned());
    for (wanted, value) in [
        (raft.min_timeout_ms, &mut config.min_timeout_ms),
        (raft.max_timeout_ms, &mut config.max_timeout_ms),
        (raft.connection_timeout_ms, &mut config.connection_timeout_ms),
        (raft.append_entries_period_ms, &mut config.append_entries_period_ms),
    ] {
        *value = wanted.unwrap_or(*value);
    }
    config
}

#[cfg(feature = "consul")]
fn consul_config(consul: &crate::config::ConsulSection) -> hathi_consul::ConsulConfig {
    use crate::config::ConsulConsistency as Level;
    hathi_consul::ConsulConfig {
        hosts: consul.hosts.iter().map(ToString::to_string).collect(),
        https: consul.https,
        token: consul.token.as_ref().map(|secret| secret.expose().to_owned()),
        dc: consul.dc.clone(),
        consistency: match consul.consistency {
            Level::Default => hathi_consul::Consistency::Default,
            Level::Consistent => hathi_consul::Consistency::Consistent,
            Level::Stale => hathi_consul::Consistency::Stale,
        },
        checks: consul.checks.clone(),
        verify: consul.verify,
        cacert: consul.cacert.clone(),
        cert: consul.cert.clone(),
        key: consul.key.clone(),
        service: consul.service.as_ref().map(|service| hathi_consul::ServiceConfig {
            tags: service.tags.clone(),
            check_interval: service.check_interval.clone(),
            check_tls_server_name: service.check_tls_server_name.clone(),
        }),
    }
}

#[cfg(feature = "etcd")]
fn etcd_config(etcd: &crate::config::Etcd3Section) -> hathi_etcd::EtcdConfig {
    let file = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| path.to_string_lossy().into_owned())
    };
    hathi_etcd::EtcdConfig {
        endpoints: etcd.hosts.iter().map(ToString::to_string).collect(),
        protocol: if etcd.https { "https" } else { "http" }.to_owned(),
        username: etcd.username.clone(),
        password: etcd.password.as_ref().map(|secret| secret.expose().to_owned()),
        cacert: file(&etcd.cacert),
        cert: file(&etcd.cert),
        key: file(&etcd.key),
        use_proxies: etcd.use_proxies,
        srv: etcd.srv.as_ref().map(|srv| srv.domain.clone()),
        srv_suffix: etcd.srv.as_ref().and_then(|srv| srv.suffix.clone()),
        name_servers: Vec::new(),
    }
}

/// The servers that DNS names for this section at this moment, as URLs; none without `srv`. (CFG-303)
///
/// # Errors
/// One line: who was asked for what, and what was said.
pub async fn named_by_dns(
    etcd: &crate::config::Etcd3Section,
    within: std::time::Duration,
) -> Result<Vec<String>, String> {
    #[cfg(feature = "etcd")]
    {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        hathi_etcd::named_by_dns(&etcd_config(etcd), hathi_dcs::Deadline::in_ms(ms)).await
    }
    #[cfg(not(feature = "etcd"))]
    {
        let _ = (etcd, within);
        Ok(Vec::new())
    }
}

#[cfg(feature = "zookeeper")]
fn zookeeper_config(
    zookeeper: &crate::config::ZooKeeperSection,
) -> hathi_zookeeper::ZooKeeperConfig {
    use crate::config::ZooKeeperRight as Right;
    use hathi_zookeeper::Right as Backend;
    let right = |right: &Right| match right {
        Right::Create => Backend::Create,
        Right::Read => Backend::Read,
        Right::Write => Backend::Write,
        Right::Delete => Backend::Delete,
        Right::Admin => Backend::Admin,
        Right::All => Backend::All,
    };
    let auth = zookeeper.auth_data.iter();
    let acls = zookeeper.set_acls.iter();
    hathi_zookeeper::ZooKeeperConfig {
        hosts: zookeeper.hosts.iter().map(ToString::to_string).collect(),
        tls: zookeeper.tls.as_ref().map(|tls| hathi_zookeeper::Tls {
            verify: tls.verify,
            cacert: tls.cacert.clone(),
            cert: tls.cert.clone(),
            key: tls.key.clone(),
            key_password: tls.key_password.as_ref().map(|secret| secret.expose().to_owned()),
        }),
        auth: auth.map(|(scheme, secret)| (scheme.clone(), secret.expose().to_owned())).collect(),
        acls: acls
            .map(|(principal, rights)| (principal.clone(), rights.iter().map(right).collect()))
            .collect(),
    }
}

#[cfg(feature = "redis")]
fn redis_config(redis: &crate::config::RedisSection) -> hathi_redis::RedisConfig {
    let hosts = redis.hosts.iter().map(|address| (address.host.clone(), address.port));
    hathi_redis::RedisConfig {
        hosts: hosts.collect(),
        tls: redis.tls.as_ref().map(|tls| hathi_redis::Tls {
            cacert: tls.cacert.clone(),
            cert: tls.cert.clone(),
            key: tls.key.clone(),
        }),
        username: redis.username.clone(),
        password: redis.password.as_ref().map(|secret| secret.expose().to_owned()),
        db: redis.db,
        replicas: redis.replicas,
        sentinels: redis.sentinels.as_ref().map(sentinels).unwrap_or_default(),
    }
}

#[cfg(feature = "redis")]
fn sentinels(sentinels: &crate::config::RedisSentinels) -> hathi_redis::Sentinels {
    let hosts = sentinels.hosts.iter().map(|address| (address.host.clone(), address.port));
    hathi_redis::Sentinels {
        hosts: hosts.collect(),
        master: sentinels.master.clone(),
        username: sentinels.username.clone(),
        password: sentinels.password.as_ref().map(|secret| secret.expose().to_owned()),
    }
}

#[cfg(feature = "kubernetes")]
fn kubernetes_config(
    kubernetes: &crate::config::KubernetesSection,
) -> hathi_kubernetes::KubernetesConfig {
    let ports = kubernetes.ports.iter().map(|port| hathi_kubernetes::Port {
        name: port.name.clone(),
        port: port.port,
        protocol: port.protocol.clone(),
    });
    hathi_kubernetes::KubernetesConfig {
        access: hathi_kubernetes::Access::Found {
            context: kubernetes.context.clone(),
            cacert: kubernetes.cacert.clone(),
        },
        namespace: kubernetes.namespace.clone(),
        labels: kubernetes.labels.clone(),
        scope_label: kubernetes.scope_label.clone(),
        roles: hathi_kubernetes::RoleLabels {
            label: kubernetes.role_label.clone(),
            leader: kubernetes.leader_label_value.clone(),
            follower: kubernetes.follower_label_value.clone(),
            standby_leader: kubernetes.standby_leader_label_value.clone(),
            tmp_label: kubernetes.tmp_role_label.clone(),
        },
        bootstrap_labels: kubernetes.bootstrap_labels.clone(),
        use_endpoints: kubernetes.use_endpoints,
        pod_ip: kubernetes.pod_ip.clone(),
        ports: ports.collect(),
        bypass_api_service: kubernetes.bypass_api_service,
        retriable_codes: kubernetes.retriable_http_codes.clone(),
    }
}
