//! The server: binds, serves, takes another configuration while it does, and ends within a second
//! whatever the clients do. (REST-450, REST-453)

use crate::api::access::Access;
use crate::api::connections::Connections;
use crate::api::door::{self, Door, GRACE, Lane, Routes};
use crate::api::dress::Dress;
use crate::api::listen::{self, ListenError};
use crate::api::local_socket::LocalSocket;
use crate::api::order::Order;
use crate::api::prepared::Shelf;
use crate::api::settings::RestConfig;
use crate::api::snapshot::Snapshot;
use crate::api::tally::Tally;
use crate::api::tls::{self, TlsError};
use crate::api::{Context, routes};
use rustls::ServerConfig;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

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
    local: Option<LocalSocket>,
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
    pub dress: Arc<Dress>,
    pub tls: Option<Arc<ServerConfig>>,
    pub handshake_timeout: Duration,
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

/// Who finds the kernel's queue full is let in a second later: a crowd of load balancers must fit.
/// (REST-401)
const QUEUE: u32 = 1024;

async fn listeners(config: &RestConfig) -> Result<Vec<TcpListener>, ListenError> {
    listen::bind(&config.listen, config.request_queue_size.max(QUEUE)).await
}

async fn local(config: &RestConfig) -> Result<Option<LocalSocket>, ListenError> {
    match &config.unix_socket {
        Some(path) => LocalSocket::bind(path).await.map(Some),
        None => Ok(None),
    }
}

impl Server {
    /// Takes the address and reads the certificate, so that what is wrong is known at the start.
    pub async fn bind(config: RestConfig) -> Result<Self, ApiError> {
        let current = Current::of(&config)?;
        let listeners = listeners(&config).await?;
        let local = local(&config).await?;
        let (sender, changes) = mpsc::channel(1);
        let handle = Handle { changes: sender };
        Ok(Self { listeners, local, config, current, handle, changes })
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
        let Self { listeners: bound, local, config, current, handle: _handle, mut changes } = self;
        let tally = Arc::new(Tally::default());
        let (put, current) = watch::channel(current);
        let (closing, closed) = watch::channel(false);
        let (alive, mut all_gone) = mpsc::channel::<()>(1);
        let context = Context {
            shelf: Shelf::new(snapshot, orders),
            current: current.clone(),
            tally: Arc::clone(&tally),
            limits: Arc::default(),
            closing: closed.clone(),
        };
        let door = Arc::new(Door {
            service: warp::service(routes(&context)),
            connections: Connections::new(config.max_connections.max(1), Arc::clone(&tally)),
            lane: Lane::default(),
            current,
            tally,
            closed,
            alive: alive.downgrade(),
        });
        let mut standing = Standing {
            tcp: door::open(&door, bound),
            local: door::open_local(&door, local),
            certificate: tls::changed_at(&config),
            said: None,
            config,
            put,
            door,
        };
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = shutdown.as_mut() => break,
                Some((wanted, reply)) = changes.recv() => {
                    tokio::select! {
                        () = shutdown.as_mut() => break,
                        outcome = standing.change(wanted) => {
                            let _ = reply.send(outcome);
                        }
                    }
                }
                () = tokio::time::sleep(standing.config.certificate_check),
                    if standing.config.certfile.is_some() => standing.look_at_certificate(),
            }
        }
        drop(alive);
        standing.tcp.shutdown().await;
        standing.local.shutdown().await;
        let _ = closing.send(true);
        // Every connection ends itself within the grace; this only waits for them.
        let _ = tokio::time::timeout(GRACE + Duration::from_millis(100), all_gone.recv()).await;
    }
}

/// What is in force, and who accepts.
struct Standing<S> {
    config: RestConfig,
    tcp: JoinSet<()>,
    local: JoinSet<()>,
    /// When the certificate's files last changed.
    certificate: Vec<tls::Stamp>,
    /// The last complaint about them.
    said: Option<String>,
    put: watch::Sender<Current>,
    door: Arc<Door<S>>,
}

impl<S: Routes> Standing<S> {
    /// All of the new configuration, or nothing: whatever can go wrong is done before anything of
    /// the old is given up. (REST-453)
    async fn change(&mut self, wanted: RestConfig) -> Result<(), ApiError> {
        let current = Current::of(&wanted)?;
        let local = match wanted.unix_socket != self.config.unix_socket {
            true => Some(local(&wanted).await?),
            false => None,
        };
        if wanted.listen != self.config.listen {
            let bound = match listeners(&wanted).await {
                Err(ListenError::InUse { address }) if self.listens_on(address.port()) => {
                    self.move_within_port(&wanted).await?
                }
                bound => bound?,
            };
            self.put.send_replace(current);
            std::mem::replace(&mut self.tcp, door::open(&self.door, bound)).shutdown().await;
        } else {
            self.put.send_replace(current);
        }
        if let Some(local) = local {
            std::mem::replace(&mut self.local, door::open_local(&self.door, local))
                .shutdown()
                .await;
        }
        self.certificate = tls::changed_at(&wanted);
        self.config = wanted;
        Ok(())
    }

    fn listens_on(&self, port: u16) -> bool {
        listen::parse(&self.config.listen).is_ok_and(|(_, ours)| ours == port)
    }

    /// From one address of a port to every one, or back: the two cannot be bound at the same time. The
    /// port is ours, so it is given up for the moment between, and taken again as it was when the new
    /// addresses fail for another reason.
    async fn move_within_port(
        &mut self,
        wanted: &RestConfig,
    ) -> Result<Vec<TcpListener>, ListenError> {
        self.tcp.shutdown().await;
        match listeners(wanted).await {
            Ok(bound) => Ok(bound),
            Err(why) => {
                let old = listeners(&self.config).await?;
                self.tcp = door::open(&self.door, old);
                Err(why)
            }
        }
    }

    /// Takes renewed files into use for new connections. As long as they do not fit together (one of
    /// two was written so far) the old ones stay in use, and they are tried again. (REST-453)
    fn look_at_certificate(&mut self) {
        let now = tls::changed_at(&self.config);
        if now == self.certificate {
            return;
        }
        match tls::load(&self.config) {
            Ok(fresh) => {
                tracing::info!("REST API: the certificate changed on disk and is in use now");
                self.put.send_modify(|current| current.tls = fresh);
                self.certificate = now;
                self.said = None;
            }
            Err(why) => {
                let why = why.to_string();
                if self.said.as_ref() != Some(&why) {
                    tracing::warn!(why, "REST API: the old certificate stays in use");
                    self.said = Some(why);
                }
            }
        }
    }
}
