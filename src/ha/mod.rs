//! The decision core: pure tables, and the turn over ports.
//!
//! Never in here: a runtime, a clock, a file, a socket, a log macro. What was decided and why is
//! returned ([`ports::Reason`]); the shell logs it. The simulator runs this very code.

pub mod lease;
pub mod manual;
pub mod ports;
pub mod run;
pub mod settings;
