//! Which servers does DNS name? (CFG-303, DCS-073)
//!
//! ```text
//!  six names, asked for at once ── the first that leads somewhere ── hosts in order ── URLs
//!        │ names.rs, resolver.rs                └── peers' port: GET /members ── URLs   peers.rs
//! ```
//! Nothing is remembered here, and nothing is decided but which answer counts: when DNS is asked, and
//! what happens while it does not answer, is the affair of [`crate::endpoints`].

mod names;
mod peers;
mod resolver;

use crate::EtcdConfig;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use hathi_dcs::Deadline;
use names::SERVICES;
use resolver::{NameServers, Refusal};

/// The most servers that are taken from one answer; whoever has more is no etcd.
const MOST: usize = 64;

/// URLs in the order in which they are to be tried, each once; never none.
///
/// # Errors
/// One line: who was asked for what, and what each of them said.
pub(crate) async fn find(
    config: &EtcdConfig,
    domain: &str,
    by: Deadline,
) -> Result<Vec<String>, String> {
    let suffix = config.srv_suffix.as_deref().filter(|suffix| !suffix.is_empty());
    let nothing = |why: String| format!("DNS names no etcd below {domain}: {why}");
    // The rest is for asking the members' own ports.
    let servers = NameServers::new(&config.name_servers, by.left() * 2 / 3).map_err(nothing)?;
    let mut answers: FuturesOrdered<_> = SERVICES
        .iter()
        .map(|service| {
            let label = service.labelled(suffix);
            let asked = servers.ask(format!("{label}._tcp.{domain}"));
            async move { (service, label, asked.await) }
        })
        .collect();
    let mut tried = Tried::default();
    while let Some((service, label, answer)) = answers.next().await {
        let records = match answer {
            Ok(records) => records,
            Err(refusals) => {
                tried.refused(&label, refusals);
                continue;
            }
        };
        let mut records = names::in_order(records, names::random);
        records.truncate(MOST);
        let places =
            records.iter().map(|record| format!("{}://{}", service.scheme(), record.place()));
        let places: Vec<String> = places.collect();
        if places.is_empty() {
            tried.others.push(format!("{label} names no host"));
        } else if !service.peers {
            return Ok(once_each(places));
        } else {
            match peers::client_urls(config, &places, by).await {
                Ok(urls) => return Ok(once_each(urls)),
                Err(why) => tried.others.push(format!("{label} leads to {why}")),
            }
        }
    }
    Err(nothing(tried.line()))
}

fn once_each(urls: Vec<String>) -> Vec<String> {
    let mut each: Vec<String> = Vec::with_capacity(urls.len());
    for url in urls {
        if !each.contains(&url) && each.len() < MOST {
            each.push(url);
        }
    }
    each
}

/// Who said what to which names: mostly it is the same to all six.
#[derive(Default)]
struct Tried {
    refusals: Vec<(Refusal, Vec<String>)>,
    others: Vec<String>,
}

impl Tried {
    fn refused(&mut self, label: &str, refusals: Vec<Refusal>) {
        for refusal in refusals {
            match self.refusals.iter_mut().find(|(known, _)| *known == refusal) {
                Some((_, labels)) => labels.push(label.to_owned()),
                None => self.refusals.push((refusal, vec![label.to_owned()])),
            }
        }
    }

    fn line(&self) -> String {
        let refusals = self.refusals.iter().map(|(Refusal { server, said }, labels)| {
            format!("{server} says {said} to {}", labels.join(", "))
        });
        refusals.chain(self.others.iter().cloned()).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_one_line() {
        let mut tried = Tried::default();
        let refusal =
            |server: &str, said: &str| Refusal { server: server.into(), said: said.into() };
        tried.refused("_etcd-client", vec![refusal("10.0.0.1", "NXDOMAIN")]);
        tried.refused("_etcd", vec![refusal("10.0.0.1", "no answer"), refusal("::1", "REFUSED")]);
        tried.refused("_etcd-ssl", vec![refusal("10.0.0.1", "NXDOMAIN")]);
        tried.others.push("_etcd-server names no host".into());
        let expected = "10.0.0.1 says NXDOMAIN to _etcd-client, _etcd-ssl; 10.0.0.1 says no answer to \
                        _etcd; ::1 says REFUSED to _etcd; _etcd-server names no host";
        assert_eq!(tried.line(), expected);
    }

    #[test]
    fn each_once_and_not_too_many() {
        let urls = ["http://a:1", "http://b:1", "http://a:1"].map(str::to_owned).to_vec();
        assert_eq!(once_each(urls), ["http://a:1", "http://b:1"]);
        assert_eq!(once_each((0..1_000).map(|n| n.to_string()).collect()).len(), MOST);
    }
}
