//! Where the API listens: reading `restapi.listen`, and binding. (REST-290)

use rustix::net::sockopt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};

/// Why the API cannot listen; one line each, with the text of the configuration in it.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("restapi.listen: {text:?} is not host:port ({why})")]
    Syntax { text: String, why: &'static str },
    #[error("restapi.listen: the host {host:?} cannot be resolved: {cause}")]
    Unknown { host: String, cause: io::Error },
    #[error(
        "restapi.listen: the port of {address} is in use; stop the process that has it, or choose another port"
    )]
    InUse { address: SocketAddr },
    #[error("restapi.listen: {address} is not an address of this machine")]
    NotHere { address: SocketAddr },
    #[error(
        "restapi.listen: not allowed to listen on {address} (ports below 1024 need privileges)"
    )]
    Denied { address: SocketAddr },
    #[error("restapi.unix_socket: {}: {why}", path.display())]
    Socket { path: PathBuf, why: io::Error },
    #[error("restapi.listen: cannot listen on {address}: {cause}")]
    Failed { address: SocketAddr, cause: io::Error },
}

/// One host of `restapi.listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// `*` or nothing: every address, IPv4 and IPv6.
    Every,
    Address(IpAddr),
    Name(String),
}

/// Reads `host:port`, `[v6]:port`, `v6:port`, `*:port`, `:port`, and several hosts with commas.
pub fn parse(text: &str) -> Result<(Vec<Host>, u16), ListenError> {
    let error = |why| ListenError::Syntax { text: text.to_owned(), why };
    let (hosts, port) = text.trim().rsplit_once(':').ok_or_else(|| error("the port is missing"))?;
    let port = port.parse().map_err(|_| error("the port is no number from 0 to 65535"))?;
    let hosts = hosts.split(',').map(|host| {
        let host = host.trim();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match bare {
            "" | "*" => Ok(Host::Every),
            bare => match bare.parse() {
                Ok(address) => Ok(Host::Address(address)),
                Err(_) if bare.contains([':', '/', ' ', '[', ']']) => {
                    Err(error("that is no IPv6 address"))
                }
                Err(_) => Ok(Host::Name(bare.to_owned())),
            },
        }
    });
    Ok((hosts.collect::<Result<_, _>>()?, port))
}

/// Binds all addresses of `text`, or none.
pub async fn bind(text: &str, backlog: u32) -> Result<Vec<TcpListener>, ListenError> {
    let (hosts, port) = parse(text)?;
    let mut listeners = Vec::new();
    for host in hosts {
        match host {
            Host::Every => listeners.push(every(port, backlog)?),
            Host::Address(address) => {
                listeners.push(one(SocketAddr::new(address, port), false, backlog)?);
            }
            Host::Name(name) => named(&name, port, backlog, &mut listeners).await?,
        }
    }
    Ok(listeners)
}

/// One socket for both families where the machine can, else IPv4.
fn every(port: u16, backlog: u32) -> Result<TcpListener, ListenError> {
    let both = one(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), true, backlog);
    match both {
        Ok(listener) => Ok(listener),
        Err(used @ ListenError::InUse { .. }) => Err(used),
        Err(_) => one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), false, backlog),
    }
}

/// A name may have addresses this machine lacks (`localhost` without IPv6): one is enough.
async fn named(
    name: &str,
    port: u16,
    backlog: u32,
    listeners: &mut Vec<TcpListener>,
) -> Result<(), ListenError> {
    let unknown = |cause| ListenError::Unknown { host: name.to_owned(), cause };
    let lookup = tokio::net::lookup_host((name, port));
    let found = match tokio::time::timeout(Duration::from_secs(5), lookup).await {
        Ok(found) => found.map_err(unknown)?,
        Err(late) => return Err(unknown(io::Error::from(late))),
    };
    let mut bound = false;
    let mut refused = unknown(io::Error::from(io::ErrorKind::NotFound));
    for address in found {
        match one(address, false, backlog) {
            Ok(listener) => {
                bound = true;
                listeners.push(listener);
            }
            Err(used @ ListenError::InUse { .. }) => return Err(used),
            Err(other) => refused = other,
        }
    }
    if bound { Ok(()) } else { Err(refused) }
}

fn one(address: SocketAddr, both: bool, backlog: u32) -> Result<TcpListener, ListenError> {
    open(address, both, backlog).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere { address },
        io::ErrorKind::PermissionDenied => ListenError::Denied { address },
        _ => ListenError::Failed { address, cause },
    })
}

/// What the kernel keeps for a client that does not read; it doubles it for its own needs. The page of
/// metrics fits. (REST-451)
const SEND_BUFFER: u32 = 64 * 1024;

fn open(address: SocketAddr, both: bool, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if both {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // Accepted connections inherit these. (REST-008)
    socket.set_send_buffer_size(SEND_BUFFER)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(3))?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(2))?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    sockopt::set_tcp_user_timeout(&socket, 10_000)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-290 (the spellings).
    #[test]
    fn the_address_is_read() {
        let v4 = |a, b, c, d| Host::Address(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        let v6 = Host::Address(IpAddr::V6(Ipv6Addr::LOCALHOST));
        for (text, hosts, port) in [
            ("127.0.0.1:8008", vec![v4(127, 0, 0, 1)], 8008),
            ("[::1]:8008", vec![v6.clone()], 8008),
            ("::1:8008", vec![v6.clone()], 8008),
            ("*:8008", vec![Host::Every], 8008),
            (":8008", vec![Host::Every], 8008),
            ("node1:1", vec![Host::Name("node1".into())], 1),
            ("127.0.0.1, 10.0.0.1,[::1]:8008", vec![v4(127, 0, 0, 1), v4(10, 0, 0, 1), v6], 8008),
        ] {
            let read = parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(read, (hosts, port), "{text}");
        }
        for bad in ["8008", "host:", "host:70000", "a b:1", "http://x:1", "1::x::2:80"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_in_one_line() {
        let first = bind("127.0.0.1:0", 128).await.expect("a free port");
        let address = first[0].local_addr().expect("an address");
        let second = bind(&address.to_string(), 128).await.expect_err("it is taken");
        assert!(matches!(second, ListenError::InUse { .. }));
        let line = second.to_string();
        assert!(line.contains(&address.to_string()) && line.contains("in use"), "{line}");
        assert!(!line.contains('\n'));
        let elsewhere = bind("192.0.2.1:0", 128).await.expect_err("not our address");
        assert!(matches!(elsewhere, ListenError::NotHere { .. }), "{elsewhere}");
    }

    /// Proves REST-008.
    #[tokio::test]
    async fn accepted_connections_notice_dead_clients() {
        let listener = bind("127.0.0.1:0", 128).await.expect("a free port").remove(0);
        let address = listener.local_addr().expect("an address");
        let _client = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("a client");
        assert!(sockopt::socket_keepalive(&stream).expect("an option"));
        assert_eq!(sockopt::tcp_keepidle(&stream).expect("an option"), Duration::from_secs(3));
        assert_eq!(sockopt::tcp_keepintvl(&stream).expect("an option"), Duration::from_secs(2));
        assert_eq!(sockopt::tcp_keepcnt(&stream).expect("an option"), 3);
        assert_eq!(sockopt::tcp_user_timeout(&stream).expect("an option"), 10_000);
        assert!(sockopt::socket_reuseaddr(&listener).expect("an option"));
        let flags = rustix::io::fcntl_getfd(&listener).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child inherits it");
    }

    /// Proves REST-290 (every address).
    #[tokio::test]
    async fn a_star_hears_ipv4() {
        let listeners = bind("*:0", 128).await.expect("a free port");
        let port = listeners[0].local_addr().expect("an address").port();
        let accepted = tokio::join!(
            listeners[0].accept(),
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        );
        assert!(accepted.0.is_ok() && accepted.1.is_ok());
    }
}
