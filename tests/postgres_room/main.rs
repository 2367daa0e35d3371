//! The PostgreSQL room on a real PostgreSQL: every effect of the port ends in a checked fact.
//!
//! PostgreSQL refuses to run as root; started as root, this test program becomes the OS user
//! `postgres` before its first test does anything.

mod cluster;
mod new;
mod node;
mod running;
mod settings;
