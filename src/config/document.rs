//! One configuration document: its values as JSON, and where each came from.

use super::Origin;
use super::yaml::{Kind, Node};
use serde_json::{Map, Number, Value};
use std::collections::HashMap;

/// Values and their origins, merged from any number of sources. Its values hold secrets.
#[derive(Clone, Default)]
pub(super) struct Document {
    pub values: Map<String, Value>,
    pub origins: Origins,
}

/// Path → origin.
#[derive(Clone, Default, PartialEq)]
pub struct Origins {
    known: HashMap<String, Origin>,
    /// Where everything else came from.
    otherwise: Option<Origin>,
}

impl Origins {
    /// Every path has this origin.
    pub fn all_from(origin: Origin) -> Self {
        Self { known: HashMap::new(), otherwise: Some(origin) }
    }

    /// The origin of this path, or of what it lies in.
    pub fn of(&self, path: &str) -> Option<Origin> {
        let mut path = path;
        loop {
            if let Some(origin) = self.known.get(path) {
                return Some(origin.clone());
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return self.otherwise.clone(),
            }
        }
    }

    pub fn set(&mut self, path: &str, origin: Origin) {
        self.known.insert(path.to_owned(), origin);
    }
}

impl Document {
    /// A file's mapping, put over what is here. (CFG-020)
    pub fn merge_file(&mut self, file: &str, root: &Node) {
        let mut over = Map::new();
        if let Value::Object(map) = value_of(root) {
            over = map;
        }
        self.origins.otherwise = Some(Origin::WholeFile(file.to_owned()));
        note_lines(&mut self.origins, file, "", root);
        merge(&mut self.values, over);
    }

    /// One variable's value, put over what is here.
    pub fn set(&mut self, path: &str, value: Value, origin: Origin) {
        self.origins.set(path, origin);
        let mut over = value;
        for key in path.rsplit('.') {
            over = Value::Object(Map::from_iter([(key.to_owned(), over)]));
        }
        if let Value::Object(over) = over {
            merge(&mut self.values, over);
        }
    }
}

/// The rules of files, `PATCH /config` and `edit-config`: mappings merge, null removes, everything
/// else replaces, equal text is no change. True if something changed. (CFG-020)
pub fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(_), Value::Null) => {
                base.shift_remove(&key);
                changed = true;
            }
            (None, Value::Null) => {}
            (Some(Value::Object(under)), Value::Object(value)) => changed |= merge(under, value),
            (Some(old), value) => {
                if !same_text(old, &value) {
                    *old = value;
                    changed = true;
                }
            }
            (None, value) => {
                base.insert(key, value);
                changed = true;
            }
        }
    }
    changed
}

/// Compared by text: `1` is `"1"`. (CFG-020, CFG-026)
fn same_text(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(_) | Value::Array(_), _) | (_, Value::Object(_) | Value::Array(_)) => {
            one == other
        }
        _ => super::python_text(one) == super::python_text(other),
    }
}

/// JSON has no infinity: non-finite numbers become Python's text.
pub(super) fn value_of(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Bool(value) => Value::Bool(*value),
        Kind::Int(value) => Value::Number((*value).into()),
        Kind::Float(value) => match Number::from_f64(*value) {
            Some(number) => Value::Number(number),
            None if value.is_nan() => Value::String("nan".to_owned()),
            None => Value::String(value.to_string()),
        },
        Kind::Text(text) => Value::String(text.clone()),
        Kind::List(list) => Value::Array(list.iter().map(value_of).collect()),
        Kind::Map(map) => {
            Value::Object(map.iter().map(|e| (e.key.clone(), value_of(&e.value))).collect())
        }
    }
}

fn note_lines(origins: &mut Origins, file: &str, path: &str, node: &Node) {
    let mut note = |path: String, line: usize, node: &Node| {
        origins.set(&path, Origin::File { file: file.to_owned(), line });
        note_lines(origins, file, &path, node);
    };
    match &node.kind {
        Kind::Map(map) => {
            for entry in map {
                note(join(path, &entry.key), entry.line, &entry.value);
            }
        }
        Kind::List(list) => {
            for (index, node) in list.iter().enumerate() {
                note(join(path, &index.to_string()), node.line, node);
            }
        }
        Kind::Null | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Text(_) => {}
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Proves CFG-020.
    #[test]
    fn merging() {
        for (base, over, expected, changed) in [
            (json!({"a": 1}), json!({"a": null}), json!({}), true),
            (json!({"a": 1}), json!({"b": null}), json!({"a": 1}), false),
            (json!({"a": 1}), json!({"a": "1"}), json!({"a": 1}), false),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": 3}}),
                json!({"a": {"b": 3, "c": 2}}),
                true,
            ),
            (json!({"a": {"b": 1}}), json!({"a": 5}), json!({"a": 5}), true),
            (json!({"a": 5}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}}), true),
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}), true),
            (json!({"a": {"b": 1}}), json!({"a": {"b": null}}), json!({"a": {}}), true),
        ] {
            let mut got = base.as_object().unwrap().clone();
            let over = over.as_object().unwrap().clone();
            assert_eq!(merge(&mut got, over), changed, "{base}");
            assert_eq!(Value::Object(got), expected, "{base}");
        }
    }
}
