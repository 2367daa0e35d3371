//! Where a server's name led, for when nobody can be asked where it leads. (DCS-075)
//!
//! Names are resolved by the system at every connection, and all addresses tried. But the moment at which
//! another server has to be asked is a bad one to depend on a name server too: what the names led to
//! before is kept for that, and renewed whenever the members are asked for.

use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a name server may take, of an attempt that lasts a second or more.
const PATIENCE: Duration = Duration::from_millis(500);

type Found = std::io::Result<Vec<SocketAddr>>;

#[derive(Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// Counts the detours, so that each address has its turn.
    turn: usize,
}

pub(crate) struct Names {
    known: Mutex<HashMap<String, Known>>,
    lookup: fn(String) -> BoxFuture<'static, Found>,
}

fn ask_system(name: String) -> BoxFuture<'static, Found> {
    async move { Ok(tokio::net::lookup_host(name).await?.collect()) }.boxed()
}

/// `host:port` of a URL, unless the host is an address already.
fn name_in(url: &str) -> Option<&str> {
    let (_, place) = url.split_once("://")?;
    let (host, _) = place.rsplit_once(':')?;
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    (!literal).then_some(place)
}

impl Names {
    pub fn new() -> Self {
        Self::by(ask_system)
    }

    pub fn by(lookup: fn(String) -> BoxFuture<'static, Found>) -> Self {
        Self { known: Mutex::default(), lookup }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True: the name leads somewhere now.
    async fn learn(&self, name: &str) -> bool {
        match timeout(PATIENCE, (self.lookup)(name.to_owned())).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                self.known().entry(name.to_owned()).or_default().addresses = addresses;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// The address to connect to instead of the name: there is none as long as names lead somewhere.
    pub async fn detour(&self, url: &str) -> Option<SocketAddr> {
        let name = name_in(url)?;
        if self.learn(name).await {
            return None;
        }
        let mut known = self.known();
        let Known { addresses, turn } = known.get_mut(name)?;
        let address = addresses.get(*turn % addresses.len().max(1)).copied()?;
        *turn += 1;
        tracing::warn!(
            "{name} leads nowhere at the moment; {address}, where it led before, is asked"
        );
        Some(address)
    }

    /// Looks all of them up anew, and forgets the others.
    pub async fn renew(&self, urls: &[String]) {
        let names: Vec<&str> = urls.iter().filter_map(|url| name_in(url)).collect();
        self.known().retain(|name, _| names.contains(&name.as_str()));
        futures::future::join_all(names.iter().map(|name| self.learn(name))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    static DOWN: AtomicBool = AtomicBool::new(false);

    fn asked(name: String) -> BoxFuture<'static, Found> {
        async move {
            if DOWN.load(Ordering::SeqCst) || name != "etcd.example:2379" {
                return Err(std::io::Error::other("no name server answers"));
            }
            Ok(vec![([10, 0, 0, 1], 2379).into(), ([10, 0, 0, 2], 2379).into()])
        }
        .boxed()
    }

    /// Proves DCS-075: where names led is kept for when no name server answers; each address has its turn.
    #[tokio::test]
    async fn a_name_is_remembered() {
        let names = Names::by(asked);
        let url = "https://etcd.example:2379".to_owned();
        names.renew(&[url.clone(), "http://10.0.0.9:1".into(), "http://[::1]:2".into()]).await;
        assert_eq!(names.detour(&url).await, None, "the system resolves it");
        DOWN.store(true, Ordering::SeqCst);
        let detours =
            [names.detour(&url).await, names.detour(&url).await, names.detour(&url).await];
        let ips = detours.map(|address| address.expect("it led somewhere").ip().to_string());
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2", "10.0.0.1"]);
        assert_eq!(names.detour("http://other.example:1").await, None, "never known");
        assert_eq!(names.detour("http://10.0.0.9:1").await, None, "no name");
        names.renew(&[]).await;
        assert_eq!(names.detour(&url).await, None, "no server of ours any more");
    }
}
