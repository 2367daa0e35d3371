//! Real ZooKeeper servers on loopback: Debian's own package.

use crate::certs::Certs;
use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, wait};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const JAR: &str = "/usr/share/java/zookeeper.jar";

/// How to start them.
#[derive(Clone, Debug)]
pub struct ZooKeeperOptions {
    pub members: usize,
    /// TLS beside plain TCP; every client must show a certificate there.
    pub tls: bool,
    /// Clients reach each server through a proxy that can lose answers.
    pub proxied: bool,
    /// In milliseconds; sessions are between 2 and 20 of them, unless `longest_ms` says otherwise.
    pub tick_ms: u32,
    pub longest_ms: Option<u32>,
    /// Clients have to log in by SASL.
    pub sasl: bool,
}

impl ZooKeeperOptions {
    pub fn new(members: usize) -> Self {
        let longest_ms = Some(60_000);
        Self { members, tls: false, proxied: false, tick_ms: 500, longest_ms, sasl: false }
    }
}

struct Member {
    dir: PathBuf,
    client: u16,
    secure: u16,
    peer: u16,
    election: u16,
}

/// A ZooKeeper ensemble of its own, ended and removed when dropped.
pub struct ZooKeeper {
    options: ZooKeeperOptions,
    members: Vec<Member>,
    seats: Seats,
    pub certs: Option<Certs>,
    dir: tempfile::TempDir,
}

impl ZooKeeper {
    /// Starts the servers and waits until they serve.
    pub async fn start(options: ZooKeeperOptions) -> Self {
        let dir = osuser::server_dir("hathi-zookeeper-");
        let certs = options.tls.then(|| Certs::make(dir.path()));
        let mut seats = Seats::default();
        let members = (0..options.members)
            .map(|i| {
                let ports = free_ports(4);
                let proxy = options.proxied.then(|| Proxy::start(ports[0]));
                seats.0.push(Seat { process: None, proxy });
                let dir = dir.path().join(format!("z{i}"));
                let (client, secure, peer, election) = (ports[0], ports[1], ports[2], ports[3]);
                Member { dir, client, secure, peer, election }
            })
            .collect();
        let mut zookeeper = Self { options, members, seats, certs, dir };
        zookeeper.start_all();
        zookeeper.ready().await;
        zookeeper
    }

    /// `host:port` of what clients connect to: the proxies if there are some.
    pub fn hosts(&self) -> Vec<String> {
        let port = |(m, seat): (&Member, &Seat)| match (&seat.proxy, self.options.tls) {
            (Some(proxy), _) => proxy.port,
            (None, true) => m.secure,
            (None, false) => m.client,
        };
        let each = self.members.iter().zip(&self.seats.0);
        each.map(|pair| format!("127.0.0.1:{}", port(pair))).collect()
    }

    /// Plain TCP to each server, past the proxies.
    pub fn plain_hosts(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("127.0.0.1:{}", m.client)).collect()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(i, _)| self.seats.runs(*i))
    }

    fn configuration(&self, which: usize) -> String {
        let (m, options) = (&self.members[which], &self.options);
        let mut text = format!(
            "tickTime={}\ninitLimit=20\nsyncLimit=4\ndataDir={}\nclientPort={}\n\
             clientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=*\n\
             maxClientCnxns=0\nforceSync=no\n",
            options.tick_ms,
            m.dir.display(),
            m.client
        );
        if let Some(longest) = options.longest_ms {
            let _ = writeln!(text, "maxSessionTimeout={longest}");
        }
        if options.sasl {
            text += "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n\
                     enforce.auth.enabled=true\nenforce.auth.schemes=sasl\n";
        }
        if self.members.len() > 1 {
            for (i, m) in self.members.iter().enumerate() {
                let _ = writeln!(text, "server.{}=127.0.0.1:{}:{}", i + 1, m.peer, m.election);
            }
        }
        if let Some(certs) = &self.certs {
            let both = certs.cert.with_file_name("leaf.pem");
            let _ = write!(
                text,
                "secureClientPort={}\n\
                 serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                 ssl.keyStore.location={}\nssl.keyStore.type=PEM\n\
                 ssl.trustStore.location={}\nssl.trustStore.type=PEM\nssl.clientAuth=need\n\
                 authProvider.1=org.apache.zookeeper.server.auth.X509AuthenticationProvider\n",
                m.secure,
                both.display(),
                certs.ca.display()
            );
        }
        text
    }

    /// What the server says of itself.
    async fn mode(port: u16) -> Result<String, String> {
        let said = apart(move || four_letters(port, b"srvr")).await?;
        let mode = said.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.map(str::to_owned).ok_or(said)
    }

    /// Ends a session under its owner, as a client of that session would that closes it.
    ///
    /// # Errors
    /// No server does it.
    pub async fn end_session(&self, id: i64) -> Result<(), String> {
        let (_, m) = self.running().next().ok_or("no server runs")?;
        let port = m.client;
        // Its owner comes back at once, and may take it from us before it is closed.
        let closed = move || (0..50).any(|_| close_session(port, id).is_ok_and(|unknown| unknown));
        if apart(closed).await { Ok(()) } else { Err(format!("session {id:#x} goes on")) }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

seated!(ZooKeeper);

impl StoreServers for ZooKeeper {
    fn start_all(&mut self) {
        assert!(Path::new(JAR).exists(), "{JAR} is not there: run scripts/setup");
        if let Some(certs) = &self.certs {
            let both = certs.cert.with_file_name("leaf.pem");
            let parts = [&certs.key, &certs.cert].map(|file| std::fs::read(file).expect("a file"));
            std::fs::write(&both, parts.concat()).expect("a file can be written");
            osuser::give(&both);
        }
        for i in 0..self.members.len() {
            if self.seats.runs(i) {
                continue;
            }
            let dir = &self.members[i].dir;
            std::fs::create_dir_all(dir).expect("a directory can be made");
            let file = dir.join("zoo.cfg");
            std::fs::write(&file, self.configuration(i)).expect("a file can be written");
            std::fs::write(dir.join("myid"), (i + 1).to_string()).expect("a file can be written");
            for path in [dir.clone(), file.clone(), dir.join("myid")] {
                osuser::give(&path);
            }
            let classes = match self.options.tls {
                true => format!("/etc/zookeeper/conf:{JAR}:/usr/share/java/*"),
                false => format!("/etc/zookeeper/conf:{JAR}"),
            };
            let mut command = Command::new("java");
            command.args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
            if self.options.sasl {
                let jaas = dir.join("jaas.conf");
                let login = "Server { org.apache.zookeeper.server.auth.DigestLoginModule required \
                             user_bob=\"secret\"; };\n";
                std::fs::write(&jaas, login).expect("a file can be written");
                osuser::give(&jaas);
                command.arg(format!("-Djava.security.auth.login.config={}", jaas.display()));
            }
            command.arg("-cp");
            command.arg(classes).arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
            let log = self.dir.path().join(format!("z{i}.log"));
            self.seats.0[i].process = Some(Process::start(command, &log));
        }
    }

    async fn ready(&self) {
        for (i, m) in self.running() {
            let serves = wait::until("zookeeper serves", Duration::from_secs(60), || async {
                Self::mode(m.client).await.map(drop)
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.dir.path().join(format!("z{i}.log")), 20));
            }
        }
    }

    async fn leader(&self) -> Option<usize> {
        for (i, m) in self.running() {
            if Self::mode(m.client).await.is_ok_and(|mode| mode == "leader") {
                return Some(i);
            }
        }
        None
    }
}

/// A server that starts or stands still lets us wait for seconds; the other tests must not wait as well.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

fn four_letters(port: u16, word: &[u8; 4]) -> Result<String, String> {
    let ask = || {
        let mut stream = connect(port)?;
        stream.write_all(word)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok::<_, std::io::Error>(said)
    };
    ask().map_err(|why| why.to_string())
}

/// The protocol's own words: who knows a session's password may go on with it, and close it. The
/// servers make the password from the session's number, so that each of them can check it. True: the
/// server does not know that session (any more).
fn close_session(port: u16, id: i64) -> std::io::Result<bool> {
    const CLOSE: i32 = -11;
    let mut stream = connect(port)?;
    let mut words = Vec::new();
    words.extend(44_i32.to_be_bytes());
    words.extend(0_i32.to_be_bytes());
    words.extend(0_i64.to_be_bytes());
    words.extend(10_000_i32.to_be_bytes());
    words.extend(id.to_be_bytes());
    words.extend(16_i32.to_be_bytes());
    words.extend(password(id));
    words.extend([8_i32, 1, CLOSE].map(i32::to_be_bytes).concat());
    stream.write_all(&words)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut welcome = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut welcome)?;
    let known = welcome.get(8..16) != Some([0; 8].as_slice());
    // It answers, and hangs up.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    Ok(!known)
}

/// Sixteen bytes of Java's random generator, begun with the session's number.
fn password(id: i64) -> [u8; 16] {
    const MASK: u64 = (1 << 48) - 1;
    const STEP: u64 = 0x5_DEEC_E66D;
    let mut seed = ((id as u64) ^ 0xB341_5C00 ^ STEP) & MASK;
    let mut bytes = [0; 16];
    for four in bytes.chunks_mut(4) {
        seed = (seed.wrapping_mul(STEP).wrapping_add(11)) & MASK;
        four.copy_from_slice(&((seed >> 16) as u32).to_le_bytes());
    }
    bytes
}
