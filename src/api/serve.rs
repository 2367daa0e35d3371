//! The listener: accepts, speaks HTTP/1, and ends within a second whatever the clients do.
//! (REST-450, REST-451)

use crate::api::access::{Access, Peer};
use crate::api::asked::is_readable;
use crate::api::connections::{Connections, Place};
use crate::api::dress::Dress;
use crate::api::listen::{self, ListenError};
use crate::api::order::Order;
use crate::api::prepared::Shelf;
use crate::api::settings::RestConfig;
use crate::api::snapshot::Snapshot;
use crate::api::tally::Tally;
use crate::api::tls::{self, TlsError};
use crate::api::{Context, routes};
use hathi_dcs::boottime;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;
use warp::reply::Response;

/// How long running requests may take after the shutdown began. (REST-450)
const GRACE: Duration = Duration::from_secs(1);
/// How often the certificate's files are looked at. (REST-453)
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);
/// The largest header block; more is answered with 431.
const HEADER_LIMIT: usize = 64 * 1024;

/// Why the API does not start; each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("restapi: {header:?} is not a valid extra header")]
    Header { header: String },
    #[error("the REST API does not run any more")]
    Ended,
}

/// Bound, and not serving yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    config: RestConfig,
    current: Current,
    handle: Handle,
    changes: mpsc::Receiver<Change>,
}

/// A new configuration, and the way back for how it went.
type Change = (RestConfig, oneshot::Sender<Result<(), ApiError>>);

/// Reaches a running server.
#[derive(Clone, Debug)]
pub struct Handle {
    changes: mpsc::Sender<Change>,
}

impl Handle {
    /// Puts another configuration in force: addresses, certificate, passwords, lists, headers. All
    /// of it or nothing: on an error the server goes on as it was. `request_queue_size` and
    /// `max_connections` stay as they were at the start. (REST-453)
    pub async fn reconfigure(&self, config: RestConfig) -> Result<(), ApiError> {
        let (reply, outcome) = oneshot::channel();
        self.changes.send((config, reply)).await.map_err(|_| ApiError::Ended)?;
        outcome.await.map_err(|_| ApiError::Ended)?
    }
}

/// The part of the configuration that a reload replaces.
#[derive(Clone, Debug)]
pub struct Current {
    pub access: Arc<Access>,
    dress: Arc<Dress>,
    tls: Option<Arc<ServerConfig>>,
    handshake_timeout: Duration,
    pub request_timeout: Duration,
}

impl Current {
    pub fn of(config: &RestConfig) -> Result<Self, ApiError> {
        Ok(Self {
            access: Arc::new(Access::new(config)),
            dress: Arc::new(Dress::new(config).map_err(|header| ApiError::Header { header })?),
            tls: tls::load(config)?,
            handshake_timeout: config.handshake_timeout,
            request_timeout: config.request_timeout,
        })
    }
}

/// Binds and serves until `shutdown` completes, and one second more at most.
///
/// # Errors
/// Only before serving: the address, the certificate, a header.
pub async fn serve(
    config: RestConfig,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    orders: mpsc::Sender<Order>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ApiError> {
    Server::bind(config).await?.run(snapshot, orders, shutdown).await;
    Ok(())
}

async fn listeners(config: &RestConfig) -> Result<Vec<TcpListener>, ListenError> {
    listen::bind(&config.listen, config.request_queue_size.max(128)).await
}

impl Server {
    /// Takes the address and reads the certificate, so that what is wrong is known at the start.
    pub async fn bind(config: RestConfig) -> Result<Self, ApiError> {
        let current = Current::of(&config)?;
        let listeners = listeners(&config).await?;
        let (sender, changes) = mpsc::channel(1);
        let handle = Handle { changes: sender };
        Ok(Self { listeners, config, current, handle, changes })
    }

    /// Where it listens, with the port the system chose for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves. Dropping the future stops accepting at once and ends the connections within the
    /// grace.
    pub async fn run(
        self,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        orders: mpsc::Sender<Order>,
        shutdown: impl Future<Output = ()>,
    ) {
        let Self { listeners: bound, mut config, current, handle: _handle, mut changes } = self;
        let tally = Arc::new(Tally::default());
        let (put, current) = watch::channel(current);
        let context = Context {
            shelf: Shelf::new(snapshot, orders),
            current: current.clone(),
            tally: Arc::clone(&tally),
        };
        let (closing, closed) = watch::channel(false);
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let door = Arc::new(Door {
            service: warp::service(routes(&context)),
            connections: Connections::new(config.max_connections.max(1), tally),
            current,
        });
        let open = |listeners: Vec<TcpListener>| {
            let mut accepting = JoinSet::new();
            for listener in listeners {
                accepting.spawn(accept(listener, Arc::clone(&door), closed.clone(), alive.clone()));
            }
            accepting
        };
        let mut accepting = open(bound);
        let mut certificate = tls::changed_at(&config);
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = shutdown.as_mut() => break,
                Some((wanted, reply)) = changes.recv() => {
                    let moves = wanted.listen != config.listen;
                    let prepared = tokio::select! {
                        () = shutdown.as_mut() => break,
                        prepared = prepare(&wanted, moves) => prepared,
                    };
                    let outcome = match prepared {
                        Err(why) => Err(why),
                        Ok((current, bound)) => {
                            certificate = tls::changed_at(&wanted);
                            config = wanted;
                            let _ = put.send(current);
                            if let Some(bound) = bound {
                                std::mem::replace(&mut accepting, open(bound)).shutdown().await;
                            }
                            Ok(())
                        }
                    };
                    let _ = reply.send(outcome);
                }
                () = tokio::time::sleep(CERTIFICATE_CHECK), if config.certfile.is_some() => {
                    let now = tls::changed_at(&config);
                    if now != certificate {
                        certificate = now;
                        renew_certificate(&config, &put);
                    }
                }
            }
        }
        drop(alive);
        accepting.shutdown().await;
        let _ = closing.send(true);
        // Every connection ends itself within the grace; this only waits for them.
        let _ = tokio::time::timeout(GRACE + Duration::from_millis(100), all_gone.recv()).await;
    }
}

/// Everything that can go wrong with a new configuration, before anything of the old is given up.
async fn prepare(
    config: &RestConfig,
    moves: bool,
) -> Result<(Current, Option<Vec<TcpListener>>), ApiError> {
    let current = Current::of(config)?;
    let bound = if moves { Some(listeners(config).await?) } else { None };
    Ok((current, bound))
}

/// Takes a renewed certificate into use for new connections; a broken one leaves the old in use.
fn renew_certificate(config: &RestConfig, put: &watch::Sender<Current>) {
    match tls::load(config) {
        Ok(fresh) => {
            tracing::info!("REST API: the certificate changed on disk and is in use now");
            put.send_modify(|current| current.tls = fresh);
        }
        Err(why) => tracing::warn!(%why, "REST API: the old certificate stays in use"),
    }
}

/// What every connection needs.
struct Door<S> {
    service: S,
    connections: Arc<Connections>,
    current: watch::Receiver<Current>,
}

async fn accept<S>(
    listener: TcpListener,
    door: Arc<Door<S>>,
    closed: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(why) => {
                // Out of descriptors, most likely: give the others time to end.
                tracing::debug!(%why, "REST API: a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = door.connections.admit() else { continue };
        let (door, closed, alive) = (Arc::clone(&door), closed.clone(), alive.clone());
        tokio::spawn(async move {
            let _alive = alive;
            greet(stream, address, door, place, closed).await;
        });
    }
}

/// The TLS handshake, if there is one, then the talk.
async fn greet<S>(
    stream: TcpStream,
    address: SocketAddr,
    door: Arc<Door<S>>,
    place: Place,
    mut closed: watch::Receiver<bool>,
) where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible> + Clone,
{
    let mut peer = Peer { address: address.ip().to_canonical(), has_certificate: false };
    let Current { tls, handshake_timeout, .. } = door.current.borrow().clone();
    let Some(tls) = tls else {
        return talk(TokioIo::new(stream), peer, door, place, closed).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    tokio::select! {
        shaken = tokio::time::timeout(handshake_timeout, handshake) => match shaken {
            Ok(Ok(stream)) => {
                peer.has_certificate = stream.get_ref().1.peer_certificates().is_some();
                talk(TokioIo::new(stream), peer, door, place, closed).await;
            }
            Ok(Err(why)) => tracing::debug!(%address, %why, "REST API: no TLS handshake"),
            Err(_) => tracing::debug!(%address, "REST API: the TLS handshake took too long"),
        },
        () = place.line.told_to_go() => {}
        _ = closed.changed() => {}
    }
}

async fn talk<S, IO>(
    io: IO,
    peer: Peer,
    door: Arc<Door<S>>,
    place: Place,
    mut closed: watch::Receiver<bool>,
) where
    S: Service<http::Request<Incoming>, Response = Response, Error = Infallible> + Clone,
    IO: Read + Write + Unpin,
{
    let line = Arc::clone(&place.line);
    let request_timeout = door.current.borrow().request_timeout;
    let service = service_fn(|mut request: http::Request<Incoming>| {
        line.begins();
        // (REST-009)
        let logged = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().clone(), boottime()));
        if !is_readable(request.method()) {
            request.extensions_mut().insert(peer);
        }
        let answering = door.service.clone().call(request);
        let (line, door) = (&line, &door);
        async move {
            let Ok(mut response) = answering.await;
            door.current.borrow().dress.put_on(&mut response);
            if let Some((method, target, started)) = logged {
                let status = response.status().as_u16();
                let took_ms = boottime().since(started);
                tracing::debug!(peer = %peer.address, %method, %target, status, took_ms, "request");
            }
            line.ends();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(request_timeout)
        .max_buf_size(HEADER_LIMIT)
        .half_close(true)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
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
        tracing::debug!(peer = %peer.address, %why, "REST API: a connection ended early");
    }
}
