//! The schedule of weighted round robin: a round has each endpoint as often as its weight says, evenly spread.

/// Turns of a round by endpoint, on average, that are not exceeded: odd weights are rounded to fit.
const ROUND: u64 = 64;

/// One round.
#[derive(Debug)]
pub(in crate::l7) struct Schedule {
    /// Endpoints by their number.
    order: Vec<usize>,
    /// Weights of the endpoints, 1 on average; empty: all are equal.
    weights: Vec<f64>,
}

impl Schedule {
    /// For so many endpoints; one without a weight has 1.
    pub(super) fn new(endpoints: usize, weights: &[u32]) -> Self {
        let weights: Vec<u64> =
            (0..endpoints).map(|i| weights.get(i).map_or(1, |weight| u64::from(*weight).max(1))).collect();
        let sum: u64 = weights.iter().sum();
        if weights.windows(2).all(|pair| matches!(pair, [one, other] if one == other)) {
            return Self { order: (0..endpoints).collect(), weights: Vec::new() };
        }
        let mut turns: Vec<(f64, usize)> = Vec::new();
        for (i, turns_of) in parts(&weights).into_iter().enumerate() {
            // Each in the middle of its part of the round.
            turns.extend((0..turns_of).map(|turn| ((turn as f64 + 0.5) / turns_of as f64, i)));
        }
        turns.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        Self {
            order: turns.into_iter().map(|(_, i)| i).collect(),
            weights: weights.iter().map(|weight| (weight * endpoints as u64) as f64 / sum as f64).collect(),
        }
    }

    /// How many there are in a round.
    pub(in crate::l7) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whose turn it is.
    pub(super) fn of(&self, turn: usize) -> Option<usize> {
        self.order.get(turn).copied()
    }

    /// 1 on average.
    pub(super) fn weight(&self, endpoint: usize) -> f64 {
        self.weights.get(endpoint).copied().unwrap_or(1.0)
    }
}

/// Turns of each endpoint.
fn parts(weights: &[u64]) -> Vec<u64> {
    let common = weights.iter().copied().fold(0, divisor).max(1);
    let sum = weights.iter().sum::<u64>() / common;
    let most = ROUND * weights.len() as u64;
    let turns = |weight: &u64| match sum <= most {
        true => weight / common,
        false => (weight / common * most / sum).max(1),
    };
    weights.iter().map(turns).collect()
}

/// Greatest common one.
fn divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn turns_of_the_heavy_are_spread() {
        let order = |weights: &[u32]| Schedule::new(weights.len(), weights).order;

        assert_eq!(order(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(order(&[500, 500]), [0, 1]);
        assert_eq!(order(&[3, 1]), [0, 0, 1, 0]);
        assert_eq!(order(&[2, 1, 1]), [0, 1, 2, 0]);
        assert_eq!(order(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_round_is_bounded_and_gives_each_about_its_share(
            weights in prop::collection::vec(1u32..=1000, 1..30),
        ) {
            let schedule = Schedule::new(weights.len(), &weights);

            prop_assert!(schedule.len() as u64 <= (ROUND + 1) * weights.len() as u64);
            let sum: u32 = weights.iter().sum();
            for (i, weight) in weights.iter().enumerate() {
                let of = schedule.order.iter().filter(|turn| **turn == i).count();
                let (share, wanted) = (of as f64 / schedule.len() as f64, f64::from(*weight) / f64::from(sum));
                // One turn more or less, and what rounding takes from all.
                let off = 2.0 / schedule.len() as f64 + 0.05 * wanted;
                prop_assert!(of > 0 && (share - wanted).abs() <= off, "{share} not {wanted}");
            }
        }
    }
}
