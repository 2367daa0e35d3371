//! Child processes that have an owner. (PG-091, PG-461)
//!
//! Each runs in a process group of its own. When its future ends early (cancelled, out of time,
//! dropped) the whole group gets SIGTERM, and SIGKILL ten seconds later. What it prints goes to the
//! log line by line; the last lines come back with the error.

use crate::ha::ports::PgError;
use hathi_dcs::{Deadline, boottime};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// How long a child may take to end after SIGTERM. (PG-091)
const GRACE: Duration = Duration::from_secs(10);
/// Lines kept for the error.
const LAST_LINES: usize = 12;
/// A line longer than this is cut; a tool that prints no line breaks must not fill the memory.
const LINE_LIMIT: usize = 4096;
/// All of standard output that is kept for callers that read it.
const OUTPUT_LIMIT: usize = 4 << 20;

/// The switch that ends every long effect.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    pub fn set(&self, cancelled: bool) {
        self.0.send_replace(cancelled);
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    pub fn check(&self) -> Result<(), PgError> {
        if self.is_set() { Err(PgError::Cancelled) } else { Ok(()) }
    }

    /// Ends when the switch is set.
    pub async fn wait(&self) {
        let mut seen = self.0.subscribe();
        // The sender lives as long as we do.
        let _ = seen.wait_for(|cancelled| *cancelled).await;
    }
}

/// How a child ended that ran to its end.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    /// The last lines of standard error and output.
    pub last_lines: String,
}

/// What a child is given and how long.
pub struct Run<'a> {
    /// The name of the effect in errors and logs.
    pub what: &'static str,
    pub stdin: Option<&'a [u8]>,
    pub cancel: Option<&'a Cancel>,
    pub by: Option<Deadline>,
    /// Prints each line to the log. Off for tools whose output is read.
    pub log_output: bool,
}

impl<'a> Run<'a> {
    pub fn new(what: &'static str) -> Self {
        Self { what, stdin: None, cancel: None, by: None, log_output: true }
    }

    pub fn cancel(self, cancel: &'a Cancel) -> Self {
        Self { cancel: Some(cancel), ..self }
    }

    pub fn by(self, by: Deadline) -> Self {
        Self { by: Some(by), ..self }
    }

    pub fn quiet(self) -> Self {
        Self { log_output: false, ..self }
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// Not startable, cancelled, or out of time; in the last two cases it is being ended.
    pub async fn ended(self, mut command: Command) -> Result<Ended, PgError> {
        let what = self.what;
        let failed = |why: String| PgError::Failed { what, why };
        if let Some(cancel) = self.cancel {
            cancel.check()?;
        }
        let began = boottime();
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child =
            command.spawn().map_err(|why| failed(format!("cannot start {program}: {why}")))?;
        let input = child.stdin.take();
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let output = Arc::new(Mutex::new(String::new()));
        let log = self.log_output.then_some(what);
        let keep = (!self.log_output).then(|| output.clone());
        let readers = [
            child.stdout.take().map(|pipe| tokio::spawn(read(pipe, log, lines.clone(), keep))),
            child.stderr.take().map(|pipe| tokio::spawn(read(pipe, log, lines.clone(), None))),
        ];
        let mut owner = Owner(Some(child));
        let work = async {
            if let (Some(mut pipe), Some(bytes)) = (input, self.stdin) {
                // A child that does not read is judged by its exit code.
                let _ = pipe.write_all(bytes).await;
            }
            owner.wait().await
        };
        let cancelled = async {
            match self.cancel {
                Some(cancel) => cancel.wait().await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match self.by {
                Some(by) => tokio::time::sleep(by.left()).await,
                None => std::future::pending().await,
            }
        };
        let status = tokio::select! {
            status = work => status.map_err(|why| failed(why.to_string()))?,
            () = cancelled => return Err(PgError::Cancelled),
            () = late => return Err(PgError::TimedOut { what, waited_ms: boottime().since(began) }),
        };
        owner.0 = None;
        for mut reader in readers.into_iter().flatten() {
            // A grandchild may hold the pipe open for ever; its output is not ours.
            if tokio::time::timeout(Duration::from_millis(200), &mut reader).await.is_err() {
                reader.abort();
            }
        }
        let last = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let last_lines = last.iter().cloned().collect::<Vec<_>>().join("\n");
        let stdout = std::mem::take(&mut *output.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Ended { status, stdout, last_lines })
    }

    /// Runs it; anything but exit code 0 is an error with its last lines.
    pub async fn success(self, command: Command) -> Result<Ended, PgError> {
        let what = self.what;
        let ended = self.ended(command).await?;
        if ended.status.success() {
            return Ok(ended);
        }
        let why = if ended.last_lines.is_empty() {
            ended.status.to_string()
        } else {
            format!("{}: {}", ended.status, ended.last_lines)
        };
        Err(PgError::Failed { what, why })
    }
}

async fn read(
    pipe: impl AsyncRead + Unpin,
    log: Option<&'static str>,
    last: Arc<Mutex<VecDeque<String>>>,
    keep: Option<Arc<Mutex<String>>>,
) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        loop {
            let (taken, done) = match reader.fill_buf().await {
                Ok([]) | Err(_) => (0, true),
                Ok(bytes) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                    let taken = end.unwrap_or(bytes.len());
                    let room = LINE_LIMIT.saturating_sub(line.len()).min(taken);
                    line.extend_from_slice(bytes.get(..room).unwrap_or_default());
                    (taken, end.is_some())
                }
            };
            reader.consume(taken);
            if taken == 0 && line.is_empty() {
                return;
            }
            if done {
                break;
            }
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        if let Some(keep) = &keep {
            let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < OUTPUT_LIMIT {
                kept.push_str(text);
                kept.push('\n');
            }
        }
        if let Some(what) = log {
            tracing::info!(target: "hathi::postgres", "{what}: {text}");
        }
        let mut lines = last.lock().unwrap_or_else(PoisonError::into_inner);
        if !text.trim().is_empty() {
            lines.push_back(text.to_owned());
        }
        while lines.len() > LAST_LINES {
            lines.pop_front();
        }
    }
}

/// Ends the group of a child that nobody waits for any more.
struct Owner(Option<Child>);

impl Owner {
    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        match &mut self.0 {
            Some(child) => child.wait().await,
            None => Err(std::io::Error::other("the child was waited for already")),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let Some(group) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
        // ESRCH: it has ended meanwhile.
        let _ = kill_process_group(group, Signal::TERM);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                    let _ = kill_process_group(group, Signal::KILL);
                    let _ = child.wait().await;
                }
            });
        } else {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// A command line split like a POSIX shell does it, without running one.
pub fn command_line(what: &'static str, text: &str) -> Result<Command, PgError> {
    let failed = |why: String| PgError::Failed { what, why };
    let words = shell_words::split(text).map_err(|why| failed(format!("{text:?}: {why}")))?;
    let (program, arguments) =
        words.split_first().ok_or_else(|| failed("the command is empty".into()))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_come_with_the_error() {
        let command = command_line("script", "sh -c 'echo one; echo two >&2; exit 3'").unwrap();
        let error = Run::new("script").success(command).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("one") && text.contains("two") && text.contains('3'), "{text}");
        let missing = command_line("script", "/no/such/program x").unwrap();
        let text = Run::new("script").success(missing).await.unwrap_err().to_string();
        assert!(text.contains("/no/such/program"), "{text}");
    }

    /// Proves PG-091, PG-094: a cancelled child and its children are gone.
    #[tokio::test]
    async fn cancelling_ends_the_whole_group() {
        let cancel = Cancel::default();
        let command = command_line("script", "sh -c 'sleep 600 & echo $!; wait'").unwrap();
        let (sender, mut seen) = tokio::sync::mpsc::channel::<i32>(1);
        let switch = cancel.clone();
        let run = tokio::spawn(async move {
            let _keep = sender;
            Run::new("script").cancel(&switch).ended(command).await
        });
        // The child's pid is not known here; look for the sleep among our descendants.
        let me = std::process::id().cast_signed();
        let find = || {
            crate::postgres::process::descendants(me)
                .into_iter()
                .find(|id| crate::postgres::process::title(id.pid) == "sleep 600")
        };
        let sleeper = loop {
            if let Some(id) = find() {
                break id;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        cancel.set(true);
        assert_eq!(run.await.unwrap().unwrap_err(), PgError::Cancelled);
        assert!(seen.recv().await.is_none());
        let by = Deadline::in_ms(5000);
        while sleeper.alive().is_some() {
            assert!(!by.left().is_zero(), "the grandchild is still alive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = command_line("script", "true").unwrap();
        let error = Run::new("script").cancel(&cancel).ended(refused).await.unwrap_err();
        assert_eq!(error, PgError::Cancelled);
    }

    #[tokio::test]
    async fn a_child_has_a_deadline() {
        let command = command_line("script", "sleep 600").unwrap();
        let run = Run::new("script").by(Deadline::in_ms(30)).ended(command);
        let error = run.await.unwrap_err();
        assert!(matches!(error, PgError::TimedOut { what: "script", .. }), "{error}");
    }
}
