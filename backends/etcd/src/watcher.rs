//! The one watch of this process: feeds the copy and wakes the loop. (DCS-084, DCS-093, DCS-304)
//!
//! ```text
//!  read all keys at revision r ── watch from r+1 ── created: the copy lives, Change::Everything
//!        ▲                              │ event: copy, Change::…
//!        └── error, cancelled, another endpoint in use, stale node ──┘   the copy dies
//! ```
//! After an interruption everything is read again: one request, and nothing to know about
//! compacted history or a store that was restored.

use crate::endpoints::Endpoint;
use crate::store::Entry;
use crate::store::{Shared, text};
use crate::trouble::{Trouble, by_status, classify, whole_text};
use etcd_client::{
    Client, Error, Event, EventType, GetOptions, ResponseHeader, WatchOptions, WatchResponse,
};
use hathi_dcs::flat::{Ended, Wake};
use hathi_dcs::{Change, Deadline};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the reading and the beginning of the watch may take.
const SETUP_MS: u64 = 2_000;

impl Shared {
    pub(crate) async fn follow(&self, wake: &Wake) -> Ended {
        let mut served = false;
        let why = follow(self, wake, &mut served).await;
        Ended { served, why }
    }
}

/// What a failed step of the watch means for the connection it used.
async fn after(shared: &Shared, client: &Client, endpoint: &Arc<Endpoint>, trouble: Trouble) {
    match trouble {
        Trouble::Login => {
            let limit = Duration::from_millis(SETUP_MS);
            if !matches!(timeout(limit, client.refresh_token()).await, Ok(Ok(()))) {
                shared.endpoints.give_up(endpoint);
            }
        }
        Trouble::OtherEndpoint
        | Trouble::Later
        | Trouble::NoLogin
        | Trouble::LeaseGone
        | Trouble::Refused
        | Trouble::Hopeless
        | Trouble::Wrong => shared.endpoints.give_up(endpoint),
    }
}

/// Says why it ended.
async fn follow(shared: &Shared, wake: &Wake, served: &mut bool) -> String {
    let mut moves = shared.endpoints.moves();
    let by = Deadline::in_ms(SETUP_MS);
    let (client, endpoint) = match shared.endpoints.stream_client(by).await {
        Ok(both) => both,
        Err(why) => return why,
    };
    let setup = async {
        let everything = GetOptions::new().with_prefix();
        let read = client.kv_client().get(shared.key(""), Some(everything)).await?;
        let revision = read.header().map_or(0, ResponseHeader::revision);
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let stream = client.watch_client().watch(shared.key(""), Some(options)).await?;
        Ok::<_, Error>((read, revision, stream))
    };
    let (read, revision, mut stream) = match timeout(by.left(), setup).await {
        Ok(Ok(all)) => all,
        Ok(Err(error)) => {
            after(shared, &client, &endpoint, classify(&error)).await;
            return whole_text(&error);
        }
        Err(_elapsed) => {
            shared.endpoints.give_up(&endpoint);
            return format!("{} did not answer", endpoint.url);
        }
    };
    if shared.endpoints.is_stale(read.header()) {
        shared.endpoints.give_up(&endpoint);
        return format!("{} missed an election", endpoint.url);
    }
    if revision < shared.kept.own() {
        // A majority read that does not know my own write: the store is not the one it was.
        shared.kept.reset_own(revision);
    }
    shared.kept.copy.replace(revision, shared.entries(&read));
    loop {
        let next = async {
            match *served {
                true => Ok(stream.message().await),
                false => timeout(by.left(), stream.message()).await,
            }
        };
        let message = tokio::select! {
            biased;
            _ = moves.changed() => return "calls use another endpoint now".to_owned(),
            message = next => message,
        };
        let message = match message {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => {
                shared.endpoints.give_up(&endpoint);
                return format!("{} closed the watch", endpoint.url);
            }
            Ok(Err(error)) => {
                after(shared, &client, &endpoint, classify(&error)).await;
                return whole_text(&error);
            }
            Err(_elapsed) => {
                shared.endpoints.give_up(&endpoint);
                return format!("{} did not begin the watch", endpoint.url);
            }
        };
        if message.canceled() {
            let why = message.cancel_reason().to_owned();
            // An expired token arrives here as a message; a compacted history needs only a new
            // reading.
            if message.compact_revision() == 0 {
                const UNAVAILABLE: i32 = 14;
                after(shared, &client, &endpoint, by_status(UNAVAILABLE, &why)).await;
            }
            return format!("{} cancelled the watch: {why}", endpoint.url);
        }
        if shared.endpoints.is_stale(message.header()) {
            shared.endpoints.give_up(&endpoint);
            return format!("{} missed an election", endpoint.url);
        }
        if message.created() && !*served {
            *served = true;
            shared.kept.copy.lives();
            wake.say(Change::Everything);
        }
        take_in(shared, wake, &message);
    }
}

/// All events of a message, then its revision: whoever waits for it finds them all.
fn take_in(shared: &Shared, wake: &Wake, message: &WatchResponse) {
    let mut woken = Vec::with_capacity(message.events().len());
    for event in message.events() {
        woken.extend(take_in_one(shared, event));
    }
    if let (Some(header), false) = (message.header(), message.events().is_empty()) {
        shared.kept.copy.reached(header.revision());
    }
    for change in woken {
        wake.say(change);
    }
}

fn take_in_one(shared: &Shared, event: &Event) -> Option<Change> {
    let kv = event.kv()?;
    let key = text(kv.key());
    let name = key.strip_prefix(&shared.prefix)?;
    let entry = match event.event_type() {
        EventType::Put => {
            Some(Entry { value: text(kv.value()), version: kv.mod_revision(), lease: kv.lease() })
        }
        EventType::Delete => None,
    };
    let value = entry.as_ref().map(|entry| entry.value.clone());
    let before = shared.kept.copy.apply(name, entry).map(|entry| entry.value);
    Change::of(name, before.as_deref(), value.as_deref())
}
