//! A TCP proxy on loopback that can hold one direction back, make answers slow or cut a connection
//! before one, for the outcomes that only a network can make unknown.

use crate::ports::free_port;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

struct Shared {
    upstream: u16,
    closing: AtomicBool,
    held: AtomicBool,
    requests_held: AtomicBool,
    slow_ms: AtomicU64,
    /// How many answers still pass before the cut; negative: none is cut.
    cut_after: AtomicI64,
    connections: Mutex<Vec<TcpStream>>,
}

/// Ends with all its connections when dropped.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Forwards to `upstream` on 127.0.0.1.
    pub fn start(upstream: u16) -> Self {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port can be bound");
        let shared = Arc::new(Shared {
            upstream,
            closing: AtomicBool::new(false),
            held: AtomicBool::new(false),
            requests_held: AtomicBool::new(false),
            slow_ms: AtomicU64::new(0),
            cut_after: AtomicI64::new(-1),
            connections: Mutex::new(Vec::new()),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.closing.load(Ordering::Acquire) {
                    return;
                }
                accepting.serve(client);
            }
        });
        Self { port, shared }
    }

    /// Requests pass, answers wait.
    pub fn hold_answers(&self, yes: bool) {
        self.shared.held.store(yes, Ordering::Release);
    }

    /// Answers pass, requests wait.
    pub fn hold_requests(&self, yes: bool) {
        self.shared.requests_held.store(yes, Ordering::Release);
    }

    /// Whatever the server sends at once is this much late.
    pub fn slow_answers(&self, ms: u64) {
        self.shared.slow_ms.store(ms, Ordering::Release);
    }

    /// `passing` answers come through, then the connection of the next one is cut before it.
    pub fn cut_answer(&self, passing: u32) {
        self.shared.cut_after.store(i64::from(passing), Ordering::Release);
    }

    pub fn cut_all(&self) {
        for connection in self.shared.connections().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.hold_answers(false);
        self.hold_requests(false);
        self.cut_all();
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.upstream)) else { return };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (Ok(c), Ok(s)) = (client.try_clone(), server.try_clone()) else { return };
        self.connections().extend([c, s]);
        let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
        let shared = self.clone();
        thread::spawn(move || {
            shared.pass_requests(from, &to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let (arrived, answers) = mpsc::sync_channel(64);
        let Ok(cut) = server.try_clone() else { return };
        let shared = self.clone();
        thread::spawn(move || take_answers(server, &arrived));
        thread::spawn(move || {
            shared.pass_answers(&answers, &cut, &client);
            let _ = client.shutdown(Shutdown::Both);
        });
    }

    fn pass_requests(&self, mut client: TcpStream, mut server: &TcpStream) {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = client.read(&mut bytes) {
            while self.requests_held.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(5));
            }
            if server.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    }

    /// What arrived together with other bytes is as late as they are, and not later for having come
    /// in a piece of its own.
    fn pass_answers(
        &self,
        answers: &mpsc::Receiver<(Instant, Vec<u8>)>,
        server: &TcpStream,
        mut client: &TcpStream,
    ) {
        for (arrived, bytes) in answers {
            while self.held.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(5));
            }
            let due = arrived + Duration::from_millis(self.slow_ms.load(Ordering::Acquire));
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let left = self.cut_after.load(Ordering::Acquire);
            if left >= 0 {
                self.cut_after.store(left - 1, Ordering::Release);
            }
            if left == 0 {
                let _ = server.shutdown(Shutdown::Both);
                return;
            }
            if client.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}

fn take_answers(mut server: TcpStream, arrived: &mpsc::SyncSender<(Instant, Vec<u8>)>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = server.read(&mut bytes) {
        if arrived.send((Instant::now(), bytes[..count].to_vec())).is_err() {
            return;
        }
    }
}
