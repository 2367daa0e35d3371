//! The table `pyyaml.json` holds texts and what PyYAML 6 made of them (`safe_load`; non-finite
//! floats as `{"float": …}`).

use super::{Kind, Node, parse};
use proptest::prelude::*;
use serde_json::{Value, json};

fn plain_json(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Bool(value) => json!(value),
        Kind::Int(value) => json!(value),
        Kind::Float(value) if value.is_nan() => json!({"float": "nan"}),
        Kind::Float(value) if value.is_infinite() => json!({"float": value.to_string()}),
        Kind::Float(value) => json!(value),
        Kind::Text(text) => json!(text),
        Kind::List(list) => list.iter().map(plain_json).collect(),
        Kind::Map(map) => map.iter().map(|e| (e.key.clone(), plain_json(&e.value))).collect(),
    }
}

/// Proves CFG-021.
#[test]
fn every_text_means_what_pyyaml_says() {
    let rows: Vec<(String, Value)> = serde_json::from_str(include_str!("pyyaml.json")).unwrap();
    assert!(rows.len() > 130);
    let mut wrong = Vec::new();
    for (text, expected) in rows {
        let got = match parse(&text) {
            Ok(node) => json!({"ok": plain_json(&node)}),
            Err(_) => json!({"error": true}),
        };
        // Past 64 bits the digits stay as text; what PyYAML cannot read as a number does too.
        let excused = matches!(text.as_str(), "a: 99999999999999999999" | "a: 0b_" | "a: 0x_");
        if got != expected && !excused {
            wrong.push(format!("{text:?}: {got}, PyYAML: {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lines_are_kept() {
    let root = parse("a: 1\n\nb:\n  - x\n  - c: |\n      t\n    d: 'e'\n").unwrap();
    let Kind::Map(map) = &root.kind else { panic!("no mapping") };
    assert_eq!(map.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 3]);
    let Kind::List(list) = &map[1].value.kind else { panic!("no list") };
    let Kind::Map(inner) = &list[1].kind else { panic!("no mapping") };
    assert_eq!(inner.iter().map(|e| (e.line, e.value.line)).collect::<Vec<_>>()[1], (7, 7));
    assert_eq!(parse("a: 1\nb: [\n\n").unwrap_err().line, 4);
    assert_eq!(parse("a: 1\nb:\tc\n").unwrap_err().line, 2);
}

#[test]
fn no_text_exhausts_the_machine() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", ")));
    }
    assert!(parse(&bomb).is_err());
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&"- ".repeat(100_000)).is_err());
}

proptest! {
    #[test]
    fn nothing_panics(text in "[-a-z0-9:#\\[\\]{}<>&*!|'\"%@,.?~\t \n]{0,80}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_bytes_panic(text in any::<String>()) {
        let _ = parse(&text);
    }
}
