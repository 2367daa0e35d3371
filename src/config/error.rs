//! What is wrong with a configuration, said in one line.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// File and line, counted from 1.
    File { file: String, line: usize },
    /// The file that should have said it, and did not.
    WholeFile(String),
    /// The variable's name.
    Environment(String),
    /// The `/config` document of the store.
    Dynamic,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::WholeFile(name) | Self::Environment(name) => f.write_str(name),
            Self::Dynamic => f.write_str("dynamic configuration"),
        }
    }
}

/// One thing that was understood differently from how it was meant, or not at all; the agent goes
/// on. Log it once, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub Problem);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `ORIGIN: path.to.key: what was wrong, what was expected, what to do`. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Option<Origin>,
    /// Dotted; empty for the document as a whole.
    pub path: String,
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.text)
    }
}

/// The configuration cannot be used. At start: show it and exit with 1 (CFG-469). For a dynamic
/// document: log it once and keep the old settings (CFG-038).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// Never empty; one line each.
    pub problems: Vec<Problem>,
}
