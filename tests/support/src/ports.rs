//! Free TCP ports, claimed for as long as this process lives. They lie below the kernel's range
//! for outgoing connections, so that no client socket can take one between the choice and its
//! use, and a locked file a port keeps parallel test processes from choosing the same.

use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

static HELD: Mutex<Vec<(u16, File)>> = Mutex::new(Vec::new());

const FIRST: u16 = 11000;
const LAST: u16 = 31999;

/// Where a server listens: a bare port is one of 127.0.0.1.
pub trait Place: Copy + Send {
    fn at(self) -> SocketAddr;
}

impl Place for u16 {
    fn at(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self).into()
    }
}

impl Place for SocketAddr {
    fn at(self) -> SocketAddr {
        self
    }
}

/// One port of 127.0.0.1 that nobody listens on and no other test process will choose.
pub fn free_port() -> u16 {
    let dir = std::env::temp_dir().join("hathi-test-ports");
    let _ = std::fs::create_dir_all(&dir);
    let mut held = HELD.lock().unwrap_or_else(|e| e.into_inner());
    let span = LAST - FIRST;
    let start = FIRST + (std::process::id() as u16).wrapping_mul(97) % span;
    for step in 0..span {
        let port = FIRST + (start - FIRST + step) % span;
        if held.iter().any(|(p, _)| *p == port) {
            continue;
        }
        let path = dir.join(port.to_string());
        let Ok(file) = OpenOptions::new().create(true).truncate(false).write(true).open(&path)
        else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if TcpListener::bind(("127.0.0.1", port)).is_err() {
            continue;
        }
        held.push((port, file));
        return port;
    }
    panic!("no free port between {FIRST} and {LAST}");
}

/// `count` different free ports.
pub fn free_ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| free_port()).collect()
}
