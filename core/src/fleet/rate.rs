//! A bucket of permits: so many at once, so many a second.

use std::time::Duration;

use crate::model::Mono;

/// Permits that fill up with time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    /// Time that one permit takes to fill.
    each: Duration,
    /// Time that a full bucket is worth.
    full: Duration,
    /// Permits are worth the time between this instant and now.
    empty_at: Mono,
}

impl RateLimit {
    /// A full bucket of `burst` permits, filled with `per_second` permits a second. Both are at
    /// least one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Mono) -> Self {
        let each = Duration::from_secs(1) / per_second.max(1);
        let full = each.saturating_mul(burst.max(1));
        Self {
            each,
            full,
            empty_at: now.back(full),
        }
    }

    /// Takes a permit; false if there is none.
    #[must_use]
    pub fn take(&mut self, now: Mono) -> bool {
        let worth = now.since(self.empty_at).min(self.full);
        if worth < self.each {
            return false;
        }
        self.empty_at = now.back(worth - self.each);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let at = |ms: u64| Mono::from_origin(Duration::from_millis(100_000 + ms));
        let mut limit = RateLimit::new(10, 5, at(0));
        let taken = |limit: &mut RateLimit, ms| (0..100).filter(|_| limit.take(at(ms))).count();
        assert_eq!(taken(&mut limit, 0), 5);
        assert_eq!(taken(&mut limit, 99), 0);
        assert_eq!(taken(&mut limit, 100), 1);
        assert_eq!(taken(&mut limit, 450), 3);
        assert_eq!(
            taken(&mut limit, 60_000),
            5,
            "no more than the bucket holds"
        );
    }
}
