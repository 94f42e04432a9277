//! Sets of completion indexes, written as `0,2,4-9` in a Job's status and success policy. Pure.

use std::collections::BTreeSet;
use std::fmt;

/// First and last index, both included.
type Interval = (i32, i32);

/// Disjoint intervals in rising order, with at least one index missing between two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<Interval>);

impl Indexes {
    /// Reads what is well-formed and below `completions`; a corrupt interval is skipped, as upstream skips it.
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut intervals: Vec<Interval> = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let mut limits = part.split('-');
            let number = |text: Option<&str>| text.map(|text| text.parse::<i32>().ok());
            let Some(Some(first)) = number(limits.next()) else { continue };
            if first >= completions {
                break;
            }
            let last = match number(limits.next()) {
                None => first,
                Some(Some(last)) => last.min(completions - 1),
                Some(None) => continue,
            };
            match intervals.last_mut() {
                Some(before) if before.1 == first - 1 => before.1 = last,
                _ => intervals.push((first, last)),
            }
        }
        Indexes(intervals)
    }

    pub fn union(&self, other: &Indexes) -> Indexes {
        let mut all: Vec<Interval> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut merged: Vec<Interval> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    pub fn has(&self, index: i32) -> bool {
        let place = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(place).is_some_and(|(first, _)| *first <= index)
    }

    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many indexes are in both.
    pub fn common(&self, other: &Indexes) -> i32 {
        let (mut a, mut b, mut count) = (0, 0, 0);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            count += (x.1.min(y.1) - x.0.max(y.0) + 1).max(0);
            if x.1 <= y.1 {
                a += 1;
            }
            if y.1 <= x.1 {
                b += 1;
            }
        }
        count
    }

    /// The lowest `count` indexes below `completions` that are not in this set. Costs what it returns and the intervals.
    pub fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut missing = Vec::new();
        let mut candidate = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            let room = count - missing.len();
            missing.extend((candidate..first.min(completions)).take(room));
            candidate = candidate.max(last.saturating_add(1));
        }
        missing
    }
}

impl From<BTreeSet<i32>> for Indexes {
    fn from(indexes: BTreeSet<i32>) -> Self {
        Indexes(indexes.into_iter().map(|index| (index, index)).collect()).union(&Indexes::default())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_as_upstream_writes_them() {
        for (text, completions, written) in [
            ("", 5, ""),
            ("0,1,2", 5, "0-2"),
            ("0,2-4,6,7", 10, "0,2-4,6,7"),
            ("1-7,9", 5, "1-4"),
            ("5,6", 5, ""),
            ("x,1,2-y,4", 6, "1,4"),
        ] {
            assert_eq!(Indexes::parse(text, completions).to_string(), written, "{text}");
        }
    }

    const COMPLETIONS: i32 = 40;

    fn set() -> impl Strategy<Value = BTreeSet<i32>> {
        proptest::collection::btree_set(0..COMPLETIONS, 0..30)
    }

    proptest! {
        /// Each operation does what it does to a set of numbers.
        #[test]
        fn a_set_of_numbers(a in set(), b in set(), count in 0usize..12) {
            let (x, y) = (Indexes::from(a.clone()), Indexes::from(b.clone()));
            prop_assert_eq!(&Indexes::parse(&x.to_string(), COMPLETIONS), &x);
            prop_assert_eq!(x.union(&y), Indexes::from(a.union(&b).copied().collect::<BTreeSet<_>>()));
            prop_assert_eq!(x.common(&y), a.intersection(&b).count() as i32);
            prop_assert_eq!(x.total(), a.len() as i32);
            for index in 0..COMPLETIONS {
                prop_assert_eq!(x.has(index), a.contains(&index));
            }
            let missing: Vec<i32> = (0..COMPLETIONS).filter(|index| !a.contains(index)).take(count).collect();
            prop_assert_eq!(x.first_missing(count, COMPLETIONS), missing);
        }
    }
}
