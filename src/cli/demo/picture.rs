//! How the cluster stands, as an outsider sees it, and what changed between two looks.

use serde_json::Value;

/// One member, from its agent's answers and its pid file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// leader, replica, …; empty: unknown.
    pub role: String,
    /// running, streaming, starting, …; empty: the agent does not answer.
    pub state: String,
    pub timeline: Option<u64>,
    /// Bytes behind the leader, as /cluster words it.
    pub lag: Option<String>,
    pub agent: Option<u32>,
    pub postmaster: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    pub members: Vec<Member>,
}

impl Picture {
    /// Who holds the lock and serves as primary.
    pub fn leader(&self) -> Option<&Member> {
        self.members.iter().find(|m| m.role == "leader" && m.state == "running")
    }

    /// One leader, everybody else streaming from it.
    pub fn ready(&self) -> bool {
        self.leader().is_some_and(|leader| {
            self.members
                .iter()
                .filter(|m| m.name != leader.name)
                .all(|m| m.state == "streaming" && m.postmaster.is_some())
        })
    }

    /// What a reader wants to be told, in the order of importance.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut told = Vec::new();
        let (old, new) = (before.leader(), self.leader());
        match (old, new) {
            (_, Some(now))
                if old.map(|o| (&o.name, o.timeline)) != Some((&now.name, now.timeline)) =>
            {
                let timeline = now.timeline.map(|t| format!(", timeline {t}")).unwrap_or_default();
                let how =
                    if old.is_some_and(|o| o.name == now.name) { "leads" } else { "became leader" };
                told.push(format!("{} {how}{timeline}", now.name));
            }
            (Some(was), None) => told.push(format!("{} leads no more", was.name)),
            (Some(_), Some(_)) | (None, Some(_) | None) => {}
        }
        for now in &self.members {
            let Some(was) = before.members.iter().find(|m| m.name == now.name) else { continue };
            if was.postmaster.is_some() && now.postmaster.is_none() {
                told.push(format!("{}: PostgreSQL is down", now.name));
            } else if was.postmaster != now.postmaster
                && let Some(pid) = now.postmaster
            {
                told.push(format!("{}: PostgreSQL runs, pid {pid}", now.name));
            }
            if was.state != now.state && now.role != "leader" {
                match now.state.as_str() {
                    "" if now.agent.is_some() => {
                        told.push(format!("{}: the agent does not answer", now.name))
                    }
                    "" | "running" => {}
                    state => told.push(format!("{}: {state}", now.name)),
                }
            }
        }
        told
    }
}

/// Lays what /cluster says over a member.
pub fn from_cluster(member: &mut Member, view: &Value) {
    let listed = view["members"].as_array().into_iter().flatten();
    let Some(entry) = listed.into_iter().find(|m| m["name"] == member.name.as_str()) else {
        return;
    };
    member.role = entry["role"].as_str().unwrap_or_default().to_owned();
    member.state = entry["state"].as_str().unwrap_or_default().to_owned();
    member.timeline = entry["timeline"].as_u64().or(member.timeline);
    member.lag = match &entry["lag"] {
        Value::Number(n) => Some(n.to_string()),
        Value::String(s) => Some(s.clone()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, role: &str, state: &str, timeline: u64) -> Member {
        Member {
            name: name.into(),
            role: role.into(),
            state: state.into(),
            timeline: Some(timeline),
            postmaster: Some(1),
            agent: Some(2),
            lag: None,
        }
    }

    #[test]
    fn a_failover_is_told() {
        let before = Picture {
            members: vec![
                member("node1", "leader", "running", 1),
                member("node2", "replica", "streaming", 1),
            ],
        };
        assert!(before.ready());
        let mut after = before.clone();
        after.members[0] = Member { name: "node1".into(), agent: Some(2), ..Member::default() };
        after.members[1] = member("node2", "leader", "running", 2);
        let told = after.changes_since(&before);
        assert_eq!(told[0], "node2 became leader, timeline 2");
        assert!(told.contains(&"node1: PostgreSQL is down".to_owned()), "{told:?}");
        assert!(!after.ready());
    }

    #[test]
    fn nothing_new_is_not_told() {
        let one = Picture { members: vec![member("node1", "leader", "running", 1)] };
        assert_eq!(one.changes_since(&one.clone()), Vec::<String>::new());
    }
}
