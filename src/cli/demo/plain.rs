//! The demo without a terminal: one line an event.

use super::End;
use super::herd::Herd;
use super::watch::{RHYTHM, Watch};

/// Runs until somebody wants the end.
///
/// # Errors
/// None of its own; the signature is that of the other two.
pub async fn tell(herd: &mut Herd, watch: &mut Watch, end: &mut End) -> anyhow::Result<()> {
    let mut told_ready = false;
    loop {
        for event in watch.look(herd).await {
            println!("{} {}", event.at, event.what);
        }
        if !told_ready && watch.picture.ready() {
            told_ready = true;
            println!("ready: {} members", watch.picture.members.len());
        }
        tokio::select! {
            () = end.wanted() => return Ok(()),
            () = tokio::time::sleep(RHYTHM) => {}
        }
    }
}
