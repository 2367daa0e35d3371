//! JSON as Patroni writes it: compact, keys in the order given, non-ASCII escaped. (DCS-050)

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io;

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_ascii(writer, fragment)
    }

    fn write_null<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        CompactFormatter.write_null(writer)
    }
}

/// A piece of text in which nothing else has to be escaped.
///
/// # Errors
/// Those of the writer.
pub fn write_ascii<W: ?Sized + io::Write>(writer: &mut W, fragment: &str) -> io::Result<()> {
    if fragment.is_ascii() {
        return writer.write_all(fragment.as_bytes());
    }
    for c in fragment.chars() {
        if c.is_ascii() {
            writer.write_all(&[c as u8])?;
        } else {
            let mut units = [0_u16; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
    }
    Ok(())
}

/// The bytes that stand in the store.
pub fn compact<T: Serialize + ?Sized>(value: &T) -> String {
    written(value, Ascii)
}

/// The value in this manner. One that cannot be JSON (a map with keys that are no text) gives the empty
/// string; nothing of ours is one.
pub fn written<T: Serialize + ?Sized>(value: &T, manner: impl Formatter) -> String {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = Serializer::with_formatter(&mut bytes, manner);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(bytes).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-050 (the JSON), CFG-022.
    #[test]
    fn json_is_compact_and_ascii() {
        let value = serde_json::json!({"b": 1, "a": "ä\u{1F418}\n", "c": [1, null]});
        assert_eq!(compact(&value), r#"{"b":1,"a":"\u00e4\ud83d\udc18\n","c":[1,null]}"#);
    }
}
