//! The time that timeouts run on, made of the frames' own.

use std::time::Duration;

/// Microseconds to the power of two in one tick: 1.024 ms.
const TICK_SHIFT: u32 = 10;

/// A time that only goes forward, in [ticks](TICK_SHIFT).
///
/// Frames may come a little out of order: time then stands still. When they go back by more than [`Self::STEP`], the clock that stamped
/// them was set back: time goes on from there as if nothing had been.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// The frames' time that `micros` stands for.
    anchor: u64,
    /// Our own. Such that `micros + (LAST - anchor)` does not overflow: however far the frames' time goes on from here, so can this.
    micros: u64,
}

impl Clock {
    /// How far back frames go for the clock to have been set back. Unit: microseconds.
    pub(crate) const STEP: u64 = 60_000_000;
    /// The most that time goes forward at once, which is more than any timeout. Unit: microseconds.
    const LEAP: u64 = 1 << 41;
    /// The last time that a frame can have. Unit: microseconds.
    const LAST: u64 = u64::MAX / 1_000;

    /// The time after a frame was seen at `micros`, which is not after [`Self::LAST`].
    #[inline]
    pub(crate) fn advance(&mut self, micros: u64) -> u64 {
        let passed = micros.wrapping_sub(self.anchor);
        if passed < Self::LEAP {
            // No overflow: see `micros`.
            self.micros += passed;
            self.anchor = micros;
        } else {
            self.leap(micros);
        }
        self.now()
    }

    /// The same after a leap, or when it goes back.
    #[cold]
    fn leap(&mut self, micros: u64) {
        if let Some(passed) = micros.checked_sub(self.anchor) {
            self.micros += passed.min(Self::LEAP);
            self.anchor = micros;
        } else if self.anchor - micros > Self::STEP && self.micros <= u64::MAX - Self::LAST {
            // After more than half a million years time stands still instead, and goes on where the frames' is at `anchor` again.
            self.anchor = micros;
        }
    }

    /// The time, in ticks.
    #[inline]
    pub(crate) const fn now(&self) -> u64 {
        self.micros >> TICK_SHIFT
    }

    /// A duration in ticks, rounded up, at most what [`Self::LEAP`] goes past.
    pub(crate) fn ticks(duration: Duration) -> u32 {
        let micros = duration.as_micros().min(1 << 40) as u64;
        micros.div_ceil(1 << TICK_SHIFT) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_only_goes_forward() {
        let mut clock = Clock::default();
        let second = 1_000_000_u64;
        let start = clock.advance(1_000 * second);
        assert_eq!(clock.advance(999 * second), start, "a frame overtaken");
        let later = clock.advance(1_001 * second);
        assert_eq!(
            later - start,
            ((1_001 * second) >> TICK_SHIFT) - ((1_000 * second) >> TICK_SHIFT)
        );
        assert_eq!(clock.advance(10 * second), later, "the clock was set back");
        assert!(clock.advance(11 * second) > later, "and goes on from there");
        for _ in 0..1 << 24 {
            clock.advance(Clock::LAST);
            clock.advance(0);
        }
        assert!(clock.now() > later, "no overflow, whatever frames say");
        // Step by step, as far as there are times.
        let mut micros = 0;
        while micros < Clock::LAST {
            micros = Clock::LAST.min(micros + Clock::LEAP / 8);
            let before = clock.now();
            assert!(clock.advance(micros) >= before);
        }
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(Clock::ticks(Duration::ZERO), 0);
        assert_eq!(Clock::ticks(Duration::from_micros(1)), 1);
        assert_eq!(Clock::ticks(Duration::MAX), 1 << 30);
    }
}
