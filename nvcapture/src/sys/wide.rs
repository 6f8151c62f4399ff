//! Code for processors that can do more than all of their kind can.

/// Work whose code may be made more than once, for processors of more and of less ability.
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it. To be `#[inline(always)]`, as what is called from it should be: what is not inlined is made for every processor.
    fn run(self) -> Self::Output;
}

/// What the code of some [`Work`] may make use of.
///
/// The work is given it as a type, so that no two of its copies share what is called in them: shared, that would be inlined in neither.
pub trait Ability: Copy {
    /// Does `work` by it, in a function of its own.
    fn run<W: Work>(self, work: W) -> W::Output;
}

/// What every processor can for which the program was built.
#[derive(Clone, Copy, Debug)]
pub struct Usual;

impl Ability for Usual {
    #[inline(never)]
    fn run<W: Work>(self, work: W) -> W::Output {
        work.run()
    }
}

/// What x86-64 processors can since 2013 (Intel's Haswell) and 2015 (AMD's Excavator), the level that is called x86-64-v3: loads that reverse octets,
/// shifts and multiplications that leave the flags alone. There is one only where the processor can.
#[derive(Clone, Copy, Debug)]
pub struct Wide(());

#[cfg(target_arch = "x86_64")]
macro_rules! is_detected {
    ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
}

impl Wide {
    /// Whether this processor can.
    #[inline]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_detected!("avx2" "bmi1" "bmi2" "fma" "lzcnt" "movbe" "popcnt") {
            return Some(Self(()));
        }
        None
    }
}

impl Ability for Wide {
    #[inline(always)]
    fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,movbe,popcnt")]
            #[inline(never)]
            fn run<W: Work>(work: W) -> W::Output {
                work.run()
            }
            // SAFETY: where there is a `Wide`, the processor was found to have all of these features.
            unsafe { run(work) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        work.run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [u32]);

    impl Work for Sum<'_> {
        type Output = u32;

        #[inline(always)]
        fn run(self) -> u32 {
            self.0.iter().map(|word| word.swap_bytes()).sum()
        }
    }

    #[test]
    fn the_same_is_done_by_whatever_ability() {
        let words: Vec<u32> = (1..100).map(u32::swap_bytes).collect();
        assert_eq!(Usual.run(Sum(&words)), 4_950);
        if let Some(wide) = Wide::detect() {
            assert_eq!(wide.run(Sum(&words)), 4_950);
        }
    }
}
