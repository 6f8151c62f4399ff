//! The walk through a frame's headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvcapture_fuzz::wire(data));
