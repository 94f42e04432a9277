//! Dividing the server's seats among priority levels by what each could use, within the bounds of each.

/// One level's claim, in seats. `low <= target` and `low <= high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub low: f64,
    pub high: f64,
    pub target: f64,
}

/// A target below this counts as this, so that nothing is divided by zero.
const LEAST_TARGET: f64 = 0.001;

impl Claim {
    fn target(&self) -> f64 {
        self.target.max(LEAST_TARGET)
    }

    fn at(&self, proportion: f64) -> f64 {
        (proportion * self.target()).clamp(self.low, self.high)
    }
}

/// What each gets, and the common proportion of targets to what is given: everybody has that much of its target, but who is held up by
/// its lower or down by its upper bound. Their sum is `total`. None if the bounds leave no such division.
pub fn divide(total: f64, claims: &[Claim]) -> Option<(Vec<f64>, f64)> {
    let sum = |proportion: f64| claims.iter().map(|claim| claim.at(proportion)).sum::<f64>();
    let tolerance = 1e-7 * total.max(1.0);
    if claims.iter().any(|c| c.low < 0.0 || c.low > c.high) {
        return None;
    }
    // The sum grows with the proportion, piece by piece along straight lines; their ends are where bounds begin to hold.
    let ends = claims.iter().flat_map(|claim| [claim.low / claim.target(), claim.high / claim.target()]);
    let mut ends: Vec<f64> = ends.collect();
    ends.sort_by(f64::total_cmp);
    let (least, greatest) = (*ends.first()?, *ends.last()?);
    if sum(least) > total + tolerance || sum(greatest) < total - tolerance {
        return None;
    }
    let mut from = least;
    let mut proportion = greatest;
    for end in ends {
        let reached = sum(end);
        if reached >= total {
            let before = sum(from);
            proportion =
                if reached > before { from + (end - from) * (total - before) / (reached - before) } else { end };
            break;
        }
        from = end;
    }
    let proportion = proportion.clamp(least, greatest);
    Some((claims.iter().map(|claim| claim.at(proportion)).collect(), proportion))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        (0.0..100.0f64, 0.0..600.0f64, 0.0..300.0f64).prop_map(|(low, more, wanted)| Claim {
            low,
            high: low + more,
            target: low + wanted,
        })
    }

    proptest! {
        #[test]
        fn all_is_given_in_one_proportion_within_bounds(claims in prop::collection::vec(claim(), 1..10), part in 0.0..1.0f64) {
            let (low, high): (f64, f64) = claims.iter().fold((0.0, 0.0), |(l, h), c| (l + c.low, h + c.high));
            let total = low + part * (high - low);
            let (given, proportion) = divide(total, &claims).unwrap();
            prop_assert!((given.iter().sum::<f64>() - total).abs() < 1e-3, "{:?} {}", given, total);
            for (given, claim) in given.iter().zip(&claims) {
                prop_assert!(*given >= claim.low - 1e-9 && *given <= claim.high + 1e-9);
                let fair = proportion * claim.target();
                let bound = *given == claim.low && fair <= claim.low || *given == claim.high && fair >= claim.high;
                prop_assert!(bound || (given - fair).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_bounds_cannot_hold_is_refused() {
        let claim = Claim { low: 5.0, high: 10.0, target: 5.0 };
        assert_eq!(divide(4.0, &[claim]), None);
        assert_eq!(divide(11.0, &[claim]), None);
        assert_eq!(divide(10.0, &[claim]).unwrap().0, [10.0]);
    }

    #[test]
    fn the_idle_lend_to_the_busy() {
        let idle = Claim { low: 10.0, high: 700.0, target: 10.0 };
        let busy = Claim { low: 20.0, high: 700.0, target: 90.0 };
        let (given, _) = divide(100.0, &[idle, busy]).unwrap();
        assert_eq!(given, [10.0, 90.0]);
    }
}
