//! The listener: accepts, speaks HTTP/1, and ends within a second whatever the clients do.
//! (REST-450, REST-451)

use crate::api::access::{Access, Peer};
use crate::api::answer::Normal;
use crate::api::asked::is_readable;
use crate::api::connections::{Connections, Place};
use crate::api::listen::{self, ListenError};
use crate::api::order::Order;
use crate::api::prepared::Shelf;
use crate::api::settings::RestConfig;
use crate::api::snapshot::Snapshot;
use crate::api::tally::Tally;
use crate::api::tls::{self, TlsError};
use crate::api::{Context, routes};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
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
use tokio::sync::{mpsc, watch};
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
}

/// Bound, and not serving yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    config: RestConfig,
    tls: Option<Arc<ServerConfig>>,
    dress: Dress,
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

impl Server {
    /// Takes the address and reads the certificate, so that what is wrong is known at the start.
    pub async fn bind(config: RestConfig) -> Result<Self, ApiError> {
        let dress = Dress::new(&config)?;
        let tls = tls::load(&config)?;
        let backlog = config.request_queue_size.max(128);
        let listeners = listen::bind(&config.listen, backlog).await?;
        Ok(Self { listeners, config, tls, dress })
    }

    /// Where it listens, with the port the system chose for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves. Dropping the future stops accepting at once and ends the connections within the
    /// grace.
    pub async fn run(
        self,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        orders: mpsc::Sender<Order>,
        shutdown: impl Future<Output = ()>,
    ) {
        let Self { listeners, config, tls, dress } = self;
        let tally = Arc::new(Tally::default());
        let context = Context {
            shelf: Shelf::new(snapshot, orders),
            access: Arc::new(Access::new(&config)),
            tally: Arc::clone(&tally),
            request_timeout: config.request_timeout,
        };
        let (closing, closed) = watch::channel(false);
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let (tls_now, tls_seen) = watch::channel(tls);
        let door = Arc::new(Door {
            service: warp::service(routes(&context)),
            dress,
            connections: Connections::new(config.max_connections.max(1), tally),
            tls: tls_seen,
            handshake_timeout: config.handshake_timeout,
            request_timeout: config.request_timeout,
        });
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(accept(listener, Arc::clone(&door), closed.clone(), alive.clone()));
        }
        if config.certfile.is_some() {
            tasks.spawn(reload_certificate(config, tls_now));
        }
        drop(alive);
        shutdown.await;
        tasks.shutdown().await;
        let _ = closing.send(true);
        // Every connection ends itself within the grace; this only waits for them.
        let _ = tokio::time::timeout(GRACE + Duration::from_millis(100), all_gone.recv()).await;
    }
}

/// What every connection needs.
struct Door<S> {
    service: S,
    dress: Dress,
    connections: Arc<Connections>,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    handshake_timeout: Duration,
    request_timeout: Duration,
}

/// The headers every full answer carries.
#[derive(Clone, Debug)]
struct Dress {
    server: HeaderValue,
    extra: Vec<(HeaderName, HeaderValue)>,
}

impl Dress {
    fn new(config: &RestConfig) -> Result<Self, ApiError> {
        let mut extra: Vec<(HeaderName, HeaderValue)> = Vec::new();
        let https = config.https_extra_headers.iter().filter(|_| config.certfile.is_some());
        for (name, value) in config.http_extra_headers.iter().chain(https) {
            let error = || ApiError::Header { header: format!("{name}: {value}") };
            let name = HeaderName::try_from(name.as_str()).map_err(|_| error())?;
            let value = HeaderValue::try_from(value.as_str()).map_err(|_| error())?;
            extra.retain(|(earlier, _)| *earlier != name);
            extra.push((name, value));
        }
        let server = HeaderValue::try_from(config.server_tokens.header())
            .map_err(|_| ApiError::Header { header: "Server".to_owned() })?;
        Ok(Self { server, extra })
    }

    /// Bare answers stay bare; error pages get no extra headers. (REST-002, REST-302)
    fn put_on(&self, response: &mut Response) {
        let is_normal = response.extensions_mut().remove::<Normal>().is_some();
        let headers = response.headers_mut();
        if headers.contains_key(CONTENT_TYPE) {
            headers.insert(SERVER, self.server.clone());
        }
        if is_normal {
            for (name, value) in &self.extra {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
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
    let tls = door.tls.borrow().clone();
    let Some(tls) = tls else {
        return talk(TokioIo::new(stream), peer, door, place, closed).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    tokio::select! {
        shaken = tokio::time::timeout(door.handshake_timeout, handshake) => match shaken {
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
    let service = service_fn(|mut request: http::Request<Incoming>| {
        line.begins();
        if !is_readable(request.method()) {
            request.extensions_mut().insert(peer);
        }
        let answering = door.service.clone().call(request);
        let (line, door) = (&line, &door);
        async move {
            let Ok(mut response) = answering.await;
            door.dress.put_on(&mut response);
            line.ends();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(door.request_timeout)
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

/// Takes a renewed certificate into use for new connections; a broken one leaves the old in use.
async fn reload_certificate(config: RestConfig, tls: watch::Sender<Option<Arc<ServerConfig>>>) {
    let mut loaded = tls::changed_at(&config);
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let now = tls::changed_at(&config);
        if now == loaded {
            continue;
        }
        loaded = now;
        match tls::load(&config) {
            Ok(fresh) => {
                tracing::info!("REST API: the certificate changed on disk and is in use now");
                let _ = tls.send(fresh);
            }
            Err(why) => tracing::warn!(%why, "REST API: the old certificate stays in use"),
        }
    }
}
