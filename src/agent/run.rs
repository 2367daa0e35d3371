//! From a configuration to a running agent, and to its end.

use crate::agent::clock::{RealClock, Tasks};
use crate::agent::configuration::{self, InUse};
use crate::agent::events::{Signals, watch_store};
use crate::agent::measured::Measured;
use crate::agent::orders::{self, Hands};
use crate::agent::peers::{ClientSettings, HttpClient, HttpPeers};
use crate::agent::publisher::Publisher;
use crate::agent::{footprint, store, welcome};
use crate::api::{self, Snapshot};
use crate::config::{self, GuardMode, Local};
use crate::guard::{GuardClient, NoGuard};
use crate::ha::lease::{self, Lease};
use crate::ha::ports::{Fence, Ports};
use crate::ha::run::{Event, Events, Exit};
use crate::postgres::{self, Hooks, LocalPostgres};
use crate::watchdog::{LinuxDriver, Watchdog};
use hathi_dcs::{Deadline, Scope, Timing};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Why the agent ended; each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Configuration(#[from] config::ConfigError),
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Api(#[from] api::ApiError),
    #[error(transparent)]
    Client(#[from] crate::agent::peers::SettingsError),
    #[error(transparent)]
    Guard(#[from] crate::guard::GuardError),
    #[error("{what}: {why}")]
    System { what: &'static str, why: String },
    /// The core ended; PostgreSQL is as the line says.
    #[error("{0}")]
    Fatal(String),
}

/// After this time what only the start needed is not needed any more.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs the agent until it is told to stop. `source`: where the configuration came from, for a
/// reload; `serving`: where the REST API runs.
///
/// # Errors
/// What an operator has to mend. Before the loop began nothing was touched.
pub async fn run(
    local: Local,
    source: (Option<PathBuf>, config::Environment),
    serving: Handle,
) -> Result<(), AgentError> {
    let system =
        |what| move |why: std::io::Error| AgentError::System { what, why: why.to_string() };
    let mut signals = Signals::new().map_err(system("signals"))?;
    let dynamic = configuration::first_document(&local);
    let (settings, _) = config::effective(&local, &dynamic)
        .or_else(|_| config::effective(&local, &local.first_dynamic()))?;
    // A socket belongs to the runtime it was bound in.
    let server = serving.spawn(api::Server::bind(configuration::for_api(&local)));
    let server = server.await.map_err(|why| system("REST API")(why.into()))??;
    let client = HttpClient::new(&client_settings(&local))?;
    let (events, queue) = Events::new();

    let (fence, guard) = fence(&local)?;
    let first = first_snapshot(&local);
    let (gate, meter) = (first.gate.clone(), first.meter.clone());
    let (publisher, snapshot) = Publisher::new(first);
    let publisher = Arc::new(publisher);
    let postgres = LocalPostgres::new(
        Arc::new(postgres::Settings::from_config(&local, &settings)),
        hooks(guard, publisher.clone(), events.clone()),
    );
    let dcs =
        store::open(&local.dcs, Scope::clone(&local.scope), local.name.clone(), settings.timing)
            .await?;
    let dcs = Measured::of(dcs, meter);
    let for_core = configuration::for_core(&local, &settings, configuration::Leases::of(&*dcs));
    publisher.change(|snapshot| snapshot.set_settings(&for_core, dynamic.clone()));
    let watchdog = watchdog(&local, settings.timing);
    let in_use = {
        let publisher = publisher.clone();
        Arc::new(InUse::new(
            local.clone(),
            dynamic,
            &settings,
            source,
            dcs.clone(),
            (postgres.clone(), server.handle(), watchdog.clone()),
            move |settings, dynamic| {
                publisher.change(|snapshot| snapshot.set_settings(settings, dynamic));
            },
        ))
    };
    publisher.serves(&in_use);
    let ports = Ports {
        dcs: dcs.clone(),
        postgres: Arc::new(postgres.clone()),
        peers: Arc::new(HttpPeers::new(client.clone())),
        promises: gate,
        fence,
        watchdog,
        clock: Arc::new(RealClock),
        configuration: in_use.clone(),
        publish: publisher.clone(),
        spawn: Arc::new(Tasks(Handle::current())),
    };
    // Joins a server that runs already: the guard must know it before the store is waited for.
    let began = hathi_dcs::boottime();
    let seen = ports.postgres.observe(Deadline::in_ms(2_000)).await;
    publisher.observed(&seen, began);

    let (order, orders) = mpsc::channel(64);
    let (end_api, api_ends) = oneshot::channel::<()>();
    let serving = serving.spawn(server.run(snapshot, order, async move {
        let _ = api_ends.await;
    }));
    let hands = Hands {
        ports: ports.clone(),
        events: events.clone(),
        postgres: postgres.clone(),
        publisher: publisher.clone(),
        configuration: in_use.clone(),
    };
    let ordering = tokio::spawn(orders::serve(orders, hands));

    let view = tokio::select! {
        view = welcome::wait_for_store(&dcs) => view,
        () = signals.end() => return Ok(()),
    };
    if let Some(line) = welcome::namesake(&local, &view, &client).await {
        return Err(AgentError::Fatal(line));
    }
    let lease = Arc::new(Lease::default());
    let keeper = keeper(ports.clone(), lease.clone(), events.clone())?;
    let watching = tokio::spawn(watch_store(dcs.clone(), events.clone()));
    let signalled = tokio::spawn(signals.serve(events.clone(), in_use));
    let slimming = tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        let bytes = footprint::give_back_program_text();
        tracing::debug!("{bytes} bytes of program text are only read again when they are needed");
    });
    notify(sd_notify::NotifyState::Ready);
    tracing::info!("{} of cluster {} begins", local.name, local.scope.scope());

    let exit = crate::ha::run::run(ports, lease.clone(), events, queue).await;

    notify(sd_notify::NotifyState::Stopping);
    welcome::see_successor(&dcs, &local).await;
    lease.close();
    let _ = end_api.send(());
    // The API ends within its own grace; it never holds up anything before this line.
    let _ = serving.await;
    for task in [watching, signalled, ordering, slimming] {
        task.abort();
    }
    let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
    match exit {
        Exit::Stopped => Ok(()),
        Exit::Fatal(why) | Exit::Left(why) => Err(AgentError::Fatal(why)),
    }
}

/// The guard's two faces: what the core arms, and what is told which process to stop.
type Guarded = (Arc<dyn Fence>, Option<Arc<GuardClient>>);

fn fence(local: &Local) -> Result<Guarded, AgentError> {
    match local.guard.mode {
        GuardMode::Off => {
            tracing::warn!(
                "guard.mode is off: if this agent is killed or frozen, its primary stays writable \
                 after another one was promoted"
            );
            Ok((Arc::new(NoGuard), None))
        }
        GuardMode::Required => {
            let guard = GuardClient::start(&local.postgresql.data_dir)?;
            Ok((guard.clone(), Some(guard)))
        }
    }
}

/// (section 17 of docs/spec/ha-loop.md)
fn watchdog(local: &Local, timing: Timing) -> Arc<Watchdog> {
    use crate::ha::ports::Watchdog as _;
    let settings = configuration::for_watchdog(local, timing);
    let watchdog = Watchdog::new(settings, Arc::new(LinuxDriver), hathi_dcs::boottime);
    if let Some(why) = watchdog.unhealthy() {
        tracing::error!("the watchdog is required, and this node will not lead: {why}");
    }
    Arc::new(watchdog)
}

fn hooks(guard: Option<Arc<GuardClient>>, publisher: Arc<Publisher>, events: Events) -> Hooks {
    Hooks {
        on_postmaster: Box::new(move |process| {
            if let Some(guard) = &guard {
                guard.postmaster(process);
            }
        }),
        on_exit: Box::new(move || {
            publisher.postmaster_ended();
            events.post(Event::PostmasterExited);
        }),
    }
}

/// The keeper of the lease, on a thread and a runtime that nothing else can delay. (HA-303)
fn keeper(
    ports: Ports,
    lease: Arc<Lease>,
    events: Events,
) -> Result<std::thread::JoinHandle<()>, AgentError> {
    let system = |why: std::io::Error| AgentError::System { what: "keeper", why: why.to_string() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
    std::thread::Builder::new()
        .name("hathi-lease".into())
        .spawn(move || runtime.block_on(lease::keep(ports, lease, events)))
        .map_err(system)
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[state]);
}

fn first_snapshot(local: &Local) -> Snapshot {
    use crate::ha::ports::{DataDir, Observation, Server};
    let nothing = Observation {
        data_dir: DataDir::Empty,
        alive: false,
        state: hathi_dcs::State::Stopped,
        state_since: hathi_dcs::boottime(),
        role: hathi_dcs::Role::Uninitialized,
        server: Server::Down,
        system_id: None,
        slots: Vec::new(),
        pending_restart: std::collections::BTreeMap::new(),
        details: None,
        can_rewind: false,
        is_primary: false,
        replication: Default::default(),
        fast_stop_ms: None,
        disk_stalls_ms: 0,
    };
    Snapshot::new(local.name.clone(), local.scope.scope(), nothing)
}

fn client_settings(local: &Local) -> ClientSettings {
    ClientSettings {
        credentials: local
            .ctl
            .authentication
            .as_ref()
            .map(|auth| (auth.username.clone(), auth.password.expose().to_owned())),
        certfile: local.ctl.certfile.clone(),
        keyfile: local.ctl.keyfile.clone(),
        keyfile_password: local.ctl.keyfile_password.as_ref().map(|s| s.expose().to_owned()),
        cafile: local.ctl.cacert.clone(),
    }
}
