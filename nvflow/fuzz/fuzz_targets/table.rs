//! Frames through a meter, whatever they are and whenever they come.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvflow_fuzz::table(data));
