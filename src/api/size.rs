//! `lag=16MB`: a size in bytes as PostgreSQL's settings spell it. (REST-060)

/// Bytes; `None` for anything that is no size. Values beyond 64 bits count as the largest.
///
/// A plain whole number is read as C reads it (`0x10`, `010`); a fraction or an exponent makes it
/// decimal. Units are `B kB MB GB TB`; a fraction of a unit is rounded, half to even, in the next
/// smaller one.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let (number, rest) = match whole(text) {
        Some((_, rest)) if rest.starts_with(['.', 'e', 'E']) => decimal(text)?,
        Some((number, rest)) => (Number::Whole(number), rest),
        None if text.trim_start_matches(['+', '-']).starts_with('.') => decimal(text)?,
        None => return None,
    };
    let unit = factor(rest.trim())?;
    match number {
        Number::Whole(number) => Some(clamp(number.saturating_mul(unit))),
        Number::Decimal(number) => {
            let (scale, smaller) = if unit > 1 { (1024.0, unit / 1024) } else { (1.0, 1) };
            let rounded = (number * scale).round_ties_even();
            // Infinite (`1e400`) is no size.
            rounded.is_finite().then(|| clamp((rounded as i128).saturating_mul(smaller)))
        }
    }
}

enum Number {
    Whole(i128),
    Decimal(f64),
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn factor(unit: &str) -> Option<i128> {
    match unit {
        "" | "B" => Some(1),
        "kB" => Some(1 << 10),
        "MB" => Some(1 << 20),
        "GB" => Some(1 << 30),
        "TB" => Some(1 << 40),
        _ => None,
    }
}

/// The whole number `text` begins with, and what follows it.
fn whole(text: &str) -> Option<(i128, &str)> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = if let Some(hex) =
        digits.strip_prefix("0x").filter(|hex| hex.starts_with(|c: char| c.is_ascii_hexdigit()))
    {
        (16, hex)
    } else if digits.starts_with('0') {
        (8, digits)
    } else {
        (10, digits)
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let value = i128::from_str_radix(&digits[..end], radix).unwrap_or(i128::MAX);
    Some((if negative { -value } else { value }, &digits[end..]))
}

/// The decimal number `text` begins with, and what follows it.
fn decimal(text: &str) -> Option<(Number, &str)> {
    let bytes = text.as_bytes();
    let digits =
        |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut at = usize::from(text.starts_with(['+', '-']));
    let before = digits(at);
    let mut found = before > at;
    at = before;
    if bytes.get(at) == Some(&b'.') && digits(at + 1) > at + 1 {
        at = digits(at + 1);
        found = true;
    }
    if !found {
        return None;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let end = digits(at + 1 + sign);
        if end > at + 1 + sign {
            at = end;
        }
    }
    let value = text[..at].parse().ok()?;
    Some((Number::Decimal(value), &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Proves REST-060.
    #[test]
    fn sizes_as_the_table_says() {
        for (text, bytes) in [
            ("1048576", Some(1_048_576)),
            ("16kB", Some(16_384)),
            ("64MB", Some(67_108_864)),
            ("1GB", Some(1_073_741_824)),
            ("1TB", Some(1_099_511_627_776)),
            ("4097.5kB", Some(4_195_840)),
            ("1.5MB", Some(1_572_864)),
            (".5MB", Some(524_288)),
            ("1e3kB", Some(1_024_000)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("0", Some(0)),
            (" 16 kB ", Some(16_384)),
            ("5B", Some(5)),
            ("0.5", Some(0)),
            ("1.5", Some(2)),
            ("2.5", Some(2)),
            ("-1", Some(-1)),
            ("99999999999999999999", Some(i64::MAX)),
            ("10mb", None),
            ("10KB", None),
            ("10K", None),
            ("1PB", None),
            ("1MBx", None),
            ("abc", None),
            ("08", None),
            ("1_000", None),
            ("1e400", None),
            ("", None),
            ("-", None),
            (".", None),
            ("1.", None),
            ("ä", None),
        ] {
            assert_eq!(parse(text), bytes, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_number_panics(text in "[-+]?[0-9.eEx]{0,40} ?[kMGTB]{0,2}") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_numbers_are_themselves(n in 1_i64..) {
            prop_assert_eq!(parse(&n.to_string()), Some(n));
        }
    }
}
