//! Sixteen octets looked at together.

/// A bit for each octet of `words` that equals `octet`, from the lowest octet of the first word on.
#[inline(always)]
pub fn places_of(octet: u8, words: [u64; 2]) -> u16 {
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8};
    #[cfg(target_arch = "x86_64")]
    // SAFETY: values in, values out; SSE2 is part of x86-64.
    unsafe {
        let octets = _mm_set_epi64x(words[1].cast_signed(), words[0].cast_signed());
        let equal = _mm_cmpeq_epi8(octets, _mm_set1_epi8(octet.cast_signed()));
        _mm_movemask_epi8(equal) as u16
    }
    #[cfg(not(target_arch = "x86_64"))]
    by_words(octet, words)
}

/// The same by what every processor can, without a branch.
#[cfg(any(not(target_arch = "x86_64"), test))]
#[inline(always)]
fn by_words(octet: u8, words: [u64; 2]) -> u16 {
    const LOW: u64 = u64::from_le_bytes([0x7f; 8]);
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    /// Gathers the lowest bits of eight octets in the highest octet.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let [first, second] = words.map(|word| {
        let different = word ^ (ONES * u64::from(octet));
        // The highest bit of each octet that is not 0: no carry leaves an octet.
        let others = ((different & LOW) + LOW) | different;
        (((!others >> 7) & ONES).wrapping_mul(GATHER) >> 56) as u16
    });
    first | second << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_are_found_one_by_one_as_together() {
        let mut words = [0x0102_0304_0506_0708_u64, 0];
        for _ in 0..1_000 {
            for word in &mut words {
                *word = word
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(0x1405_7b7e_f767_814f);
            }
            // Few values, so that some are equal and some differ in one bit.
            let few = words.map(|word| word & 0x8301_8083_0180_0183);
            let all: Vec<u8> = few.iter().flat_map(|word| word.to_le_bytes()).collect();
            for octet in [0, 1, 0x7f, 0x80, 0x81, 0x83, 0xff] {
                let expected = all
                    .iter()
                    .rev()
                    .fold(0, |bits, &found| bits << 1 | u16::from(found == octet));
                assert_eq!(places_of(octet, few), expected, "{octet} in {all:?}");
                assert_eq!(by_words(octet, few), expected, "{octet} in {all:?}");
            }
        }
    }
}
