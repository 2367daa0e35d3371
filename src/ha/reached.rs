//! Which branches of the decisions were taken, for the simulator: it prints those that no run
//! reached. A normal build notes nothing.

/// A place in the source: file and line.
#[cfg(feature = "breakages")]
pub type Place = (&'static str, u32);

#[cfg(feature = "breakages")]
mod notes {
    use super::Place;
    use std::cell::RefCell;
    use std::collections::HashSet;
    use std::panic::Location;

    thread_local! {
        static REACHED: RefCell<HashSet<Place>> = RefCell::default();
    }

    /// The caller's branch was taken on this thread.
    #[track_caller]
    pub fn here() {
        let place = Location::caller();
        REACHED.with(|reached| reached.borrow_mut().insert((place.file(), place.line())));
    }

    /// What this thread reached since the last time.
    pub fn take() -> HashSet<Place> {
        REACHED.with(RefCell::take)
    }
}

#[cfg(feature = "breakages")]
pub use notes::{here, take};

/// Nothing, in a normal build.
#[cfg(not(feature = "breakages"))]
#[inline]
pub const fn here() {}
