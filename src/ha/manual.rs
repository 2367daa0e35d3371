//! An operator asks for another leader: the checks before the request is written. (REST-190)

use crate::ha::ports::Ports;
use hathi_dcs::{Deadline, Failover, MemberName};

/// What the operator asked, already parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// POST /switchover; otherwise POST /failover.
    pub switchover: bool,
    pub failover: Failover,
}

/// The answer for the operator. (REST-190, REST-192)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

/// Checks 10 … 20 of REST-190: reads the cluster, asks the candidates, writes `/failover`. `Ok`
/// carries the leader at request time, for [`outcome`]; `Err` is the refusal.
pub async fn request(
    ports: &Ports,
    request: &Request,
    by: Deadline,
) -> Result<Option<MemberName>, Answer> {
    let _ = (ports, request, by);
    Err(Answer { status: 503, text: "not built".into() })
}

/// Waits for what comes of it. (REST-192)
pub async fn outcome(
    ports: &Ports,
    request: &Request,
    old_leader: Option<MemberName>,
    by: Deadline,
) -> Answer {
    let _ = (ports, request, old_leader, by);
    Answer { status: 503, text: "Switchover status unknown".into() }
}
