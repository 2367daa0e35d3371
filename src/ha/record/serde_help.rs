//! What serde does not do by itself.

use crate::ha::memory::Memory;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// A name that stands in the program's text. An alias, since serde would borrow a plain reference.
pub type Word = &'static str;

/// Reads a name that lives in the program's text in a running agent. Each different one is kept for
/// ever, once; only a replay reads any.
pub fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Word, D::Error> {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let text = String::deserialize(deserializer)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(word) = known.get(text.as_str()) {
        return Ok(word);
    }
    let word: &'static str = Box::leak(text.into_boxed_str());
    known.insert(word);
    Ok(word)
}

/// For a field of type `Option<Arc<ClusterView>>`.
pub mod shared_view {
    use hathi_dcs::ClusterView;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        view: &Option<Arc<ClusterView>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        view.as_deref().serialize(serializer)
    }

    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<ClusterView>>, D::Error> {
        Ok(Option::<ClusterView>::deserialize(deserializer)?.map(Arc::new))
    }
}

/// For a field of type `Option<(Arc<ClusterView>, Millis)>`.
pub mod stamped_view {
    use hathi_dcs::{ClusterView, Millis};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    type Stamped = Option<(Arc<ClusterView>, Millis)>;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(view: &Stamped, serializer: S) -> Result<S::Ok, S::Error> {
        view.as_ref().map(|(view, at)| (&**view, at)).serialize(serializer)
    }

    /// # Errors
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Stamped, D::Error> {
        let read = Option::<(ClusterView, Millis)>::deserialize(deserializer)?;
        Ok(read.map(|(view, at)| (Arc::new(view), at)))
    }
}

/// FNV-1a over the memory as it is recorded; 0 if it cannot be written down.
pub fn digest(memory: &Memory) -> u64 {
    struct Fnv(u64);
    impl std::io::Write for Fnv {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
    match serde_json::to_writer(&mut fnv, memory) {
        Ok(()) => fnv.0,
        Err(_) => 0,
    }
}
