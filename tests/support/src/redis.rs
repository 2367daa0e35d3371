//! A real Redis server on loopback: Debian's own package.

use crate::certs::Certs;
use crate::ports::free_port;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, wait};
use std::io::{Read, Write};
use std::net::TcpStream;
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
}

/// Redis servers of their own, ended and removed when dropped; the first is the writable one.
pub struct Redis {
    options: RedisOptions,
    ports: Vec<u16>,
    seats: Seats,
    pub certs: Option<Certs>,
    dir: tempfile::TempDir,
}

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
        let mut redis = Self { options, ports, seats, certs, dir };
        redis.start_all();
        redis.ready().await;
        redis
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
