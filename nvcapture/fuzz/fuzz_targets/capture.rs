//! Any octets, read as a capture file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvcapture_fuzz::capture(data));
