//! Hosts that come and go: how often is too often, and how long they rest.

use std::{collections::VecDeque, time::Duration};

use crate::model::Mono;

/// Losses count for this long.
const WITHIN: Duration = Duration::from_secs(30 * 60);
/// So many are too many.
const TOO_MANY: usize = 3;
/// The first rest, and what each further loss adds.
const REST: Duration = Duration::from_secs(30);
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(300);
/// Losses that are remembered: they give the longest rest.
const KEPT: usize = 16;

/// Losses of one host.
#[derive(Debug, Default)]
pub(super) struct Losses(VecDeque<Mono>);

impl Losses {
    pub(super) fn add(&mut self, now: Mono) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    fn within(&mut self, now: Mono) -> usize {
        self.0.retain(|at| now.since(*at) < WITHIN);
        self.0.len()
    }
}

/// How many losses count, and how long a host that is back rests for them; none if they are few.
pub(super) fn hold_down(losses: &mut Losses, now: Mono) -> Option<(u32, Duration)> {
    let count = losses.within(now);
    let over = count.checked_sub(TOO_MANY - 1).filter(|over| *over > 0)?;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let over = u32::try_from(over).unwrap_or(u32::MAX);
    Some((count, REST.saturating_mul(over).min(REST_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_loss_within_half_an_hour_rests_longer_each_time() {
        let at = |seconds: u64| Mono::from_origin(Duration::from_secs(10_000 + seconds));
        let mut losses = Losses::default();
        let mut rests = Vec::new();
        for number in 0..14 {
            losses.add(at(number * 10));
            let rest = hold_down(&mut losses, at(number * 10 + 1));
            rests.push(rest.map_or(0, |(_, rest)| rest.as_secs()));
        }
        assert_eq!(
            rests,
            [
                0, 0, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300
            ]
        );
        assert_eq!(hold_down(&mut losses, at(1800)), Some((13, REST_MAX)));
        assert_eq!(
            hold_down(&mut losses, at(1800 + 120)),
            None,
            "they are forgotten"
        );
    }
}
