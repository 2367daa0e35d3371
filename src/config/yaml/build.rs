//! From parser events to a tree.

use super::{Entry, Fault, Kind, Node, scalar, tabs};
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use std::collections::HashMap;

/// Deeper nesting is refused, so that no input can exhaust the stack.
const MAX_DEPTH: usize = 64;
/// Values after all aliases are written out; more is refused, so that no input can exhaust memory.
const MAX_NODES: usize = 200_000;

/// One document. Empty text is null.
pub(in crate::config) fn parse(text: &str) -> Result<Node, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    let mut verbatim = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| scan_fault(text, &error))?;
        if let Event::Scalar(_, style, _, _) = &event
            && *style != ScalarStyle::Plain
        {
            verbatim.push((span.start.index(), span.end.index()));
        }
        builder.event(event, span.start.line().max(1))?;
    }
    tabs::refuse(text, &verbatim)?;
    Ok(builder.root.unwrap_or(Node { kind: Kind::Null, line: 1 }))
}

/// The scanner's own words, and the cause people look for longest.
fn scan_fault(text: &str, error: &saphyr_parser::ScanError) -> Fault {
    let line = error.marker().line().max(1);
    let tab = text.lines().nth(line - 1).is_some_and(|line| line.contains('\t'));
    let hint = if tab { " (there is a tab in this line: use blanks)" } else { "" };
    Fault { line, text: format!("{}{hint}", error.info()) }
}

/// A collection that is still open.
struct Open {
    line: usize,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { own: Vec<Entry>, merged: Vec<Entry>, key: Option<Key> },
}

enum Key {
    Name(String, usize),
    /// A plain `<<`.
    Merge,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Fault> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                fault(line, "a second document begins here; one is expected: remove the `---`")
            }
            Event::DocumentStart(_) => Ok(()),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => {
                    let node = node.clone();
                    self.count(size(&node), line)?;
                    self.add(node, false, line)
                }
                None => fault(line, "an alias refers to a value that contains it"),
            },
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let merge = plain && text == "<<";
                let kind = resolve(&text, plain, tag.as_deref(), line)?;
                let node = Node { kind, line };
                self.count(1, line)?;
                if anchor != 0 {
                    self.anchors.insert(anchor, node.clone());
                }
                self.add(node, merge, line)
            }
            Event::SequenceStart(anchor, _) => {
                self.push(Open { line, anchor, kind: OpenKind::List(Vec::new()) })
            }
            Event::MappingStart(anchor, _) => {
                let kind = OpenKind::Map { own: Vec::new(), merged: Vec::new(), key: None };
                self.push(Open { line, anchor, kind })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.close(open),
                None => fault(line, "a collection ends that never began"),
            },
        }
    }

    fn push(&mut self, open: Open) -> Result<(), Fault> {
        let line = open.line;
        if self.open.len() >= MAX_DEPTH {
            return fault(line, "nested too deeply");
        }
        if let Some(Open { kind: OpenKind::Map { key: None, .. }, .. }) = self.open.last() {
            return fault(line, "a list or mapping stands where a key is expected");
        }
        self.count(1, line)?;
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self, open: Open) -> Result<(), Fault> {
        let kind = match open.kind {
            OpenKind::List(list) => Kind::List(list),
            OpenKind::Map { own, merged, .. } => Kind::Map(last_wins(merged, own)),
        };
        let node = Node { kind, line: open.line };
        if open.anchor != 0 {
            self.anchors.insert(open.anchor, node.clone());
        }
        self.add(node, false, open.line)
    }

    /// Puts a finished value where it belongs: a list's next entry, a key, a key's value, the root.
    fn add(&mut self, node: Node, is_merge_key: bool, line: usize) -> Result<(), Fault> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(list)) => list.push(node),
            Some(OpenKind::Map { own, merged, key }) => match key.take() {
                None if is_merge_key => *key = Some(Key::Merge),
                None => *key = Some(Key::Name(key_text(node, line)?, line)),
                Some(Key::Name(key, line)) => own.push(Entry { key, line, value: node }),
                Some(Key::Merge) => merged.extend(merge_source(node)?),
            },
        }
        Ok(())
    }

    fn count(&mut self, more: usize, line: usize) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(more);
        if self.nodes > MAX_NODES {
            return fault(line, "too many values (aliases are counted written out)");
        }
        Ok(())
    }
}

fn fault<T>(line: usize, text: &str) -> Result<T, Fault> {
    Err(Fault { line, text: text.to_owned() })
}

fn size(node: &Node) -> usize {
    match &node.kind {
        Kind::List(list) => 1 + list.iter().map(size).sum::<usize>(),
        Kind::Map(map) => 1 + map.iter().map(|entry| size(&entry.value)).sum::<usize>(),
        Kind::Null | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Text(_) => 1,
    }
}

/// Duplicate keys keep their first place and their last value; own keys win over merged ones.
fn last_wins(merged: Vec<Entry>, own: Vec<Entry>) -> Vec<Entry> {
    let mut map: Vec<Entry> = Vec::with_capacity(merged.len() + own.len());
    let mut places: HashMap<String, usize> = HashMap::new();
    for entry in merged.into_iter().chain(own) {
        match places.get(&entry.key) {
            Some(place) => map[*place] = entry,
            None => {
                places.insert(entry.key.clone(), map.len());
                map.push(entry);
            }
        }
    }
    map
}

/// What `<<` brings in: a mapping, or a list of mappings of which the first wins.
fn merge_source(node: Node) -> Result<Vec<Entry>, Fault> {
    let line = node.line;
    match node.kind {
        Kind::Map(map) => Ok(map),
        Kind::List(list) => {
            let mut entries = Vec::new();
            for node in list.into_iter().rev() {
                match node.kind {
                    Kind::Map(map) => entries.extend(map),
                    _ => return fault(node.line, "`<<` takes a mapping or a list of mappings"),
                }
            }
            Ok(entries)
        }
        Kind::Null | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Text(_) => {
            fault(line, "`<<` takes a mapping or a list of mappings")
        }
    }
}

/// A key as text; `on:` is the key `true`, as it would be in JSON.
fn key_text(node: Node, line: usize) -> Result<String, Fault> {
    match node.kind {
        Kind::Text(text) => Ok(text),
        Kind::Null => Ok("null".to_owned()),
        Kind::Bool(value) => Ok(value.to_string()),
        Kind::Int(value) => Ok(value.to_string()),
        Kind::Float(value) => Ok(value.to_string()),
        Kind::List(_) | Kind::Map(_) => {
            fault(line, "a list or mapping stands where a key is expected")
        }
    }
}

fn resolve(text: &str, plain: bool, tag: Option<&Tag>, line: usize) -> Result<Kind, Fault> {
    let Some(tag) = tag else {
        return Ok(if plain { scalar::plain(text) } else { Kind::Text(text.to_owned()) });
    };
    let own = || Kind::Text(text.to_owned());
    if !tag.is_yaml_core_schema() {
        // A lone `!` says "not plain".
        if tag.handle.is_empty() && tag.suffix == "!" || tag.handle == "!" && tag.suffix.is_empty()
        {
            return Ok(own());
        }
        return fault(line, &format!("the tag {tag} is not understood: remove it"));
    }
    let kind = match tag.suffix.as_str() {
        "str" | "timestamp" => Some(own()),
        "null" => Some(Kind::Null),
        "int" => scalar::int(text),
        "float" => scalar::float(text).or_else(|| text.parse().ok().map(Kind::Float)),
        "bool" => match text.to_ascii_lowercase().as_str() {
            "yes" | "true" | "on" => Some(Kind::Bool(true)),
            "no" | "false" | "off" => Some(Kind::Bool(false)),
            _ => None,
        },
        _ => return fault(line, &format!("the tag !!{} is not understood", tag.suffix)),
    };
    match kind {
        Some(kind) => Ok(kind),
        None => fault(line, &format!("the value does not fit its tag !!{}", tag.suffix)),
    }
}
