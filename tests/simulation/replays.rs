//! Every turn of some runs is written down and run again on the spot. (HA-320, INV-32)

use crate::world::World;
use hathi::ha::journal::Decision;
use hathi::ha::record::replay;

/// One run in so many is recorded: writing down and running again costs more than the turn itself.
const ONE_IN: u64 = 60;

pub fn is_recorded(seed: u64) -> bool {
    seed.is_multiple_of(ONE_IN) || std::env::var_os("SIM_REPLAY").is_some()
}

impl World {
    /// INV-32.
    pub fn check_replay(&mut self, node: usize, decision: &Decision) {
        let Some(recording) = &decision.recording else {
            return self.violation("HA-320", format!("turn {} is not recorded", decision.number));
        };
        let went_wrong = match replay(recording.as_bytes()) {
            Ok(replayed) if replayed.is_identical() => {
                self.watched.replayed += 1;
                return;
            }
            Ok(replayed) => {
                let (recorded, replayed) = (replayed.recorded, replayed.replayed);
                format!("came to {recorded:?} and, run again, to {replayed:?}")
            }
            Err(why) => format!("came to {:?}; {why}", decision.line),
        };
        let name = self.nodes[node].name.clone();
        self.violation("INV-32", format!("turn {} of {name} {went_wrong}", decision.number));
    }
}
