//! The one watch of this process: a subscription, and the moment at which the next key may end. A
//! subscription may lose messages and never says so; everything is read anew at least every ten
//! seconds, and so often that a server that says nothing is found out within the ttl. (DCS-074, DCS-204)

use crate::store::{Keys, Shared};
use futures::{FutureExt, StreamExt};
use hathi_dcs::flat::copy::differences;
use hathi_dcs::flat::{Ended, READ_AGAIN, Wake};
use hathi_dcs::{Change, Deadline};
use std::time::Duration;
use tokio::time::timeout;

/// How long the beginning may take.
const SETUP_MS: u64 = 2_000;

/// For this ttl, in milliseconds: how long nothing may be read, and how long a reading may take.
fn rhythm(ttl_ms: u64) -> (u64, u64) {
    ((ttl_ms / 2).clamp(500, 10_000), (ttl_ms / 4).clamp(500, 2_000))
}

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
        let (longest, step) = rhythm(self.timing().ttl_ms());
        let reading = self.read_all(Deadline::in_ms(step)).await;
        let reading = reading.map_err(|error| error.to_string())?;
        self.kept.read_again(marked, reading.revision);
        if first && reading.revision < marked && marked != READ_AGAIN {
            // A store that does not know my own write is not the one it was.
            self.kept.reset_own(reading.revision);
        }
        self.kept.copy.replace(reading.revision, reading.keys.clone());
        self.kept.copy.lives();
        let end = reading.next_end_ms.map_or(longest, |end| end + 5);
        Ok((reading.keys, end.clamp(20, longest)))
    }

    async fn follow_keys(&self, wake: &Wake, served: &mut bool) -> Result<(), String> {
        // Finds the writable server.
        let found = self.read_all(Deadline::in_ms(SETUP_MS)).await;
        found.map_err(|error| error.to_string())?;
        let client = self.servers.client().map_err(|error| error.to_string())?;
        let channel = self.servers.channel();
        let subscribing = async {
            let mut subscription = client.get_async_pubsub().await?;
            subscription.subscribe(channel).await?;
            Ok::<_, redis::RedisError>(subscription)
        };
        let limit = Duration::from_millis(SETUP_MS);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-074: silence is found out within the ttl.
    #[test]
    fn silence_is_shorter_than_the_ttl() {
        for ttl in 3..200_u64 {
            let (longest, step) = rhythm(ttl * 1_000);
            assert!(longest + step < ttl * 1_000, "{ttl}");
        }
        assert_eq!(rhythm(30_000), (10_000, 2_000));
    }
}
