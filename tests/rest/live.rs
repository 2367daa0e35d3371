//! One request over a plain socket, exactly as told, and its whole answer.

use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: String,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn code(&self) -> u16 {
        self.status.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// `body` `None`: no `Content-Length` at all.
///
/// # Errors
/// No whole answer within a minute, as text.
pub async fn ask(
    to: SocketAddr,
    method: &str,
    target: &str,
    body: Option<&str>,
) -> Result<Reply, String> {
    let talk = async {
        let mut stream = TcpStream::connect(to).await?;
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len()));
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n",
            length.unwrap_or_default()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.unwrap_or_default().as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tokio::time::timeout(Duration::from_secs(60), talk)
        .await
        .map_err(|_| format!("{method} {target}: no answer"))?
        .map_err(|why| format!("{method} {target}: {why}"))?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| format!("{method} {target}: {text:?}"))?;
    let (line, _) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = line.split_once(' ').map_or(line, |(_, status)| status).to_owned();
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
