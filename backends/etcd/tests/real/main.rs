//! The backend on real etcd: the conformance suite on 3.4 and 3.5, one and three members, and what
//! only etcd has: passwords, certificates, quotas, its own number of calls.

mod auth;
mod conformance;
mod harness;
mod layout;
mod members;
mod srv;
mod thrift;
mod tls;
