//! Machines of our own: each node in a network namespace with an address of its own, all on one
//! bridge, so that a cable can be cut while every process goes on. Nothing of it touches the
//! network of the machine the tests run on:
//!
//! ```text
//!  hub (a namespace): the test and its clients, .1 ── bridge ──┬── machine 0: agent, PostgreSQL, etcd, .11
//!                                                              ├── machine 1                           .12
//!                                                              └── machine 2                           .13
//! ```
//! The namespaces have no names: they exist as long as a process or a handle is in them, so that
//! nothing is left of a run that was killed, once its processes are gone ([`crate::leftovers`]),
//! and any number of runs may use the same addresses side by side.
//!
//! A cut drops packets where they arrive, silently, as a switch would: [`Cut`] is one direction
//! between two machines. The hub reaches everybody all the time: it is the client that looks for
//! a second primary, and must see one also behind a cut.
//!
//! A store may be in the hub as well ([`Network::lend`]): its servers listen on the hub's loopback, and
//! each machine finds them at the same ports of its own. Where it is cut off, their packets are lost.
//!
//! Clocks: each machine may have a boottime of its own (a time namespace, fixed while it runs) and
//! a wall clock that jumps (libfaketime, [`Machine::set_wall_clock`]).

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fmt::Write as _;
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The ports of every machine; each has them all to itself.
pub const PG_PORT: u16 = 5432;
pub const REST_PORT: u16 = 8008;
pub const RAFT_PORT: u16 = 2222;
pub const ETCD_CLIENT_PORT: u16 = 2379;
pub const ETCD_PEER_PORT: u16 = 2380;
pub const ETCD_METRICS_PORT: u16 = 2381;
const STORE_PORTS: &str = "{ 2222, 2379, 2380 }";

/// In a [`Cut`]: the store's servers in the hub, instead of a machine.
pub const LENT: usize = usize::MAX;

/// All addresses of a network; they mean something inside our own namespaces only.
pub const SUBNET: &str = "10.77.0.0/24";
const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    All,
    /// What belongs to the store: raft's port, etcd's client and peer ports.
    Store,
}

/// Packets from one machine to another are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub from: usize,
    pub to: usize,
    pub what: Traffic,
}

/// Both directions between two machines.
pub fn pair(a: usize, b: usize, what: Traffic) -> Vec<Cut> {
    vec![Cut { from: a, to: b, what }, Cut { from: b, to: a, what }]
}

/// One node in its namespace.
#[derive(Debug)]
pub struct Machine {
    pub address: Ipv4Addr,
    net: File,
    /// How far this machine's boottime and monotonic clock are ahead of the real ones.
    pub boottime_ahead_secs: u64,
    /// The file libfaketime reads, if this machine's wall clock can jump.
    clock: Mutex<Option<PathBuf>>,
    /// What libfaketime made in shared memory for the programs started here, and leaves there when one is
    /// killed.
    clocks: Mutex<Vec<PathBuf>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for file in self.clocks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The machines and the cables between them; all of it ends with the last handle.
#[derive(Debug)]
pub struct Network {
    hub: File,
    machines: Vec<Arc<Machine>>,
    cuts: Mutex<Vec<Cut>>,
    /// Ports of the hub's loopback that every machine has as its own.
    lent: Mutex<Vec<u16>>,
}

impl Network {
    /// Machines `0..count`, nothing cut.
    ///
    /// # Errors
    /// This machine or user does not permit it, or a program is missing; why, in one line.
    pub fn lay(count: usize) -> Result<Arc<Self>, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        let hub = namespace()?;
        let bridge = [
            "link set lo up",
            "link add br0 type bridge",
            &format!("addr add {HUB}/24 dev br0"),
            "link set br0 up",
        ];
        bridge.iter().try_for_each(|words| ip(&hub, words))?;
        let machines = (0..count).map(|i| machine(&hub, i)).collect::<Result<Vec<_>, _>>()?;
        let (cuts, lent) = Default::default();
        let network = Self { hub, machines, cuts, lent };
        network.apply(&[])?;
        Ok(Arc::new(network))
    }

    /// Whether wall clocks can jump here.
    ///
    /// # Errors
    /// What is missing.
    pub fn has_wall_clocks() -> Result<(), String> {
        if Path::new(FAKETIME).exists() {
            return Ok(());
        }
        Err(format!("{FAKETIME} is not there (Debian package libfaketime)"))
    }

    pub fn machine(&self, i: usize) -> &Arc<Machine> {
        &self.machines[i]
    }

    pub fn len(&self) -> usize {
        self.machines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Servers that listen on these ports of the hub's loopback are from now on on each machine's, too.
    ///
    /// # Errors
    /// This kernel does not translate addresses.
    pub fn lend(&self, ports: &[u16]) -> Result<(), String> {
        for net in self.machines.iter().map(|machine| &machine.net).chain([&self.hub]) {
            inside(net, || std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1"))
                .map_err(|e| format!("route_localnet: {e}"))?;
        }
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = ports.to_vec();
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.apply(&cuts)
    }

    fn has_lent(&self) -> bool {
        !self.lent.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Puts more cuts in force.
    pub fn cut(&self, more: &[Cut]) {
        self.change(|cuts| cuts.extend_from_slice(more));
    }

    /// Takes these cuts back; others stay.
    pub fn heal(&self, these: &[Cut]) {
        self.change(|cuts| cuts.retain(|c| !these.contains(c)));
    }

    pub fn heal_all(&self) {
        self.change(Vec::clear);
    }

    /// Everything between this machine and the other machines.
    pub fn isolation(&self, of: usize, what: Traffic) -> Vec<Cut> {
        self.others(of).flat_map(|other| pair(of, other, what)).collect()
    }

    /// What this machine sends to the others is lost: requests arrive, answers do not.
    pub fn muteness(&self, of: usize, what: Traffic) -> Vec<Cut> {
        self.others(of).map(|to| Cut { from: of, to, what }).collect()
    }

    /// What the others send to this machine is lost.
    pub fn deafness(&self, of: usize, what: Traffic) -> Vec<Cut> {
        self.others(of).map(|from| Cut { from, to: of, what }).collect()
    }

    fn others(&self, than: usize) -> impl Iterator<Item = usize> {
        let lent = self.has_lent().then_some(LENT);
        (0..self.machines.len()).filter(move |i| *i != than).chain(lent)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Cut>)) {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut cuts);
        self.apply(&cuts).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Each machine's whole rule set at once.
    fn apply(&self, cuts: &[Cut]) -> Result<(), String> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let address = |i: usize| self.machines[i].address;
        for (i, machine) in self.machines.iter().enumerate() {
            let text = rules(cuts, i, address) + &borrowing(cuts, i, &lent);
            nft(&machine.net, &text)?;
        }
        if lent.is_empty() {
            return Ok(());
        }
        nft(&self.hub, &lending(cuts, &lent, address))
    }

    /// Runs a test: its future, its tasks and its blocking work are in the hub, from where every
    /// machine can be reached.
    pub fn observe<F: Future>(self: &Arc<Self>, main: F) -> F::Output {
        let hub = self.clone();
        enter(self.hub.as_fd()).expect("the hub can be entered");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || enter(hub.hub.as_fd()).expect("the hub can be entered"))
            .build()
            .expect("a runtime");
        runtime.block_on(main)
    }
}

impl Machine {
    /// Starts a program here.
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        if let Some(clock) = &*self.clock.lock().unwrap_or_else(PoisonError::into_inner) {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", clock);
            // Only the wall clock; read again every second; file times and shared memory are none
            // of its business.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1");
            command.env("NO_FAKE_STAT", "1").env("FAKETIME_DISABLE_SHM", "1");
        }
        let ahead = self.boottime_ahead_secs;
        let child = inside(&self.net, || {
            if ahead > 0 {
                own_boottime(ahead)?;
            }
            command.spawn()
        })?;
        let files = ["faketime_shm_", "sem.faketime_sem_"];
        let files = files.map(|name| format!("/dev/shm/{name}{}", child.id()).into());
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner).extend(files);
        Ok(child)
    }

    /// Programs started here from now on believe [`Self::set_wall_clock`].
    ///
    /// # Errors
    /// libfaketime is not installed, or the file cannot be written.
    pub fn own_wall_clock(&self, dir: &Path) -> Result<(), String> {
        Network::has_wall_clocks()?;
        let file = dir.join("wall-clock");
        std::fs::write(&file, "+0").map_err(|e| format!("{}: {e}", file.display()))?;
        crate::osuser::give(&file);
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Moves this machine's wall clock to so many seconds ahead of the true time (negative:
    /// behind). Running programs notice within a second. Without a clock of its own: nothing.
    pub fn set_wall_clock(&self, ahead_secs: i64) {
        if let Some(file) = &*self.clock.lock().unwrap_or_else(PoisonError::into_inner) {
            // At once, or a reader finds an empty file.
            let new = file.with_extension("new");
            std::fs::write(&new, format!("{ahead_secs:+}")).expect("the clock's file");
            crate::osuser::give(&new);
            std::fs::rename(&new, file).expect("the clock's file");
        }
    }
}

/// A rule set for the machine at which the packets arrive.
fn rules(cuts: &[Cut], here: usize, address: impl Fn(usize) -> Ipv4Addr) -> String {
    let mut text = "flush ruleset\ntable inet cut {\n chain arrives {\n  \
                    type filter hook input priority 0; policy accept;\n"
        .to_owned();
    for cut in cuts.iter().filter(|c| c.to == here && c.from != LENT) {
        let from = address(cut.from);
        let _ = match cut.what {
            Traffic::All => writeln!(text, "  ip saddr {from} drop"),
            Traffic::Store => writeln!(
                text,
                "  ip saddr {from} tcp dport {STORE_PORTS} drop\n  \
                 ip saddr {from} tcp sport {STORE_PORTS} drop"
            ),
        };
    }
    text + " }\n}\n"
}

fn listed(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("{{ {} }}", ports.join(", "))
}

/// On a machine: what goes to one of these ports of its loopback goes to the hub, and comes back from
/// there; or is lost on its way back.
fn borrowing(cuts: &[Cut], here: usize, lent: &[u16]) -> String {
    if lent.is_empty() {
        return String::new();
    }
    let ports = listed(lent);
    let lost = match cuts.iter().any(|c| c.to == here && c.from == LENT) {
        true => format!("ip saddr {HUB} tcp sport {ports} drop"),
        false => String::new(),
    };
    format!(
        "table ip borrowed {{\n chain out {{\n  type nat hook output priority -100;\n  \
         ip daddr 127.0.0.1 tcp dport {ports} dnat to {HUB}\n }}\n chain away {{\n  \
         type nat hook postrouting priority 100;\n  ip daddr {HUB} masquerade\n }}\n \
         chain back {{\n  type filter hook prerouting priority -300;\n  {lost}\n }}\n}}\n"
    )
}

/// In the hub: what machines send to these ports reaches its loopback, or is lost.
fn lending(cuts: &[Cut], lent: &[u16], address: impl Fn(usize) -> Ipv4Addr) -> String {
    let ports = listed(lent);
    let mut lost = String::new();
    for cut in cuts.iter().filter(|c| c.to == LENT) {
        let _ = writeln!(lost, "  ip saddr {} tcp dport {ports} drop", address(cut.from));
    }
    format!(
        "flush ruleset\ntable ip lent {{\n chain arrives {{\n  type filter hook prerouting priority -300;\n\
         {lost} }}\n chain in {{\n  type nat hook prerouting priority -100;\n  \
         ip daddr {HUB} tcp dport {ports} dnat to 127.0.0.1\n }}\n}}\n"
    )
}

fn nft(net: &File, rules: &str) -> Result<(), String> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = inside(net, || nft.spawn()).map_err(|e| format!("nft: {e}"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(|e| format!("nft: {e}"))?;
    }
    let out = child.wait_with_output().map_err(|e| format!("nft: {e}"))?;
    if !out.status.success() {
        return Err(format!("nft: {}\n{rules}", String::from_utf8_lossy(&out.stderr)));
    }
    Ok(())
}

fn machine(hub: &File, i: usize) -> Result<Arc<Machine>, String> {
    let net = namespace()?;
    let last = u8::try_from(11 + i).map_err(|e| e.to_string())?;
    let address = Ipv4Addr::new(10, 77, 0, last);
    let handle = format!("/proc/{}/fd/{}", std::process::id(), net.as_raw_fd());
    ip(hub, &format!("link add port{i} type veth peer name eth0 netns {handle}"))?;
    ip(hub, &format!("link set port{i} master br0 up"))?;
    ip(&net, "link set lo up")?;
    ip(&net, &format!("addr add {address}/24 dev eth0"))?;
    ip(&net, "link set eth0 up")?;
    Ok(Arc::new(Machine {
        address,
        net,
        // Days apart, so that a moment of one machine's clock is nonsense on another's.
        boottime_ahead_secs: 86_400 * i as u64,
        clock: Mutex::new(None),
        clocks: Mutex::default(),
    }))
}

/// A network namespace of nobody's yet.
fn namespace() -> Result<File, String> {
    let opened = std::thread::spawn(|| {
        // SAFETY: only this thread's network changes, and it ends right here.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(std::io::Error::from)?;
        File::open("/proc/thread-self/ns/net")
    });
    let opened = opened.join().map_err(|_| "a thread panicked".to_owned())?;
    opened.map_err(|e| format!("this kernel or container gives us no network namespace: {e}"))
}

fn enter(net: BorrowedFd<'_>) -> std::io::Result<()> {
    move_into_link_name_space(net, Some(LinkNameSpaceType::Network)).map_err(Into::into)
}

/// Does something on a thread that is in `net`; what it starts is, too.
fn inside<T: Send>(
    net: &File,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(net.as_fd())?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}

/// What this thread starts next lives in a time namespace whose boottime and monotonic clock are
/// ahead.
fn own_boottime(ahead_secs: u64) -> std::io::Result<()> {
    // SAFETY: only the children of this thread notice.
    unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }?;
    let me = rustix::thread::gettid();
    let offsets = format!("monotonic {ahead_secs} 0\nboottime {ahead_secs} 0\n");
    std::fs::write(format!("/proc/{}/timens_offsets", me.as_raw_nonzero()), offsets)
}

fn ip(net: &File, words: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    let out = inside(net, || command.output()).map_err(|e| format!("ip (iproute2): {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_direction() {
        let cuts = [
            Cut { from: 0, to: 1, what: Traffic::All },
            Cut { from: 2, to: 1, what: Traffic::Store },
        ];
        let address = |i: usize| Ipv4Addr::new(10, 77, 0, 11 + i as u8);
        let here = rules(&cuts, 1, address);
        assert!(here.contains("ip saddr 10.77.0.11 drop"), "{here}");
        assert!(here.contains("ip saddr 10.77.0.13 tcp dport { 2222, 2379, 2380 } drop"), "{here}");
        assert!(here.contains("ip saddr 10.77.0.13 tcp sport { 2222, 2379, 2380 } drop"), "{here}");
        assert!(!rules(&cuts, 0, address).contains("drop"));
    }

    #[test]
    fn a_lent_store_is_cut_at_both_ends() {
        let (to, from) = (
            Cut { from: 1, to: LENT, what: Traffic::All },
            Cut { from: LENT, to: 1, what: Traffic::All },
        );
        let address = |i: usize| Ipv4Addr::new(10, 77, 0, 11 + i as u8);
        let lost = "ip saddr 10.77.0.12 tcp dport { 8500 } drop";
        assert!(lending(&[to, from], &[8500], address).contains(lost));
        assert!(!lending(&[from], &[8500], address).contains(lost));
        assert!(borrowing(&[to, from], 1, &[8500]).contains("tcp sport { 8500 } drop"));
        assert!(!borrowing(&[to, from], 0, &[8500]).contains("drop"));
        assert!(!rules(&[to, from], 1, address).contains("drop"));
        assert_eq!(borrowing(&[from], 1, &[]), "");
    }
}
