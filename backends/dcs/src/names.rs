//! Typed names for the things that would otherwise be a bare string or number.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The name of one member of the cluster, as in its YAML and as the last part of its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

impl MemberName {
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The replication slot that belongs to this member on every other one. (PG-260)
    ///
    /// Lower case; `-` and `.` become `_`; anything else outside `[a-z0-9_]` becomes `u` and its
    /// decimal code point padded to four digits; cut to 63 characters.
    pub fn slot_name(&self) -> String {
        let mut slot = String::new();
        for c in self.0.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => slot.push(c),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", other as u32)),
            }
        }
        slot.truncate(63);
        slot
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// Where a cluster lives in a store: `/<namespace>/<scope>/`. (DCS-050)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Normalised: no slash at either end, doubled slashes collapsed; `service` by default.
    namespace: String,
    scope: String,
}

impl Scope {
    pub fn new(namespace: &str, scope: &str) -> Self {
        let parts: Vec<&str> = namespace.split('/').filter(|part| !part.is_empty()).collect();
        Self { namespace: parts.join("/"), scope: scope.to_owned() }
    }

    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// `/service/batman/`: what every key of the cluster begins with. (DCS-050)
    pub fn prefix(&self) -> String {
        if self.namespace.is_empty() {
            format!("/{}/", self.scope)
        } else {
            format!("/{}/{}/", self.namespace, self.scope)
        }
    }
}

/// A position in the write-ahead log, in bytes. Zero means "no position".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Reads PostgreSQL's `16/B374D848`.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.trim().split_once('/')?;
        let high = u32::from_str_radix(high, 16).ok()?;
        let low = u32::from_str_radix(low, 16).ok()?;
        Some(Self((u64::from(high) << 32) | u64::from(low)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A PostgreSQL timeline. Zero means "unknown", as in Patroni's records.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's system identifier, decimal, at least ten digits. (HA-007)
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(String);

impl SystemId {
    /// `None` for anything that is not a valid identifier: empty, short, not decimal. (HA-007)
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a compare-and-set compares: equal means "not written since". Zero is a real version (INV-25).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-260.
    #[test]
    fn slot_names_are_patronis() {
        for (name, slot) in
            [("Node-1.x", "node_1_x"), ("a b", "au0032b"), ("ä", "u0228"), ("pg1", "pg1")]
        {
            assert_eq!(MemberName::from(name).slot_name(), slot, "{name}");
        }
        assert_eq!(MemberName("x".repeat(70)).slot_name().len(), 63);
    }

    /// Proves DCS-050 (the prefix).
    #[test]
    fn prefixes_collapse_slashes() {
        for (namespace, prefix) in [
            ("service", "/service/batman/"),
            ("/service/", "/service/batman/"),
            ("//a///b/", "/a/b/batman/"),
            ("", "/batman/"),
        ] {
            assert_eq!(Scope::new(namespace, "batman").prefix(), prefix);
        }
    }

    #[test]
    fn lsn_reads_and_writes() {
        assert_eq!(Lsn::parse("16/B374D848"), Some(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(50_331_744).to_string(), "0/3000060");
        assert_eq!(Lsn::parse("nonsense"), None);
        assert_eq!(Lsn::parse("1/2/3"), None);
    }

    #[test]
    fn system_identifiers_are_checked() {
        assert!(SystemId::parse("7711467298858918990").is_some());
        for bad in ["", "123", "77114672988589189x0", "-7711467298858918990"] {
            assert!(SystemId::parse(bad).is_none(), "{bad}");
        }
    }
}
