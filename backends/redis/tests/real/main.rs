//! The backend on real Redis 7.0: the conformance suite on one server, and what only Redis has:
//! servers that may have forgotten, replicas that must have what counts, Sentinel, passwords,
//! certificates.

mod conformance;
mod harness;
mod layout;
mod options;
mod sentinel;
mod trust;
