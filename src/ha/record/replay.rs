//! Runs a recorded turn again. (INV-32)

use crate::ha::lease::Lease;
use crate::ha::memory::Memory;
use crate::ha::record::tape::{Line, Tape};
use crate::ha::record::{Came, FORMAT, Front, ports};
use crate::ha::settings::Settings;
use crate::ha::turn::turn;
use futures::FutureExt;
use futures::task::noop_waker;
use serde::Deserialize;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Why a recording could not be run to its end; one line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayed {
    #[error("this is not a recording of hathi: {0}")]
    Unreadable(String),
    #[error("the recording has format {found}; this hathi reads format {FORMAT}")]
    OtherFormat { found: u32 },
    /// This build asks something else than the build that recorded it.
    #[error("the turn goes another way here: {0}")]
    Diverged(String),
}

/// A turn that was run again.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// Which hathi recorded it.
    pub version: String,
    pub recorded: Came,
    pub replayed: Came,
    /// Every question of the turn with its answer, in the order of the answers.
    pub calls: Vec<Transcribed>,
}

/// One question and its answer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcribed {
    pub name: String,
    pub asked: String,
    pub answer: String,
}

impl Replayed {
    pub fn is_identical(&self) -> bool {
        self.recorded == self.replayed
    }
}

#[derive(Deserialize)]
struct Head {
    format: u32,
    version: String,
}

#[derive(Deserialize)]
struct Document {
    hathi: Head,
    urgent: bool,
    settings: Settings,
    memory: Memory,
    calls: Vec<Line>,
    came: Came,
}

/// Runs the recorded turn on the recorded answers.
///
/// # Errors
/// See [`NotReplayed`]; nothing outside was touched.
pub fn replay(bytes: &[u8]) -> Result<Replayed, NotReplayed> {
    #[derive(Deserialize)]
    struct Any {
        hathi: Head,
    }
    let unreadable = |why: serde_json::Error| NotReplayed::Unreadable(why.to_string());
    let Any { hathi } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if hathi.format != FORMAT {
        return Err(NotReplayed::OtherFormat { found: hathi.format });
    }
    let document: Document = serde_json::from_slice(bytes).map_err(unreadable)?;
    let calls = document
        .calls
        .iter()
        .map(|(name, asked, answer)| Transcribed {
            name: name.clone(),
            asked: asked.to_string(),
            answer: answer.to_string(),
        })
        .collect();
    let mut memory = document.memory;
    let tape = Arc::new(Tape::replay(document.calls, document.settings));
    let lease = Arc::new(Lease::behind(Front::new(tape.clone(), None)));
    let ports = ports::taped(&tape, None);
    let turned = {
        let mut running = turn(&ports, &lease, &mut memory, document.urgent).boxed();
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut before = 0;
        loop {
            let polled = running.as_mut().poll(&mut context);
            let (taken, diverged) = tape.progress();
            if let Some(why) = diverged {
                return Err(NotReplayed::Diverged(why));
            }
            match polled {
                Poll::Ready(turned) => break turned,
                Poll::Pending if taken == before => {
                    return Err(NotReplayed::Diverged(tape.stuck()));
                }
                Poll::Pending => before = taken,
            }
        }
    };
    if tape.left() > 0 {
        let why = format!("it ends {} lines before the recording does", tape.left());
        return Err(NotReplayed::Diverged(why));
    }
    let replayed = Came::of(&turned, &memory);
    Ok(Replayed { version: document.hathi.version, recorded: document.came, replayed, calls })
}
