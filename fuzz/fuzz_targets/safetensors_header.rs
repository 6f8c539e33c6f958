//! A safetensors header: any bytes give a result, never a panic, and every tensor lies within them.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wick::weights::safetensors::parse_header;

fuzz_target!(|bytes: &[u8]| {
    for tensor in parse_header(bytes, Path::new("fuzz.safetensors")).unwrap_or_default() {
        assert!(tensor.byte_range().end <= bytes.len());
    }
});
