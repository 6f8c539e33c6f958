#![doc = include_str!("../ARCHITECTURE.md")]
#![deny(unsafe_code)]
#![warn(clippy::unwrap_used)]

pub mod api;
pub mod cli;
pub mod config;
pub mod encoder;
pub mod engine;
pub mod grammar;
pub mod hub;
pub mod kv;
pub mod model;
pub mod nn;
pub mod ops;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod server;
pub mod telemetry;
#[doc(hidden)]
pub mod testing;
pub mod text;
pub mod weights;
