//! The one place where a section of the configuration becomes a store.

use crate::config::DcsSection;
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
        DcsSection::Etcd3(etcd) => Ok(hathi_etcd::Etcd::new(etcd_config(etcd), scope, me, timing)),
        #[cfg(not(feature = "etcd"))]
        DcsSection::Etcd3(_) => {
            let _ = (scope, me, timing);
            Err(StoreError::NotCompiledIn { section: "etcd3", feature: "etcd" })
        }
        DcsSection::Raft(_) => Err(StoreError::NotCompiledIn { section: "raft", feature: "raft" }),
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
        srv: None,
        srv_suffix: None,
    }
}
