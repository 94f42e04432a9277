//! The arithmetic of rollouts: how large each replica set becomes. Pure numbers; sets are known by their position.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a deployment asks for, resolved to numbers of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub replicas: i32,
    pub max_surge: i32,
    pub max_unavailable: i32,
    pub rolling: bool,
}

impl Wish {
    pub fn of(deployment: &Deployment) -> Wish {
        let spec = &deployment.spec;
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Wish { replicas, max_surge: 0, max_unavailable: 0, rolling: false };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let max_surge = resolve(rolling.max_surge.as_ref(), replicas, true);
        let mut max_unavailable = resolve(rolling.max_unavailable.as_ref(), replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // Validation forbids both zero; rounding may still bring it about, and nothing would ever move.
            max_unavailable = 1;
        }
        Wish { replicas, max_surge, max_unavailable: max_unavailable.min(replicas), rolling: true }
    }

    /// Pods of all sets together at most.
    pub fn max_total(&self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }

    fn min_available(&self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

/// A number, or a percentage of `total` rounded up or down; what is malformed counts as zero (validation forbids it).
fn resolve(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => (*number).max(0),
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|digits| digits.parse::<i64>().ok()).unwrap_or(0).max(0);
            let hundredths = percent.saturating_mul(i64::from(total));
            let rounded = if up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// A replica set in numbers. Sets are given oldest first where order matters.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub replicas: i32,
    pub available: i32,
}

/// Sums are wider than sizes, since nothing keeps people from scaling several sets to the largest size.
fn sum(numbers: impl Iterator<Item = i32>) -> i64 {
    numbers.map(i64::from).sum()
}

fn narrow(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX })
}

/// The size of the new set: as large as surge allows beside the old ones.
pub fn new_set(wish: &Wish, new: i32, all: i64) -> i32 {
    if !wish.rolling {
        return wish.replicas;
    }
    if new >= wish.replicas {
        return wish.replicas;
    }
    let room = (i64::from(wish.max_total()) - all).max(0);
    narrow(i64::from(new) + room.min(i64::from(wish.replicas) - i64::from(new)))
}

/// The sizes of the old sets, oldest first, after one step of a rolling update: unhealthy pods go first, since they
/// serve nobody; then as many available ones as the minimum of available pods permits.
pub fn old_sets(wish: &Wish, new: Size, old: &[Size]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|size| size.replicas).collect();
    let minimum = i64::from(wish.min_available());
    let new_unavailable = i64::from(new.replicas) - i64::from(new.available);
    let all = sum(sizes.iter().copied()) + i64::from(new.replicas);
    let mut budget = all - minimum - new_unavailable;
    if budget <= 0 {
        return sizes;
    }
    for (size, seen) in sizes.iter_mut().zip(old) {
        let unhealthy = (i64::from(*size) - i64::from(seen.available)).clamp(0, budget);
        *size = narrow(i64::from(*size) - unhealthy);
        budget -= unhealthy;
    }
    let available = sum(old.iter().map(|size| size.available)) + i64::from(new.available);
    let mut surplus = (available - minimum).max(0);
    for size in &mut sizes {
        let step = i64::from(*size).clamp(0, surplus);
        *size = narrow(i64::from(*size) - step);
        surplus -= step;
    }
    sizes
}

/// A set that takes part in proportional scaling.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub replicas: i32,
    /// The deployment's maximum when the set was last scaled, if noted.
    pub max_before: Option<i32>,
}

/// Spreads a change of the deployment's size over its active sets in proportion to theirs, so that a rollout in progress
/// stays balanced. `shares` in upstream's order: largest first; of equals the newest first when growing, the oldest
/// first when shrinking. What rounding leaves goes to the first. `status_replicas` stands in where a set lacks its note.
pub fn proportional(wish: &Wish, shares: &[Share], status_replicas: i32) -> Vec<i32> {
    let allowed = if wish.replicas > 0 { wish.max_total() } else { 0 };
    let to_add = i64::from(allowed) - sum(shares.iter().map(|share| share.replicas));
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(shares.len());
    for share in shares {
        let part = if to_add == 0 { 0 } else { portion(wish, share, status_replicas, to_add - added) };
        added += part;
        sizes.push(narrow(i64::from(share.replicas) + part));
    }
    if let Some(first) = sizes.first_mut() {
        *first = narrow(i64::from(*first) + to_add - added).max(0);
    }
    sizes
}

/// One set's part of what remains to be spread.
fn portion(wish: &Wish, share: &Share, status_replicas: i32, remaining: i64) -> i64 {
    if share.replicas == 0 || remaining == 0 {
        return 0;
    }
    let fraction = fraction(wish, share, status_replicas);
    if remaining > 0 { fraction.min(remaining) } else { fraction.max(remaining) }
}

fn fraction(wish: &Wish, share: &Share, status_replicas: i32) -> i64 {
    if wish.replicas == 0 {
        return -i64::from(share.replicas);
    }
    let before = share.max_before.filter(|max| *max != 0).unwrap_or(status_replicas);
    if before == 0 {
        return 0;
    }
    let size = f64::from(share.replicas) * f64::from(wish.max_total()) / f64::from(before);
    // Half away from zero, as upstream rounds; the cast saturates.
    size.round() as i64 - i64::from(share.replicas)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wish(replicas: i32, max_surge: i32, max_unavailable: i32) -> Wish {
        Wish { replicas, max_surge, max_unavailable, rolling: true }
    }

    #[test]
    fn percentages_round_so_that_surge_is_generous_and_unavailability_is_not() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(resolve(Some(&percent("25%")), 10, true), 3);
        assert_eq!(resolve(Some(&percent("25%")), 10, false), 2);
        assert_eq!(resolve(Some(&percent("x%")), 10, true), 0);
        assert_eq!(resolve(Some(&IntOrString::Int(4)), 10, true), 4);
    }

    #[test]
    fn upstreams_examples_of_proportional_scaling() {
        let share = |replicas, max_before| Share { replicas, max_before: Some(max_before) };
        // 10 replicas with surge 3: 8 new and 5 old; scaled to 15 gives 11 and 7.
        assert_eq!(proportional(&wish(15, 3, 2), &[share(8, 13), share(5, 13)], 13), [11, 7]);
        assert_eq!(proportional(&wish(0, 0, 0), &[share(8, 13), share(5, 13)], 13), [0, 0]);
        // Three equal sets, one more pod: the first gets it.
        assert_eq!(proportional(&wish(10, 0, 0), &[share(3, 9), share(3, 9), share(3, 9)], 9), [4, 3, 3]);
        assert_eq!(proportional(&wish(6, 0, 0), &[share(5, 10), share(5, 10)], 10), [3, 3]);
    }

    /// Plays a rollout in which every pod becomes available between steps.
    fn roll(wish: Wish) -> Option<usize> {
        let (mut new, mut old) = (0, wish.replicas);
        for step in 0..200 {
            if new == wish.replicas && old == 0 {
                return Some(step);
            }
            new = new_set(&wish, new, i64::from(new + old));
            assert!(new + old <= wish.max_total(), "surge");
            let seen = Size { replicas: new, available: new };
            old = old_sets(&wish, seen, &[Size { replicas: old, available: old }])[0];
            assert!(new + old >= wish.replicas - wish.max_unavailable, "availability");
        }
        None
    }

    proptest! {
        #[test]
        fn a_rollout_ends_within_its_bounds(replicas in 0..50i32, surge in 0..10i32, unavailable in 0..10i32) {
            prop_assume!(surge + unavailable > 0);
            prop_assert!(roll(wish(replicas, surge, unavailable.min(replicas).max(i32::from(surge == 0)))).is_some());
        }

        #[test]
        fn proportional_scaling_reaches_exactly_the_total(
            replicas in 1..200i32, surge in 0..20i32, sizes in proptest::collection::vec(1..100i32, 1..6)
        ) {
            let before: i32 = sizes.iter().sum();
            let mut shares: Vec<Share> = sizes.iter().map(|n| Share { replicas: *n, max_before: Some(before) }).collect();
            shares.sort_by_key(|share| std::cmp::Reverse(share.replicas));
            let scaled = proportional(&wish(replicas, surge, 0), &shares, before);
            prop_assert_eq!(scaled.iter().sum::<i32>(), replicas + surge);
            prop_assert!(scaled.iter().all(|size| *size >= 0));
        }

        #[test]
        fn no_numbers_make_it_panic(
            replicas in 0..=i32::MAX, surge in 0..=i32::MAX, new in 0..=i32::MAX, sizes in proptest::collection::vec((0..=i32::MAX, 0..=i32::MAX, proptest::option::of(any::<i32>())), 0..4)
        ) {
            let wish = wish(replicas, surge, 0);
            let old: Vec<Size> = sizes.iter().map(|(replicas, available, _)| Size { replicas: *replicas, available: *available }).collect();
            let shares: Vec<Share> = sizes.iter().map(|(replicas, _, max_before)| Share { replicas: *replicas, max_before: *max_before }).collect();
            let after = old_sets(&wish, Size { replicas: new, available: new }, &old);
            prop_assert!(after.iter().all(|size| *size >= 0));
            new_set(&wish, new, sum(after.into_iter()) + i64::from(new));
            proportional(&wish, &shares, replicas);
        }

        #[test]
        fn a_step_never_goes_below_the_minimum_of_available_pods(
            replicas in 1..30i32, unavailable in 0..5i32, new in (0..30i32, 0..30i32), old in proptest::collection::vec((0..20i32, 0..20i32), 0..4)
        ) {
            let size = |(replicas, available): (i32, i32)| Size { replicas, available: available.min(replicas) };
            let (new, old): (Size, Vec<Size>) = (size(new), old.into_iter().map(size).collect());
            let wish = wish(replicas, 1, unavailable.min(replicas));
            let after = old_sets(&wish, new, &old);
            let available = |sizes: &[i32]| sizes.iter().zip(&old).map(|(n, seen)| (*n).min(seen.available)).sum::<i32>() + new.available;
            let before: Vec<i32> = old.iter().map(|s| s.replicas).collect();
            prop_assert!(available(&after) >= wish.min_available().min(available(&before)));
        }
    }
}
