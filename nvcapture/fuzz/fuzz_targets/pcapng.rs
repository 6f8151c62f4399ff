//! Files that begin as pcapng files do.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvcapture_fuzz::pcapng(data));
