//! One question to the name servers. Each of them has a resolver of its own, so that it can be said
//! which of them answered what; the time of each is a share of the caller's.

use super::names::Record;
use hickory_resolver::config::{
    NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::RData;
use hickory_resolver::{TokioResolver, system_conf};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::timeout;

/// The most that one name server is waited for in one try.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each is asked before it counts as silent: datagrams are lost.
const ROUNDS: u32 = 2;

pub(super) struct NameServers {
    each: Vec<(String, TokioResolver)>,
    share: Duration,
}

/// What a name server said instead of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Refusal {
    pub server: String,
    pub said: String,
}

impl NameServers {
    /// Those given, or with none those of /etc/resolv.conf as it is now; all tries together take
    /// less than `within`.
    pub fn new(given: &[SocketAddr], within: Duration) -> Result<Self, String> {
        let (config, mut options) = if given.is_empty() {
            system_conf::read_system_conf().map_err(|why| format!("/etc/resolv.conf: {why}"))?
        } else {
            let all = given.iter().map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|way| way.port = server.port());
                config
            });
            (ResolverConfig::from_name_servers(all.collect()), ResolverOpts::default())
        };
        let (domain, search, servers) = config.into_parts();
        let tries = ROUNDS.saturating_mul(u32::try_from(servers.len()).unwrap_or(u32::MAX));
        let share = (within / tries.max(1)).min(PATIENCE);
        options.timeout = share;
        // Tried again here, where it can be another one's turn.
        options.attempts = 0;
        // Asked for only when what was known is worth nothing any more.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let each = servers.into_iter().map(|server| {
            let place = match server.connections.first().map_or(53, |way| way.port) {
                53 => server.ip.to_string(),
                port => SocketAddr::new(server.ip, port).to_string(),
            };
            let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
            let provider = TokioRuntimeProvider::default();
            let resolver = TokioResolver::builder_with_config(config, provider)
                .with_options(options.clone())
                .build();
            resolver.map(|resolver| (place, resolver)).map_err(|why| why.to_string())
        });
        Ok(Self { each: each.collect::<Result<_, _>>()?, share })
    }

    /// The records of this name, or what was said instead: by the one that knows that there are
    /// none, or by all of them.
    pub async fn ask(&self, name: String) -> Result<Vec<Record>, Vec<Refusal>> {
        let mut refusals: Vec<Refusal> = Vec::new();
        for _ in 0..ROUNDS {
            for (server, resolver) in &self.each {
                let said = match timeout(self.share, resolver.srv_lookup(name.as_str())).await {
                    Ok(Ok(answer)) => {
                        let records = answer.answers().iter();
                        return Ok(records.filter_map(|one| usable(&one.data)).collect());
                    }
                    Ok(Err(error)) => said(&error),
                    Err(_elapsed) => Said::Nothing("no answer".to_owned()),
                };
                let (settled, said) = match said {
                    Said::NoSuch(text) => (true, text),
                    Said::Nothing(text) => (false, text),
                };
                let refusal = Refusal { server: server.clone(), said };
                if settled {
                    return Err(vec![refusal]);
                }
                refusals.retain(|earlier| earlier.server != refusal.server);
                refusals.push(refusal);
            }
        }
        Err(refusals)
    }
}

fn usable(data: &RData) -> Option<Record> {
    let RData::SRV(srv) = data else { return None };
    Record::new(srv.priority, srv.weight, &srv.target.to_ascii(), srv.port)
}

enum Said {
    /// There is no such record: no other server need be asked.
    NoSuch(String),
    Nothing(String),
}

fn said(error: &NetError) -> Said {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            Said::NoSuch(match u16::from(none.response_code) {
                3 => "NXDOMAIN".to_owned(),
                0 => "no records".to_owned(),
                _ => none.response_code.to_string(),
            })
        }
        NetError::Dns(DnsError::ResponseCode(code)) => Said::Nothing(code.to_string()),
        NetError::Timeout => Said::Nothing("no answer".to_owned()),
        // Of what cannot be read the library says no more than that nothing usable came.
        other => Said::Nothing(other.to_string()),
    }
}
