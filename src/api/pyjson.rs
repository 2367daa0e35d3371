//! JSON as clients of this API have always seen it: one line, `", "` and `": "`, ASCII only.
//! (REST-005)

use hathi_dcs::json::{write_ascii, written};
use serde::Serialize;
use serde_json::ser::Formatter;
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
        write_ascii(out, fragment)
    }
}

pub fn text<T: Serialize + ?Sized>(value: &T) -> String {
    written(value, Spaced)
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
