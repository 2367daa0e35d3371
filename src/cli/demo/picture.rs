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
    /// Who holds the lock, whether its agent answers or not.
    pub fn leader(&self) -> Option<&Member> {
        self.members.iter().find(|m| m.role == "leader")
    }

    /// One leader, everybody else streaming from it.
    pub fn ready(&self) -> bool {
        self.leader().is_some_and(|leader| {
            leader.state == "running"
                && self
                    .members
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
            (Some(was), Some(now)) if was.name == now.name => {
                // The timeline follows the promotion by a moment.
                if let (Some(now_on), true) = (now.timeline, now.timeline > was.timeline) {
                    told.push(format!("{} leads on timeline {now_on}", now.name));
                }
            }
            (_, Some(now)) => {
                let newer = now.timeline > before.members.iter().filter_map(|m| m.timeline).max();
                let on = now.timeline.filter(|_| newer).map(|t| format!(", timeline {t}"));
                told.push(format!("{} became leader{}", now.name, on.unwrap_or_default()));
            }
            (Some(was), None) => told.push(format!("{} leads no more", was.name)),
            (None, None) => {}
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
            if was.state != now.state && (now.role != "leader" || now.state.is_empty()) {
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
    // The member's own answer is the fresher one.
    member.timeline = member.timeline.or(entry["timeline"].as_u64());
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
