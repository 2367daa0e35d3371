//! The shell around the core: the event loop, the executor of decisions, the clients.

pub mod peers;
