//! Where log lines go and how they look: Patroni's plain form, or JSON; stderr, or a file that is
//! rotated. (CFG-085 … CFG-096)

use super::log_format::{Record, Template};
use crate::config::{Log, LogType};
use serde_json::{Map, Value};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging for this process.
///
/// # Errors
/// The log file cannot be opened, or logging was started before.
pub fn start(log: &Log) -> io::Result<()> {
    let sink = match &log.dir {
        Some(dir) => Sink::File(Arc::new(Mutex::new(Rotated::open(dir.clone(), log)?))),
        None => Sink::Stderr,
    };
    let form = Form::new(log);
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(false).event_format(form).with_writer(sink);
    tracing_subscriber::registry()
        .with(layer)
        .with(targets(log))
        .try_init()
        .map_err(io::Error::other)
}

/// Our own rooms at `log.level`; libraries only when they warn; `log.loggers` over both. (CFG-404)
fn targets(log: &Log) -> Targets {
    let level = LevelFilter::from_level(log.level);
    let mut targets = Targets::new().with_default(level.min(LevelFilter::WARN));
    for room in ["hathi", "hathi_dcs", "hathi_raft", "hathi_etcd"] {
        targets = targets.with_target(room, level);
    }
    // It reports every attempt at a member that is down as an error; hathi_raft says it once.
    targets = targets.with_target("openraft", LevelFilter::OFF);
    for (name, level) in &log.loggers {
        targets = targets.with_target(target(name), LevelFilter::from_level(*level));
    }
    targets
}

/// Python's logger names → our modules, by prefix. Unknown names stay.
fn target(name: &str) -> String {
    for (python, ours) in [
        ("patroni.postgresql", "hathi::postgres"),
        ("patroni.dcs.etcd3", "hathi_etcd"),
        ("patroni.dcs.raft", "hathi_raft"),
        ("patroni.dcs", "hathi_dcs"),
        ("patroni.api", "hathi::api"),
        ("patroni.config", "hathi::config"),
        ("patroni.watchdog", "hathi::agent"),
        ("patroni", "hathi"),
        ("urllib3", "hyper"),
    ] {
        let rest = name.strip_prefix(python);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            return ours.to_owned();
        }
    }
    name.to_owned()
}

#[derive(Clone)]
enum Sink {
    Stderr,
    File(Arc<Mutex<Rotated>>),
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => io::stderr().write(bytes),
            Self::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().flush(),
            Self::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).file.flush(),
        }
    }
}

/// `patroni.log`, `patroni.log.1` … (CFG-092, CFG-093, CFG-094)
struct Rotated {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
    keep: u32,
    mode: u32,
}

impl Rotated {
    fn open(dir: PathBuf, log: &Log) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("patroni.log");
        let mode = log.mode.unwrap_or(0o666);
        let file = append(&path, mode)?;
        let written = file.metadata()?.len();
        Ok(Self { path, file, written, limit: log.file_size, keep: log.file_num, mode })
    }

    /// Whole lines only: the formatter hands over one line a call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let length = line.len() as u64;
        if self.written > 0 && self.written + length > self.limit && self.keep > 0 {
            // A rotation that fails costs size, never lines.
            if let Err(error) = self.rotate() {
                eprintln!("{}: cannot be rotated: {error}", self.path.display());
            }
        }
        self.file.write_all(line)?;
        self.written += length;
        Ok(line.len())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let old = |n: u32| self.path.with_extension(format!("log.{n}"));
        for n in (1..self.keep).rev() {
            if old(n).exists() {
                std::fs::rename(old(n), old(n + 1))?;
            }
        }
        std::fs::rename(&self.path, old(1))?;
        self.file = append(&self.path, self.mode)?;
        self.written = 0;
        Ok(())
    }
}

fn append(path: &std::path::Path, mode: u32) -> io::Result<File> {
    File::options().append(true).create(true).mode(mode).open(path)
}

/// How a line looks.
struct Form {
    kind: LogType,
    template: Template,
    /// Field → its name in a JSON line.
    fields: Vec<(String, String)>,
    dateformat: String,
    static_fields: Map<String, Value>,
}

impl Form {
    fn new(log: &Log) -> Self {
        let template = Template::new(&log.format);
        let named = template.names().into_iter().map(|name| (name.clone(), name));
        let fields = if log.fields.is_empty() { named.collect() } else { log.fields.clone() };
        let dateformat = log.dateformat.as_deref().unwrap_or("%Y-%m-%d %H:%M:%S,%3f").to_owned();
        let static_fields = log.static_fields.clone();
        Self { kind: log.kind, template, fields, dateformat, static_fields }
    }
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = chrono::Local::now();
        let mut asctime = String::new();
        write!(asctime, "{}", time.format(&self.dateformat))?;
        let metadata = event.metadata();
        match self.kind {
            LogType::Plain => {
                let mut message = String::new();
                context.field_format().format_fields(Writer::new(&mut message), event)?;
                let record = Record { metadata, time, asctime: &asctime, message: &message };
                writer.write_str(&self.template.fill(&record))?;
            }
            LogType::Json => {
                let mut own = Map::new();
                event.record(&mut Fields(&mut own));
                let message = own.shift_remove("message").unwrap_or_default();
                let message = message.as_str().unwrap_or_default();
                let record = Record { metadata, time, asctime: &asctime, message };
                let fields = self.fields.iter();
                let mut line: Map<String, Value> =
                    fields.map(|(name, to)| (to.clone(), record.value(name))).collect();
                line.extend(own);
                line.extend(self.static_fields.clone());
                write!(writer, "{}", Value::Object(line))?;
            }
        }
        writeln!(writer)
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    fn logged(log: &Log, work: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = Rotated::open(dir.path().to_owned(), log).unwrap();
        let form = Form::new(log);
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(form)
            .with_writer(Sink::File(Arc::new(Mutex::new(file))));
        let subscriber = tracing_subscriber::registry().with(layer).with(targets(log));
        tracing::subscriber::with_default(subscriber, work);
        std::fs::read_to_string(dir.path().join("patroni.log")).unwrap()
    }

    /// Proves CFG-085, CFG-086, CFG-088, CFG-089, CFG-090, CFG-095.
    #[test]
    fn lines_look_like_patronis() {
        let text = logged(&Log::default(), || {
            tracing::warn!(lag = 5, "no action. I am ({})", "a");
            tracing::debug!("not at this level");
            tracing::info!(target: "openraft::core", "a library that chatters");
        });
        let (time, rest) = text.split_at(23);
        assert!(chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S,%3f").is_ok());
        assert_eq!(rest, " WARNING: no action. I am (a) lag=5\n");

        let log = Log {
            format: "%(levelname)-8s[%(module)s] %(message)s".into(),
            dateformat: Some("%H".into()),
            ..Log::default()
        };
        let text = logged(&log, || tracing::error!("ends"));
        assert_eq!(text, "ERROR   [tests] ends\n");

        let mut log = Log { kind: LogType::Json, ..Log::default() };
        log.static_fields.insert("app".into(), "x".into());
        log.loggers = vec![("patroni.postgresql".into(), Level::ERROR)];
        let text = logged(&log, || {
            tracing::info!(target: "hathi::postgres::start", "hidden");
            tracing::info!(lag = 5, "shown");
        });
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["message"], &line["lag"]), (&"shown".into(), &5.into()));
        assert_eq!((&line["levelname"], &line["app"]), (&"INFO".into(), &"x".into()));
        assert!(line["asctime"].is_string());
        log.fields = vec![("message".into(), "msg".into())];
        let text = logged(&log, || tracing::info!("renamed"));
        assert_eq!(text, "{\"msg\":\"renamed\",\"app\":\"x\"}\n");
    }

    /// Proves CFG-093.
    #[test]
    fn files_are_rotated_and_limited() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log { file_size: 10, file_num: 2, ..Log::default() };
        let mut file = Rotated::open(dir.path().to_owned(), &log).unwrap();
        for n in 0..5 {
            file.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("patroni.log"), "line 4\n");
        assert_eq!(read("patroni.log.1"), "line 3\n");
        assert_eq!(read("patroni.log.2"), "line 2\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
