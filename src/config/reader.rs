//! Walks a document and collects, with its path and origin, everything that is wrong with it.

use super::document::{Origins, join};
use super::{
    Address, BaseUnit, ConfigError, Listen, Problem, Secret, Warning, boolean, integer, python_text,
};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::path::PathBuf;

/// What was found while reading one document.
pub(super) struct Findings<'a> {
    origins: &'a Origins,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> Findings<'a> {
    pub fn new(origins: &'a Origins) -> Self {
        Self { origins, problems: RefCell::default(), warnings: RefCell::default() }
    }

    fn problem(&self, path: &str, text: String) -> Problem {
        Problem { origin: self.origins.of(path), path: path.to_owned(), text }
    }

    pub fn fail(&self, path: &str, text: impl Into<String>) {
        let problem = self.problem(path, text.into());
        self.problems.borrow_mut().push(problem);
    }

    pub fn warn(&self, path: &str, text: impl Into<String>) {
        let warning = Warning(self.problem(path, text.into()));
        let mut warnings = self.warnings.borrow_mut();
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// The value if no problem was found.
    pub fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Warning>), ConfigError> {
        let mut problems = self.problems.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok((value, self.warnings.into_inner())),
            Some(_) | None => {
                if problems.is_empty() {
                    let text = "the configuration cannot be used".to_owned();
                    problems.push(Problem { origin: None, path: String::new(), text });
                }
                Err(ConfigError { problems })
            }
        }
    }
}

/// A place in the document, there or not. Null counts as not there.
#[derive(Clone)]
pub(super) struct Reader<'a> {
    findings: &'a Findings<'a>,
    value: Option<&'a Value>,
    path: String,
}

impl<'a> Reader<'a> {
    pub fn root(findings: &'a Findings<'a>, values: &'a Value) -> Self {
        Self { findings, value: Some(values), path: String::new() }
    }

    /// A value that stands at `path` of the document.
    pub fn at(findings: &'a Findings<'a>, path: &str, value: &'a Value) -> Self {
        Self { findings, value: Some(value), path: path.to_owned() }
    }

    pub fn get(&self, key: &str) -> Self {
        let value = match self.value {
            Some(Value::Object(map)) => map.get(key).filter(|value| !value.is_null()),
            _ => None,
        };
        Self { findings: self.findings, value, path: join(&self.path, key) }
    }

    /// The first of the names that is there; the first name if none is.
    pub fn first(&self, keys: &[&str]) -> Self {
        let found = keys.iter().map(|key| self.get(key)).find(Self::is_there);
        found.unwrap_or_else(|| self.get(keys.first().copied().unwrap_or_default()))
    }

    pub fn is_there(&self) -> bool {
        self.value.is_some()
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn raw(&self) -> Option<&'a Value> {
        self.value
    }

    pub fn fail(&self, text: impl Into<String>) {
        self.findings.fail(&self.path, text);
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.findings.warn(&self.path, text);
    }

    /// A mapping; an empty one if it is not there.
    pub fn map(&self) -> Map<String, Value> {
        match self.value {
            Some(Value::Object(map)) => map.clone(),
            Some(other) => {
                self.fail(format!("is {}, a mapping is expected", kind(other)));
                Map::new()
            }
            None => Map::new(),
        }
    }

    /// There and a mapping; anything else that is there is a problem.
    pub fn is_map(&self) -> bool {
        match self.value {
            Some(Value::Object(_)) => true,
            Some(_) => {
                self.map();
                false
            }
            None => false,
        }
    }

    /// The entries of a mapping, nulls left out.
    pub fn entries(&self) -> Vec<(String, Self)> {
        let map = self.map();
        map.keys().map(|key| (key.clone(), self.get(key))).filter(|(_, r)| r.is_there()).collect()
    }

    /// The items of a list; a single scalar is a list of one.
    pub fn items(&self) -> Vec<Self> {
        match self.value {
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(index, value)| Self {
                    findings: self.findings,
                    value: Some(value),
                    path: join(&self.path, &index.to_string()),
                })
                .collect(),
            Some(Value::Object(_)) => {
                self.fail("is a mapping, a list is expected");
                Vec::new()
            }
            Some(_) => vec![self.clone()],
            None => Vec::new(),
        }
    }

    /// A scalar as text. Empty text counts as not there.
    pub fn text(&self) -> Option<String> {
        match self.value? {
            Value::Null => None,
            value @ (Value::Array(_) | Value::Object(_)) => {
                self.fail(format!("is {}, text is expected", kind(value)));
                None
            }
            scalar => Some(python_text(scalar)).filter(|text| !text.is_empty()),
        }
    }

    pub fn required(&self) -> Option<String> {
        if !self.is_there() {
            self.fail("is not defined; add it");
            return None;
        }
        let text = self.text();
        if text.is_none() && matches!(self.value, Some(Value::String(_))) {
            self.fail("is empty; give it a value");
        }
        text
    }

    pub fn secret(&self) -> Option<Secret> {
        self.text().map(Secret::new)
    }

    pub fn file(&self) -> Option<PathBuf> {
        self.text().map(PathBuf::from)
    }

    /// A command line. It must be possible to split it into words.
    pub fn command(&self) -> Option<String> {
        let text = self.text()?;
        if shell_words::split(&text).map_or(true, |words| words.is_empty()) {
            self.fail("is no command line (check its quotes)");
            return None;
        }
        Some(text)
    }

    /// A list of texts; a single text is split at commas.
    pub fn texts(&self) -> Vec<String> {
        match self.value {
            Some(Value::String(text)) => {
                text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(String::from).collect()
            }
            _ => self.items().iter().filter_map(Self::text).collect(),
        }
    }

    /// A list of whole lines.
    pub fn lines(&self) -> Vec<String> {
        self.items().iter().filter_map(Self::text).collect()
    }

    /// A parsed boolean; what is none is reported and counts as not there. (CFG-024, CFG-470)
    pub fn boolean(&self) -> Option<bool> {
        let value = self.value?;
        let parsed = boolean(value);
        if parsed.is_none() {
            self.warn(format!("is {}, true or false is expected; ignored", shown(value)));
        }
        parsed
    }

    pub fn flag(&self) -> bool {
        self.boolean().unwrap_or(false)
    }

    /// An integer; what is none, or below `min`, is reported and counts as not there.
    pub fn integer(&self, base: BaseUnit, min: i64) -> Option<i64> {
        let value = self.value?;
        match integer(value, base) {
            Some(number) if number >= min => Some(number),
            Some(_) => {
                self.warn(format!("is {}, at least {min} is expected; ignored", shown(value)));
                None
            }
            None => {
                let units = match base {
                    BaseUnit::None => " without a unit",
                    BaseUnit::Bytes | BaseUnit::Megabytes | BaseUnit::Seconds => "",
                };
                let text = format!("is {}, a whole number{units} is expected", shown(value));
                self.warn(format!("{text}; ignored, the default is used"));
                None
            }
        }
    }

    /// Seconds, fractions allowed, as milliseconds; what is none is reported and not there.
    pub fn milliseconds(&self) -> Option<u64> {
        let value = self.value?;
        let seconds = python_text(value).trim().parse::<f64>().ok();
        let valid = seconds.filter(|seconds| seconds.is_finite() && (0.001..1e6).contains(seconds));
        if valid.is_none() {
            self.warn(format!("is {}, seconds are expected; ignored", shown(value)));
        }
        valid.map(|seconds| (seconds * 1000.0) as u64)
    }

    pub fn integer_u32(&self, default: u32) -> u32 {
        let value = self.integer(BaseUnit::None, 0);
        value.map_or(default, |value| u32::try_from(value).unwrap_or(u32::MAX))
    }

    pub fn address(&self, default_port: Option<u16>) -> Option<Address> {
        let text = self.text()?;
        let address = Address::parse(&text, default_port);
        if address.is_none() {
            self.fail(format!("is {text:?}, host:port is expected"));
        }
        address
    }

    pub fn listen(&self, default_port: Option<u16>) -> Option<Listen> {
        let text = self.required()?;
        let listen = Listen::parse(&text, default_port);
        if listen.is_none() {
            self.fail(format!("is {text:?}, host:port is expected (`*:port` for all addresses)"));
        }
        listen
    }

    /// One of a few words, any case; anything else is reported and counts as not there.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let value = self.value?;
        let text = match value {
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            other => python_text(other).to_lowercase(),
        };
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text));
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let known = known.join(", ");
            self.warn(format!("is {}, one of {known} is expected; ignored", shown(value)));
        }
        found.map(|(_, value)| *value)
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// A value as a message may show it. Only for values that are no secrets.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => python_text(other),
    }
}
