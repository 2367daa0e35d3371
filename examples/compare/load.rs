//! A lean client: as many requests as some connections can carry, each connection one request at a
//! time, from one thread with plain sockets, because it shares the machine with who is measured.

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Later than this is too late for any answer.
pub const LATE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Asked in turn.
    pub paths: &'a [&'a str],
    pub connections: usize,
    /// False: a new connection for each request. A server that closes by itself gets one anyway.
    pub keep: bool,
    pub lasts: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub per_second: f64,
    pub median: Duration,
    pub p99: Duration,
    pub longest: Duration,
    /// Not answered within [`LATE`], or not at all.
    pub late: u64,
    /// Answers by code, and connections that ended without one.
    pub ok: u64,
    pub unavailable: u64,
    pub broken: u64,
    /// CPU time of the client's thread, and of who answered.
    pub client_cpu: Duration,
    pub agent_cpu: Duration,
}

impl Outcome {
    pub fn answers(&self) -> f64 {
        (self.ok + self.unavailable) as f64
    }

    /// One more answer, or none.
    pub fn count(&mut self, code: &[u8]) {
        match code {
            b"200" => self.ok += 1,
            b"503" => self.unavailable += 1,
            _ => self.broken += 1,
        }
    }

    /// What the times of the answers come to.
    pub fn finish(&mut self, mut times: Vec<Duration>, lasted: Duration) {
        times.sort_unstable();
        self.per_second = times.len() as f64 / lasted.as_secs_f64();
        // Nothing came: the time is at least this.
        let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(LATE);
        (self.median, self.p99) = (at(50), at(99));
        self.longest = times.last().copied().unwrap_or(LATE);
    }
}

/// CPU time this thread has used.
pub fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

struct Talk {
    socket: Option<OwnedFd>,
    /// Tells events of this socket from those of one before it.
    generation: u32,
    sent: bool,
    /// When the request under way began; `None`: none is.
    since: Option<Instant>,
    answer: Vec<u8>,
}

struct Client<'a> {
    to: SocketAddr,
    load: Load<'a>,
    requests: Vec<Vec<u8>>,
    next: usize,
    poll: OwnedFd,
    talks: Vec<Talk>,
    times: Vec<Duration>,
    outcome: Outcome,
}

/// Runs it; blocks the thread for that long and for [`LATE`] more at most.
///
/// # Errors
/// No more sockets on this machine.
pub fn run(to: SocketAddr, load: Load<'_>) -> std::io::Result<Outcome> {
    let connection = if load.keep { "" } else { "Connection: close\r\n" };
    let request = |path: &&str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{connection}\r\n");
    let mut client = Client {
        to,
        load,
        requests: load.paths.iter().map(|path| request(path).into_bytes()).collect(),
        next: 0,
        poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        talks: Vec::new(),
        times: Vec::with_capacity(200_000),
        outcome: Outcome::default(),
    };
    let cpu = thread_cpu();
    client.run()?;
    let Client { times, mut outcome, .. } = client;
    outcome.client_cpu = thread_cpu() - cpu;
    outcome.finish(times, load.lasts);
    Ok(outcome)
}

impl Client<'_> {
    fn run(&mut self) -> rustix::io::Result<()> {
        let began = Instant::now();
        let end = began + self.load.lasts;
        for at in 0..self.load.connections {
            let answer = Vec::with_capacity(32 * 1024);
            let new = Talk { socket: None, generation: 0, sent: false, since: None, answer };
            self.talks.push(new);
            self.begin(at, began)?;
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
        let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut looked = began;
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&tick))
            {
                Ok(_) | Err(Errno::INTR) => {}
                Err(why) => return Err(why),
            }
            for event in &events {
                let data = event.data.u64();
                let (at, generation) = ((data & 0xffff_ffff) as usize, (data >> 32) as u32);
                if self.talks[at].generation == generation && self.goes_on(at)? {
                    let now = Instant::now();
                    if now < end {
                        self.begin(at, now)?;
                    }
                }
            }
            let now = Instant::now();
            if now.duration_since(looked) > Duration::from_millis(20) {
                looked = now;
                self.give_up_the_late(now, now < end)?;
            }
            if now >= end && self.talks.iter().all(|talk| talk.since.is_none()) {
                return Ok(());
            }
        }
    }

    fn begin(&mut self, at: usize, now: Instant) -> rustix::io::Result<()> {
        let talk = &mut self.talks[at];
        talk.since = Some(now);
        talk.sent = false;
        talk.answer.clear();
        if talk.socket.is_some() {
            return self.send(at).map(|_| ());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        // No port is left waiting behind a closed connection, or they run out.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        match rustix::net::connect(&socket, &self.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(why) => return Err(why),
        }
        talk.generation += 1;
        let data = epoll::EventData::new_u64(u64::from(talk.generation) << 32 | at as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.poll, &socket, data, flags)?;
        talk.socket = Some(socket);
        Ok(())
    }

    fn send(&mut self, at: usize) -> rustix::io::Result<bool> {
        let request = &self.requests[self.next % self.requests.len()];
        let talk = &mut self.talks[at];
        let Some(socket) = &talk.socket else { return Ok(false) };
        match rustix::net::send(socket, request, SendFlags::NOSIGNAL) {
            Ok(_) => {
                talk.sent = true;
                self.next += 1;
                Ok(true)
            }
            // Not connected yet: an event comes.
            Err(Errno::AGAIN | Errno::NOTCONN | Errno::INPROGRESS) => Ok(false),
            Err(_) => {
                self.broke(at);
                Ok(false)
            }
        }
    }

    /// True when another request can begin.
    fn goes_on(&mut self, at: usize) -> rustix::io::Result<bool> {
        if self.talks[at].since.is_none() {
            // The server closed a kept connection, or says that it can be written to.
            let closed = self.talks[at].socket.as_ref().is_some_and(|socket| {
                matches!(rustix::net::recv(socket, &mut [0; 1], RecvFlags::PEEK), Ok((_, 0)))
            });
            if closed {
                self.close(at);
            }
            return Ok(false);
        }
        if !self.talks[at].sent && !self.send(at)? {
            return Ok(self.talks[at].since.is_none());
        }
        let mut part = [0_u8; 32 * 1024];
        loop {
            let talk = &mut self.talks[at];
            let Some(socket) = &talk.socket else { return Ok(true) };
            match rustix::net::recv(socket, &mut part[..], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    if answer(&talk.answer, true).is_some() {
                        self.answered(at, true);
                    } else {
                        self.broke(at);
                    }
                    return Ok(true);
                }
                Ok((_, read)) => {
                    talk.answer.extend_from_slice(&part[..read]);
                    if let Some(keeps) = answer(&talk.answer, false) {
                        self.answered(at, !keeps || !self.load.keep);
                        return Ok(true);
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(_) => {
                    self.broke(at);
                    return Ok(true);
                }
            }
        }
    }

    fn answered(&mut self, at: usize, close: bool) {
        let talk = &mut self.talks[at];
        if let Some(since) = talk.since.take() {
            let took = since.elapsed();
            self.times.push(took);
            self.outcome.late += u64::from(took > LATE);
        }
        self.outcome.count(talk.answer.get(9..12).unwrap_or_default());
        if close {
            self.close(at);
        }
    }

    fn broke(&mut self, at: usize) {
        self.outcome.broken += 1;
        self.close(at);
    }

    fn close(&mut self, at: usize) {
        let talk = &mut self.talks[at];
        talk.socket = None;
        talk.since = None;
        talk.generation += 1;
    }

    fn give_up_the_late(&mut self, now: Instant, again: bool) -> rustix::io::Result<()> {
        for at in 0..self.talks.len() {
            match self.talks[at].since {
                Some(since) if now.duration_since(since) > LATE => {
                    self.outcome.late += 1;
                    self.close(at);
                    if again {
                        self.begin(at, now)?;
                    }
                }
                // It broke where nobody began anew.
                None if again => self.begin(at, now)?,
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

/// Whether the answer is whole, and whether the server keeps the connection then.
fn answer(bytes: &[u8], ended: bool) -> Option<bool> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let (mut length, mut keeps) = (None, bytes.starts_with(b"HTTP/1.1"));
    for line in bytes[..head].split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        if line[..colon].eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value).ok()?.parse::<usize>().ok();
        } else if line[..colon].eq_ignore_ascii_case(b"connection") {
            keeps &= !value.eq_ignore_ascii_case(b"close");
        }
    }
    match length {
        Some(length) if bytes.len() >= head + length => Some(keeps),
        Some(_) => None,
        None => ended.then_some(false),
    }
}
