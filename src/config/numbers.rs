//! Numbers, booleans and text as Patroni and PostgreSQL read and write them.

use serde_json::Value;

/// What a bare number counts in; a unit is only understood with one of these. (CFG-023, PG-195)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseUnit {
    None,
    Bytes,
    Megabytes,
    Seconds,
}

/// on/off, true/false, yes/no, 1/0, any case; anything else is no boolean. (CFG-024)
pub fn boolean(value: &Value) -> Option<bool> {
    match python_text(value).to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Decimal, hexadecimal, octal with a leading 0; sign; fraction or exponent, rounded half to even;
/// a unit only where there is a base. (CFG-023)
pub fn integer(value: &Value, base: BaseUnit) -> Option<i64> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(value) => Some(value),
            None => round(number.as_f64()?),
        },
        Value::String(text) => integer_text(text, base),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn integer_text(text: &str, base: BaseUnit) -> Option<i64> {
    let text = text.trim();
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let signed = |value: f64| if negative { -value } else { value };
    if let Some(hex) = body.strip_prefix("0x").or_else(|| body.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        let value = i64::from_str_radix(&hex[..end], 16).ok()?;
        return scaled(signed(value as f64), &hex[end..], base);
    }
    let whole = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let octal = whole > 1 && body.starts_with('0') && !body[whole..].starts_with(['.', 'e', 'E']);
    if octal {
        let value = i64::from_str_radix(&body[..whole], 8).ok()?;
        return scaled(signed(value as f64), &body[whole..], base);
    }
    let end = decimal_end(body)?;
    let plain = &body[..end];
    match plain.parse::<i64>() {
        Ok(value) if body[end..].trim().is_empty() => Some(if negative { -value } else { value }),
        Ok(_) | Err(_) => scaled(signed(plain.parse().ok()?), &body[end..], base),
    }
}

/// Where the longest decimal number at the beginning ends.
fn decimal_end(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    let digits =
        |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = digits(0);
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if end == 0 || (whole == 0 && end == 1) {
        return None;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits((end + 1 + sign).min(bytes.len()));
        if exponent > end + 1 + sign {
            end = exponent;
        }
    }
    Some(end)
}

fn scaled(value: f64, unit: &str, base: BaseUnit) -> Option<i64> {
    const KB: f64 = 1024.0;
    let unit = unit.trim();
    let factor = match (base, unit) {
        (_, "") => 1.0,
        (BaseUnit::None, _) => return None,
        (BaseUnit::Bytes, "B") => 1.0,
        (BaseUnit::Bytes, "kB") => KB,
        (BaseUnit::Bytes, "MB") => KB * KB,
        (BaseUnit::Bytes, "GB") => KB * KB * KB,
        (BaseUnit::Bytes, "TB") => KB * KB * KB * KB,
        (BaseUnit::Megabytes, "B") => 1.0 / KB / KB,
        (BaseUnit::Megabytes, "kB") => 1.0 / KB,
        (BaseUnit::Megabytes, "MB") => 1.0,
        (BaseUnit::Megabytes, "GB") => KB,
        (BaseUnit::Megabytes, "TB") => KB * KB,
        (BaseUnit::Seconds, "us") => 1e-6,
        (BaseUnit::Seconds, "ms") => 1e-3,
        (BaseUnit::Seconds, "s") => 1.0,
        (BaseUnit::Seconds, "min") => 60.0,
        (BaseUnit::Seconds, "h") => 3600.0,
        (BaseUnit::Seconds, "d") => 86400.0,
        (BaseUnit::Bytes | BaseUnit::Megabytes | BaseUnit::Seconds, _) => return None,
    };
    round(value * factor)
}

fn round(value: f64) -> Option<i64> {
    let rounded = value.round_ties_even();
    (rounded.is_finite() && rounded.abs() < 9.2e18).then_some(rounded as i64)
}

/// The text Python's `str()` makes of a value: `True`, `1.0`, `1e-05`, `None`. (CFG-027)
pub fn python_text(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => python_float(float),
            Some(_) | None => number.to_string(),
        },
        Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn python_float(value: f64) -> String {
    let exponent = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Proves CFG-023.
    #[test]
    fn integers() {
        use BaseUnit::*;
        for (value, base, expected) in [
            (json!("10"), None, Some(10)),
            (json!(10), None, Some(10)),
            (json!("0x1F"), None, Some(31)),
            (json!("010"), None, Some(8)),
            (json!("-5"), None, Some(-5)),
            (json!("1.5"), None, Some(2)),
            (json!("2.5"), None, Some(2)),
            (json!("1e3"), None, Some(1000)),
            (json!("10MB"), None, Option::None),
            (json!("10MB"), Bytes, Some(10 << 20)),
            (json!("1.5GB"), Megabytes, Some(1536)),
            (json!("16MB"), Megabytes, Some(16)),
            (json!("1 h"), Seconds, Some(3600)),
            (json!("1000 ms"), Seconds, Some(1)),
            (json!("1H"), Seconds, Option::None),
            (json!(""), None, Option::None),
            (json!("abc"), None, Option::None),
            (json!(true), None, Option::None),
            (json!("9223372036854775807"), None, Some(i64::MAX)),
            (json!("1e400"), None, Option::None),
            (json!("é"), None, Option::None),
        ] {
            assert_eq!(integer(&value, base), expected, "{value}");
        }
    }

    /// Proves CFG-024.
    #[test]
    fn booleans() {
        for (value, expected) in [
            (json!("on"), Some(true)),
            (json!("FALSE"), Some(false)),
            (json!(true), Some(true)),
            (json!(1), Some(true)),
            (json!("0"), Some(false)),
            (json!("t"), None),
            (json!(2), None),
            (json!(null), None),
        ] {
            assert_eq!(boolean(&value), expected, "{value}");
        }
    }

    /// Proves CFG-027.
    #[test]
    fn pythons_spelling() {
        for (value, expected) in [
            (json!(true), "True"),
            (json!(1.0), "1.0"),
            (json!(0.00001), "1e-05"),
            (json!(1.5e-7), "1.5e-07"),
            (json!(1e16), "1e+16"),
            (json!(0.0001), "0.0001"),
            (json!(5), "5"),
            (json!("x"), "x"),
            (json!(null), "None"),
        ] {
            assert_eq!(python_text(&value), expected);
        }
    }
}
