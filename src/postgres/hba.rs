//! Does pg_hba.conf let the agent itself in? Asked before anything is touched: a cluster whose
//! agent cannot log in would be created and never be led. (chapter 21.1 of PostgreSQL's manual)
//!
//! It answers "no" only when that is certain; what depends on name resolution, group membership,
//! included files or regular expressions is left to the server.

use std::net::IpAddr;

/// Who knocks: the agent on its own server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Socket,
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// A line lets it try; whether the password is right is another question.
    Yes,
    /// No line matches, or the first that does rejects.
    No,
    /// A line before the first certain match may decide otherwise.
    Unknown,
}

/// The verdict of these lines on an ordinary connection of `user` to `database`.
pub fn admits(lines: &[String], from: From, database: &str, user: &str) -> Admits {
    let mut unsure = false;
    for line in lines {
        let fields = fields(line);
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        match line_matches(&fields, from, database, user) {
            Match::No => {}
            Match::Perhaps => unsure = true,
            Match::Yes if unsure => return Admits::Unknown,
            Match::Yes if fields.last() == Some(&"reject") => return Admits::No,
            Match::Yes => return Admits::Yes,
        }
    }
    if unsure { Admits::Unknown } else { Admits::No }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    Perhaps,
    Yes,
}

/// Words, with double quotes around those that hold spaces; `#` begins a comment.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for char in line.chars() {
        match char {
            '"' => quoted = !quoted,
            '#' if !quoted => break,
            char if char.is_whitespace() && !quoted => fields.push(String::new()),
            char => {
                if let Some(last) = fields.last_mut() {
                    last.push(char);
                }
            }
        }
    }
    fields.retain(|field| !field.is_empty());
    fields
}

fn line_matches(fields: &[&str], from: From, database: &str, user: &str) -> Match {
    let [kind, databases, users, rest @ ..] = fields else {
        // Blank, or `include FILE`.
        return if fields.is_empty() { Match::No } else { Match::Perhaps };
    };
    let place = match (*kind, from) {
        ("local", From::Socket) => Match::Yes,
        ("local", From::Address(_)) => Match::No,
        ("host" | "hostnogssenc", From::Address(ip)) => address(rest, ip),
        // With or without TLS: the server's settings decide.
        ("hostssl" | "hostnossl", From::Address(ip)) => address(rest, ip).min(Match::Perhaps),
        ("host" | "hostnogssenc" | "hostssl" | "hostnossl", From::Socket) => Match::No,
        ("hostgssenc", _) => Match::No,
        _ => Match::Perhaps,
    };
    let database = any(databases, |name| match name {
        "all" => Match::Yes,
        "replication" => Match::No,
        "sameuser" => sure(database == user),
        "samerole" | "samegroup" => Match::Perhaps,
        name => named(name, database),
    });
    let user = any(users, |name| match name {
        "all" => Match::Yes,
        name if name.starts_with('+') => Match::Perhaps,
        name => named(name, user),
    });
    place.min(database).min(user)
}

fn any(list: &str, judge: impl Fn(&str) -> Match) -> Match {
    list.split(',').map(|name| judge(name.trim())).max().unwrap_or(Match::No)
}

fn named(pattern: &str, name: &str) -> Match {
    // A regular expression, a file of names.
    if pattern.starts_with(['/', '@']) { Match::Perhaps } else { sure(pattern == name) }
}

fn sure(yes: bool) -> Match {
    if yes { Match::Yes } else { Match::No }
}

/// `10.0.0.0/8`, `10.0.0.0 255.0.0.0`, or a word.
fn address(rest: &[&str], ip: IpAddr) -> Match {
    let Some(first) = rest.first() else { return Match::Perhaps };
    let loopback = ip.is_loopback();
    match *first {
        "all" | "samehost" | "samenet" => return Match::Yes,
        "localhost" => return sure(loopback),
        _ => {}
    }
    let (base, bits) = match first.split_once('/') {
        Some((base, bits)) => (base, bits.parse::<u32>().ok()),
        None => (*first, rest.get(1).and_then(|mask| mask.parse().ok()).map(leading_ones)),
    };
    match (base.parse::<IpAddr>(), bits) {
        (Ok(base), Some(bits)) => sure(within(ip, base, bits)),
        // A host name: reverse look-ups are the server's.
        (Err(_), _) | (Ok(_), None) => Match::Perhaps,
    }
}

fn leading_ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    }
}

fn within(ip: IpAddr, base: IpAddr, bits: u32) -> bool {
    match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            u32::from(ip) & mask == u32::from(base) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(base)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            u128::from(ip) & mask == u128::from(base) & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1";

    fn ask(lines: &[&str], from: &str) -> Admits {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let from = from.parse().map_or(From::Socket, From::Address);
        admits(&lines, from, "postgres", "admin")
    }

    #[test]
    fn a_certain_no_is_only_said_when_it_is_certain() {
        use Admits::{No, Unknown, Yes};
        let net = "host all all 10.0.0.0/24 scram-sha-256";
        for (lines, from, verdict) in [
            (&[net][..], LOCAL, No),
            (&[net], "10.0.0.7", Yes),
            (&[net], "10.0.1.7", No),
            (&[net, "host all all 127.0.0.1/32 md5"], LOCAL, Yes),
            (&["host all all 127.0.0.1 255.255.255.255 md5"], LOCAL, Yes),
            (&["host all all 127.0.0.1 255.255.255.255 md5"], "127.0.0.2", No),
            (&["host all all 0.0.0.0/0 md5"], LOCAL, Yes),
            (&["host all all ::0/0 md5"], LOCAL, No),
            (&["host all all ::0/0 md5"], "::1", Yes),
            (&["host all all localhost trust"], LOCAL, Yes),
            (&["host all all db1.example.com md5"], LOCAL, Unknown),
            (&["host all all samehost md5"], "10.9.9.9", Yes),
            (&["hostssl all all all md5"], LOCAL, Unknown),
            (&["host replication all all md5"], LOCAL, No),
            (&["host all bob,\"admin\" all md5 # comment"], LOCAL, Yes),
            (&["# host all all all md5", ""], LOCAL, No),
            (&["host all +dbas all md5"], LOCAL, Unknown),
            (&["host /^post.* all all md5"], LOCAL, Unknown),
            (&["host all admin all reject", "host all all all md5"], LOCAL, No),
            (&["host all +dbas all reject", "host all all all md5"], LOCAL, Unknown),
            (&["include other.conf"], LOCAL, Unknown),
            (&["local all all peer"], LOCAL, No),
            (&["local all all peer"], "socket", Yes),
            (&["host all all all md5"], "socket", No),
        ] {
            assert_eq!(ask(lines, from), verdict, "{lines:?} from {from}");
        }
    }
}
