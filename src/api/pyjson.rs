//! JSON as clients of this API have always seen it: one line, `", "` and `": "`, ASCII only.
//! (REST-005)

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io::{self, Write};

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() {
            return CompactFormatter.write_string_fragment(out, fragment);
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                out.write_all(&[c as u8])?;
            } else {
                let mut units = [0_u16; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// A value that cannot be JSON (a map with keys that are no text) gives the empty string; no answer
/// of ours has one.
pub fn text<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::with_capacity(512);
    let mut serializer = Serializer::with_formatter(&mut bytes, Spaced);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Proves REST-005 (the JSON).
    #[test]
    fn one_line_with_blanks_and_ascii_only() {
        let value =
            json!({"b": 1, "a": ["ä\u{1F418}\n", {}, [], null], "c": {"x": 1.5, "y": true}});
        assert_eq!(
            text(&value),
            r#"{"b": 1, "a": ["\u00e4\ud83d\udc18\n", {}, [], null], "c": {"x": 1.5, "y": true}}"#
        );
    }

    proptest::proptest! {
        /// Proves REST-163 (what a PATCH does not name stays as it is): a number keeps its value to the
        /// last bit, however often it is read and written.
        #[test]
        fn numbers_come_back_as_they_were(number in proptest::num::f64::NORMAL) {
            let written = text(&json!({ "x": number }));
            let read: serde_json::Value = serde_json::from_str(&written).expect("JSON");
            proptest::prop_assert_eq!(read["x"].as_f64(), Some(number));
            proptest::prop_assert_eq!(text(&read), written);
        }
    }
}
