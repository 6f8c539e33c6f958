//! The `wick` binary: parses the command line and runs one command.
fn main() -> std::process::ExitCode {
    wick::cli::main()
}
