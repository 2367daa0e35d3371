//! The backend on real Consul 1.8: the conformance suite with one and with three servers, and what
//! only Consul has: tokens, certificates, sessions that a server wants longer.

mod agents;
mod conformance;
mod harness;
mod layout;
mod options;
mod service;
