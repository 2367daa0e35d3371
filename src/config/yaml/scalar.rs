//! What a plain scalar means in YAML 1.1, exactly as PyYAML resolves it. (CFG-021)

use super::Kind;

/// The value of a plain (unquoted) scalar. Dates stay text.
pub(in crate::config) fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Kind::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Kind::Bool(false);
        }
        _ => {}
    }
    int(text).or_else(|| float(text)).unwrap_or_else(|| Kind::Text(text.to_owned()))
}

/// Binary, octal with a leading zero, decimal, hexadecimal, base 60; underscores anywhere inside.
/// A number past 64 bits keeps its digits as text.
pub(super) fn int(text: &str) -> Option<Kind> {
    let (negative, digits) = sign(text);
    let value: Option<i128> = if let Some(binary) = digits.strip_prefix("0b") {
        radix(binary, 2)?
    } else if let Some(hex) = digits.strip_prefix("0x") {
        radix(hex, 16)?
    } else if digits == "0" {
        Some(0)
    } else if let Some(octal) = digits.strip_prefix('0') {
        radix(octal, 8)?
    } else if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    } else if digits.contains(':') {
        let parts = sexagesimal(digits)?;
        parts.iter().try_fold(0i128, |sum, part| sum.checked_mul(60)?.checked_add(*part))
    } else {
        radix(digits, 10)?
    };
    let signed = value.map(|v| if negative { -v } else { v });
    Some(match signed.and_then(|v| i64::try_from(v).ok()) {
        Some(value) => Kind::Int(value),
        None => Kind::Text(text.replace('_', "").trim_start_matches('+').to_owned()),
    })
}

/// With a point (an exponent needs its sign), base 60 with a fraction, infinity, not a number.
pub(super) fn float(text: &str) -> Option<Kind> {
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Kind::Float(f64::NAN));
    }
    let (negative, body) = sign(text);
    let factor = if negative { -1.0 } else { 1.0 };
    if matches!(body, ".inf" | ".Inf" | ".INF") {
        return Some(Kind::Float(factor * f64::INFINITY));
    }
    if let Some((whole, fraction)) = body.split_once('.')
        && whole.contains(':')
    {
        let parts = sexagesimal(whole)?;
        if !fraction.chars().all(|c| c.is_ascii_digit() || c == '_') {
            return None;
        }
        let whole = parts.iter().fold(0.0, |sum, part| sum * 60.0 + *part as f64);
        let fraction = format!("0.{}", fraction.replace('_', ""));
        return Some(Kind::Float(factor * (whole + fraction.parse::<f64>().unwrap_or(0.0))));
    }
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (body, None),
    };
    if let Some(exponent) = exponent {
        let digits = exponent.strip_prefix(['+', '-'])?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
    }
    let (whole, fraction) = mantissa.split_once('.')?;
    let loose = |part: &str| part.chars().all(|c| c.is_ascii_digit() || c == '_');
    let begins = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    // Without digits before the point there must be one right after it, and no sign.
    let valid = if whole.is_empty() {
        text.starts_with('.') && begins(fraction) && loose(fraction)
    } else {
        begins(whole) && loose(whole) && loose(fraction)
    };
    if !valid {
        return None;
    }
    text.replace('_', "").parse().ok().map(Kind::Float)
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// `None`: no number in this radix. `Some(None)`: a number, too large.
fn radix(digits: &str, radix: u32) -> Option<Option<i128>> {
    let valid = !digits.is_empty() && digits.chars().all(|c| c == '_' || c.is_digit(radix));
    let digits = digits.replace('_', "");
    if !valid {
        return None;
    }
    if digits.is_empty() {
        // `0_` is zero to PyYAML; `0b_` and `0x_` it cannot read at all.
        return (radix == 8).then_some(Some(0));
    }
    Some(i128::from_str_radix(&digits, radix).ok())
}

/// The parts of `190:20:30`; each after the first is below 60.
fn sexagesimal(text: &str) -> Option<Vec<i128>> {
    let mut parts = text.split(':');
    let first = parts.next()?;
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit() || c == '_');
    if !first.starts_with(|c: char| c.is_ascii_digit()) || !digits(first) {
        return None;
    }
    let mut values = vec![first.replace('_', "").parse().ok()?];
    for part in parts {
        let bytes = part.as_bytes();
        let valid = match bytes {
            [one] => one.is_ascii_digit(),
            [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
            _ => false,
        };
        if !valid {
            return None;
        }
        values.push(part.parse().ok()?);
    }
    Some(values)
}
