//! How many seats a priority level could have used lately: what borrowing between levels goes by.

use super::Time;

/// Integrates a number that changes in steps over time.
#[derive(Clone, Debug, Default)]
pub struct Integrator {
    last: Time,
    value: f64,
    seconds: f64,
    sum: f64,
    squares: f64,
    max: f64,
}

/// Of the time since the last [`Integrator::take`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub max: f64,
}

impl Integrator {
    pub fn new(now: Time) -> Self {
        Integrator { last: now, ..Integrator::default() }
    }

    pub fn set(&mut self, now: Time, value: f64) {
        self.advance(now);
        self.value = value;
        self.max = self.max.max(value);
    }

    pub fn take(&mut self, now: Time) -> Observed {
        self.advance(now);
        let mut observed = Observed { seconds: self.seconds, max: self.max, ..Observed::default() };
        if self.seconds > 0.0 {
            observed.average = self.sum / self.seconds;
            // Rounding can make it a little less than nothing.
            let variance = self.squares / self.seconds - observed.average * observed.average;
            observed.deviation = variance.max(0.0).sqrt();
        }
        *self = Integrator { last: now, value: self.value, max: self.value, ..Integrator::default() };
        observed
    }

    fn advance(&mut self, now: Time) {
        let seconds = now.saturating_sub(self.last).as_secs_f64();
        self.last = self.last.max(now);
        self.seconds += seconds;
        self.sum += self.value * seconds;
        self.squares += self.value * self.value * seconds;
    }
}

/// Half of a peak of demand is forgotten in five minutes of adjustments.
const SMOOTHING: f64 = 0.977;

/// What is known of a level's demand, in seats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    pub average: f64,
    pub deviation: f64,
    pub high: u32,
    pub smoothed: f64,
}

impl Demand {
    /// Takes in what was observed over `periods` periods of adjustment. Rises at once, falls slowly.
    pub fn update(&mut self, observed: Observed, periods: f64) {
        self.high = observed.max.round() as u32;
        if observed.seconds <= 0.0 {
            return;
        }
        (self.average, self.deviation) = (observed.average, observed.deviation);
        let envelope = observed.average + observed.deviation;
        let kept = SMOOTHING.powf(periods.max(1.0));
        self.smoothed = envelope.max(kept * self.smoothed + (1.0 - kept) * envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn averages_are_weighted_by_time() {
        let mut demand = Integrator::new(at(0));
        demand.set(at(0), 4.0);
        demand.set(at(1), 0.0);
        let observed = demand.take(at(4));
        assert_eq!((observed.seconds, observed.average, observed.max), (4.0, 1.0, 4.0));
        assert!((observed.deviation - 3f64.sqrt()).abs() < 1e-9, "{observed:?}");
        assert_eq!(demand.take(at(4)), Observed::default());
    }

    #[test]
    fn demand_rises_at_once_and_falls_by_half_in_five_minutes() {
        let mut demand = Demand::default();
        let observed = |average: f64| Observed { seconds: 10.0, average, deviation: 0.0, max: average };
        demand.update(observed(100.0), 1.0);
        assert_eq!(demand.smoothed, 100.0);
        for _ in 0..30 {
            demand.update(observed(0.0), 1.0);
        }
        assert!((demand.smoothed - 50.0).abs() < 1.0, "{demand:?}");
        let mut at_once = Demand { smoothed: 100.0, ..Demand::default() };
        at_once.update(observed(0.0), 30.0);
        assert!((at_once.smoothed - demand.smoothed).abs() < 1e-6, "30 periods are 30 periods");
    }
}
