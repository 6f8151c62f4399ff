//! Filter expressions, and the programs made of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvcapture_fuzz::filter(data));
