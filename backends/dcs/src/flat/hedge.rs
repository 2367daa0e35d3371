//! One request to several servers at once, for what a lock depends on. (DCS-302)

use crate::Deadline;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// How often at the most, the first time included; each after another third of the time.
pub const LANES: usize = 3;

/// Runs `lane(0)`, after a third of the time `lane(1)` beside it, after two thirds `lane(2)`; sooner when
/// all that run have failed. The first that settles the matter counts, and is named by its number; the
/// others are dropped. `None`: none did, by then or ever.
///
/// So a renewal gets through when one server hangs, and also when all of them are slow: nobody who may
/// still answer is given up.
pub async fn hedged<T, F>(by: Deadline, lane: impl Fn(usize) -> F) -> Option<(usize, T)>
where
    F: Future<Output = Option<T>>,
{
    let step = by.left() / u32::try_from(LANES).unwrap_or(1);
    let numbered = |number: usize| {
        let running = lane(number);
        async move { (number, running.await) }
    };
    let mut running = FuturesUnordered::new();
    running.push(numbered(0));
    let mut started = 1;
    let mut next = Box::pin(tokio::time::sleep(step));
    loop {
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some((number, Some(settled))) => return Some((number, settled)),
                Some((_, None)) if !running.is_empty() => continue,
                Some((_, None)) | None if started == LANES => return None,
                Some((_, None)) | None => {}
            },
            () = &mut next, if started < LANES => {}
            () = tokio::time::sleep(by.left()), if started == LANES => return None,
        }
        if by.left().is_zero() {
            return None;
        }
        running.push(numbered(started));
        started += 1;
        next.set(tokio::time::sleep(step));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// What each lane does: after so many ms it answers, or fails.
    async fn run(lanes: [(u64, bool); LANES]) -> (Option<usize>, usize, u64) {
        let (by, asked) = (Deadline::in_ms(600), AtomicUsize::new(0));
        let began = crate::boottime();
        let answer = hedged(by, |number| {
            asked.fetch_add(1, Ordering::SeqCst);
            let (ms, settles) = lanes[number];
            async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                settles.then_some(())
            }
        });
        let answer = answer.await.map(|(number, ())| number);
        (answer, asked.load(Ordering::SeqCst), crate::boottime().since(began))
    }

    /// Proves DCS-302: when the others are asked, and whose answer counts.
    #[tokio::test]
    async fn the_first_that_answers_counts() {
        const NEVER: (u64, bool) = (60_000, true);
        for (what, lanes, counts, asked, at_most_ms) in [
            ("all is well", [(5, true), NEVER, NEVER], Some(0), 1, 190),
            ("one hangs", [NEVER, (5, true), NEVER], Some(1), 2, 390),
            ("two hang", [NEVER, NEVER, (5, true)], Some(2), 3, 590),
            ("all are slow", [(330, true), (330, true), (330, true)], Some(0), 2, 390),
            ("one is dead", [(5, false), (5, true), NEVER], Some(1), 2, 190),
            ("all are dead", [(5, false); 3], None, 3, 190),
            ("one is dead, one hangs", [(5, false), NEVER, (5, true)], Some(2), 3, 390),
            ("all hang", [NEVER; 3], None, 3, 790),
        ] {
            let (settled, lanes, ms) = run(lanes).await;
            assert_eq!((settled, lanes), (counts, asked), "{what}");
            assert!(ms <= at_most_ms, "{what}: {ms} ms");
        }
    }
}
