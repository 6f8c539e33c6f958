//! The `wick` binary: parses the command line and runs one command.

/// Its larger blocks begin at a cache line, where the system's begin 16 bytes behind one: a vector register's worth of activations would
/// lie across two lines, which costs the CPU kernels 3 to 10%.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    wick::cli::main()
}
