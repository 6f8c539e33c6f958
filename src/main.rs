//! The `wick` binary: parses the command line and runs one command.

/// Its larger blocks begin at a cache line, where the system's begin 16 bytes behind one: a vector register's worth of activations would
/// lie across two lines, which costs the CPU kernels 3 to 10%.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The allocator reads it when it starts. By default it has four arenas for each core, each of which keeps what its threads have
/// freed: of the few threads here that allocate much (loading, steps, HTTP) each would keep megabytes that the others could use.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_OPTIONS: &[u8; 10] = b"narenas:2\0";

fn main() -> std::process::ExitCode {
    wick::cli::main()
}
