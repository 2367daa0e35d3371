//! An operator asks for another leader: the checks before the request is written, the choice of a
//! target, and what came of it. (REST-190, HA-070, HA-076)

use crate::ha::ports::Ports;
use crate::ha::race;
use crate::ha::settings::{Settings, SynchronousMode};
use crate::ha::standby;
use crate::ha::sync;
use futures::FutureExt;
use futures::stream::StreamExt;
use hathi_dcs::{
    Change, ClusterView, DcsError, Deadline, Expect, Failover, Freshness, Lsn, MemberName, Sync,
    Timeline,
};

/// What the operator asked, already parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// POST /switchover; otherwise POST /failover.
    pub switchover: bool,
    pub failover: Failover,
}

impl Request {
    /// A failover request that names the leader is a switchover from there on. (REST-190, row 11)
    fn is_switchover(&self) -> bool {
        self.switchover || self.failover.leader.is_some()
    }

    fn action(&self) -> &'static str {
        if self.is_switchover() { "switchover" } else { "failover" }
    }
}

/// The answer for the operator. (REST-190, REST-192)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

/// What a member must bring to take over. (HA-076)
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Only this one, if given.
    pub candidate: Option<&'a MemberName>,
    /// The position it is compared with, and how much of it may be missing.
    pub lsn: Lsn,
    pub maximum_lag: u64,
    /// Zero: not checked.
    pub timeline: Timeline,
    /// Only one that this record names. (12)
    pub record: Option<&'a Sync>,
    /// So many more must be fit besides it: an election has to see them.
    pub quorum: Option<u64>,
}

/// Who could take over. Ends with the first one that can.
#[derive(Clone, Debug, Default)]
pub struct Search {
    pub found: Option<MemberName>,
    /// The others, each with the reason. (REST-463)
    pub refused: Vec<(MemberName, String)>,
}

impl Search {
    /// `p1: not allowed to promote; p2: not reachable`
    pub fn reasons(&self) -> String {
        let each: Vec<_> = self.refused.iter().map(|(who, why)| format!("{who}: {why}")).collect();
        each.join("; ")
    }
}

/// Asks the members that may take over from `from`, all at once. (HA-076)
pub async fn search(
    ports: &Ports,
    view: &ClusterView,
    from: Option<&MemberName>,
    needs: Needs<'_>,
) -> Search {
    let mut search = Search::default();
    let mut asked = Vec::new();
    for member in &view.members {
        if Some(&member.name) == from || needs.candidate.is_some_and(|name| *name != member.name) {
            continue;
        }
        let named = needs.record.is_none_or(|record| record.names(&member.name));
        match &member.data.api_url {
            _ if !named => {
                search.refused.push((member.name.clone(), "not a synchronous member".into()));
            }
            Some(_) if member.data.nofailover() => {
                search.refused.push((member.name.clone(), "not allowed to promote".into()));
            }
            Some(url) => asked.push((member.name.clone(), url.clone())),
            None => search.refused.push((member.name.clone(), "has no REST address".into())),
        }
    }
    let by = Deadline(ports.clock.now().plus(PROBE_MS));
    let mut answers = ports.peers.probe(asked, by);
    let mut fit = 0_u64;
    while let Some((name, probe)) = answers.next().await {
        match race::can_take_over(&probe, needs.lsn, needs.maximum_lag, needs.timeline) {
            Ok(()) => {
                fit += 1;
                if fit > needs.quorum.unwrap_or(0) {
                    search.found = Some(name);
                    return search;
                }
            }
            Err(why) => search.refused.push((name, why)),
        }
    }
    search
}

/// How long a member has to answer. (HA-026)
pub const PROBE_MS: u64 = 2_000;

/// Does another member already have everything up to this position? (HA-105)
pub async fn somebody_has(ports: &Ports, view: &ClusterView, lsn: Lsn) -> bool {
    let settings = ports.configuration.settings();
    let candidate = view
        .pending_failover()
        .filter(|request| {
            request.value.leader.is_none() || request.value.leader.as_ref() == Some(&settings.me)
        })
        .and_then(|request| request.value.candidate.as_ref());
    let restricted = self::needs(&settings, view, candidate, lsn);
    let needs = Needs { maximum_lag: 0, timeline: Timeline(0), ..restricted };
    let needs = match view.pending_failover() {
        Some(request) if is_manual_failover(&request.value) => needs.without_record(),
        Some(_) | None => needs,
    };
    search(ports, view, Some(&settings.me), needs).await.found.is_some()
}

/// The requirements of a planned change of leader. (HA-076)
pub fn needs<'a>(
    settings: &Settings,
    view: &'a ClusterView,
    candidate: Option<&'a MemberName>,
    lsn: Lsn,
) -> Needs<'a> {
    let timeline = standby::demanded_timeline(settings, view);
    let record = sync::active(settings, view).map(|sync| &sync.value);
    let votes = record.filter(|record| candidate.is_none() && sync::needs_votes(settings, record));
    Needs {
        candidate,
        lsn,
        maximum_lag: settings.maximum_lag_on_failover,
        timeline,
        record,
        quorum: votes.map(|record| record.quorum),
    }
}

/// The operator names a member and no leader: also one that may lack commits. (HA-076)
pub fn is_manual_failover(request: &Failover) -> bool {
    request.leader.is_none() && request.candidate.is_some()
}

impl Needs<'_> {
    /// For a failover that an operator wants whatever the record says.
    pub fn without_record(self) -> Self {
        Self { record: None, quorum: None, ..self }
    }
}

/// Checks 14 and 16 of REST-190.
fn synchronous_refusal(
    settings: &Settings,
    view: &ClusterView,
    request: &Request,
    leader: Option<&MemberName>,
) -> Option<Answer> {
    let record = &sync::active(settings, view)?.value;
    if settings.synchronous.mode == SynchronousMode::Quorum {
        return None;
    }
    match &request.failover.candidate {
        Some(candidate) if request.is_switchover() && !record.names(candidate) => {
            Some(Answer::new(412, "candidate name does not match with sync_standby"))
        }
        Some(_) => None,
        None => {
            let found = view
                .members
                .iter()
                .any(|member| Some(&member.name) != leader && record.names(&member.name));
            let action = request.action();
            let text = format!("{action} is not possible: can not find sync_standby");
            (!found).then(|| Answer::new(412, text))
        }
    }
}

/// Checks 10 … 20 of REST-190: reads the cluster, asks the candidates, writes `/failover`. `Ok`
/// carries the leader at request time, for [`outcome`]; `Err` is the answer (a refusal, or "it is
/// scheduled").
pub async fn request(
    ports: &Ports,
    request: &Request,
    by: Deadline,
) -> Result<Option<MemberName>, Answer> {
    let settings = ports.configuration.settings();
    let wanted = &request.failover;
    let action = request.action();
    let view = match ports.dcs.load(Freshness::Latest, by).await {
        Ok(view) => view,
        Err(error) => return Err(Answer::new(503, format!("the store does not answer: {error}"))),
    };
    let paused = view.config_value("pause").and_then(serde_json::Value::as_bool).unwrap_or(false);
    if wanted.scheduled_at.is_some() && paused {
        return Err(Answer::new(400, "Can't schedule switchover in the paused state"));
    }
    if paused && wanted.candidate.is_none() {
        let text = "Switchover is possible only to a specific candidate in a paused state";
        return Err(Answer::new(400, text));
    }
    if wanted.leader.is_some() && wanted.leader == wanted.candidate {
        return Err(Answer::new(400, "Switchover target and source are the same"));
    }
    let leader = view.leader_name().cloned();
    if wanted.leader.is_some() && wanted.leader != leader {
        return Err(Answer::new(412, "leader name does not match"));
    }
    if wanted.scheduled_at.is_none()
        && wanted.candidate.is_some()
        && let Some(refusal) = synchronous_refusal(&settings, &view, request, leader.as_ref())
    {
        return Err(refusal);
    }
    if let Some(candidate) = &wanted.candidate
        && view.member(candidate).is_none()
    {
        return Err(Answer::new(412, "candidate does not exists"));
    }
    if wanted.scheduled_at.is_none() {
        if let Some(refusal) = synchronous_refusal(&settings, &view, request, leader.as_ref()) {
            return Err(refusal);
        }
        let others = view
            .members
            .iter()
            .any(|member| Some(&member.name) != leader.as_ref() && member.data.api_url.is_some());
        if wanted.candidate.is_none() && !others {
            let text =
                format!("{action} is not possible: cluster does not have members except leader");
            return Err(Answer::new(412, text));
        }
        // Lag and timeline are the leader's to judge. (REST-191)
        let needs = Needs {
            candidate: wanted.candidate.as_ref(),
            lsn: Lsn(0),
            maximum_lag: u64::MAX,
            timeline: Timeline(0),
            record: sync::active(&settings, &view)
                .filter(|_| wanted.candidate.is_none())
                .map(|sync| &sync.value)
                .filter(|_| settings.synchronous.mode == SynchronousMode::Priority),
            quorum: None,
        };
        // Who names the leader itself is asked, too, and its loop takes the request off. (REST-193)
        let from = leader.as_ref().filter(|_| wanted.candidate.is_none());
        let found = search(ports, &view, from, needs).await;
        if found.found.is_none() {
            let mut text = format!("{action} is not possible: no good candidates have been found");
            if !found.refused.is_empty() {
                text.push_str(&format!(" ({})", found.reasons()));
            }
            return Err(Answer::new(412, text));
        }
    }
    match ports.dcs.write_failover(wanted, Expect::Anything, by).await {
        Ok(_) if wanted.scheduled_at.is_some() => Err(Answer::new(202, "Switchover scheduled")),
        Ok(_) => Ok(leader),
        Err(error) if settings.pause => {
            Err(Answer::new(503, format!("failed to write failover key into DCS: {error}")))
        }
        Err(_) => Err(Answer::new(503, "failed to write failover key into DCS")),
    }
}

/// Waits for what comes of it: woken by the store, not by polling. (REST-192, REST-464)
pub async fn outcome(
    ports: &Ports,
    request: &Request,
    old_leader: Option<MemberName>,
    by: Deadline,
) -> Answer {
    let mut changes = ports.dcs.watch();
    let began = ports.clock.now();
    let done = if request.is_switchover() { "Switched over" } else { "Failed over" };
    let verb = if request.is_switchover() { "switched over" } else { "failed over" };
    let noun = if request.is_switchover() { "Switchover" } else { "Failover" };
    // The request is emptied by the new leader right after it took the key: a view without both can
    // only be seen in between, so "failed" has to be seen twice.
    let mut emptied = 0;
    while ports.clock.now() < by.0 {
        let settings = ports.configuration.settings();
        let read_by =
            Deadline(ports.clock.now().plus(settings.timing.retry_timeout_ms())).earlier(by);
        if let Ok(view) = ports.dcs.load(Freshness::Latest, read_by).await {
            if let Some(leader) = view.leader_name()
                && Some(leader) != old_leader.as_ref()
            {
                let text = match &request.failover.candidate {
                    Some(candidate) if candidate != leader => {
                        format!("{done} to \"{leader}\" instead of \"{candidate}\"")
                    }
                    Some(_) | None => format!("Successfully {verb} to \"{leader}\""),
                };
                return Answer::new(200, text);
            }
            emptied = if view.pending_failover().is_none() { emptied + 1 } else { 0 };
            if emptied >= 2 {
                return Answer::new(503, format!("{noun} failed"));
            }
        }
        let again = ports.clock.now().plus(if emptied > 0 { 300 } else { 1_000 });
        wait_for_change(ports, &mut changes, Deadline(again).earlier(by)).await;
    }
    // (REST-362)
    let waited = by.0.since(began) / 1000;
    let text =
        format!("{noun} status unknown after {waited} seconds; operation may still be in progress");
    Answer::new(503, text)
}

async fn wait_for_change(
    ports: &Ports,
    changes: &mut futures::stream::BoxStream<'static, Change>,
    by: Deadline,
) {
    let mut later = ports.clock.sleep_until(by.0).fuse();
    loop {
        futures::select_biased! {
            change = changes.next().fuse() => match change {
                Some(Change::Leader | Change::Failover | Change::Everything) => return,
                Some(_) => {}
                // The stream does not end while the store lives; then only the clock is left.
                None => { later.await; return; }
            },
            () = later => return,
        }
    }
}

/// Takes a request off the table, if it is still the one that was read. (HA-070, row 7)
pub async fn clean(ports: &Ports, view: &ClusterView, by: Deadline) -> Result<(), DcsError> {
    let Some(request) = &view.failover else { return Ok(()) };
    if request.value.is_empty() {
        return Ok(());
    }
    let expect = Expect::Version(request.version);
    ports.dcs.write_failover(&Failover::default(), expect, by).await.map(|_| ())
}
