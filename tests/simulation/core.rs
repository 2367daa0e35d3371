//! The decision core of hathi and what runs beside it, from their own source. (the package's
//! manifest says why)

#[path = "../../src/ha/mod.rs"]
pub mod ha;
#[path = "../../src/watchdog/mod.rs"]
pub mod watchdog;
