//! A GGUF header, its configuration and its specification: any bytes give a result, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wick::model::{config::HfConfig, registry};
use wick::weights::gguf::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = GgufFile::from_bytes(bytes, Path::new("fuzz.gguf")) {
        for value in file.entries().values() {
            let _ = value.summary();
        }
        let _ = HfConfig::from_gguf(&file).and_then(|config| registry::spec(&config));
    }
});
