//! Timestamps in and out: as PostgreSQL prints them, as records and answers show them, and as
//! operators type them. (REST-005, REST-190)

use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, Offset, Timelike};

/// What an operator typed as a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    At(DateTime<FixedOffset>),
    /// Readable, but it does not say where on earth.
    WithoutZone,
    Unreadable,
}

/// Reads `2026-11-23 20:35:41.444611+00` in any of the spellings PostgreSQL and ISO 8601 have.
pub fn read(text: &str) -> Typed {
    let text = text.trim();
    if let Ok(at) = DateTime::parse_from_str(text, "%a %b %d %Y %H:%M %z") {
        return Typed::At(at);
    }
    let Some((clock, zone)) = split_zone(text) else { return Typed::Unreadable };
    let Some(local) = read_local(clock.trim_end()) else { return Typed::Unreadable };
    let Some(zone) = zone else { return Typed::WithoutZone };
    match read_zone(zone).and_then(|offset| local.and_local_timezone(offset).single()) {
        Some(at) => Typed::At(at),
        None => Typed::Unreadable,
    }
}

/// As the status document shows it: `YYYY-MM-DD HH:MM:SS[.ffffff]±HH:MM`. What cannot be read is
/// shown as it came. (REST-005)
pub fn shown(text: &str) -> String {
    match read(text) {
        Typed::At(at) if at.nanosecond() / 1000 == 0 => {
            at.format("%Y-%m-%d %H:%M:%S%:z").to_string()
        }
        Typed::At(at) => at.format("%Y-%m-%d %H:%M:%S%.6f%:z").to_string(),
        Typed::WithoutZone | Typed::Unreadable => text.to_owned(),
    }
}

/// As schedules show it: `2026-11-23T20:42:16+00:00`, fraction omitted when zero.
pub fn iso(at: &DateTime<FixedOffset>) -> String {
    let fraction = if at.nanosecond() / 1000 == 0 { "" } else { "%.6f" };
    // Offsets with seconds are those of times before the zones.
    let zone = if at.offset().local_minus_utc() % 60 == 0 { "%:z" } else { "%::z" };
    at.format(&format!("%Y-%m-%dT%H:%M:%S{fraction}{zone}")).to_string()
}

/// Seconds since the epoch and the microseconds of the fraction; `None` for what cannot be read.
pub fn epoch(text: &str) -> Option<(i64, u32)> {
    match read(text) {
        Typed::At(at) => Some((at.timestamp(), at.timestamp_subsec_micros())),
        Typed::WithoutZone | Typed::Unreadable => None,
    }
}

/// Parts the clock from its zone; the zone is what follows the time of day.
fn split_zone(text: &str) -> Option<(&str, Option<&str>)> {
    if !text.is_ascii() {
        return None;
    }
    let time_at = text.find(['T', 't', ' '])? + 1;
    let zone_at = text[time_at..]
        .find(|c: char| matches!(c, '+' | '-' | 'Z' | 'z') || c.is_ascii_alphabetic())
        .map(|at| at + time_at);
    Some(match zone_at {
        Some(at) => (&text[..at], Some(&text[at..])),
        None => (text, None),
    })
}

fn read_local(text: &str) -> Option<NaiveDateTime> {
    let (date, time) = text.split_at_checked(text.find(['T', 't', ' '])?)?;
    let date = NaiveDate::parse_from_str(date, "%Y-%m-%d")
        .or_else(|_| NaiveDate::parse_from_str(date, "%Y%m%d"))
        .ok()?;
    let time = time.get(1..)?.trim_start();
    let time = chrono::NaiveTime::parse_from_str(time, "%H:%M:%S%.f")
        .or_else(|_| chrono::NaiveTime::parse_from_str(time, "%H:%M"))
        .ok()?;
    Some(date.and_time(time))
}

fn read_zone(text: &str) -> Option<FixedOffset> {
    let text = text.trim();
    if ["z", "utc", "gmt"].iter().any(|name| text.eq_ignore_ascii_case(name)) {
        return Some(chrono::Utc.fix());
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let digits: String = digits.chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(digits.len(), 2 | 4 | 6) {
        return None;
    }
    let part =
        |at: usize| digits.get(at..at + 2).and_then(|two| two.parse::<i32>().ok()).unwrap_or(0);
    if part(2) > 59 || part(4) > 59 {
        return None;
    }
    FixedOffset::east_opt(sign * (part(0) * 3600 + part(2) * 60 + part(4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A zone is hours, minutes and seconds, each within its bounds, and is shown as it was read.
    #[test]
    fn zones_are_read_and_shown() {
        for (text, shown_as) in [
            ("2036-11-24T10:00:00+02:30", Some("2036-11-24T10:00:00+02:30")),
            ("2036-11-24T10:00:00+02:30:15", Some("2036-11-24T10:00:00+02:30:15")),
            ("2036-11-24T10:00:00.5-02:30:15", Some("2036-11-24T10:00:00.500000-02:30:15")),
            ("2036-11-24T10:00:00+02:0290", None),
            ("2036-11-24T10:00:00+02:60", None),
            ("2036-11-24T10:00:00+24:00", None),
        ] {
            let shown = match read(text) {
                Typed::At(at) => Some(iso(&at)),
                Typed::WithoutZone | Typed::Unreadable => None,
            };
            assert_eq!(shown.as_deref(), shown_as, "{text}");
        }
    }

    /// Proves REST-005 (timestamps).
    #[test]
    fn shown_as_clients_know_it() {
        for (postgres, shown_as) in [
            ("2026-11-23 20:35:41.444611+00", "2026-11-23 20:35:41.444611+00:00"),
            ("2026-11-23 20:35:44.00299+00", "2026-11-23 20:35:44.002990+00:00"),
            ("2026-11-23 20:35:44+05:30", "2026-11-23 20:35:44+05:30"),
            ("2026-11-23T20:35:44-08", "2026-11-23 20:35:44-08:00"),
            ("2026-11-23 20:35:41.444611+00:00", "2026-11-23 20:35:41.444611+00:00"),
            ("infinity", "infinity"),
        ] {
            assert_eq!(shown(postgres), shown_as);
        }
        assert_eq!(epoch("2026-11-23 20:35:41.444611+00"), Some((1_795_466_141, 444_611)));
    }

    /// Proves REST-190 (rows 7 and 8: what is readable, what lacks a zone).
    #[test]
    fn a_moment_needs_a_zone() {
        for good in [
            "2026-11-23T21:05:00+00:00",
            "2026-11-23T21:05+0000",
            "2026-11-23 21:05 UTC",
            "2026-11-23 21:05:00Z",
            "20261123T210500Z".replace("210500", "21:05:00").as_str(),
        ] {
            let Typed::At(at) = read(good) else { panic!("{good} was not read") };
            assert_eq!(iso(&at), "2026-11-23T21:05:00+00:00", "{good}");
        }
        assert!(matches!(read("Mon Nov 24 2036 10:00 +0200"), Typed::At(_)), "as in golden");
        assert_eq!(read("2026-11-23T21:16:00"), Typed::WithoutZone);
        for bad in
            ["soon-ish", "", "2026-13-01T00:00:00Z", "2026-11-23T25:00:00Z", "12", "ä T", "T"]
        {
            assert_eq!(read(bad), Typed::Unreadable, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = read(&text);
        }

        #[test]
        fn nearly_right_does_not_panic(text in "[0-9]{1,6}-[0-9]{1,3}-[0-9]{1,3}[T ][0-9:.]{0,20}[-+Z][0-9:]{0,12}") {
            let _ = shown(&text);
        }
    }
}
