//! Why did it do that? A turn written down as it was lived: what it remembered, every question it
//! put to a port with the answer it got, and what it came to. (HA-320, INV-32)
//!
//! ```text
//!  run ─► Recorder ─► turn over Taped ports ─► real ports       a line of the tape per answer
//!             └─► Recording ─► journal ─► GET /decisions/N/recording ─► hathi replay FILE
//!                                                turn over Taped ports ◄─ answers from the tape
//! ```
//! The same turn on the same answers comes to the same line, reasons, task, effects and memory, or
//! the replay says where it went another way. Only answers are kept: never a password, since no port
//! answers with one.

mod lease;
mod ports;
mod replay;
mod serde_help;
mod tape;

pub use lease::Front;
pub use replay::{NotReplayed, Replayed, Transcribed, replay};
pub use serde_help::{Word, shared_view, stamped_view, word};

use crate::ha::lease::Lease;
use crate::ha::memory::Memory;
use crate::ha::ports::{Ports, Reason};
use crate::ha::run::Exit;
use crate::ha::task::Task;
use crate::ha::turn::{Turned, turn};
use hathi_dcs::Millis;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tape::Tape;

/// The version of the format. A replay reads only its own.
const FORMAT: u32 = 1;

/// A turn that says more than this is not recorded: the memory of the agent is bounded.
const LONGEST: usize = 256 * 1024;

/// A recorded turn: one JSON document.
#[derive(Clone, PartialEq, Eq)]
pub struct Recording(Arc<[u8]>);

impl Recording {
    /// The document, as it goes into a file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recording").field(&self.0.len()).finish()
    }
}

/// What a turn came to, as far as it can be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Came {
    pub line: String,
    pub reasons: Vec<Reason>,
    pub task: Option<Task>,
    pub exit: Option<Exit>,
    pub again_at: Option<Millis>,
    /// A digest of the memory that the turn left.
    pub memory: u64,
}

impl Came {
    pub(super) fn of(turned: &Turned, memory: &Memory) -> Self {
        Self {
            line: turned.decided.line.clone(),
            reasons: turned.reasons.clone(),
            task: turned.decided.start.clone(),
            exit: turned.decided.exit.clone(),
            again_at: turned.decided.again_at,
            memory: serde_help::digest(memory),
        }
    }
}

/// Records one turn.
pub struct Recorder {
    tape: Arc<Tape>,
    pub ports: Ports,
    pub lease: Arc<Lease>,
}

impl Recorder {
    /// Begins before the turn does. The turn runs on [`Recorder::ports`] and [`Recorder::lease`].
    pub fn begin(ports: &Ports, lease: &Arc<Lease>, memory: &Memory, urgent: bool) -> Self {
        let settings = ports.configuration.settings();
        let tape = Arc::new(Tape::record(LONGEST, settings.clone(), |bytes| {
            let version = env!("CARGO_PKG_VERSION");
            let head = serde_json::json!({ "format": FORMAT, "version": version });
            bytes.extend_from_slice(b"{\"hathi\":");
            serde_json::to_writer(&mut *bytes, &head)?;
            bytes.extend_from_slice(b",\n\"urgent\":");
            serde_json::to_writer(&mut *bytes, &urgent)?;
            bytes.extend_from_slice(b",\n\"settings\":");
            serde_json::to_writer(&mut *bytes, &*settings)?;
            bytes.extend_from_slice(b",\n\"memory\":");
            serde_json::to_writer(&mut *bytes, memory)?;
            bytes.extend_from_slice(b",\n\"calls\":[");
            Ok(())
        }));
        let real = Some((lease.clone(), ports.clone()));
        let lease = Arc::new(Lease::behind(Front::new(tape.clone(), real)));
        Self { ports: ports::taped(&tape, Some(ports.clone())), lease, tape }
    }

    /// Ends after the turn. `None`: it said more than is kept.
    pub fn end(self, turned: &Turned, memory: &Memory) -> Option<Recording> {
        let came = Came::of(turned, memory);
        let bytes = self.tape.finish(|bytes| {
            bytes.extend_from_slice(b"\n],\n\"came\":");
            serde_json::to_writer(&mut *bytes, &came)?;
            bytes.extend_from_slice(b"}\n");
            Ok(())
        })?;
        Some(Recording(bytes.into()))
    }
}

/// Lets one turn happen, and writes it down if anybody keeps recordings.
pub async fn recorded_turn(
    ports: &Ports,
    lease: &Arc<Lease>,
    memory: &mut Memory,
    urgent: bool,
) -> (Turned, Option<Recording>) {
    if !ports.publish.keeps_decisions() {
        return (turn(ports, lease, memory, urgent).await, None);
    }
    let recorder = Recorder::begin(ports, lease, memory, urgent);
    let turned = turn(&recorder.ports, &recorder.lease, memory, urgent).await;
    let recording = recorder.end(&turned, memory);
    (turned, recording)
}
