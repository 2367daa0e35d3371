//! How long to wait before a store is asked again. (DCS-070)

use crate::Deadline;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses of one call: a tenth of a second, doubling to one second, each with up to four fifths
/// of itself on top, so that many members do not come back in step.
#[derive(Debug)]
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pauses {
    /// The next pause; `None` when the deadline would be there before its end: whoever waits for it
    /// can be told now. `asked_for` is what the server itself wants, and replaces it.
    pub fn next(&mut self, by: Deadline, asked_for: Option<Duration>) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        let wait = asked_for.unwrap_or_else(|| pause + jitter(pause));
        (wait < by.left()).then_some(wait)
    }
}

/// The clock's last digits are random enough to part members.
fn jitter(pause: Duration) -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.subsec_nanos());
    pause * (nanos / 1_000 % 800) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-070.
    #[test]
    fn pauses_double_and_end_before_the_deadline() {
        let mut pauses = Pauses::default();
        let by = Deadline::in_ms(60_000);
        for base in [100, 200, 400, 800, 1_000, 1_000] {
            let wait = pauses.next(by, None).expect("far from the deadline").as_millis();
            assert!((base..base * 9 / 5).contains(&wait), "{wait} ms, not {base} and its jitter");
        }
        let wanted = Some(Duration::from_secs(7));
        assert_eq!(pauses.next(by, wanted), wanted, "the server's own wish");
        assert_eq!(pauses.next(Deadline::in_ms(900), None), None, "a second is too long");
        assert_eq!(pauses.next(Deadline::in_ms(6_000), wanted), None);
    }
}
