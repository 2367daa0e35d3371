//! Sets of members as bits, so that the order of changes can be tried for every state there is.

use crate::ha::sync::same;
use hathi_dcs::MemberName;

/// A set of the members of one [`Directory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(pub u128);

impl Set {
    pub const EMPTY: Self = Self(0);

    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_within(self, other: Self) -> bool {
        self.without(other).is_empty()
    }
}

/// Which bit is whose. Names that differ only in case are one member.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    names: Vec<MemberName>,
}

/// More members than one record can name: synchronous replication is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Directory {
    pub fn set(&mut self, name: &MemberName) -> Result<Set, TooMany> {
        let at = match self.names.iter().position(|known| same(known, name)) {
            Some(at) => at,
            None => {
                self.names.push(name.clone());
                self.names.len() - 1
            }
        };
        u32::try_from(at).ok().and_then(|at| 1_u128.checked_shl(at)).map(Set).ok_or(TooMany)
    }

    pub fn sets<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a MemberName>,
    ) -> Result<Set, TooMany> {
        let mut all = Set::EMPTY;
        for name in names {
            all = all.union(self.set(name)?);
        }
        Ok(all)
    }

    /// The members of a set, sorted.
    pub fn names(&self, set: Set) -> Vec<MemberName> {
        let mut names: Vec<_> = self
            .names
            .iter()
            .enumerate()
            .filter(|(at, _)| set.0 >> at & 1 == 1)
            .map(|(_, name)| name.clone())
            .collect();
        names.sort();
        names
    }
}
