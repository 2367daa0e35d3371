//! One member of the store without an agent, for measuring what an idle one costs:
//! `raft_node SELF_ADDR DATA_DIR [PARTNER ...]` prints its CPU time and memory every ten seconds.
//! With RAFT_PERIOD_MS, RAFT_MIN_MS, RAFT_MAX_MS the rhythm is another; with RAFT_ME it renews a
//! member record every ten seconds as an agent does.

use hathi_dcs::{Dcs, Deadline, Lsn, MemberData, MemberName, Scope, Timing};
use hathi_raft::{RaftConfig, RaftStore};
use std::time::Duration;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(addr), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: raft_node SELF_ADDR DATA_DIR [PARTNER ...]".into());
    };
    let mut config = RaftConfig::new(addr.clone(), dir);
    config.partner_addrs = args.collect();
    config.password = Some("measure".to_owned());
    config.append_entries_period_ms =
        number("RAFT_PERIOD_MS").unwrap_or(config.append_entries_period_ms);
    config.min_timeout_ms = number("RAFT_MIN_MS").unwrap_or(config.min_timeout_ms);
    config.max_timeout_ms = number("RAFT_MAX_MS").unwrap_or(config.max_timeout_ms);
    let me = MemberName::from(addr.as_str());
    let scope = Scope::new("service", "measure");
    let store = RaftStore::start(config, scope, me, Timing::default()).await?;
    let mut turn = tokio::time::interval(Duration::from_secs(10));
    loop {
        turn.tick().await;
        if std::env::var_os("RAFT_ME").is_some() {
            let by = Deadline::in_ms(5_000);
            let data = MemberData { xlog_location: Some(Lsn(1)), ..MemberData::default() };
            if let Err(error) = store.write_member(&data, by).await {
                eprintln!("{addr}: {error}");
            }
        }
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let nanos = std::fs::read_to_string("/proc/self/schedstat")?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let rss = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
        println!("{addr}: ticks {}+{} main-thread ns {nanos} {rss}", fields[11], fields[12]);
    }
}
