//! The tape: what was asked and answered, in the order in which the answers came.
//!
//! While a turn is recorded each answer becomes a line; while it is replayed each line is the
//! answer. A question whose answer came later waits until everything before it was taken, so that
//! what ran side by side goes on in the recorded order.

use crate::ha::settings::Settings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// One line: the method, what it was asked, what it answered.
pub type Line = (String, Value, Value);

/// Written by the recorder, read by the replay.
pub enum Tape {
    Recording(Mutex<Written>),
    Replaying(Mutex<Read>),
}

pub struct Written {
    /// `None`: it grew too long, or could not be written.
    bytes: Option<Vec<u8>>,
    longest: usize,
    first: bool,
    /// The settings are asked for all the time; the same ones are written once.
    settings: Arc<Settings>,
}

pub struct Read {
    lines: VecDeque<Line>,
    taken: usize,
    settings: Arc<Settings>,
    waiting: Vec<Waker>,
    /// What is asked now and has no answer yet.
    wanted: Option<String>,
    diverged: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Written {
    fn write(&mut self, what: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>) {
        let Some(bytes) = &mut self.bytes else { return };
        if what(bytes).is_err() || bytes.len() > self.longest {
            self.bytes = None;
        }
    }

    fn line(&mut self, name: &str, asked: &impl Serialize, answer: &impl Serialize) {
        let first = std::mem::take(&mut self.first);
        self.write(|bytes| {
            bytes.extend_from_slice(if first { b"\n" } else { b",\n" });
            serde_json::to_writer(bytes, &(name, asked, answer))
        });
    }
}

impl Read {
    /// The next line, if it is this one.
    fn take<T: DeserializeOwned>(&mut self, name: &str, asked: &Value) -> Option<T> {
        let (next, was_asked, _) = self.lines.front()?;
        if next != name || was_asked != asked {
            return None;
        }
        let (_, _, answer) = self.lines.pop_front()?;
        self.taken += 1;
        self.wanted = None;
        for waiting in self.waiting.drain(..) {
            waiting.wake();
        }
        match serde_json::from_value(answer) {
            Ok(answer) => Some(answer),
            Err(why) => {
                self.stray(format!("line {} ({name}) cannot be read: {why}", self.taken));
                None
            }
        }
    }

    fn stray(&mut self, why: String) {
        self.diverged.get_or_insert(why);
    }

    fn here(&self) -> String {
        match self.lines.front() {
            Some((name, asked, _)) => {
                format!("line {} of the recording is {name} {asked}", self.taken + 1)
            }
            None => "the recording ends here".to_owned(),
        }
    }
}

fn value(asked: &impl Serialize) -> Value {
    serde_json::to_value(asked).unwrap_or(Value::Null)
}

impl Tape {
    /// A new tape of at most so many bytes; `head` writes what stands before the lines, with the
    /// settings in force.
    pub fn record(
        longest: usize,
        settings: Arc<Settings>,
        head: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
    ) -> Self {
        let bytes = Some(Vec::with_capacity(8 * 1024));
        let mut written = Written { bytes, longest, first: true, settings };
        written.write(head);
        Self::Recording(Mutex::new(written))
    }

    /// A recorded tape, with the settings that were in force at its begin.
    pub fn replay(lines: Vec<Line>, settings: Settings) -> Self {
        Self::Replaying(Mutex::new(Read {
            lines: lines.into(),
            taken: 0,
            settings: Arc::new(settings),
            waiting: Vec::new(),
            wanted: None,
            diverged: None,
        }))
    }

    /// The whole document, `tail` written behind the lines.
    pub fn finish(
        &self,
        tail: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
    ) -> Option<Vec<u8>> {
        match self {
            Self::Recording(written) => {
                let mut written = lock(written);
                written.write(tail);
                written.bytes.take()
            }
            Self::Replaying(_) => None,
        }
    }

    /// Notes an answer that is there.
    pub fn note(&self, name: &str, asked: &impl Serialize, answer: &impl Serialize) {
        match self {
            Self::Recording(written) => lock(written).line(name, asked, answer),
            Self::Replaying(_) => {}
        }
    }

    /// A question that is answered at once. `otherwise` is what a replay goes on with after it went
    /// astray, until it is stopped.
    pub fn ask<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        asked: impl Serialize,
        real: Option<T>,
        otherwise: impl FnOnce() -> T,
    ) -> T {
        match (self, real) {
            (Self::Recording(written), Some(answer)) => {
                lock(written).line(name, &asked, &answer);
                answer
            }
            (Self::Recording(_), None) => otherwise(),
            (Self::Replaying(read), _) => {
                let asked = value(&asked);
                let mut read = lock(read);
                read.take(name, &asked).unwrap_or_else(|| {
                    let here = read.here();
                    read.stray(format!("the turn asks {name} {asked}, and {here}"));
                    otherwise()
                })
            }
        }
    }

    /// Something done that has no answer.
    pub fn done(&self, name: &str, asked: impl Serialize) {
        self.ask(name, asked, Some(()), || ());
    }

    /// A question whose answer takes time.
    pub async fn wait<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        asked: impl Serialize,
        real: Option<impl Future<Output = T>>,
    ) -> T {
        if let (Self::Recording(written), Some(real)) = (self, real) {
            let answer = real.await;
            lock(written).line(name, &asked, &answer);
            return answer;
        }
        let asked = value(&asked);
        std::future::poll_fn(|context| self.poll(name, &asked, context.waker())).await
    }

    /// The answer, if everything recorded before it was taken.
    pub fn poll<T: DeserializeOwned>(&self, name: &str, asked: &Value, waker: &Waker) -> Poll<T> {
        let Self::Replaying(read) = self else { return Poll::Pending };
        let mut read = lock(read);
        match read.take(name, asked) {
            Some(answer) => Poll::Ready(answer),
            None => {
                read.wanted = Some(format!("{name} {asked}"));
                read.waiting.push(waker.clone());
                Poll::Pending
            }
        }
    }

    /// The settings in force; `null` on the tape: the same as before.
    pub fn settings(&self, real: Option<Arc<Settings>>) -> Arc<Settings> {
        match self {
            Self::Recording(written) => {
                let mut written = lock(written);
                if let Some(real) = real {
                    let same = Arc::ptr_eq(&written.settings, &real);
                    written.line("configuration.settings", &(), &(!same).then_some(&*real));
                    written.settings = real;
                }
                written.settings.clone()
            }
            Self::Replaying(read) => {
                let mut read = lock(read);
                match read.take::<Option<Settings>>("configuration.settings", &Value::Null) {
                    Some(Some(new)) => read.settings = Arc::new(new),
                    Some(None) => {}
                    None => {
                        let here = read.here();
                        read.stray(format!("the turn asks for the settings, and {here}"));
                    }
                }
                read.settings.clone()
            }
        }
    }

    /// How many lines a replay has taken, and why it cannot go on.
    pub fn progress(&self) -> (usize, Option<String>) {
        match self {
            Self::Recording(_) => (0, None),
            Self::Replaying(read) => {
                let read = lock(read);
                (read.taken, read.diverged.clone())
            }
        }
    }

    /// What a replay waits for that the recording does not have.
    pub fn stuck(&self) -> String {
        match self {
            Self::Recording(_) => String::new(),
            Self::Replaying(read) => {
                let read = lock(read);
                let wanted = read.wanted.clone().unwrap_or_else(|| "nothing".into());
                format!("the turn waits for {wanted}, and {}", read.here())
            }
        }
    }

    /// Lines of the recording that the replay did not ask for.
    pub fn left(&self) -> usize {
        match self {
            Self::Recording(_) => 0,
            Self::Replaying(read) => lock(read).lines.len(),
        }
    }
}
