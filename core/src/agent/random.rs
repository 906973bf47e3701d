//! Randomness as an argument.

use std::time::Duration;

/// 32 uniformly random bits that the caller drew. A decision takes one by value, so that it is
/// used once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Random(pub u32);

impl Random {
    /// A duration uniformly within `[0, range)`; zero for an empty range.
    #[must_use]
    pub fn within(self, range: Duration) -> Duration {
        // 32 bits of fraction are far finer than any timer; durations over 584 years are cut.
        let nanos = range.as_nanos().min(u128::from(u64::MAX));
        let part = (nanos * u128::from(self.0)) >> 32;
        Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_draw_stays_within_its_range(bits: u32, nanos in 1_u64..) {
            let range = Duration::from_nanos(nanos);
            prop_assert!(Random(bits).within(range) < range);
        }
    }

    #[test]
    fn draws_cover_the_range() {
        let range = Duration::from_secs(8);
        assert_eq!(Random(0).within(range), Duration::ZERO);
        assert_eq!(Random(1 << 31).within(range), Duration::from_secs(4));
        assert!(Random(u32::MAX).within(range) > Duration::from_millis(7999));
        assert_eq!(Random(u32::MAX).within(Duration::ZERO), Duration::ZERO);
    }
}
