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
mod effective;
mod error;
mod load;
mod local;
mod numbers;
mod secret;
mod sections;
mod settings;
mod yaml;

pub use address::{Address, Listen};
pub use effective::effective;
pub use error::{ConfigError, Origin, Problem, Warning};
pub use load::{Environment, load};
pub use local::{
    Authentication, BasicAuth, Bootstrap, BootstrapMethod, Credentials, Ctl, CustomBootstrap,
    Guard, GuardMode, InitdbOption, Local, Log, LogType, PostgresqlLocal, RestApi, ServerTokens,
    Tags, VerifyClient, Watchdog, WatchdogMode,
};
pub use numbers::{BaseUnit, boolean, integer, python_text};
pub use secret::Secret;
pub use sections::{DcsSection, Etcd3Section, EtcdServers, RaftSection};
pub use settings::{
    Callbacks, Parameters, Postgresql, ReplicaMethod, Settings, StandbyCluster, SynchronousMode,
};
