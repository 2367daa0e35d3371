//! A document as YAML that every YAML loader reads back the same. (CFG-121 `--print`)

use super::yaml::{Kind, plain};
use serde_json::{Map, Value};

/// Block style, keys in the order they have; text is quoted where it would mean something else.
pub fn to_yaml(document: &Map<String, Value>) -> String {
    let mut out = String::new();
    mapping(&mut out, document, 0);
    out
}

fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        out.push_str(&" ".repeat(indent));
        out.push_str(&text(key));
        out.push(':');
        child(out, value, indent);
    }
}

fn child(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            mapping(out, map, indent + 2);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push('\n');
            for item in list {
                out.push_str(&" ".repeat(indent));
                out.push('-');
                child(out, item, indent + 2);
            }
        }
        Value::String(string) => {
            out.push(' ');
            out.push_str(&text(string));
            out.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Array(_) => {
            out.push(' ');
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}

fn text(text: &str) -> String {
    let simple = |c: char| c.is_ascii_alphanumeric() || "_-./%()+=@".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '_');
    let same = matches!(plain(text), Kind::Text(_));
    let date = text.starts_with(|c: char| c.is_ascii_digit());
    if starts && same && !date && text.chars().all(simple) {
        text.to_owned()
    } else {
        // A JSON string is a double-quoted YAML scalar.
        Value::String(text.to_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::value_of;
    use super::super::yaml::parse;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read_back(document: &Value) -> Value {
        let text = to_yaml(document.as_object().unwrap());
        value_of(&parse(&text).unwrap_or_else(|fault| panic!("{fault:?} in\n{text}")))
    }

    #[test]
    fn what_is_written_reads_back() {
        let document = json!({
            "a": "on", "b": true, "c": "12:30", "d": ["x: y", ["n"], {"k": 1, "l": [2]}], "e": {},
            "f": [], "g": null, "h": 1.5, "i": "", "2021-01-01": "a # b", "j": "l1\nl2\t", "k": "é"
        });
        assert_eq!(read_back(&document), document);
    }

    proptest! {
        #[test]
        fn any_text_reads_back(key in "[ -~]{1,12}", text in "[ -~\n\t]{0,20}") {
            prop_assume!(key != "<<");
            let document = json!({key: text});
            prop_assert_eq!(read_back(&document), document);
        }
    }
}
