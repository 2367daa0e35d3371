//! `host:port` as Patroni reads it: split at the last colon, IPv6 with or without brackets. (CFG-025)

use std::fmt;

/// One host and one port. `host` is without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    /// Reads `host:port`; the port may be missing if a default is given. (CFG-025)
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = split(text, default_port)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty()).then(|| Self { host: host.to_owned(), port })
    }

    /// A host that means this machine to whoever reads it; useless to other members. (CFG-098)
    pub fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "127.0.0.1" | "0.0.0.0" | "*" | "::1" | "localhost")
    }
}

/// `host:port`, IPv6 in brackets.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a server listens on: several hosts, one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// In the order given, without brackets; `*` for every address. Never empty.
    pub hosts: Vec<String>,
    pub port: u16,
}

impl Listen {
    /// Reads `h1,h2:port`; an empty host is `*`. (CFG-025, CFG-097, CFG-160)
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let (hosts, port) = split(text, default_port)?;
        let hosts: Vec<String> = hosts
            .split(',')
            .map(|host| host.trim().trim_start_matches('[').trim_end_matches(']'))
            .map(|host| if host.is_empty() { "*" } else { host }.to_owned())
            .collect();
        Some(Self { hosts, port })
    }

    /// Listens on every address.
    pub fn everywhere(&self) -> bool {
        self.hosts.iter().any(|host| matches!(host.as_str(), "*" | "0.0.0.0" | "::"))
    }

    /// `h1,h2`: PostgreSQL's `listen_addresses`. (PG-180)
    pub fn hosts_text(&self) -> String {
        self.hosts.join(",")
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hosts_text(), self.port)
    }
}

/// Splits at the last colon. Without a port the default is taken; text with several colons and no
/// brackets is IPv6 followed by a port unless a default exists and the last part is no port.
fn split(text: &str, default_port: Option<u16>) -> Option<(&str, u16)> {
    let text = text.trim();
    if let Some((host, port)) = text.rsplit_once(':')
        && let Ok(port) = port.trim().parse::<u16>()
        && (!host.starts_with('[') || host.ends_with(']'))
    {
        return Some((host.trim(), port));
    }
    let bare = !text.contains(':') || text.ends_with(']');
    match default_port {
        Some(port) if bare => Some((text, port)),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves CFG-025.
    #[test]
    fn addresses() {
        for (text, default, expected) in [
            ("h:1", None, Some(("h", 1))),
            ("h", Some(5432), Some(("h", 5432))),
            ("h", None, None),
            ("::1:8008", None, Some(("::1", 8008))),
            ("[::1]:8008", None, Some(("::1", 8008))),
            ("[::1]", Some(2379), Some(("::1", 2379))),
            (" h:1 ", None, Some(("h", 1))),
            ("h:99999", None, None),
            ("h:x", Some(1), None),
            (":8008", None, None),
        ] {
            let expected = expected.map(|(h, port)| Address { host: h.to_owned(), port });
            assert_eq!(Address::parse(text, default), expected, "{text}");
        }
        assert_eq!(Address { host: "::1".into(), port: 1 }.to_string(), "[::1]:1");
    }

    /// Proves CFG-025, CFG-097, CFG-160.
    #[test]
    fn several_hosts_share_a_port() {
        let listen = Listen::parse("a, b,[::1]:5432", None).unwrap();
        assert_eq!((listen.hosts_text().as_str(), listen.port), ("a,b,::1", 5432));
        assert!(Listen::parse(":8008", None).unwrap().everywhere());
        assert!(Listen::parse("*:8008", None).unwrap().everywhere());
        assert!(!Listen::parse("10.0.0.1", Some(5432)).unwrap().everywhere());
    }
}
