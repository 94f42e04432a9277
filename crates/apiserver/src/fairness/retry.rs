//! When those who were refused are told to come back: the more are refused, the later (upstream's tracker of dropped requests).

/// Seconds.
const LONGEST: u64 = 32;

/// Of one priority level. Times are whole seconds of any clock that does not go back.
#[derive(Clone, Debug)]
pub struct RetryAfter {
    /// Refusals in each second of the last [`LONGEST`] twice over, the newest at `newest % len`.
    counts: [u32; 64],
    newest: u64,
    raised: u64,
    seconds: u64,
}

impl Default for RetryAfter {
    fn default() -> Self {
        RetryAfter { counts: [0; 64], newest: 0, raised: 0, seconds: 1 }
    }
}

impl RetryAfter {
    /// What to say in `Retry-After`.
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    /// Counts a refusal, and looks once a second whether they become more or fewer.
    pub fn refused(&mut self, now: u64) {
        if now > self.newest {
            self.look(now);
            for gone in self.newest + 1..=now.min(self.newest + 64) {
                self.counts[(gone % 64) as usize] = 0;
            }
            self.newest = now;
            self.counts[(now % 64) as usize] = 0;
        }
        self.counts[(self.newest % 64) as usize] += 1;
    }

    /// Doubles where three times as many as there are seconds were refused lately, one less where fewer than one a second were.
    fn look(&mut self, now: u64) {
        let lately = now.saturating_sub(self.seconds)..now;
        let known = lately.filter(|second| *second <= self.newest && *second + 64 > self.newest);
        let count: u64 = known.map(|second| u64::from(self.counts[(second % 64) as usize])).sum();
        if now - self.raised >= self.seconds && count >= 3 * self.seconds {
            self.seconds = (2 * self.seconds).min(LONGEST);
            self.raised = now;
        } else if count < self.seconds && self.seconds > 1 {
            self.seconds -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_under_pressure_and_shrinks_afterwards() {
        let mut retry = RetryAfter::default();
        let mut told = Vec::new();
        for second in 100..120 {
            for _ in 0..100 {
                retry.refused(second);
            }
            told.push(retry.seconds());
        }
        assert_eq!(told[..8], [1, 2, 2, 4, 4, 4, 4, 8]);
        assert_eq!(retry.seconds(), 16);
        retry.refused(200);
        assert_eq!(retry.seconds(), 15, "none was refused for long");
    }

    #[test]
    fn a_few_refusals_change_nothing() {
        let mut retry = RetryAfter::default();
        for second in 0..100 {
            retry.refused(second);
            assert_eq!(retry.seconds(), 1);
        }
    }
}
