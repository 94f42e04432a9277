//! Shuffle sharding: which few of a level's queues a flow may wait in. Two flows share some queues, but hardly ever all of them, so
//! that one that floods its own leaves others a way.

/// The queues of a flow: `size` different numbers below `queues`, a function of `hash` alone. `hand` must be as long as the hand
/// (at most `queues`); all hands are as likely as each other where the hash is uniform.
pub fn deal(mut hash: u64, queues: usize, hand: &mut [usize]) {
    debug_assert!(hand.len() <= queues);
    for (dealt, card) in hand.iter_mut().enumerate() {
        let left = (queues - dealt) as u64;
        *card = (hash % left) as usize;
        hash /= left;
    }
    // The nth card is a number among those that are left; counting up past the cards before it makes it one of all.
    for n in (0..hand.len()).rev() {
        for earlier in (0..n).rev() {
            if hand[n] >= hand[earlier] {
                hand[n] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn a_hand_has_different_cards_of_the_deck(hash: u64, queues in 1..200usize, size in 1..8usize) {
            let mut hand = vec![0; size.min(queues)];
            deal(hash, queues, &mut hand);
            let different: BTreeSet<usize> = hand.iter().copied().collect();
            prop_assert_eq!(different.len(), hand.len());
            prop_assert!(hand.iter().all(|card| *card < queues));
        }
    }

    #[test]
    fn all_hands_are_as_likely_as_each_other() {
        let mut hands: BTreeMap<[usize; 3], u32> = BTreeMap::new();
        // 5 · 4 · 3 orders of three out of five.
        for hash in 0..6000 {
            let mut hand = [0; 3];
            deal(hash, 5, &mut hand);
            *hands.entry(hand).or_default() += 1;
        }
        assert_eq!(hands.len(), 60);
        assert!(hands.values().all(|count| *count == 100), "{hands:?}");
    }
}
