//! The servers of the store are known to DNS alone. The agents ask a name server of the test's, on its
//! own port: their /etc/resolv.conf is another one than this machine's.

use crate::{PAUSE, SETTLED, options};
use hathi_test_support::dns::spawn_asking;
use hathi_test_support::{Cluster, Mood, NameServer, Store, Writers, check, osuser, wait};
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NAME: &str = "_etcd-client-main._tcp.example.org";

/// Exit code and stderr of `hathi validate-config`, asking this name server, whatever runs already.
fn validated(cluster: &Cluster, names: &NameServer) -> (Option<i32>, String) {
    let mut command = Command::new(cluster.hathi());
    command.args(["validate-config", "-i"]).arg(cluster.nodes[0].yaml()).env_clear();
    osuser::as_server(command.env("PATH", "/usr/bin:/bin")).stderr(Stdio::piped());
    let child = spawn_asking(names.address.ip(), cluster.dir(), &mut command).expect("it starts");
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The store's servers are named by nothing but DNS, which is silent at first: the agents say so and wait;
/// then a cluster forms. A server of the store dies, and nobody minds. An agent starts beside its running
/// PostgreSQL while DNS is silent again: PostgreSQL is left alone until DNS is back, and after.
///
/// Proves CFG-303, DCS-073 and DCS-077 end to end.
pub async fn etcd_is_known_to_dns_alone() {
    let names = NameServer::start_on_its_port();
    names.mood(Mood::Silent);
    let mut options = options(Store::Etcd { members: 3 });
    options.nodes = 2;
    options.local = json!({"etcd3": {"hosts": null, "srv": "example.org", "srv_suffix": "main"}});
    options.name_server = Some(names.address.ip());
    let mut cluster = Cluster::prepare(options).await;
    let ports = cluster.etcd.as_ref().expect("its etcd").client_ports();

    let (code, text) = validated(&cluster, &names);
    let said = format!(
        "etcd3: DNS names no etcd below example.org: {} says no answer to ",
        names.address.ip()
    );
    let problems: Vec<_> = text.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert_eq!((code, problems.len()), (Some(1), 1), "{text}");
    assert!(problems[0].starts_with(&said), "{text}");
    assert!(
        problems[0].contains("_etcd-client-ssl-main, _etcd-client-main, _etcd-ssl-main, "),
        "{text}"
    );

    (0..2).for_each(|node| cluster.start_agent(node));
    let waits = |log: &std::path::Path, from: usize| {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let new = text.get(from..).unwrap_or_default();
        let words = format!("DNS names no etcd below example.org: {}", names.address.ip());
        if new.lines().any(|line| line.contains(&words)) {
            Ok(())
        } else {
            Err("nothing".to_owned())
        }
    };
    let logs = [cluster.nodes[0].log(), cluster.nodes[1].log()];
    for log in &logs {
        let says = || async { waits(log, 0) };
        cluster.wait("it says what it waits for", Duration::from_secs(30), says).await;
    }
    let records: Vec<_> = ports.iter().map(|port| (1, 1, "localhost.", *port)).collect();
    names.srv(NAME, &records);
    names.mood(Mood::Well);
    cluster.healthy(SETTLED).await;
    let (code, text) = validated(&cluster, &names);
    assert_eq!(code, Some(0), "{text}");

    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let died = Instant::now();
    cluster.etcd.as_mut().expect("its etcd").kill_member(0);
    let long_after = died + Duration::from_secs(25);
    let late = writers.accepts_after(long_after, Duration::from_secs(40)).await;
    late.unwrap_or_else(|why| panic!("{why}\n{}", cluster.report()));

    names.mood(Mood::Silent);
    let replica = 1 - cluster.leader().await.expect("the leader of a healthy cluster");
    let postmaster = cluster.nodes[replica].postmaster();
    cluster.kill_agent(replica);
    let before = std::fs::read_to_string(&logs[replica]).expect("its log").len();
    cluster.start_agent(replica);
    let says = || async { waits(&logs[replica], before) };
    cluster.wait("it waits for DNS", Duration::from_secs(30), says).await;
    let untouched = wait::holds("PostgreSQL runs on", Duration::from_secs(8), || async {
        let now = cluster.nodes[replica].postmaster();
        if now == postmaster { Ok(()) } else { Err(format!("{now:?}, not {postmaster:?}")) }
    });
    untouched.await.unwrap_or_else(|why| panic!("{why}\n{}", cluster.report()));
    names.mood(Mood::Well);
    cluster.healthy(SETTLED).await;
    assert_eq!(cluster.nodes[replica].postmaster(), postmaster, "{}", cluster.report());
    let written = writers.stop().await;
    let gap = check::longest_gap(&written.accepted, died, Instant::now());
    assert!(gap < Duration::from_secs(3), "no write for {gap:?}");
    check::verify(&cluster, &written, &[]).await;
}
