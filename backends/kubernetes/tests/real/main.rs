//! The backend on a real kube-apiserver 1.20: the conformance suite with Endpoints and ConfigMaps, with
//! one and with three API servers, and what only Kubernetes has: labels, rights, tokens, addresses.

mod conformance;
mod harness;
mod layout;
mod manifests;
mod rights;
mod servers;
