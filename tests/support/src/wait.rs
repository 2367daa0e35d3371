//! Waiting for a condition with a deadline, in place of sleeping and hoping.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at again.
pub const POLL: Duration = Duration::from_millis(50);

/// Looks again and again until `probe` answers `Ok`, at most for `within`.
///
/// # Errors
/// The last `Err` of the probe, with what was waited for and for how long.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut probe: F) -> Result<T, String>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        let seen = match tokio::time::timeout(within, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => seen,
            Err(_) => "the probe itself did not answer".to_owned(),
        };
        if started.elapsed() >= within {
            return Err(format!("waited {within:?} for: {what}; last seen: {seen}"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Watches that a condition goes on holding for `how_long`.
///
/// # Errors
/// What the probe said when it did not hold, and when.
pub async fn holds<F, Fut>(what: &str, how_long: Duration, mut probe: F) -> Result<(), String>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let started = Instant::now();
    while started.elapsed() < how_long {
        if let Err(seen) = probe().await {
            return Err(format!("{what} held only for {:?}: {seen}", started.elapsed()));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
