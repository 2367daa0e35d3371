//! The scenarios people argue about, as text: commands above the line, below it what happened. A
//! change of behaviour is a diff. `UPDATE_TRANSCRIPTS=1` rewrites what is below the line.
//! (docs/style.md, 2.8)

use crate::executor::Executor;
use crate::world::{MS, SECOND, Shared, World};
use hathi::ha::manual;
use hathi_dcs::{Failover, MemberName, Timing};

/// Runs the commands and gives what happened, one line each.
fn play(commands: &str) -> Result<String, String> {
    let shared = World::empty(7);
    let mut executor = Executor::new(shared.clone());
    let mut began = 0;
    for line in commands.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["cluster", rest @ ..] => began = cluster(&shared, &mut executor, rest)?,
            ["run", seconds] => {
                let seconds: f64 = seconds.parse().map_err(|_| format!("not a number: {line}"))?;
                let now = shared.lock().unwrap().now_us;
                executor.run_until(now + (seconds * SECOND as f64) as u64);
            }
            other => {
                let mut world = shared.lock().unwrap();
                if world.tracing {
                    note(&mut world, line);
                }
                // In the next instant, so that the executor sees what it does to processes.
                let words: Vec<String> = other.iter().map(|word| (*word).to_owned()).collect();
                world.after(0, move |world| {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    if let Err(why) = command(world, &words) {
                        world.violation("TRANSCRIPT", why);
                    }
                });
            }
        }
    }
    let mut world = shared.lock().unwrap();
    if let Some((rule, what)) = world.failed.take() {
        return Err(format!("{rule}: {what}\n{}", world.trace.join("\n")));
    }
    let told: Vec<String> = world.trace.iter().filter_map(|line| readable(line, began)).collect();
    Ok(format!("{}\n{}\n", told.join("\n"), summary(&world)))
}

/// Creates the cluster and waits until everybody follows; only then the story begins.
fn cluster(shared: &Shared, executor: &mut Executor, words: &[&str]) -> Result<u64, String> {
    let mut world = shared.lock().unwrap();
    world.store.up = true;
    world.watched.can_rewind = true;
    let (options, names): (Vec<&str>, Vec<&str>) = words.iter().partition(|w| w.contains('='));
    for (turn, name) in (0_u64..).zip(names) {
        let node = world.add_node(name, 1_000 * (turn + 1), 0);
        world.at(turn * SECOND, move |world| world.start_agent(node));
    }
    for word in options {
        let Some((key, value)) = word.split_once('=') else { continue };
        let value: u32 = value.parse().map_err(|_| format!("not a number: {word}"))?;
        let timing = world.base.timing;
        match key {
            "ttl" => world.base.timing = Timing { ttl: value, ..timing },
            "loop_wait" => world.base.timing = Timing { loop_wait: value, ..timing },
            "retry_timeout" => world.base.timing = Timing { retry_timeout: value, ..timing },
            "primary_start_timeout" => world.base.primary_start_timeout = value,
            "maximum_lag_on_failover" => world.base.maximum_lag_on_failover = value.into(),
            other => return Err(format!("unknown option {other}")),
        }
    }
    world.at(0, World::tick);
    world.at(0, World::watch_sessions);
    drop(world);
    executor.run_until(60 * SECOND);
    let mut world = shared.lock().unwrap();
    world.check_end();
    world.tracing = true;
    world.trace.clear();
    Ok(world.now_us)
}

fn command(world: &mut World, words: &[&str]) -> Result<(), String> {
    let node = |name: &str, world: &World| {
        world.node_of(&MemberName::from(name)).ok_or_else(|| format!("no node {name}"))
    };
    match words {
        ["freeze", "agent", name] => world.freeze_agent(node(name, world)?),
        ["resume", "agent", name] => world.resume_agent(node(name, world)?),
        ["kill", "agent", name] => world.kill_agent(node(name, world)?),
        ["kill", "postgres", name] => world.pg_die(node(name, world)?, "kill -9"),
        ["kill", "node", name] => {
            let node = node(name, world)?;
            world.kill_agent(node);
            world.pg_die(node, "power");
            world.nodes[node].fence = None;
            reach(world, node, false);
        }
        ["start", "agent", name] => {
            let node = node(name, world)?;
            reach(world, node, true);
            world.start_agent(node);
        }
        ["stop", "agent", name] => world.shut_down_agent(node(name, world)?),
        ["store", "down"] | ["store", "up"] => {
            world.store.up = words[1] == "up";
            for node in 0..world.members() {
                world.store_link_changed(node);
            }
        }
        ["isolate", name] | ["join", name] => {
            let node = node(name, world)?;
            reach(world, node, words[0] == "join");
        }
        ["revoke", "lease"] => {
            let session = world.store.leader.as_ref().map(|held| held.session);
            world.watched.revoked_at = Some(world.now_us);
            world.end_session(session.ok_or("nobody holds the key")?);
        }
        ["slow", name, times] => {
            let node = node(name, world)?;
            world.nodes[node].slow = times.parse().map_err(|_| "not a number".to_owned())?;
        }
        ["switchover", leader, candidate] => {
            let failover = Failover {
                leader: Some(MemberName::from(*leader)),
                candidate: Some(MemberName::from(*candidate)),
                scheduled_at: None,
            };
            let through = node(candidate, world)?;
            world.request(through, manual::Request { switchover: true, failover });
        }
        other => return Err(format!("unknown command {other:?}")),
    }
    Ok(())
}

/// Does anybody reach this machine, and it them?
fn reach(world: &mut World, node: usize, connected: bool) {
    if world.nodes[node].to_store == connected {
        return;
    }
    for other in (0..world.members()).filter(|other| *other != node) {
        world.links[node][other] = connected;
        world.links[other][node] = connected;
    }
    world.watched.network_since = world.now_us;
    world.nodes[node].to_store = connected;
    world.nodes[node].from_store = connected;
    world.store_link_changed(node);
}

fn note(world: &mut World, line: &str) {
    let (seconds, ms) = (world.now_us / SECOND, world.now_us % SECOND / MS);
    world.trace.push(format!("t={seconds:>3}.{ms:03}  >  {line}"));
}

/// One line of the trace with the time since the story began; without what only a debugger needs.
fn readable(line: &str, began: u64) -> Option<String> {
    let (time, rest) = line.strip_prefix("t=")?.split_at(7);
    if ["task begins", "task ends", "in progress", "NET "].iter().any(|word| rest.contains(word)) {
        return None;
    }
    let at: f64 = time.trim().parse().ok()?;
    let rest = rest.split("  [").next().unwrap_or(rest);
    Some(format!("t={:>5.1} {}", at - began as f64 / SECOND as f64, rest.trim_end()))
}

fn summary(world: &World) -> String {
    let mut lines = vec!["end".to_owned()];
    for (at, node) in world.nodes.iter().enumerate() {
        let server = &node.server;
        let timeline = world.timeline(at);
        let is = match (server.writable(), server.ready(), server.streaming) {
            (true, ..) => format!("accepts writes on timeline {timeline}"),
            (false, true, true) => format!("streams on timeline {timeline}"),
            (false, true, false) => format!("is read-only on timeline {timeline}"),
            (false, false, _) => "is down".to_owned(),
        };
        lines.push(format!("  {} {is}", node.name));
    }
    let lost = world.watched.lost_bytes;
    lines
        .push(format!("  acknowledged and lost: {lost} bytes; writers at once: never more than 1"));
    lines.join("\n")
}

#[test]
fn transcripts() {
    let folder = crate::root().join("tests/simulation/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of the transcripts")
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 9, "{} transcripts in {}", files.len(), folder.display());
    let rewrite = std::env::var_os("UPDATE_TRANSCRIPTS").is_some();
    let mut differ = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a transcript");
        let (commands, expected) = text.split_once("----\n").unwrap_or((&text, ""));
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match play(commands) {
            Err(why) => differ.push(format!("{name}: {why}")),
            Ok(told) if rewrite => {
                let commands = commands.trim_end();
                std::fs::write(&file, format!("{commands}\n----\n{told}")).expect("written");
            }
            Ok(told) if told != expected => {
                differ.push(format!("{name} differs:\n--- is\n{told}--- was\n{expected}"));
            }
            Ok(_) => {}
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
