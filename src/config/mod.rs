//! The configuration: Patroni's YAML, the PATRONI_* environment and the dynamic document of the
//! store, read once into plain types.
//!
//! ```text
//!  file(s), environment ──► Local (never changes after the load)  ─┐
//!                                                                  ├─► effective() ──► Settings
//!  /config of the store, or bootstrap.dcs (dynamic document) ──────┘        once per change
//! ```
//!
//! What lives here: reading, merging, precedence, checking, with the path of the bad key in every
//! message. What never enters: a store, a socket, PostgreSQL, a decision. Other rooms see only
//! [`Local`], [`Settings`] and their parts; nobody looks at YAML or JSON of the configuration again.

mod address;
mod document;
mod effective;
mod emit;
mod environment;
mod error;
mod keys;
mod load;
mod local;
mod numbers;
mod options;
mod parameters;
mod postgresql;
mod reader;
mod secret;
mod sections;
mod services;
mod settings;
mod stores;
#[cfg(test)]
mod tests;
mod yaml;

pub use address::{Address, Listen};
pub use document::merge;
pub use effective::effective;
pub use emit::to_yaml;
pub use environment::{Environment, is_ours};
pub use error::{ConfigError, Origin, Problem, Warning};
pub use load::{WitnessConfig, load, load_witness, merged};
pub use local::{
    Authentication, BasicAuth, Bootstrap, BootstrapMethod, Credentials, Ctl, CustomBootstrap,
    Guard, GuardMode, InitdbOption, Local, Log, LogType, PostgresqlLocal, RestApi, ServerTokens,
    Tags, VerifyClient, Watchdog, WatchdogDriver, WatchdogMode,
};
pub use numbers::{BaseUnit, boolean, integer, python_text};
pub use parameters::RECOVERY;
pub use postgresql::LOGIN_OPTIONS;
pub use secret::Secret;
pub use sections::{
    ConsulConsistency, ConsulSection, ConsulService, DcsSection, Etcd3Section, EtcdSrv,
    KubernetesPort, KubernetesSection, RaftSection, RedisSection, RedisSentinels, RedisTls,
    ZooKeeperRight, ZooKeeperSection, ZooKeeperTls,
};
pub use settings::{
    Callbacks, Parameters, Postgresql, ReplicaMethod, Settings, StandbyCluster, SynchronousMode,
};
