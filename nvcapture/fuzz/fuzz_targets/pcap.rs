//! Files that begin as pcap files do.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvcapture_fuzz::pcap(data));
