//! Where a server is and how to log in there: member URLs, libpq's conninfo text, the passfile.
//! (PG-124, PG-212 … PG-214, PG-330 … PG-332)

use crate::config::LOGIN_OPTIONS;
use crate::postgres::settings::Login;
use std::collections::BTreeMap;

/// The address of a server as its member record gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// One or several, comma separated; a socket directory begins with `/`.
    pub host: String,
    pub port: String,
    pub dbname: String,
}

impl Address {
    /// Reads `postgres://host:port/database`, several hosts allowed, IPv6 in brackets. The database
    /// is `postgres` if none is given. (PG-213)
    pub fn from_url(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
        };
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for part in hosts.split(',') {
            let (host, port) = split_host_port(part);
            names.push(decode(host));
            ports.push(port.unwrap_or("5432"));
        }
        let mut host = names.join(",");
        for pair in query.split('&') {
            if let Some(("host", value)) = pair.split_once('=') {
                host = decode(value);
            }
        }
        let dbname = if path.is_empty() { "postgres".into() } else { decode(path) };
        (!host.is_empty()).then(|| Self { host, port: ports.join(","), dbname })
    }
}

fn split_host_port(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':').filter(|port| !port.is_empty()));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() => (host, Some(port)),
        Some((host, _)) => (host, None),
        None => (text, None),
    }
}

/// The keys of `primary_conninfo` in their order. (PG-212)
const ORDER: [&str; 21] = [
    "dbname",
    "user",
    "passfile",
    "password",
    "host",
    "port",
    "sslmode",
    "sslcompression",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "application_name",
    "krbsrvname",
    "gssencmode",
    "channel_binding",
    "target_session_attrs",
    "sslnegotiation",
    "options",
];

/// Does a server or client of this major version know the key?
fn known(key: &str, major: u32) -> bool {
    match key {
        "sslcrldir" => major >= 14,
        "sslnegotiation" => major >= 17,
        "sslcompression" => major < 14,
        _ => true,
    }
}

/// A conninfo being put together; printing keeps libpq's order whatever order it was filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conninfo(pub BTreeMap<String, String>);

impl Conninfo {
    /// Where and as whom, without a password.
    pub fn new(address: &Address, login: &Login) -> Self {
        let mut info = Self::default();
        info.set("dbname", &address.dbname).set("host", &address.host).set("port", &address.port);
        if let Some(user) = &login.username {
            info.set("user", user);
        }
        for (key, value) in &login.options {
            if LOGIN_OPTIONS.contains(&key.as_str()) {
                info.set(key, value);
            }
        }
        info
    }

    /// An empty value unsets the key.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        if value.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), value.to_owned());
        }
        self
    }

    pub fn set_default(&mut self, key: &str, value: &str) -> &mut Self {
        self.0.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        self
    }

    /// The text for a server or tool of this major version. (PG-212)
    pub fn to_text(&self, major: u32) -> String {
        let parts = ORDER.iter().filter(|key| known(key, major)).filter_map(|key| {
            let value = self.0.get(*key)?;
            Some(format!("{key}={}", escape(value)))
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    /// Reads libpq's text form; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = BTreeMap::new();
        let mut chars = text.chars().peekable();
        loop {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.peek().is_none() {
                return Some(Self(found));
            }
            let mut key = String::new();
            while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
                key.push(c);
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            if chars.next() != Some('=') || key.is_empty() {
                return None;
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            let quoted = chars.next_if_eq(&'\'').is_some();
            let mut value = String::new();
            loop {
                match chars.next() {
                    None if quoted => return None,
                    None => break,
                    Some('\'') if quoted => break,
                    Some(c) if !quoted && c.is_whitespace() => break,
                    Some('\\') => value.push(chars.next()?),
                    Some(c) => value.push(c),
                }
            }
            found.insert(key, value);
        }
    }
}

/// Quotes, backslashes and blanks get a backslash. (PG-212)
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\'' | '\\' | ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The lines of a passfile for this login at this address; `None` without a password.
/// (PG-331, PG-332)
pub fn passfile(address: &Address, login: &Login) -> Option<String> {
    let password = login.password.as_ref()?;
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let star = |text: &str| if text.is_empty() { "*".into() } else { escape(text) };
    let user = star(login.username.as_deref().unwrap_or_default());
    let mut ports = address.port.split(',').cycle();
    let mut lines = String::new();
    for host in address.host.split(',') {
        let port = star(ports.next().unwrap_or_default());
        let mut line = |host: &str| {
            lines.push_str(&format!("{host}:{port}:*:{user}:{}\n", escape(password)));
        };
        line(&star(host));
        if host.starts_with('/') {
            line("localhost");
        }
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            username: Some("replicator".into()),
            password: Some("dummy-repl".into()),
            options: BTreeMap::new(),
        }
    }

    /// Proves PG-213 (the address).
    #[test]
    fn member_urls_are_read() {
        for (url, host, port, dbname) in [
            ("postgres://127.0.0.1:22432/postgres", "127.0.0.1", "22432", "postgres"),
            ("postgres://[::1]:5433/x%20y", "::1", "5433", "x y"),
            ("postgres://a", "a", "5432", "postgres"),
            ("postgres://a:1,b:2/d", "a,b", "1,2", "d"),
            ("postgresql://u:p@a:1/d?x=y", "a", "1", "d"),
        ] {
            let address = Address::from_url(url).unwrap();
            assert_eq!((&*address.host, &*address.port, &*address.dbname), (host, port, dbname));
        }
        assert!(Address::from_url("http://a/").is_none() && Address::from_url("").is_none());
    }

    /// Proves PG-212.
    #[test]
    fn conninfo_is_written_in_order_and_read_back() {
        let address = Address { host: "h".into(), port: "1".into(), dbname: "d b".into() };
        let mut info = Conninfo::new(&address, &login());
        info.set("sslnegotiation", "postgres").set("sslcrldir", "/x").set("passfile", "/a'b\\c");
        let text = info.to_text(13);
        assert_eq!(text, r"dbname=d\ b user=replicator passfile=/a\'b\\c host=h port=1");
        let text = info.to_text(17);
        assert!(text.ends_with("sslcrldir=/x sslnegotiation=postgres"), "{text}");
        assert_eq!(Conninfo::parse(&text).unwrap(), info);
        let quoted = Conninfo::parse(r" a = 'x y' b=c\ d  e='\''").unwrap();
        assert_eq!(quoted.0["a"], "x y");
        assert_eq!(quoted.0["b"], "c d");
        assert_eq!(quoted.0["e"], "'");
        for bad in ["a", "a='x", "=x", "a b=c"] {
            assert!(Conninfo::parse(bad).is_none(), "{bad}");
        }
    }

    /// Proves PG-331, PG-332.
    #[test]
    fn the_passfile_has_a_line_per_host() {
        let address = |host: &str, port: &str| Address {
            host: host.into(),
            port: port.into(),
            dbname: "postgres".into(),
        };
        let text = passfile(&address("127.0.0.1", "22432"), &login()).unwrap();
        assert_eq!(text, "127.0.0.1:22432:*:replicator:dummy-repl\n");
        let two = passfile(&address("a,::1", "1,2"), &login()).unwrap();
        assert_eq!(two, "a:1:*:replicator:dummy-repl\n\\:\\:1:2:*:replicator:dummy-repl\n");
        let colon = Login { password: Some("p:\\q".into()), ..Login::default() };
        assert_eq!(
            passfile(&address("/run", ""), &colon).unwrap(),
            "/run:*:*:*:p\\:\\\\q\nlocalhost:*:*:*:p\\:\\\\q\n"
        );
        assert_eq!(passfile(&address("a", "1"), &Login::default()), None);
    }

    proptest::proptest! {
        /// What we write, libpq's grammar reads back; nothing makes the reader panic.
        #[test]
        fn any_value_survives(
            value in "[^\\x00-\\x1f\\x7f-\\xa0\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}]{1,40}",
            text in ".*",
        ) {
            let mut info = Conninfo::default();
            info.set("host", &value).set("user", "x");
            proptest::prop_assert_eq!(Conninfo::parse(&info.to_text(15)), Some(info));
            let _ = Conninfo::parse(&text);
            let _ = Address::from_url(&format!("postgres://{text}"));
        }
    }
}
