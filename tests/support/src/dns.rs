//! A name server of a test: it knows what it is told, and can be silent, slow or mad.

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How it behaves towards every question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It knows what it was told, and says NXDOMAIN to everything else.
    Well,
    /// Every name exists, and has no records.
    Empty,
    /// As `Well`, after so many milliseconds.
    Slow(u64),
    /// It hears, and says nothing.
    Silent,
    /// It says SERVFAIL.
    Failing,
    /// It sends bytes that are no answer.
    Garbage,
    /// As `Well`, but whoever asks by UDP is told to come by TCP.
    Long,
}

struct Shared {
    mood: Mutex<Mood>,
    /// By name without the last dot, in small letters.
    known: Mutex<HashMap<String, Vec<Record>>>,
    /// Every question by UDP and TCP, in the order of their coming.
    asked: Mutex<Vec<String>>,
    ends: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens on one loopback address by UDP and TCP until it is dropped.
pub struct NameServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// How often the threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(20);

impl NameServer {
    /// On a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, crate::ports::free_port()).into())
    }

    /// On the port that resolvers know, at an address of this machine that is this process's own. Needs
    /// root.
    pub fn start_on_its_port() -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        Self::start_at(([127, 53, high, low.max(1)], 53).into())
    }

    fn start_at(address: SocketAddr) -> Self {
        let udp = UdpSocket::bind(address).unwrap_or_else(|why| panic!("{address}: {why}"));
        let tcp = TcpListener::bind(address).unwrap_or_else(|why| panic!("{address}: {why}"));
        udp.set_read_timeout(Some(LOOK)).expect("a socket");
        tcp.set_nonblocking(true).expect("a socket");
        let shared = Arc::new(Shared {
            mood: Mutex::new(Mood::Well),
            known: Mutex::default(),
            asked: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let (one, two) = (shared.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || by_udp(&one, &udp)),
            std::thread::spawn(move || by_tcp(&two, &tcp)),
        ];
        Self { address, shared, threads }
    }

    pub fn mood(&self, mood: Mood) {
        *lock(&self.shared.mood) = mood;
    }

    /// From now on `name` has these records: priority, weight, target, port. None: it does not exist.
    pub fn srv(&self, name: &str, records: &[(u16, u16, &str, u16)]) {
        let owner = Name::from_str(name).expect("a name");
        let each = records.iter().map(|(priority, weight, target, port)| {
            let target = Name::from_str(target).expect("a name");
            let data = RData::SRV(SRV::new(*priority, *weight, *port, target));
            Record::from_rdata(owner.clone(), 1, data)
        });
        let mut known = lock(&self.shared.known);
        match records.is_empty() {
            true => drop(known.remove(&key(name))),
            false => drop(known.insert(key(name), each.collect())),
        }
    }

    /// What was asked since the last time, each question as often as it came.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.asked))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn by_udp(shared: &Arc<Shared>, socket: &UdpSocket) {
    let mut bytes = [0_u8; 4096];
    // An answer that is late must not delay the others.
    let mut late = Vec::new();
    while !shared.ends.load(Ordering::SeqCst) {
        let Ok((length, whom)) = socket.recv_from(&mut bytes) else { continue };
        let Some(answer) = answer(shared, &bytes[..length], true) else { continue };
        match *lock(&shared.mood) {
            Mood::Slow(ms) => {
                let socket = socket.try_clone().expect("a socket");
                late.push(std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(ms));
                    let _ = socket.send_to(&answer, whom);
                }));
            }
            _ => drop(socket.send_to(&answer, whom)),
        }
    }
    late.into_iter().for_each(|thread| drop(thread.join()));
}

fn by_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.ends.load(Ordering::SeqCst) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut exchange = || {
            let mut length = [0_u8; 2];
            stream.read_exact(&mut length).ok()?;
            let mut bytes = vec![0_u8; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).ok()?;
            let answer = answer(shared, &bytes, false)?;
            let length = u16::try_from(answer.len()).ok()?;
            stream.write_all(&length.to_be_bytes()).ok()?;
            stream.write_all(&answer).ok()
        };
        while exchange().is_some() {}
    }
}

/// `None`: nothing is sent.
fn answer(shared: &Shared, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
    let asked = Message::from_bytes(bytes).ok()?;
    let query = asked.queries.first()?.clone();
    let name = key(&query.name().to_string());
    lock(&shared.asked).push(name.clone());
    let mood = *lock(&shared.mood);
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query);
    match mood {
        Mood::Silent => return None,
        Mood::Garbage => return Some([&bytes[..2], b"\xff\xff\xff garbage"].concat()),
        Mood::Failing => answer.metadata.response_code = ResponseCode::ServFail,
        Mood::Empty => {}
        Mood::Long if udp => answer.metadata.truncation = true,
        Mood::Well | Mood::Slow(_) | Mood::Long => match lock(&shared.known).get(&name) {
            Some(records) => answer.answers = records.clone(),
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        },
    }
    answer.to_bytes().ok()
}

/// Starts `command` with an /etc/resolv.conf that names this server alone; nobody else sees that. The file
/// is laid in `dir`. Needs root.
///
/// # Errors
/// This user may not, or the program does not start.
pub fn spawn_asking(server: IpAddr, dir: &Path, command: &mut Command) -> std::io::Result<Child> {
    let file = dir.join("resolv.conf");
    std::fs::write(&file, format!("nameserver {server}\n"))?;
    let mount = |words: &[&str]| {
        let done = Command::new("mount").args(words).status()?;
        if done.success() { Ok(()) } else { Err(std::io::Error::other(format!("mount {words:?}"))) }
    };
    let file = file.to_string_lossy().into_owned();
    // Namespaces are a thread's; its children are born in them.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: this thread has no files of its own that it would share no longer.
            unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }?;
            mount(&["--make-rprivate", "/"])?;
            mount(&["--bind", &file, "/etc/resolv.conf"])?;
            command.spawn()
        });
        inside.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}
