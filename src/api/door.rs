//! One connection after the other: accepted, greeted, talked with, and let go in time. (REST-450,
//! REST-451)

use crate::api::access::Peer;
use crate::api::answer;
use crate::api::asked::is_readable;
use crate::api::connections::{Connections, Place};
use crate::api::impatient::{Impatient, Wire};
use crate::api::local_socket::LocalSocket;
use crate::api::serve::Current;
use crate::api::tally::{self, Tally};
use futures::FutureExt;
use http::{StatusCode, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;
use warp::reply::Response;

/// How long running requests may take after the shutdown began. (REST-450)
pub const GRACE: Duration = Duration::from_secs(1);
/// The largest header block; more is answered with 431.
const HEADER_LIMIT: usize = 64 * 1024;

/// Questions asked before the answer to the one before was read are answered so many at a time, by all
/// connections together: a crowd that asks for much at once stands behind those who ask one by one.
/// (REST-451)
const AHEAD: usize = 4;

/// The lane of those who ask ahead.
pub struct Lane(Semaphore);

impl Default for Lane {
    fn default() -> Self {
        Self(Semaphore::new(AHEAD))
    }
}

/// What every connection needs.
pub struct Door<S> {
    pub service: S,
    pub connections: Arc<Connections>,
    pub lane: Lane,
    pub current: watch::Receiver<Current>,
    pub tally: Arc<Tally>,
    /// True: the end begins.
    pub closed: watch::Receiver<bool>,
    /// Held by everybody who still talks.
    pub alive: mpsc::WeakSender<()>,
}

/// The routes, as one service.
pub trait Routes:
    Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Routes for S where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Who is at the other end, for the log.
#[derive(Clone, Copy, Debug)]
enum Whence {
    Tcp(SocketAddr),
    SocketFile,
}

impl fmt::Display for Whence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().fmt(f),
            Self::SocketFile => f.write_str("socket file"),
        }
    }
}

/// Accepts on all of them until the set is shut down.
pub fn open<S: Routes>(door: &Arc<Door<S>>, listeners: Vec<TcpListener>) -> JoinSet<()> {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let door = Arc::clone(door);
        accepting.spawn(async move {
            let mut newcomers = 0;
            loop {
                match listener.accept().await {
                    Ok((stream, address)) => {
                        door.enter(|door, place| async move {
                            greet(stream, address, door, place).await;
                        });
                        door.hears_them(&mut newcomers).await;
                    }
                    Err(why) => exhausted(&why).await,
                }
            }
        });
    }
    accepting
}

/// As [`open`], on the socket file.
pub fn open_local<S: Routes>(door: &Arc<Door<S>>, socket: Option<LocalSocket>) -> JoinSet<()> {
    let mut accepting = JoinSet::new();
    if let Some(socket) = socket {
        let door = Arc::clone(door);
        accepting.spawn(async move {
            let mut newcomers = 0;
            loop {
                match socket.listener.accept().await {
                    Ok((stream, _)) => {
                        door.enter(|door, place| async move {
                            let peer = Peer { address: None, has_certificate: false };
                            talk(stream, Whence::SocketFile, peer, door, place).await;
                        });
                        door.hears_them(&mut newcomers).await;
                    }
                    Err(why) => exhausted(&why).await,
                }
            }
        });
    }
    accepting
}

/// Out of descriptors, most likely: gives the others time to end.
async fn exhausted(why: &std::io::Error) {
    tracing::debug!(%why, "REST API: a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

impl Lane {
    /// Lets everybody else go first, and waits for a place. The semaphore is never closed.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.0.acquire().await.ok();
        tokio::task::yield_now().await;
        turn
    }
}

impl<S: Routes> Door<S> {
    /// Where newcomers take the places of others, those who have just come are listened to several times
    /// before as many more have come: or a crowd that is faster than we are would push out those whose
    /// question is here already. Not after each: who stands behind a crowd waits for it to be let in.
    async fn hears_them(&self, newcomers: &mut usize) {
        *newcomers += 1;
        if *newcomers >= self.connections.most() / 8 && self.connections.is_full() {
            *newcomers = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Begins a talk, if there is a place and the end has not begun.
    fn enter<F>(self: &Arc<Self>, talk: impl FnOnce(Arc<Self>, Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (Some(place), Some(alive)) = (self.connections.admit(), self.alive.upgrade()) else {
            return;
        };
        let talk = talk(Arc::clone(self), place);
        tokio::spawn(async move {
            talk.await;
            drop(alive);
        });
    }
}

/// `GET primary` and `CONNECT host:1` have no path: what they have is taken for one, as by Patroni; warp
/// cannot do without.
fn with_path(uri: &mut Uri) {
    if uri.path_and_query().is_none() {
        let given = uri.authority().map_or("", |authority| authority.as_str());
        *uri = format!("/{given}").parse().unwrap_or_default();
    }
}

/// The TLS handshake, if there is one, then the talk.
async fn greet<S: Routes>(
    stream: TcpStream,
    address: SocketAddr,
    door: Arc<Door<S>>,
    place: Place,
) {
    let whence = Whence::Tcp(address);
    let mut peer = Peer { address: Some(address.ip().to_canonical()), has_certificate: false };
    let mut closed = door.closed.clone();
    let (tls, patience) = {
        let current = door.current.borrow();
        (current.tls.clone(), current.handshake_timeout)
    };
    let Some(tls) = tls else { return talk(stream, whence, peer, door, place).await };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    tokio::select! {
        shaken = tokio::time::timeout(patience, handshake) => match shaken {
            Ok(Ok(stream)) => {
                peer.has_certificate = stream.get_ref().1.peer_certificates().is_some();
                talk(stream, whence, peer, door, place).await;
            }
            Ok(Err(why)) => tracing::debug!(peer = %whence, %why, "REST API: no TLS handshake"),
            Err(_) => tracing::debug!(peer = %whence, "REST API: the TLS handshake took too long"),
        },
        () = place.line.told_to_go() => {}
        _ = closed.changed() => {}
    }
}

async fn talk<S, IO>(io: IO, whence: Whence, peer: Peer, door: Arc<Door<S>>, place: Place)
where
    S: Routes,
    IO: Wire,
{
    let line = Arc::clone(&place.line);
    let mut closed = door.closed.clone();
    let request_timeout = door.current.borrow().request_timeout;
    let io = Impatient::new(io, request_timeout);
    let heard = io.heard();
    let service = service_fn(|mut request: http::Request<Incoming>| {
        let began = Instant::now();
        with_path(request.uri_mut());
        let readable = is_readable(request.method());
        let endpoint = tally::endpoint(readable, request.uri().path());
        // (REST-009)
        let logged = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().clone()));
        if !readable {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Arc::clone(&line));
        }
        // Orders have limits of their own.
        let asks_ahead = !heard.anew() && readable;
        let (line, door) = (&line, &door);
        async move {
            let _turn = match asks_ahead {
                true => door.lane.turn().await,
                false => None,
            };
            if readable {
                line.answers();
            }
            // A fault of ours is this client's answer and nobody else's trouble. (REST-457)
            let answering = async { door.service.clone().call(request).await };
            let mut response = match AssertUnwindSafe(answering).catch_unwind().await {
                Ok(Ok(response)) => response,
                Err(_) => answer::page(StatusCode::INTERNAL_SERVER_ERROR),
            };
            door.current.borrow().dress.put_on(&mut response);
            let took = began.elapsed();
            door.tally.answered(endpoint, response.status(), took);
            if let Some((method, target)) = logged {
                let status = response.status().as_u16();
                let took_ms = took.as_millis();
                tracing::debug!(peer = %whence, %method, %target, status, took_ms, "request");
            }
            line.waits();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(request_timeout)
        .max_buf_size(HEADER_LIMIT)
        .half_close(true)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // In this order: who has asked is answered before it makes room.
        biased;
        ended = connection.as_mut() => Some(ended),
        () = place.line.told_to_go() => return,
        _ = closed.changed() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(why) = ended {
        tracing::debug!(peer = %whence, %why, "REST API: a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::settings::RestConfig;
    use std::future::Ready;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[derive(Clone)]
    struct Faulty;

    impl Service<http::Request<Incoming>> for Faulty {
        type Response = Response;
        type Error = Infallible;
        type Future = Ready<Result<Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Incoming>) -> Self::Future {
            panic!("a fault of ours, made for this test")
        }
    }

    /// A door with so many places; where it is, and what keeps it open.
    async fn opened(most: usize) -> (SocketAddr, impl Sized) {
        let config = RestConfig::on("127.0.0.1:0");
        let (put, current) = watch::channel(Current::of(&config).expect("a configuration"));
        let (closing, closed) = watch::channel(false);
        let (alive, all_gone) = mpsc::channel(1);
        let tally = Arc::new(Tally::default());
        let connections = Connections::new(most, Arc::clone(&tally));
        let (service, lane, weak) = (Faulty, Lane::default(), alive.downgrade());
        let door = Door { service, connections, lane, current, tally, closed, alive: weak };
        let listeners = crate::api::listen::bind(&config.listen, 64).await.expect("a free port");
        let address = listeners[0].local_addr().expect("bound");
        (address, (open(&Arc::new(door), listeners), put, closing, alive, all_gone))
    }

    async fn asked(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.expect("sent");
        stream
    }

    async fn is_answered(mut stream: TcpStream) {
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time").expect("all");
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }

    /// Proves REST-457 (an internal error): a fault is answered with 500, and the next one is served.
    #[tokio::test]
    async fn a_fault_of_ours_is_an_answer() {
        let (address, _open) = opened(8).await;
        for _ in 0..2 {
            is_answered(asked(address).await).await;
        }
    }

    /// Proves REST-451: whoever asks at once is answered, also when many more come at the same moment than
    /// there are places.
    #[tokio::test]
    async fn a_burst_pushes_nobody_out() {
        let (address, _open) = opened(2).await;
        // From a thread of its own: all of them are here before the first one is accepted.
        let all = std::thread::spawn(move || {
            let ask = |_| {
                let mut stream = std::net::TcpStream::connect(address).expect("it listens");
                let question = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
                std::io::Write::write_all(&mut stream, question).expect("sent");
                stream.set_nonblocking(true).expect("a socket");
                stream
            };
            (0..40).map(ask).collect::<Vec<_>>()
        });
        // The runtime, which has this one thread, stands still until they are.
        for stream in all.join().expect("connected") {
            is_answered(TcpStream::from_std(stream).expect("a socket")).await;
        }
    }
}
