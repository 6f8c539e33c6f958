//! The built binary, run as a user runs it: what it prints, how it fails, how it ends.
#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/failures.rs"]
mod failures;
#[path = "cli/fake_hub.rs"]
mod fake_hub;
#[path = "cli/fetching.rs"]
mod fetching;
#[path = "cli/memory.rs"]
mod memory;
#[path = "support/models.rs"]
mod models;
#[path = "cli/process.rs"]
mod process;
