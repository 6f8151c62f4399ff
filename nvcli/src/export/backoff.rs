//! How long to leave a collector alone that did not answer.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Twice as long every time, up to a bound; a part of it is left to chance, so that many hosts do not come back in one moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);

impl Backoff {
    /// It failed again.
    pub(super) fn failed(&mut self, now: Instant) {
        let whole = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures += 1;
        // Between half and all of it.
        let chance = (RandomState::new().hash_one(self.failures) >> 32) as u32;
        let part = whole / 2 + (whole / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX));
        self.until = Some(now + part);
    }

    /// It worked.
    pub(super) fn worked(&mut self) {
        *self = Self::default();
    }

    /// How long there is nothing to try.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_up_to_a_bound() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.rest(now), Duration::ZERO);
        for place in 0..40_u32 {
            backoff.failed(now);
            let whole = FIRST.saturating_mul(1 << place.min(16)).min(MOST);
            let rest = backoff.rest(now);
            assert!((whole / 2..=whole).contains(&rest), "{place}: {rest:?}");
        }
        backoff.worked();
        assert_eq!(backoff.rest(now), Duration::ZERO);
    }
}
