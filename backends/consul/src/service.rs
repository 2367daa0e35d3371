//! This node in Consul's catalogue: a service named after the cluster, with the role as a tag and a
//! check that asks our REST API. (DCS-123, CFG-314, CFG-315)
//!
//! A look-up for clients and nothing more: no decision hangs on it, and what fails is tried again
//! with the next member record.

use crate::http::Call;
use crate::session::seconds;
use crate::store::Shared;
use hathi_dcs::{Deadline, MemberData, Role, State};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the agent beside us may take; it only notes what it is told.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest name that still fits into a label of the DNS with what Consul adds. (DCS-123)
const LONGEST: usize = 230;

/// What is registered beside what the member record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    pub tags: Vec<String>,
    /// As Consul reads durations: `5s`.
    pub check_interval: String,
    /// The name that the certificate of our REST API must have, if Consul shall look at it.
    pub check_tls_server_name: Option<String>,
}

/// The last word that the agent took.
#[derive(Default)]
pub(crate) struct Service {
    told: Mutex<Option<Word>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Register(String),
    Deregister,
}

/// `My.Cl_1` → `my-cl-1`; what has no place in a name of the DNS becomes its number.
fn service_name(scope: &str) -> String {
    let mut name = String::new();
    for char in scope.to_lowercase().chars() {
        match char {
            'a'..='z' | '0'..='9' | '-' => name.push(char),
            '.' | ' ' | '_' => name.push('-'),
            other => name.push_str(&format!("u{:04}", u32::from(other))),
        }
    }
    name.chars().take(LONGEST).collect()
}

/// Host and port of a URL.
fn place(url: &str) -> Option<(String, u16)> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let place = authority.rsplit('@').next()?;
    let (host, port) = place.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// The same host, another path.
fn with_path(url: &str, path: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    Some(format!("{scheme}://{authority}/{path}"))
}

impl Shared {
    fn service_id(&self) -> String {
        format!("{}/{}", self.scope, self.me)
    }

    /// What the record asks for; `None`: what was said last stays.
    fn word(&self, config: &ServiceConfig, member: &MemberData) -> Option<Word> {
        match member.state.as_ref()? {
            State::Stopped => return Some(Word::Deregister),
            State::Running => {}
            _ => return None,
        }
        let role = match member.role.as_ref()? {
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::StandbyLeader => "standby-leader",
            _ => return None,
        };
        let (address, port) = place(member.conn_url.as_deref()?)?;
        let mut check = json!({
            "HTTP": with_path(member.api_url.as_deref()?, role)?,
            "Interval": config.check_interval,
            "DeregisterCriticalServiceAfter": seconds(self.sessions.wanted_ms().1 * 10),
        });
        if let (Some(name), Some(check)) = (&config.check_tls_server_name, check.as_object_mut()) {
            check.insert("TLSServerName".to_owned(), Value::from(name.as_str()));
        }
        let mut tags = config.tags.clone();
        tags.push(role.to_owned());
        if role == "primary" {
            tags.push("master".to_owned());
        }
        let body = json!({
            "ID": self.service_id(), "Name": service_name(&self.scope), "Address": address,
            "Port": port, "Tags": tags, "EnableTagOverride": true, "Checks": [check],
        });
        Some(Word::Register(body.to_string()))
    }

    /// Tells the agent beside us what changed since it last listened.
    pub(crate) async fn register(&self, record: &str, by: Deadline) {
        let Some(config) = &self.agents.config().service else { return };
        let Some(word) = self.word(config, &MemberData::parse(record)) else { return };
        let last = || self.service.told.lock().unwrap_or_else(PoisonError::into_inner);
        if last().as_ref() == Some(&word) {
            return;
        }
        let call = match &word {
            Word::Register(body) => Call::put("/v1/agent/service/register".into(), body.clone()),
            Word::Deregister => {
                let id = utf8_percent_encode(&self.service_id(), NON_ALPHANUMERIC).to_string();
                Call::put(format!("/v1/agent/service/deregister/{id}"), "")
            }
        };
        match self.agents.beside(by.left().min(PATIENCE), &call).await {
            Ok(answer) if answer.status.is_success() || word == Word::Deregister => {
                tracing::info!("Consul's catalogue has {} as {word:?}", self.service_id());
                *last() = Some(word);
            }
            Ok(answer) => self.not_registered(&String::from_utf8_lossy(&answer.body)),
            Err(error) => self.not_registered(&error.to_string()),
        }
    }

    fn not_registered(&self, why: &str) {
        tracing::warn!("{} is not registered in Consul's catalogue yet: {why}", self.service_id());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-123 as far as names and addresses go.
    #[test]
    fn names_and_addresses() {
        assert_eq!(service_name("My.Cl_1 é"), "my-cl-1-u0233");
        assert_eq!(service_name(&"x".repeat(300)).len(), LONGEST);
        let expected = Some(("h".to_owned(), 5432));
        assert_eq!(place("postgres://user:p@h:5432/postgres"), expected);
        assert_eq!(place("postgres://[::1]:5/postgres"), Some(("::1".to_owned(), 5)));
        assert_eq!(place("nonsense"), None);
        let url = with_path("https://h:8008/patroni", "replica");
        assert_eq!(url.as_deref(), Some("https://h:8008/replica"));
    }
}
