//! What serde does not do by itself.

use crate::ha::memory::Memory;
use hathi_dcs::ClusterView;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

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

/// A view that never changes, and is the same one through a quiet night. Its text is made once: a turn
/// writes down what it remembered, and what it left, and the next begins with that.
struct Lasting<'a>(&'a Arc<ClusterView>);

/// The memory holds so many different views at most.
const TEXTS: usize = 3;

impl Serialize for Lasting<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        thread_local! {
            static KNOWN: RefCell<VecDeque<(Arc<ClusterView>, Box<RawValue>)>> =
                const { RefCell::new(VecDeque::new()) };
        }
        KNOWN.with_borrow_mut(|known| {
            if let Some((_, text)) = known.iter().find(|(view, _)| Arc::ptr_eq(view, self.0)) {
                return text.serialize(serializer);
            }
            let text =
                serde_json::value::to_raw_value(&**self.0).map_err(serde::ser::Error::custom)?;
            known.truncate(TEXTS - 1);
            known.push_front((self.0.clone(), text));
            known[0].1.serialize(serializer)
        })
    }
}

/// For a field of type `Option<Arc<ClusterView>>`.
pub mod shared_view {
    use super::Lasting;
    use hathi_dcs::ClusterView;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        view: &Option<Arc<ClusterView>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        view.as_ref().map(Lasting).serialize(serializer)
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
    use super::Lasting;
    use hathi_dcs::{ClusterView, Millis};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    type Stamped = Option<(Arc<ClusterView>, Millis)>;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(view: &Stamped, serializer: S) -> Result<S::Ok, S::Error> {
        view.as_ref().map(|(view, at)| (Lasting(view), at)).serialize(serializer)
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
    let Ok(text) = serde_json::to_vec(memory) else { return 0 };
    text.iter().fold(0xcbf2_9ce4_8422_2325, |fnv, byte| {
        (fnv ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hathi_dcs::{Leader, MemberName, Millis, Version};

    /// Proves HA-320: the text of a view that lasts is the view's own, however many came before it.
    #[test]
    fn a_view_that_lasts_is_written_as_it_is() {
        let led_by = |name: String| {
            let leader = Some(Leader { name: MemberName(name), version: Version(3) });
            Arc::new(ClusterView { leader, ..ClusterView::default() })
        };
        let views: Vec<_> = (0..2 * TEXTS).map(|i| led_by(format!("node{i}"))).collect();
        for _ in 0..2 {
            for view in views.iter().flat_map(|view| [view, &views[0]]) {
                let memory = Memory {
                    view: Some((view.clone(), Millis(7))),
                    old_view: Some(view.clone()),
                    ..Memory::default()
                };
                let text = serde_json::to_string(&memory).unwrap();
                assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
                let plain = serde_json::to_string(&**view).unwrap();
                assert_eq!(text.matches(&plain).count(), 2, "{text}");
            }
        }
    }
}
