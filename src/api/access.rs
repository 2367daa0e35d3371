//! Who may change something: address, then certificate, then password. (section 10 of
//! docs/spec/rest-api.md)

use crate::api::settings::{RestConfig, VerifyClient};
use crate::api::snapshot::Snapshot;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_dcs::{Millis, boottime};
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// IPv4 even when the socket says `::ffff:a.b.c.d`. (REST-460) `None`: it came by the socket
    /// file, whose rights stand for address and certificate. (REST-315)
    pub address: Option<IpAddr>,
    /// It showed a certificate that our CA signed.
    pub has_certificate: bool,
}

/// Why a changing request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Address,
    Certificate,
    NoCredentials,
    WrongCredentials,
}

impl Refused {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Address | Self::Certificate => StatusCode::FORBIDDEN,
            Self::NoCredentials | Self::WrongCredentials => StatusCode::UNAUTHORIZED,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Address => "Access is denied",
            Self::Certificate => "client certificate required",
            Self::NoCredentials => "no auth header received",
            Self::WrongCredentials => "not authenticated",
        }
    }

    pub fn asks_for_credentials(self) -> bool {
        match self {
            Self::NoCredentials | Self::WrongCredentials => true,
            Self::Address | Self::Certificate => false,
        }
    }
}

/// How long a resolved name is believed, and how long resolving may take.
const NAME_IS_FRESH_MS: u64 = 60_000;
const RESOLVE_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Access {
    /// The base64 text that must follow `Basic `.
    expected: Option<String>,
    networks: Vec<Network>,
    names: Vec<String>,
    include_members: bool,
    needs_certificate: bool,
    resolved: Mutex<BTreeMap<String, (Millis, Vec<IpAddr>)>>,
    /// Hosts of the members last seen: they count while there is no view, too. (REST-460)
    members: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Access {
    pub fn new(config: &RestConfig) -> Self {
        let expected = config
            .credentials
            .as_ref()
            .map(|given| STANDARD.encode(format!("{}:{}", given.username, given.password)));
        let (mut networks, mut names) = (Vec::new(), Vec::new());
        for entry in &config.allowlist {
            match Network::parse(entry) {
                Some(network) => networks.push(network),
                None => names.push(entry.clone()),
            }
        }
        let checks_certificates = match config.verify_client {
            VerifyClient::None => false,
            VerifyClient::Optional | VerifyClient::Required => true,
        };
        Self {
            expected,
            networks,
            names,
            include_members: config.allowlist_include_members,
            needs_certificate: config.certfile.is_some() && checks_certificates,
            resolved: Mutex::new(BTreeMap::new()),
            members: Mutex::new(BTreeSet::new()),
        }
    }

    /// All configured checks, in order; the first that fails answers. (REST-271)
    pub async fn check(
        &self,
        endpoint: &str,
        peer: Option<Peer>,
        headers: &HeaderMap,
        snapshot: &Snapshot,
    ) -> Result<(), Refused> {
        if !self.address_is_allowed(endpoint, peer, snapshot).await {
            return Err(Refused::Address);
        }
        if self.needs_certificate
            && !peer.is_some_and(|peer| peer.has_certificate || peer.address.is_none())
        {
            return Err(Refused::Certificate);
        }
        let Some(expected) = &self.expected else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).ok_or(Refused::NoCredentials)?;
        let given = given.as_bytes().strip_prefix(b"Basic ").ok_or(Refused::WrongCredentials)?;
        if same(given, expected.as_bytes()) { Ok(()) } else { Err(Refused::WrongCredentials) }
    }

    async fn address_is_allowed(
        &self,
        endpoint: &str,
        peer: Option<Peer>,
        snapshot: &Snapshot,
    ) -> bool {
        let listed = !self.networks.is_empty() || !self.names.is_empty();
        // A leader without a store must reach everybody: members alone do not narrow this path.
        let members_only = self.include_members && !listed;
        if (!listed && !self.include_members) || (members_only && endpoint == "failsafe") {
            return true;
        }
        let Some(Peer { address, .. }) = peer else { return false };
        let Some(address) = address else { return true };
        if self.networks.iter().any(|network| network.contains(address)) {
            return true;
        }
        let mut hosts: BTreeSet<String> = self.names.iter().cloned().collect();
        if self.include_members {
            hosts.extend(self.member_hosts(snapshot));
        }
        for host in hosts {
            if self.addresses_of(&host).await.contains(&address) {
                return true;
            }
        }
        false
    }

    fn member_hosts(&self, snapshot: &Snapshot) -> BTreeSet<String> {
        let mut members = lock(&self.members);
        if let Some((view, _)) = &snapshot.view {
            *members = view
                .members
                .iter()
                .filter_map(|member| member.data.api_url.as_deref().and_then(host_of))
                .collect();
        }
        let failsafe = snapshot.failsafe.iter().flat_map(|record| record.0.values());
        members.iter().cloned().chain(failsafe.filter_map(|url| host_of(url))).collect()
    }

    async fn addresses_of(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return vec![address.to_canonical()];
        }
        let now = boottime();
        let known = lock(&self.resolved).get(host).cloned();
        if let Some((at, addresses)) = &known
            && now.since(*at) < NAME_IS_FRESH_MS
        {
            return addresses.clone();
        }
        let lookup = tokio::net::lookup_host((host, 0));
        match tokio::time::timeout(RESOLVE_WITHIN, lookup).await {
            Ok(Ok(found)) => {
                let found: Vec<IpAddr> = found.map(|addr| addr.ip().to_canonical()).collect();
                lock(&self.resolved).insert(host.to_owned(), (now, found.clone()));
                found
            }
            failed => {
                if let Ok(Err(why)) = failed {
                    tracing::warn!(host, %why, "allow-list: the name cannot be resolved");
                }
                // What it was the last time is better than nobody.
                known.map(|(_, addresses)| addresses).unwrap_or_default()
            }
        }
    }
}

/// Equal, in a time that does not depend on where they differ. (REST-278)
fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |bits, (x, y)| bits | (x ^ y));
    std::hint::black_box(differing) == 0 && a.len() == b.len()
}

/// Of `http://host:port/patroni`; an IPv6 address without its brackets.
fn host_of(url: &str) -> Option<String> {
    let uri: http::Uri = url.parse().ok()?;
    let host = uri.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// An address or a network; host bits are allowed. (REST-273)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        (bits <= width).then_some(Self { address, bits })
    }

    fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let differing = u32::from(mine) ^ u32::from(other);
                differing.checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differing = u128::from(mine) ^ u128::from(other);
                differing.checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-273 (addresses and networks).
    #[test]
    fn networks_contain_their_addresses() {
        for (network, address, inside) in [
            ("127.0.0.2", "127.0.0.2", true),
            ("127.0.0.2", "127.0.0.3", false),
            ("127.0.0.16/28", "127.0.0.17", true),
            ("127.0.0.17/28", "127.0.0.31", true),
            ("127.0.0.16/28", "127.0.0.40", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("::1/128", "::1", true),
            ("fd00::/8", "fd12::9", true),
            ("fd00::/8", "fe12::9", false),
            ("0.0.0.0/0", "::1", false),
        ] {
            let network = Network::parse(network).expect("a network");
            assert_eq!(
                network.contains(address.parse().expect("an address")),
                inside,
                "{network:?}"
            );
        }
        for name in ["localhost", "10.0.0.0/33", "10.0.0.0/x", "::1/129", ""] {
            assert_eq!(Network::parse(name), None, "{name}");
        }
    }

    #[test]
    fn comparing_is_exact() {
        assert!(same(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!same(b"abc", other));
        }
    }
}
