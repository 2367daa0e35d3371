//! Which names are asked for, and in which order what they lead to is tried. (CFG-303)

/// One of the services that etcd's servers are announced under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub label: &'static str,
    pub https: bool,
    /// It leads to the servers' own port, where the members can be asked for, but no key.
    pub peers: bool,
}

/// The first one that leads somewhere counts.
pub(super) const SERVICES: [Service; 6] = [
    Service { label: "_etcd-client-ssl", https: true, peers: false },
    Service { label: "_etcd-client", https: false, peers: false },
    Service { label: "_etcd-ssl", https: true, peers: false },
    Service { label: "_etcd", https: false, peers: false },
    Service { label: "_etcd-server-ssl", https: true, peers: true },
    Service { label: "_etcd-server", https: false, peers: true },
];

impl Service {
    pub fn scheme(self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// As it stands before `._tcp.<domain>`.
    pub fn labelled(self, suffix: Option<&str>) -> String {
        match suffix {
            Some(suffix) => format!("{}-{suffix}", self.label),
            None => self.label.to_owned(),
        }
    }
}

/// One answer of a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub priority: u16,
    pub weight: u16,
    pub host: String,
    pub port: u16,
}

impl Record {
    /// `None`: it says that there is no such service, or names what is no host of a URL.
    pub fn new(priority: u16, weight: u16, target: &str, port: u16) -> Option<Self> {
        let host = target.trim_end_matches('.');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let named = !host.is_empty() && host.bytes().all(plain) && port != 0;
        named.then(|| Self { priority, weight, host: host.to_owned(), port })
    }

    pub fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Lower priorities first; among equals a draw by weight, place for place. (RFC 2782)
///
/// `draw` gives a number from 0 to its argument, both included.
pub(super) fn in_order(mut records: Vec<Record>, mut draw: impl FnMut(u64) -> u64) -> Vec<Record> {
    // Those without weight come first in each sum, so that they have a chance at all.
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|record| record.priority) {
        let equals = || records.iter().take_while(|record| record.priority == priority);
        let all = equals().map(|record| u64::from(record.weight)).sum();
        let drawn = draw(all);
        let mut sum = 0;
        let chosen = equals().position(|record| {
            sum += u64::from(record.weight);
            sum >= drawn
        });
        ordered.push(records.remove(chosen.unwrap_or(0)));
    }
    ordered
}

/// A number from 0 to `most`; good enough to spread load, not for secrets.
pub(super) fn random(most: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let number = std::hash::RandomState::new().build_hasher().finish();
    most.checked_add(1).map_or(number, |choices| number % choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, host: &str) -> Record {
        Record::new(priority, weight, host, 2379).expect("a host")
    }

    fn hosts(records: &[Record]) -> String {
        records.iter().map(|record| record.host.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Proves CFG-303: the names, their order, the suffix, and which of them mean TLS.
    #[test]
    fn six_names_in_patronis_order() {
        let plain: Vec<_> = SERVICES.iter().map(|service| service.labelled(None)).collect();
        let expected =
            "_etcd-client-ssl _etcd-client _etcd-ssl _etcd _etcd-server-ssl _etcd-server";
        assert_eq!(plain.join(" "), expected);
        let suffixed: Vec<_> = SERVICES.iter().map(|s| s.labelled(Some("east"))).collect();
        let expected = "_etcd-client-ssl-east _etcd-client-east _etcd-ssl-east _etcd-east \
                        _etcd-server-ssl-east _etcd-server-east";
        assert_eq!(suffixed.join(" "), expected);
        for service in SERVICES {
            assert_eq!(service.https, service.label.ends_with("-ssl"), "{}", service.label);
            assert_eq!(service.peers, service.label.contains("-server"), "{}", service.label);
        }
    }

    /// A name ends with a dot on the wire and without in a URL and in a certificate.
    #[test]
    fn a_target_is_a_host() {
        let place = |target: &str| Record::new(0, 0, target, 2379).map(|record| record.place());
        assert_eq!(place("a.example.org.").as_deref(), Some("a.example.org:2379"));
        assert_eq!(place("a").as_deref(), Some("a:2379"));
        for nowhere in [".", "", "a b.", "a\\032b.", "user@h.", "h/x."] {
            assert_eq!(place(nowhere), None, "{nowhere:?}");
        }
        assert_eq!(Record::new(0, 0, "a.", 0), None, "no port");
    }

    /// Proves CFG-303: priorities are kept, whatever is drawn; weights decide among equals.
    #[test]
    fn priority_before_weight() {
        let records = || {
            vec![
                record(20, 0, "late"),
                record(10, 60, "heavy"),
                record(10, 0, "none"),
                record(10, 40, "light"),
            ]
        };
        assert_eq!(hosts(&in_order(records(), |_| 0)), "none light heavy late");
        assert_eq!(hosts(&in_order(records(), |most| most)), "heavy light none late");
        assert_eq!(hosts(&in_order(records(), |most| most.min(40))), "light heavy none late");
        let mut asked = Vec::new();
        in_order(records(), |most| {
            asked.push(most);
            most
        });
        assert_eq!(asked, [100, 40, 0, 0], "what is left of the weights");
        assert!(in_order(Vec::new(), |_| 0).is_empty());
    }

    #[test]
    fn the_heavier_is_first_more_often() {
        let first = |_| {
            let records = vec![record(1, 90, "heavy"), record(1, 10, "light")];
            in_order(records, random).swap_remove(0).host == "heavy"
        };
        let heavy = (0..1_000).filter(|turn| first(*turn)).count();
        assert!((800..980).contains(&heavy), "{heavy} of 1000");
        assert!((0..100).all(|_| random(0) == 0));
    }
}
