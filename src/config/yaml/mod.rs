//! YAML 1.1 as PyYAML reads it, with the line of every key and value. (CFG-021)
//!
//! The syntax is saphyr-parser's; what a scalar means, anchors, `<<` and duplicate keys are decided
//! here, because a YAML 1.2 loader would change the meaning of files that are in use. What never
//! enters: which keys exist and what they are for.

mod build;
mod scalar;
mod tabs;
#[cfg(test)]
mod tests;

pub(super) use build::parse;
pub(super) use scalar::plain;

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub kind: Kind,
    /// Counted from 1.
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// Keys in the order they appeared first, each with its own line.
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

/// Why a text is no YAML of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: usize,
    pub text: String,
}
