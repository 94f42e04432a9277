//! Counts of observations by size, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Cheap to observe: two atomic additions and a look for the bucket. What is read while others observe may lack the newest.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, rising.
    bounds: &'static [f64],
    /// Observations of each bucket alone, and of what is above all bounds.
    counts: Box<[AtomicU64]>,
    /// The sum as the bits of a float.
    sum: AtomicU64,
}

/// What has been observed until now.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    /// Observations up to each bound.
    pub cumulative: Vec<u64>,
    pub count: u64,
    pub sum: f64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum: AtomicU64::new(0) }
    }

    pub fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let cumulative = self.counts.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let mut cumulative: Vec<u64> = cumulative.collect();
        cumulative.pop();
        Snapshot { cumulative, count, sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.0, 1.0, 1.5, 2.0, 2.5] {
            histogram.observe(value);
        }
        assert_eq!(histogram.snapshot(), Snapshot { cumulative: vec![2, 4], count: 5, sum: 7.0 });
    }
}
