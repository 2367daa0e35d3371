//! A connection that is given up when its client does not read what it asked for, and that knows whether
//! its client waits for its answers before it asks again. (REST-363, REST-451)
//!
//! The timer exists only while a write is stuck, so it costs nobody else anything.

use rustix::net::sockopt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

#[derive(Debug)]
pub struct Impatient<IO: Wire> {
    io: IO,
    patience: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    heard: Heard,
}

/// Did the client say anything since this was last asked?
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicBool>);

impl Heard {
    pub fn anew(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What connections run over.
pub trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Nobody reads what is still to be sent: it is not kept by the kernel after the close.
    fn forget_unsent(&self);
}

impl Wire for TcpStream {
    fn forget_unsent(&self) {
        let _ = sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }
}

impl Wire for TlsStream<TcpStream> {
    fn forget_unsent(&self) {
        self.get_ref().0.forget_unsent();
    }
}

impl Wire for UnixStream {
    /// Gone with the socket.
    fn forget_unsent(&self) {}
}

impl<IO: Wire> Drop for Impatient<IO> {
    fn drop(&mut self) {
        if self.stuck.is_some() {
            self.io.forget_unsent();
        }
    }
}

impl<IO: Wire> Impatient<IO> {
    /// Each write gets `patience` to make some progress.
    pub fn new(io: IO, patience: Duration) -> Self {
        Self { io, patience, stuck: None, heard: Heard::default() }
    }

    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    fn judged<T>(
        &mut self,
        progress: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stuck = None;
            return progress;
        }
        let patience = self.patience;
        let timer = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<IO: Wire> AsyncRead for Impatient<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.0.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<IO: Wire> AsyncWrite for Impatient<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.io).poll_write(cx, buf);
        self.judged(progress, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.io).poll_flush(cx);
        self.judged(progress, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.io).poll_shutdown(cx);
        self.judged(progress, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.judged(progress, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    impl Wire for DuplexStream {
        fn forget_unsent(&self) {}
    }

    /// Proves REST-363 (the write): progress resets the patience, its absence ends it.
    #[tokio::test]
    async fn who_does_not_read_is_given_up() {
        let (mut client, server) = tokio::io::duplex(8);
        let patience = Duration::from_secs(1);
        let mut server = Impatient::new(server, patience);
        let reading = tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(patience / 3).await;
                client.read_exact(&mut [0; 8]).await.expect("eight bytes");
            }
            client
        });
        server.write_all(&[1; 32]).await.expect("it reads slowly, but it reads");
        let _client = reading.await.expect("the reader's end");
        let stuck = server.write_all(&[1; 32]).await.expect_err("nobody reads");
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
    }
}
