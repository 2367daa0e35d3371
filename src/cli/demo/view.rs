//! The live view: who leads, what just happened, what to try. It only draws; the facts come from
//! `watch`.

use super::End;
use super::herd::Herd;
use super::picture::{Member, Picture};
use super::place::{NodePlan, Place, SUPERUSER};
use super::watch::{Event, RHYTHM, Watch};
use anyhow::Context;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How many events are remembered; the screen shows the newest that fit.
const REMEMBERED: usize = 200;
/// Lines of advice and their title; constant, so that nothing jumps while there is no leader.
const ADVICE: u16 = 7;

/// Runs until q, Ctrl-C or a signal; gives the terminal back in any case.
///
/// # Errors
/// The terminal cannot be drawn on.
pub async fn tell(
    place: &Place,
    herd: &mut Herd,
    watch: &mut Watch,
    end: &mut End,
) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let over = Arc::new(AtomicBool::new(false));
    let mut keys = keys(over.clone());
    let mut events: VecDeque<Event> = VecDeque::new();
    let outcome = loop {
        for event in watch.look(herd).await {
            events.push_front(event);
        }
        events.truncate(REMEMBERED);
        if let Err(e) = terminal.draw(|frame| draw(frame, place, &watch.picture, &events)) {
            break Err(e).context("the terminal cannot be drawn on");
        }
        tokio::select! {
            () = end.wanted() => break Ok(()),
            key = keys.recv() => match key {
                Some(Key::Quit) | None => break Ok(()),
                Some(Key::Redraw) => {}
            },
            () = tokio::time::sleep(RHYTHM) => {}
        }
    };
    over.store(true, Ordering::Relaxed);
    ratatui::restore();
    outcome
}

enum Key {
    Quit,
    Redraw,
}

/// Reads the keyboard on a thread of its own: reading blocks. It ends within a tenth of a second
/// after `over`.
fn keys(over: Arc<AtomicBool>) -> mpsc::Receiver<Key> {
    let (tell, hear) = mpsc::channel(8);
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let key = match event::poll(Duration::from_millis(100)) {
                Ok(false) => continue,
                Ok(true) => match event::read() {
                    Ok(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                        let control_c = key.code == KeyCode::Char('c')
                            && key.modifiers.contains(KeyModifiers::CONTROL);
                        let quit =
                            control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
                        if quit { Key::Quit } else { continue }
                    }
                    Ok(_) => Key::Redraw,
                    Err(_) => Key::Quit,
                },
                Err(_) => Key::Quit,
            };
            if tell.blocking_send(key).is_err() {
                return;
            }
        }
    });
    hear
}

fn draw(frame: &mut Frame<'_>, place: &Place, picture: &Picture, events: &VecDeque<Event>) {
    let advice = advice(place, picture);
    let members = place.nodes.len() as u16 + 2;
    let [head, table, told, what, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(members),
        Constraint::Min(4),
        Constraint::Length(ADVICE),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, place, picture);
    draw_members(frame, table, place, picture);
    let height = told.height.saturating_sub(1) as usize;
    let lines: Vec<Line<'_>> = events
        .iter()
        .take(height)
        .map(|e| Line::from(vec![e.at.as_str().dark_gray(), " ".into(), e.what.as_str().into()]))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(section("what happened")), told);
    // No borders at the sides and no wrapping: these lines are there to be copied.
    let lines: Vec<Line<'_>> = advice.into_iter().map(Line::from).collect();
    frame.render_widget(
        Paragraph::new(lines).block(section("what to try, in another terminal")),
        what,
    );
    let bye = format!("q ends it all   {}", place.dir.display());
    frame.render_widget(Paragraph::new(bye.dark_gray()), foot);
}

fn section(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(format!(" {title} ")).border_style(Color::DarkGray)
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, place: &Place, picture: &Picture) {
    let standing = match picture.leader() {
        Some(leader) if picture.ready() => format!("{} leads, all others stream", leader.name),
        Some(leader) => format!("{} leads", leader.name),
        None => "no leader yet".to_owned(),
    };
    let style = if picture.ready() { Color::Green } else { Color::Yellow };
    let line = Line::from(vec![
        "hathi demo".bold(),
        format!("   store {}   ", place.store).into(),
        standing.fg(style),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

fn draw_members(frame: &mut Frame<'_>, area: Rect, place: &Place, picture: &Picture) {
    let titles = [
        "member",
        "role",
        "state",
        "TL",
        "lag",
        "PostgreSQL",
        "REST API",
        "agent pid",
        "postmaster",
    ];
    let rows = place.nodes.iter().map(|node| {
        let unknown = Member { name: node.name.clone(), ..Member::default() };
        let seen = picture.members.iter().find(|m| m.name == node.name).unwrap_or(&unknown);
        row(node, seen)
    });
    let widths = [7, 14, 16, 3, 9, 16, 16, 9, 10].map(Constraint::Length);
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::TOP).border_style(Color::DarkGray));
    frame.render_widget(table, area);
}

fn row<'a>(node: &NodePlan, seen: &Member) -> Row<'a> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let state = match (seen.state.as_str(), seen.agent) {
        ("", None) => "agent down".to_owned(),
        ("", Some(_)) => "no answer".to_owned(),
        (state, _) => state.to_owned(),
    };
    let colour = match (seen.role.as_str(), seen.state.as_str()) {
        ("leader", "running") => Color::Green,
        (_, "streaming") => Color::Reset,
        (_, "") => Color::Red,
        _ => Color::Yellow,
    };
    Row::new([
        node.name.clone(),
        if seen.role.is_empty() { "-".to_owned() } else { seen.role.clone() },
        state,
        or_dash(seen.timeline.map(|t| t.to_string())),
        or_dash(seen.lag.clone()),
        format!("127.0.0.1:{}", node.pg_port),
        format!("127.0.0.1:{}", node.rest_port),
        or_dash(seen.agent.map(|p| p.to_string())),
        or_dash(seen.postmaster.map(|p| p.to_string())),
    ])
    .style(Style::new().fg(colour))
}

/// Lines to copy, with the pids and ports of this moment.
fn advice(place: &Place, picture: &Picture) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(leader) = picture.leader() else { return lines };
    if let Some(node) = place.nodes.iter().find(|n| n.name == leader.name) {
        lines.push(format!(
            "psql postgresql://{SUPERUSER}:{}@127.0.0.1:{}/postgres",
            place.password, node.pg_port
        ));
    }
    if let Some(pid) = leader.postmaster {
        lines.push(format!("kill -9 {pid}   # {}'s PostgreSQL: another takes over", leader.name));
    }
    if let Some(pid) = leader.agent {
        lines.push(format!(
            "kill -9 {pid}   # {}'s agent: it comes back, PostgreSQL goes on",
            leader.name
        ));
        lines.push(format!(
            "kill -STOP {pid}   # frozen: its guard stops PostgreSQL in time; kill -CONT wakes it"
        ));
    }
    let rest = place.nodes.iter().find(|n| n.name == leader.name).map(|n| n.rest_port);
    let other = picture.members.iter().find(|m| m.name != leader.name && m.state == "streaming");
    if let (Some(port), Some(other)) = (rest, other) {
        lines.push(format!(
            "curl -s http://127.0.0.1:{port}/switchover -d '{{\"leader\":\"{}\",\"candidate\":\"{}\"}}'",
            leader.name, other.name
        ));
        lines.push(format!("curl -s http://127.0.0.1:{port}/cluster"));
    }
    lines
}
