//! What was measured, paired by round: what else the machine did meanwhile met all sides of a round alike.

use std::collections::BTreeMap;

/// At most one value per round for each row and side.
pub(super) struct Pairs<S, R = &'static str> {
    values: BTreeMap<(R, S), BTreeMap<usize, f64>>,
}

impl<S: Ord + Copy, R: Ord + Copy> Pairs<S, R> {
    pub(super) const fn new() -> Self {
        Self { values: BTreeMap::new() }
    }

    /// Adds the value of a round. One that has none is left out wherever it would be paired.
    pub(super) fn push(&mut self, row: R, side: S, round: usize, value: f64) {
        let before = self.values.entry((row, side)).or_default().insert(round, value);
        debug_assert!(before.is_none(), "round {round} was measured twice");
    }

    /// Median of a side alone.
    pub(super) fn median(&self, row: R, side: S) -> Option<f64> {
        self.values.get(&(row, side)).map(|values| median(&mut values.values().copied().collect::<Vec<_>>()))
    }

    /// Median of what `combine` makes of each round's value and the same round's of another row and side.
    pub(super) fn paired(&self, one: (R, S), other: (R, S), combine: fn(f64, f64) -> f64) -> Option<f64> {
        let (one, other) = (self.values.get(&one)?, self.values.get(&other)?);
        let pair = |(round, one): (&usize, &f64)| Some(combine(*one, *other.get(round)?));
        let mut pairs: Vec<f64> = one.iter().filter_map(pair).collect();
        (!pairs.is_empty()).then(|| median(&mut pairs))
    }

    /// Median of the rounds' quotients.
    pub(super) fn ratio(&self, one: (R, S), other: (R, S)) -> Option<f64> {
        self.paired(one, other, |one, other| one / other)
    }

    /// Median of the rounds' differences.
    pub(super) fn added(&self, one: (R, S), other: (R, S)) -> Option<f64> {
        self.paired(one, other, |one, other| one - other)
    }
}

/// The middle of the values, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(low), Some(high)) if values.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(high)) => *high,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are exact")]
    fn a_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn ratios_are_paired_by_round() {
        let mut pairs = Pairs::new();
        for (round, (without, with)) in [(100.0, 110.0), (200.0, 220.0), (100.0, 150.0)].into_iter().enumerate() {
            pairs.push("row", 1, round + 1, without);
            pairs.push("row", 2, round + 1, with);
        }
        let ratio = pairs.ratio(("row", 2), ("row", 1)).unwrap();
        assert!((ratio - 1.1).abs() < 1e-9, "{ratio}");
        let added = pairs.added(("row", 2), ("row", 1)).unwrap();
        assert!((added - 20.0).abs() < 1e-9, "{added}");
        assert_eq!(pairs.ratio(("row", 3), ("row", 1)), None);
    }

    #[test]
    fn a_round_without_a_value_is_left_out() {
        let mut pairs = Pairs::new();
        for (round, one, other) in [(1, Some(2.0), 1.0), (2, None, 7.0), (3, Some(20.0), 10.0)] {
            pairs.push("row", 2, round, other);
            if let Some(one) = one {
                pairs.push("row", 1, round, one);
            }
        }
        assert_eq!(pairs.ratio(("row", 1), ("row", 2)), Some(2.0));
        assert_eq!(pairs.median("row", 1), Some(11.0));
    }
}
