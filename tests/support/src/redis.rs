//! A real Redis server on loopback: Debian's own package.

use crate::certs::Certs;
use crate::ports::free_port;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, wait};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

const BINARY: &str = "/usr/bin/redis-server";

/// How to start it.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// TLS only, and every client must show a certificate.
    pub tls: bool,
    /// Clients reach it through a proxy that can lose answers.
    pub proxied: bool,
    pub password: Option<String>,
    /// Start with nothing on disk, and put nothing there.
    pub forgetful: bool,
    /// Servers that follow the first.
    pub replicas: usize,
    /// Three Sentinels that promote another server a second after the writable one died.
    pub sentinels: bool,
}

/// Redis servers of their own, ended and removed when dropped; the first is the writable one.
pub struct Redis {
    options: RedisOptions,
    ports: Vec<u16>,
    seats: Seats,
    sentinels: Vec<(u16, Option<Process>)>,
    pub certs: Option<Certs>,
    dir: tempfile::TempDir,
}

/// What the Sentinels call the servers.
pub const MASTER: &str = "hathi";

impl Redis {
    /// Starts the servers and waits until they serve.
    pub async fn start(options: RedisOptions) -> Self {
        let dir = osuser::server_dir("hathi-redis-");
        let certs = options.tls.then(|| Certs::make(dir.path()));
        let mut seats = Seats::default();
        let ports: Vec<u16> = (0..=options.replicas)
            .map(|_| {
                let port = free_port();
                let proxy = options.proxied.then(|| Proxy::start(port));
                seats.0.push(Seat { process: None, proxy });
                port
            })
            .collect();
        let sentinels = (0..if options.sentinels { 3 } else { 0 }).map(|_| (free_port(), None));
        let sentinels = sentinels.collect();
        let mut redis = Self { options, ports, seats, sentinels, certs, dir };
        redis.start_all();
        redis.ready().await;
        if redis.options.sentinels {
            redis.start_sentinels().await;
        }
        redis
    }

    /// Starts the three, and waits until each knows the other two and every replica.
    async fn start_sentinels(&mut self) {
        for i in 0..self.sentinels.len() {
            let port = self.sentinels[i].0;
            let file = self.dir.path().join(format!("s{i}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {MASTER} 1000\n\
                 sentinel failover-timeout {MASTER} 5000\n",
                self.dir.path().display(),
                self.ports[0]
            );
            std::fs::write(&file, text).expect("a file can be written");
            osuser::give(&file);
            let mut command = Command::new(BINARY);
            command.arg(&file).arg("--sentinel");
            let log = self.dir.path().join(format!("s{i}.log"));
            self.sentinels[i].1 = Some(Process::start(command, &log));
        }
        let whole = wait::until("every Sentinel knows all", Duration::from_secs(60), || async {
            for (port, _) in &self.sentinels {
                let said = Self::asks(*port, &["SENTINEL", "MASTER", MASTER])?;
                let replicas = format!("num-slaves\r\n$1\r\n{}", self.options.replicas);
                for word in [replicas.as_str(), "num-other-sentinels\r\n$1\r\n2"] {
                    if !said.contains(word) {
                        return Err(format!("{word:?} is not in {said:?}"));
                    }
                }
            }
            Ok(())
        });
        if let Err(why) = whole.await {
            panic!("{why}\n{}", tail(&self.dir.path().join("s0.log"), 20));
        }
    }

    pub fn sentinel_hosts(&self) -> Vec<(String, u16)> {
        self.sentinels.iter().map(|(port, _)| ("127.0.0.1".to_owned(), *port)).collect()
    }

    /// kill -9.
    pub fn kill_sentinel(&mut self, which: usize) {
        self.sentinels[which].1 = None;
    }

    /// What a server says to a command, in its own words.
    ///
    /// # Errors
    /// It does not answer.
    pub fn asks(port: u16, words: &[&str]) -> Result<String, String> {
        Self::asks_as(port, &[&words.join(" ")])
    }

    /// The same with several commands on one connection.
    ///
    /// # Errors
    /// It does not answer.
    pub fn asks_as(port: u16, commands: &[&str]) -> Result<String, String> {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(format!("{}\r\n", commands.join("\r\n")).as_bytes())?;
            // Sentinel knows no QUIT; who has heard everything hangs up.
            stream.shutdown(Shutdown::Write)?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok::<_, std::io::Error>(said)
        };
        ask().map_err(|why| why.to_string())
    }

    /// Host and port of what clients connect to: the proxies if there are some.
    pub fn hosts(&self) -> Vec<(String, u16)> {
        let each = self.ports.iter().zip(&self.seats.0);
        each.map(|(port, seat)| seat.proxy.as_ref().map_or(*port, |proxy| proxy.port))
            .map(|port| ("127.0.0.1".to_owned(), port))
            .collect()
    }

    /// Past the proxy.
    pub fn port(&self, which: usize) -> u16 {
        self.ports[which]
    }

    fn says_pong(port: u16) -> Result<(), String> {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 64];
            let count = stream.read(&mut answer)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer[..count]).into_owned())
        };
        match ask() {
            Ok(said) if said.starts_with("+PONG") || said.starts_with("-NOAUTH") => Ok(()),
            Ok(said) => Err(said),
            Err(why) => Err(why.to_string()),
        }
    }
}

seated!(Redis);

impl StoreServers for Redis {
    fn start_all(&mut self) {
        for i in 0..self.ports.len() {
            if self.seats.runs(i) {
                continue;
            }
            let dir = self.dir.path().join(format!("r{i}"));
            std::fs::create_dir_all(&dir).expect("a directory can be made");
            osuser::give(&dir);
            let port = self.ports[i].to_string();
            let mut command = Command::new(BINARY);
            command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(&dir);
            // Whoever comes from a machine of a test's network has another address.
            command.args(["--protected-mode", "no"]);
            match self.options.forgetful {
                true => command.args(["--appendonly", "no"]),
                false => command.args(["--appendonly", "yes", "--appendfsync", "always"]),
            };
            match &self.certs {
                None => command.args(["--port", &port]),
                Some(certs) => command
                    .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "yes"])
                    .arg("--tls-cert-file")
                    .arg(&certs.cert)
                    .arg("--tls-key-file")
                    .arg(&certs.key)
                    .arg("--tls-ca-cert-file")
                    .arg(&certs.ca),
            };
            if let Some(password) = &self.options.password {
                command.args(["--requirepass", password]);
            }
            if i > 0 {
                command.args(["--replicaof", "127.0.0.1", &self.ports[0].to_string()]);
                command.args(["--repl-diskless-sync-delay", "0"]);
            }
            let log = self.dir.path().join(format!("r{i}.log"));
            self.seats.0[i].process = Some(Process::start(command, &log));
        }
    }

    async fn ready(&self) {
        for (i, port) in self.ports.iter().enumerate().filter(|(i, _)| self.seats.runs(*i)) {
            let tls = self.options.tls;
            let serves = wait::until("redis serves", Duration::from_secs(30), || async {
                match tls {
                    true => TcpStream::connect(("127.0.0.1", *port))
                        .map(drop)
                        .map_err(|e| e.to_string()),
                    false => Self::says_pong(*port),
                }
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.dir.path().join(format!("r{i}.log")), 20));
            }
        }
    }

    async fn leader(&self) -> Option<usize> {
        Some(0)
    }
}
