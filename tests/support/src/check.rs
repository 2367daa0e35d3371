//! What must be true of a cluster after whatever was done to it: no acknowledged row is gone, and
//! there never were two primaries that took writes.

use crate::cluster::Cluster;
use crate::sql;
use crate::writers::{Accepted, TABLE, Written};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// A stretch of time in which acknowledged rows may be lost: asynchronous replication promises
/// nothing for the last moments before a primary is killed.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub from: Instant,
    pub to: Instant,
}

impl Loss {
    /// Rows acknowledged within a second before `killed`, and those under way then.
    pub fn just_before(killed: Instant) -> Self {
        let from = killed.checked_sub(Duration::from_secs(1)).unwrap_or(killed);
        Self { from, to: killed + Duration::from_secs(2) }
    }
}

/// Checks the rows of the present leader against the journal, and the journal against itself.
/// Returns how many acknowledged rows are missing within the permitted stretches.
pub async fn verify(cluster: &Cluster, written: &Written, permitted: &[Loss]) -> usize {
    assert!(!written.accepted.is_empty(), "no row was ever accepted\n{}", cluster.report());
    one_primary(&written.accepted).unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    let leader = cluster
        .wait("a leader to read from", Duration::from_secs(30), || async { cluster.leader().await })
        .await;
    let rows = sql::query(cluster.nodes[leader].pg(), &format!("SELECT id FROM {TABLE}")).await;
    let rows = rows.unwrap_or_else(|e| panic!("read the rows: {e}\n{}", cluster.report()));
    let present: HashSet<u64> =
        rows.into_iter().flatten().flatten().filter_map(|v| v.parse().ok()).collect();
    let missing: Vec<&Accepted> =
        written.accepted.iter().filter(|a| !present.contains(&a.id)).collect();
    let excused = |a: &Accepted| permitted.iter().any(|l| a.acked >= l.from && a.acked <= l.to);
    let lost: Vec<&&Accepted> = missing.iter().filter(|a| !excused(a)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged rows are gone; the first: {:?}\n{}",
        lost.len(),
        written.accepted.len(),
        lost.first(),
        cluster.report()
    );
    missing.len()
}

/// No two nodes took writes at the same time.
///
/// A timeline belongs to one node, and once a row of a later timeline is acknowledged, no row
/// that was sent after that moment may be accepted on an earlier one.
///
/// # Errors
/// The two rows that contradict each other.
pub fn one_primary(accepted: &[Accepted]) -> Result<(), String> {
    let mut timelines: Vec<u32> = accepted.iter().map(|a| a.timeline).collect();
    timelines.sort_unstable();
    timelines.dedup();
    for timeline in &timelines {
        let mut on_it = accepted.iter().filter(|a| a.timeline == *timeline);
        let first = on_it.next();
        if let (Some(first), Some(other)) =
            (first, on_it.find(|a| first.is_some_and(|f| f.node != a.node)))
        {
            return Err(format!("two nodes wrote timeline {timeline}: {first:?} and {other:?}"));
        }
    }
    for timeline in &timelines {
        let opened = accepted.iter().filter(|a| a.timeline == *timeline).min_by_key(|a| a.acked);
        let Some(opened) = opened else { continue };
        let late = accepted.iter().find(|a| a.timeline < *timeline && a.sent > opened.acked);
        if let Some(late) = late {
            let after = late.sent.duration_since(opened.acked).as_secs_f64();
            let count =
                accepted.iter().filter(|a| a.timeline < *timeline && a.sent > opened.acked).count();
            return Err(format!(
                "two writable primaries: node {} acknowledged row {} on timeline {timeline}, and \
                 {after:.3} s later node {} took row {} on timeline {} (one of {count})",
                opened.node, opened.id, late.node, late.id, late.timeline
            ));
        }
    }
    Ok(())
}

/// The longest stretch without an acknowledged write between `from` and `to`.
pub fn longest_gap(accepted: &[Accepted], from: Instant, to: Instant) -> Duration {
    let mut moments: Vec<Instant> =
        accepted.iter().map(|a| a.acked).filter(|m| *m >= from && *m <= to).collect();
    moments.sort_unstable();
    let edges = std::iter::once(from).chain(moments.iter().copied()).chain(std::iter::once(to));
    let edges: Vec<Instant> = edges.collect();
    edges.windows(2).map(|w| w[1].duration_since(w[0])).max().unwrap_or_default()
}

/// Every node shows the same rows, once the replicas have caught up.
pub async fn same_rows_everywhere(cluster: &Cluster, within: Duration) {
    let agree = || async { rows_agree(cluster).await };
    cluster.wait("the same rows on every node", within, agree).await;
}

/// Whether every node shows the same rows right now.
///
/// # Errors
/// What each of them shows, or who does not answer.
pub async fn rows_agree(cluster: &Cluster) -> Result<(), String> {
    let sum = format!("SELECT count(*) || ':' || coalesce(sum(id), 0) FROM {TABLE}");
    let mut seen = Vec::new();
    for node in &cluster.nodes {
        seen.push(sql::value(node.pg(), &sum).await?);
    }
    if seen.windows(2).all(|w| w[0] == w[1]) { Ok(()) } else { Err(format!("{seen:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: usize, timeline: u32, base: Instant, sent: u64, acked: u64) -> Accepted {
        let at = |ms| base + Duration::from_millis(ms);
        Accepted { id: sent, node, timeline, sent: at(sent), acked: at(acked) }
    }

    #[test]
    fn a_change_of_primary_is_fine() {
        let t = Instant::now();
        let rows = [row(0, 1, t, 0, 5), row(0, 1, t, 6, 30), row(1, 2, t, 10, 29)];
        assert_eq!(one_primary(&rows), Ok(()));
    }

    #[test]
    fn a_write_on_the_old_timeline_after_the_new_one_opened_is_found() {
        let t = Instant::now();
        let rows = [row(0, 1, t, 0, 5), row(1, 2, t, 6, 10), row(0, 1, t, 11, 12)];
        assert!(one_primary(&rows).is_err());
    }

    #[test]
    fn two_nodes_on_one_timeline_are_found() {
        let t = Instant::now();
        assert!(one_primary(&[row(0, 1, t, 0, 5), row(1, 1, t, 6, 10)]).is_err());
    }
}
