//! Real models and what the reference computed with them.
#![allow(dead_code, reason = "each test crate uses its own part")]
use std::path::{Path, PathBuf};

use serde_json::Value;
use wick::hub::{self, FetchOptions};

/// The file of a catalogue model. It comes through wick's own fetching, with its cache (`WICK_CACHE`), sources and digests:
/// a machine that can reach none of them fails the test, it does not skip it.
pub fn pulled(alias: &str) -> PathBuf {
    let alias = alias.to_owned();
    // A thread of its own, because a runtime cannot be started inside another.
    let fetching = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let model = runtime.block_on(hub::resolve(&alias, &FetchOptions::default()));
        model.unwrap_or_else(|error| panic!("{alias}: {error}")).path
    });
    fetching.join().unwrap()
}

/// A JSON file of tests/golden.
pub fn golden(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
