//! The look of a log line: Python's `%(name)s` formats, filled with what we have. (CFG-088, CFG-089,
//! CFG-114, CFG-406)

use serde_json::Value;
use std::fmt::Write;
use tracing::{Level, Metadata};

/// What one line is made of.
pub struct Record<'a> {
    pub metadata: &'a Metadata<'static>,
    pub time: chrono::DateTime<chrono::Local>,
    /// `%(asctime)s`, already written as `log.dateformat` says.
    pub asctime: &'a str,
    pub message: &'a str,
}

/// Python's names of the levels.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

/// A part of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Name, least width, filled on the right.
    Field(String, usize, bool),
}

/// `%(asctime)s %(levelname)s: %(message)s`, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// What is no field stands as it is; `%%` is one percent sign.
    pub fn new(format: &str) -> Self {
        let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), format);
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some((part, after)) = field(rest) {
                parts.push(Part::Text(std::mem::take(&mut text)));
                parts.push(part);
                rest = after;
            } else {
                text.push('%');
                rest = rest.strip_prefix('%').unwrap_or(rest);
            }
        }
        text.push_str(rest);
        parts.push(Part::Text(text));
        parts.retain(|part| *part != Part::Text(String::new()));
        Self(parts)
    }

    pub fn fill(&self, record: &Record<'_>) -> String {
        let mut line = String::new();
        for part in &self.0 {
            let written = match part {
                Part::Text(text) => line.write_str(text),
                Part::Field(name, width, true) => {
                    write!(line, "{:<width$}", shown(record.value(name)))
                }
                Part::Field(name, width, false) => {
                    write!(line, "{:>width$}", shown(record.value(name)))
                }
            };
            // Writing into a String cannot fail.
            let _ = written;
        }
        line
    }

    /// The fields named in it, in order.
    pub fn names(&self) -> Vec<String> {
        let name = |part: &Part| match part {
            Part::Field(name, _, _) => Some(name.clone()),
            Part::Text(_) => None,
        };
        self.0.iter().filter_map(name).collect()
    }
}

/// `(name)`, flags, width, one conversion letter.
fn field(rest: &str) -> Option<(Part, &str)> {
    let (name, rest) = rest.strip_prefix('(')?.split_once(')')?;
    let conversion = rest.find(|c: char| c.is_ascii_alphabetic())?;
    let (shape, after) = (&rest[..conversion], &rest[conversion + 1..]);
    if !shape.chars().all(|c| c.is_ascii_digit() || "-+ #.".contains(c)) {
        return None;
    }
    let width = shape.trim_start_matches(['-', '+', ' ', '#', '0']).split('.').next();
    let width = width.and_then(|width| width.parse().ok()).unwrap_or(0).min(200);
    Some((Part::Field(name.to_owned(), width, shape.contains('-')), after))
}

fn shown(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

impl Record<'_> {
    /// A field by Python's name; what does not exist here has the nearest equivalent.
    pub fn value(&self, name: &str) -> Value {
        let metadata = self.metadata;
        let millis = self.time.timestamp_millis();
        let last = metadata.target().rsplit("::").next().unwrap_or_default();
        let file = metadata.file().unwrap_or_default();
        let thread = std::thread::current();
        match name {
            "asctime" => self.asctime.into(),
            "created" => (millis as f64 / 1000.0).into(),
            "msecs" => (millis % 1000).into(),
            "relativeCreated" => 0.into(),
            "levelname" => level_name(*metadata.level()).into(),
            "levelno" => match *metadata.level() {
                Level::ERROR => 40.into(),
                Level::WARN => 30.into(),
                Level::INFO => 20.into(),
                Level::DEBUG | Level::TRACE => 10.into(),
            },
            "message" => self.message.into(),
            "name" => metadata.target().into(),
            "module" | "funcName" => last.into(),
            "pathname" => file.into(),
            "filename" => file.rsplit('/').next().unwrap_or_default().into(),
            "lineno" => metadata.line().unwrap_or_default().into(),
            "process" => std::process::id().into(),
            "processName" => "MainProcess".into(),
            "threadName" | "thread" | "taskName" => thread.name().unwrap_or("main").into(),
            _ => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves CFG-088 (the format is taken apart as Python does).
    #[test]
    fn formats_are_taken_apart() {
        let text = |text: &str| Part::Text(text.to_owned());
        let field = |name: &str, width, left| Part::Field(name.to_owned(), width, left);
        for (format, parts) in [
            ("%(message)s", vec![field("message", 0, false)]),
            ("a %(levelname)-8s|", vec![text("a "), field("levelname", 8, true), text("|")]),
            ("%(lineno)5d", vec![field("lineno", 5, false)]),
            ("100%% %(x", vec![text("100% %(x")]),
            ("%", vec![text("%")]),
            ("", vec![]),
        ] {
            assert_eq!(Template::new(format).0, parts, "{format}");
        }
        assert_eq!(Template::new("%(a)s %(b)d").names(), ["a", "b"]);
    }
}
