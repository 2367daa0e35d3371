//! The backend on real ZooKeeper 3.8: the conformance suite with one and with three servers, and
//! what only ZooKeeper has: sessions that a server cuts short, certificates, access lists.

mod conformance;
mod harness;
mod layout;
mod options;
mod sessions;
