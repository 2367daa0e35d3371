//! The one watch of this process: a subscription, and the moment at which the next key may end. A
//! subscription may lose messages and never says so; everything is read anew at least every ten
//! seconds. (DCS-204)

use crate::store::{Keys, Shared};
use futures::{FutureExt, StreamExt};
use hathi_dcs::flat::copy::differences;
use hathi_dcs::flat::{Ended, READ_AGAIN, Wake};
use hathi_dcs::{Change, Deadline};
use std::time::Duration;
use tokio::time::timeout;

/// How long one step may take.
const STEP_MS: u64 = 2_000;
const LONGEST_MS: u64 = 10_000;

impl Shared {
    pub(crate) async fn follow(&self, wake: &Wake) -> Ended {
        let mut served = false;
        let why = match self.follow_keys(wake, &mut served).await {
            Ok(()) => "the subscription ended".to_owned(),
            Err(why) => why,
        };
        Ended { served, why }
    }

    /// Takes everything into the copy; says when to look again, in milliseconds.
    async fn take_in(&self, first: bool) -> Result<(Keys, u64), String> {
        let marked = self.kept.own();
        let reading = self.read_all(Deadline::in_ms(STEP_MS)).await;
        let reading = reading.map_err(|error| error.to_string())?;
        self.kept.read_again(marked, reading.revision);
        if first && reading.revision < marked && marked != READ_AGAIN {
            // A store that does not know my own write is not the one it was.
            self.kept.reset_own(reading.revision);
        }
        self.kept.copy.replace(reading.revision, reading.keys.clone());
        self.kept.copy.lives();
        let end = reading.next_end_ms.map_or(LONGEST_MS, |end| end + 5);
        Ok((reading.keys, end.clamp(20, LONGEST_MS)))
    }

    async fn follow_keys(&self, wake: &Wake, served: &mut bool) -> Result<(), String> {
        // Finds the writable server.
        let found = self.read_all(Deadline::in_ms(STEP_MS)).await;
        found.map_err(|error| error.to_string())?;
        let client = self.servers.client().map_err(|error| error.to_string())?;
        let channel = self.servers.channel();
        let subscribing = async {
            let mut subscription = client.get_async_pubsub().await?;
            subscription.subscribe(channel).await?;
            Ok::<_, redis::RedisError>(subscription)
        };
        let limit = Duration::from_millis(STEP_MS);
        let subscription = timeout(limit, subscribing).await.map_err(|why| why.to_string())?;
        let subscription = subscription.map_err(|error| error.to_string())?;
        let mut messages = subscription.into_on_message();
        let (mut keys, mut next) = self.take_in(true).await?;
        *served = true;
        wake.say(Change::Everything);
        loop {
            let message = timeout(Duration::from_millis(next), messages.next()).await;
            if let Ok(None) = message {
                return Ok(());
            }
            // One reading answers all that are there already.
            while let Some(message) = messages.next().now_or_never() {
                if message.is_none() {
                    return Ok(());
                }
            }
            let (read, then) = self.take_in(false).await?;
            differences(&keys, &read).into_iter().for_each(|change| wake.say(change));
            (keys, next) = (read, then);
        }
    }
}
