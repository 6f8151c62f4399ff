//! Any octets as what connections speak.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvflow_fuzz::app(data));
