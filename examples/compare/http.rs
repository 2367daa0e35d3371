//! /primary as fast as 16 connections go. A server that closes after each answer (Patroni speaks
//! HTTP/1.0) gets a new connection each time, as it does from a load balancer.

use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 16;

pub struct Load {
    pub per_second: f64,
    pub p99: Duration,
    pub wrong: usize,
}

pub async fn primary(port: u16, lasts: Duration) -> Load {
    let end = Instant::now() + lasts;
    let tasks: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(client(port, end))).collect();
    let (mut taken, mut wrong) = (Vec::new(), 0);
    for task in tasks {
        let (times, failures) = task.await.expect("a client task");
        taken.extend(times);
        wrong += failures;
    }
    taken.sort_unstable();
    let p99 = taken.get(taken.len() * 99 / 100).copied().unwrap_or(lasts);
    Load { per_second: taken.len() as f64 / lasts.as_secs_f64(), p99, wrong }
}

async fn client(port: u16, end: Instant) -> (Vec<Duration>, usize) {
    let (mut times, mut wrong) = (Vec::new(), 0);
    let mut kept: Option<TcpStream> = None;
    while Instant::now() < end {
        let started = Instant::now();
        match tokio::time::timeout(Duration::from_secs(5), one(port, kept.take())).await {
            Ok(Ok((200, connection))) => {
                times.push(started.elapsed());
                kept = connection;
            }
            Ok(Ok(_) | Err(_)) | Err(_) => wrong += 1,
        }
    }
    (times, wrong)
}

/// One request; hands the connection back if the server keeps it.
async fn one(port: u16, kept: Option<TcpStream>) -> std::io::Result<(u16, Option<TcpStream>)> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => TcpStream::connect(("127.0.0.1", port)).await?,
    };
    connection.set_nodelay(true)?;
    connection.write_all(b"GET /primary HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut answer = Vec::with_capacity(2048);
    loop {
        let mut part = [0_u8; 4096];
        let read = connection.read(&mut part).await?;
        answer.extend_from_slice(&part[..read]);
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        let text = String::from_utf8_lossy(&answer[..head.unwrap_or(0)]).to_ascii_lowercase();
        let code = text.get(9..12).and_then(|c| c.parse().ok()).unwrap_or(0);
        let length = text
            .split("content-length:")
            .nth(1)
            .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
        if let (Some(head), Some(length)) = (head, length)
            && answer.len() >= head + length
        {
            let keeps = text.starts_with("http/1.1") && !text.contains("connection: close");
            return Ok((code, keeps.then_some(connection)));
        }
        if read == 0 {
            return Ok((code, None));
        }
    }
}
