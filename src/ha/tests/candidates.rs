//! Whom a primary chooses as synchronous standbys, and whose word counts.

use super::stage::{Scene, member};
use crate::ha::ports::{Commit, Observation, Sender, Server};
use crate::ha::settings::{Settings, SynchronousMode};
use crate::ha::sync::candidates::{choose, confirmed};
use hathi_dcs::{ClusterView, Lsn, Timeline};

/// A primary at 1000 with these members beside it: name, tags, and how far it flushed (`None`: it does
/// not stream).
struct Case {
    settings: Settings,
    view: ClusterView,
    pg: Observation,
}

fn sender(name: &str, lsn: u64) -> Sender {
    Sender {
        name: name.into(),
        streaming: true,
        sync_state: "async".to_owned(),
        written: Lsn(lsn + 20),
        flushed: Lsn(lsn),
        replayed: Lsn(lsn - 20),
    }
}

impl Case {
    fn new(members: &[(&str, &str, Option<u64>)]) -> Self {
        let scene = Scene::leader();
        let (mut settings, mut pg) = scene.facts();
        settings.synchronous.mode = SynchronousMode::Priority;
        settings.synchronous.node_count = 9;
        settings.synchronous.maximum_lag = -1;
        pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
        pg.replication.senders.clear();
        let mut view = scene.view();
        view.members.clear();
        for (name, tags, lsn) in members {
            let record = format!(r#"{{"state":"running","role":"replica","tags":{tags}}}"#);
            view.members.push(member(name, &record));
            pg.replication.senders.extend(lsn.map(|lsn| sender(name, lsn)));
        }
        Self { settings, view, pg }
    }

    fn sender(&mut self, name: &str) -> &mut Sender {
        let mut all = self.pg.replication.senders.iter_mut();
        all.find(|sender| sender.name.as_str() == name).expect("it streams")
    }

    fn chosen(&self) -> String {
        let chosen = choose(&self.settings, &self.view, &self.pg);
        chosen.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// Proves PG-283: who streams, by whatever spelling of its name, is a running member, wants the duty,
/// is not this primary, and does not belong behind another one.
#[test]
fn candidates_are_running_members_that_stream() {
    let mut case = Case::new(&[
        ("a", "{}", Some(1000)),
        ("b", "{}", Some(900)),
        ("Cc", "{}", Some(890)),
        ("d", r#"{"nosync":true}"#, Some(880)),
        ("e", r#"{"sync_priority":0}"#, Some(870)),
        ("f", r#"{"replicatefrom":"b"}"#, Some(860)),
        ("g", r#"{"replicatefrom":"nobody"}"#, Some(850)),
        ("h", r#"{"replicatefrom":"h"}"#, Some(840)),
        ("i", "{}", None),
    ]);
    case.sender("Cc").name = "cC".into();
    case.pg.replication.senders.push(sender("stranger", 1000));
    assert_eq!(case.chosen(), "b Cc g h");
    case.sender("g").streaming = false;
    let starting = member("h", r#"{"state":"starting","role":"replica"}"#);
    case.view.members.iter_mut().filter(|one| one.name.as_str() == "h").for_each(|one| {
        *one = starting.clone();
    });
    assert_eq!(case.chosen(), "b Cc");
    // Whom it belongs behind does not stream: here it may as well serve.
    case.sender("b").streaming = false;
    assert_eq!(case.chosen(), "Cc f");
}

/// Proves PG-283 (which position counts), PG-285: of those that are named, who has the log up to the
/// mark, by what a commit waits for.
#[test]
fn a_word_counts_by_what_commits_wait_for() {
    let mut case = Case::new(&[("b", "{}", Some(900)), ("c", "{}", Some(910))]);
    for (commit, b, c) in
        [(Commit::Written, 920, 930), (Commit::Flushed, 900, 910), (Commit::Replayed, 880, 890)]
    {
        case.pg.replication.commit = commit;
        let count = |case: &Case, mark: u64| confirmed(&case.pg, Lsn(mark)).len();
        assert_eq!(count(&case, 0), 0, "nobody is named");
        for state in ["sync", "quorum"] {
            case.sender("b").sync_state = state.to_owned();
            case.sender("c").sync_state = state.to_owned();
            let seen = [b, b + 1, c, c + 1].map(|mark| count(&case, mark));
            assert_eq!(seen, [2, 1, 1, 0], "{commit:?} {state}");
        }
        case.sender("c").sync_state = "potential".to_owned();
        assert_eq!(count(&case, 0), 1);
        case.sender("b").streaming = false;
        assert_eq!(count(&case, 0), 0);
        case.sender("b").streaming = true;
        for name in ["b", "c"] {
            case.sender(name).sync_state = "async".to_owned();
        }
    }
}

/// Proves PG-284, CFG-264: by priority, then by the duty they have, then by position; who never becomes
/// leader comes last, who lags too far does not come at all.
#[test]
fn the_best_candidates_come_first() {
    let mut case = Case::new(&[
        ("b", "{}", Some(900)),
        ("c", "{}", Some(950)),
        ("d", "{}", Some(940)),
        ("e", r#"{"sync_priority":5}"#, Some(800)),
        ("f", r#"{"sync_priority":9,"nofailover":true}"#, Some(999)),
    ]);
    assert_eq!(case.chosen(), "e c d b f");
    case.sender("b").sync_state = "sync".to_owned();
    case.sender("d").sync_state = "potential".to_owned();
    assert_eq!(case.chosen(), "e b d c f");
    case.settings.synchronous.node_count = 2;
    assert_eq!(case.chosen(), "e b");
    case.settings.synchronous.mode = SynchronousMode::Quorum;
    assert_eq!(case.chosen(), "e b d c", "all that may lead");
    case.settings.synchronous.node_count = 9;

    case.settings.synchronous.mode = SynchronousMode::Priority;
    for (most, left) in [(199, "e b d c f"), (198, "b d c f"), (59, "d c f"), (0, "e b d c f")] {
        case.settings.synchronous.maximum_lag = most;
        assert_eq!(case.chosen(), left, "behind the best by {most} at most");
    }
    // Alone, there is only the primary to compare with.
    let mut alone = Case::new(&[("b", "{}", Some(900))]);
    for (most, left) in [(100, "b"), (99, "")] {
        alone.settings.synchronous.maximum_lag = most;
        assert_eq!(alone.chosen(), left);
    }
}
