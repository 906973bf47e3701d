//! Are the loops of this process still turning?
//!
//! Whoever keeps vigil looks at regular times at a count for each loop. It counts its own looks and
//! knows no clock: a process that was stopped as a whole, or a machine that slept, took no looks
//! meanwhile and suspects nobody for it.
//!
//! ```text
//!            half the limit                the limit
//!   Alive -----------------> Quiet(loop) -----------> Wedged(loop)
//!     ^                         |
//!     +------- it turned -------+
//! ```

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// All loops turn.
    Alive,
    /// The loop of this index has not turned for half its limit: nothing good is said of the
    /// process any more.
    Quiet(usize),
    /// It has not turned for its whole limit: it will not do so by itself.
    Wedged(usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Watched {
    /// Looks without a turn after which the loop counts as wedged.
    limit: u32,
    count: u64,
    quiet: u32,
}

/// The vigil over some loops.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Vigil {
    watched: Vec<Watched>,
}

impl Vigil {
    /// A vigil over as many loops as there are limits: for so many looks each may do without a
    /// turn. A limit below two is two, since one look may fall just before a turn.
    #[must_use]
    pub fn new(limits: impl IntoIterator<Item = u32>) -> Self {
        let watched = limits.into_iter().map(|limit| Watched {
            limit: limit.max(2),
            count: 0,
            quiet: 0,
        });
        Self {
            watched: watched.collect(),
        }
    }

    /// Looks: `counts` are the turns of the loops so far, in the order of their limits. A loop
    /// without a count has not turned. The worst is told.
    pub fn look(&mut self, counts: &[u64]) -> Sight {
        let mut worst = Sight::Alive;
        for (index, watched) in self.watched.iter_mut().enumerate() {
            let count = counts.get(index).copied().unwrap_or(watched.count);
            if count == watched.count {
                watched.quiet = watched.quiet.saturating_add(1);
            } else {
                watched.count = count;
                watched.quiet = 0;
            }
            if watched.quiet >= watched.limit {
                return Sight::Wedged(index);
            }
            if watched.quiet > watched.limit / 2 && worst == Sight::Alive {
                worst = Sight::Quiet(index);
            }
        }
        worst
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_loop_that_stops_turning_is_first_quiet_then_wedged() {
        let mut vigil = Vigil::new([10, 4]);
        assert_eq!(vigil.look(&[1, 1]), Sight::Alive);
        let seen: Vec<Sight> = (2..7).map(|turn| vigil.look(&[turn, 1])).collect();
        let quiet = Sight::Quiet(1);
        assert_eq!(
            seen,
            [
                Sight::Alive,
                Sight::Alive,
                quiet,
                Sight::Wedged(1),
                Sight::Wedged(1)
            ]
        );
    }

    #[test]
    fn a_turn_takes_the_suspicion_back() {
        let mut vigil = Vigil::new([4]);
        let counts = [1, 1, 1, 1, 2, 2];
        let seen: Vec<Sight> = counts.iter().map(|count| vigil.look(&[*count])).collect();
        assert_eq!(seen[3], Sight::Quiet(0));
        assert_eq!(seen[4..], [Sight::Alive, Sight::Alive]);
    }

    #[test]
    fn a_loop_that_never_turned_is_found_too() {
        let mut vigil = Vigil::new([3]);
        let seen: Vec<Sight> = (0..3).map(|_| vigil.look(&[0])).collect();
        assert_eq!(seen, [Sight::Alive, Sight::Quiet(0), Sight::Wedged(0)]);
    }

    #[test]
    fn the_wedged_one_is_told_before_the_quiet_one() {
        let mut vigil = Vigil::new([4, 3]);
        let _ = vigil.look(&[0, 0]);
        let _ = vigil.look(&[0, 0]);
        assert_eq!(vigil.look(&[0, 0]), Sight::Wedged(1));
    }

    proptest! {
        #[test]
        fn who_turns_within_half_its_limit_is_never_suspected(
            limit in 0_u32..100,
            gaps in proptest::collection::vec(0_u32..50, 1..40),
        ) {
            let mut vigil = Vigil::new([limit]);
            for (count, gap) in (1_u64..).zip(gaps) {
                for _ in 0..=gap.min(limit.max(2) / 2) {
                    prop_assert_eq!(vigil.look(&[count]), Sight::Alive);
                }
            }
        }
    }
}
