//! When each of many does something that all of them do once in a period: in turn, evenly spread. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Turns of `count` members, each once per `period`, the first right at `start`.
pub struct Round {
    start: Instant,
    period: Duration,
    count: u32,
    turn: u64,
}

impl Round {
    pub fn new(start: Instant, period: Duration, count: u32) -> Self {
        Round { start, period, count: count.max(1), turn: 0 }
    }

    /// When the next turn is due.
    pub fn next_at(&self) -> Instant {
        let count = u64::from(self.count);
        let (rounds, within) = (self.turn / count, self.turn % count);
        // Rounds before a year has passed fit easily; later ones would only come too early.
        let whole = self.period.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
        let part = self.period.mul_f64(within as f64 / f64::from(self.count));
        self.start + whole + part
    }

    /// The member whose turn has come, if any. Called until there is none.
    pub fn take_due(&mut self, now: Instant) -> Option<u32> {
        if self.next_at() > now {
            return None;
        }
        let member = self.turn % u64::from(self.count);
        self.turn += 1;
        u32::try_from(member).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_spread_over_the_period() {
        let start = Instant::now();
        let mut round = Round::new(start, Duration::from_secs(10), 4);
        let mut seen = Vec::new();
        for millis in (0..=12_500).step_by(500) {
            while let Some(member) = round.take_due(start + Duration::from_millis(millis)) {
                seen.push((millis, member));
            }
        }
        assert_eq!(seen, [(0, 0), (2500, 1), (5000, 2), (7500, 3), (10_000, 0), (12_500, 1)]);
    }

    #[test]
    fn late_turns_are_all_taken() {
        let start = Instant::now();
        let mut round = Round::new(start, Duration::from_secs(1), 3);
        let late = start + Duration::from_millis(900);
        let members: Vec<u32> = std::iter::from_fn(|| round.take_due(late)).collect();
        assert_eq!(members, [0, 1, 2]);
        assert_eq!(round.next_at(), start + Duration::from_secs(1));
    }
}
