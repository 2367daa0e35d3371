//! Looks at the cluster a few times a second through the agents' REST API, and turns what changed
//! into events with a time.

use super::herd::{Change, Herd};
use super::picture::{Member, Picture, from_cluster};
use super::place::{NodePlan, Place};
use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;

/// Between two looks.
pub const RHYTHM: Duration = Duration::from_millis(250);
/// An agent on the same machine that has not answered by then does not answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// One missed answer is no news.
const SILENT_LOOKS: u32 = 4;

/// One line of history: the wall clock, and what happened.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: String,
    pub what: String,
}

pub struct Watch {
    nodes: Vec<NodePlan>,
    client: Client<HttpConnector, Empty<Bytes>>,
    pub picture: Picture,
    /// How many looks in a row each agent did not answer.
    silent: Vec<u32>,
}

impl Watch {
    pub fn new(place: &Place) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            nodes: place.nodes.clone(),
            client,
            picture: Picture::default(),
            silent: vec![0; place.nodes.len()],
        }
    }

    /// Tends the herd, asks everybody, and returns what is new.
    pub async fn look(&mut self, herd: &mut Herd) -> Vec<Event> {
        let mut news: Vec<String> = herd.tend().into_iter().map(in_words).collect();
        let (this, nodes) = (&*self, self.nodes.clone());
        let asked = nodes.iter().map(|n| async move {
            let (own, all) = tokio::join!(this.ask(n, "/patroni"), this.ask(n, "/cluster"));
            (n, own, all)
        });
        let answers = join_all(asked).await;
        // The leader's own view is the freshest: its status is written last.
        let whole = answers
            .iter()
            .filter_map(|(_, own, all)| Some((own.as_ref()?, all.as_ref()?)))
            .max_by_key(|(own, _)| own["role"] == "primary")
            .map(|(_, all)| all.clone());
        let mut members = Vec::new();
        for (i, (node, own, _)) in answers.iter().enumerate() {
            let mut member = Member {
                name: node.name.clone(),
                agent: herd.pid(&node.name),
                postmaster: node.postmaster(),
                ..Member::default()
            };
            self.silent[i] = if own.is_some() { 0 } else { self.silent[i].saturating_add(1) };
            if let (Some(own), Some(whole)) = (own, &whole) {
                member.timeline = own["timeline"].as_u64();
                from_cluster(&mut member, whole);
            } else if self.silent[i] < SILENT_LOOKS
                && let Some(last) = self.picture.members.get(i)
            {
                let (agent, postmaster) = (member.agent, member.postmaster);
                member = Member { agent, postmaster, ..last.clone() };
            } else if let Some(whole) = &whole {
                // Its agent is silent, but the others still know whether it holds the lock.
                from_cluster(&mut member, whole);
                member.state.clear();
                member.lag = None;
            }
            members.push(member);
        }
        let now = Picture { members };
        news.extend(now.changes_since(&self.picture));
        self.picture = now;
        let at = chrono::Local::now().format("%H:%M:%S").to_string();
        news.into_iter().map(|what| Event { at: at.clone(), what }).collect()
    }

    async fn ask(&self, node: &NodePlan, path: &str) -> Option<Value> {
        let uri = format!("http://127.0.0.1:{}{path}", node.rest_port).parse().ok()?;
        let answer = async {
            let reply = self.client.get(uri).await.ok()?;
            let body = Limited::new(reply.into_body(), 1 << 20).collect().await.ok()?;
            serde_json::from_slice(&body.to_bytes()).ok()
        };
        tokio::time::timeout(PATIENCE, answer).await.ok()?
    }
}

fn in_words(change: Change) -> String {
    match change {
        Change::Ended { node, how, again_in } => {
            format!("{node}: the agent ended ({how}); started again in {} s", again_in.as_secs())
        }
        Change::Started { node, pid } => format!("{node}: the agent runs again, pid {pid}"),
        Change::NotStarted { node, why } => format!("{node}: the agent did not start: {why}"),
    }
}
