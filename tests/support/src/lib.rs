//! Runs whole clusters of real processes for the black-box tests and the bench: agents (hathi or
//! real Patroni, by command line), PostgreSQL through them, etcd, clients that write to every
//! node, and the check of what was acknowledged. It knows agents only as a user does: a command,
//! a YAML file, the REST API, SQL. Nothing of hathi's own code enters here.
//!
//! Whatever is started here is ended here, also when a test panics: by pid, never by name.

pub mod certs;
pub mod chaos;
pub mod check;
pub mod cluster;
pub mod consul;
pub mod dns;
pub mod etcd;
pub mod kubernetes;
pub mod leftovers;
pub mod network;
pub mod osuser;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod rest;
pub mod servers;
pub mod sql;
pub mod wait;
pub mod writers;
pub mod yaml;
pub mod zookeeper;

pub use cluster::{Agent, Cluster, ClusterOptions, Node, Store};
pub use consul::{Consul, ConsulOptions};
pub use dns::{Mood, NameServer};
pub use etcd::{Etcd, EtcdOptions, EtcdVersion};
pub use kubernetes::{Kubernetes, KubernetesOptions};
pub use network::Network;
pub use redis::{MASTER as REDIS_MASTER, Redis, RedisOptions};
pub use servers::{Seat, Seats, StoreServers};
pub use writers::Writers;
pub use zookeeper::{ZooKeeper, ZooKeeperOptions};
