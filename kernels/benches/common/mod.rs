//! What the benchmarks share: arguments, timing, and the machine's limits, which are measured before anything is compared with them.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;
use wick_kernels::{Cpu, Isa, Pages, ThreadPool};

/// What `cargo bench` was asked for.
pub struct Setup {
    pub cpu: Cpu,
    /// What follows the number of threads and the instruction set.
    pub words: Vec<String>,
    /// `--test`: everything runs once, and the figures mean nothing.
    pub smoke: bool,
}

impl Setup {
    /// `[threads] [isa] [words]`, among cargo's own options.
    pub fn from_args() -> Self {
        let (options, mut words): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).partition(|a| a.starts_with("--"));
        let mut next = || (!words.is_empty()).then(|| words.remove(0));
        let threads = next().map_or(2, |a| a.parse().expect("threads: a number"));
        let isa = next().map_or(Isa::detect(), |a| Isa::from_name(&a).unwrap_or_else(|e| panic!("{e}")));
        let cpu =
            Cpu { isa, pool: Arc::new(ThreadPool::new(NonZeroUsize::new(threads).expect("at least one thread"))) };
        Setup { cpu, words, smoke: options.iter().any(|a| a == "--test") }
    }

    /// Seconds of the fastest of some runs: the others met something else that the machine does.
    pub fn best(&self, runs: usize, mut f: impl FnMut()) -> f64 {
        let runs = if self.smoke { 1 } else { runs };
        let time = |_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        };
        (0..runs).map(time).fold(f64::INFINITY, f64::min)
    }

    /// Bytes a second of reading memory on all threads, in 10^9: pieces of 8 MB of a buffer several times as large as models here, in
    /// large pages, as a model's weights, asked for ahead, as kernels ask for them.
    pub fn bandwidth(&self) -> f64 {
        const PIECE: usize = 2 << 20;
        const AHEAD: usize = 1024;
        let mut data = Pages::<u32>::zeroed(if self.smoke { PIECE } else { 96 * PIECE });
        data.iter_mut().for_each(|word| *word = 1);
        let mut pieces = data.chunks_exact(PIECE).cycle();
        let seconds = self.best(320, || {
            let piece = pieces.next().expect("a cycle does not end");
            let threads = self.cpu.pool.threads();
            let part = piece.len() / threads / 16 * 16;
            self.cpu.pool.run(threads, &|t| {
                let mut sums = [0u32; 16];
                for chunk in piece[t * part..(t + 1) * part].chunks_exact(16) {
                    ask_for(chunk.as_ptr().wrapping_add(AHEAD));
                    for (s, v) in sums.iter_mut().zip(chunk) {
                        *s ^= v;
                    }
                }
                black_box(sums);
            });
        });
        size_of::<[u32; PIECE]>() as f64 / seconds / 1e9
    }

    /// Runs `chain`, which does `per_thread` of something, on all threads; how many a second, in 10^9.
    #[cfg(target_arch = "x86_64")]
    pub fn rate(&self, per_thread: usize, chain: impl Fn() + Sync) -> f64 {
        let threads = self.cpu.pool.threads();
        let seconds = self.best(20, || self.cpu.pool.run(threads, &|_| chain()));
        (threads * per_thread) as f64 / seconds / 1e9
    }

    /// Operations a second of fused multiply-adds of floats (or of pairs of integers) on all threads, with nothing to load, in 10^9.
    #[cfg(target_arch = "x86_64")]
    pub fn multiply_add_roof(&self, paired: bool) -> f64 {
        use std::arch::x86_64::*;
        const TURNS: usize = 100_000;
        #[target_feature(enable = "avx512f")]
        fn wide() {
            let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
            let mut sums = [_mm512_setzero_ps(); 16];
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, a, b);
                }
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow() {
            let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
            let mut sums = [_mm256_setzero_ps(); 12];
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, a, b);
                }
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn pairs() {
            let a = _mm512_set1_epi16(black_box(3));
            let mut sums = [_mm512_setzero_si512(); 16];
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = _mm512_dpwssd_epi32(*sum, a, a);
                }
            }
            black_box(sums);
        }
        // SAFETY: `Isa::from_name` and `Isa::detect` have checked that the processor has the instruction set.
        match self.cpu.isa {
            Isa::Avx512Vnni | Isa::Avx512Bf16 if paired => self.rate(2 * TURNS * 16 * 32, || unsafe { pairs() }),
            Isa::Avx512Vnni | Isa::Avx512Bf16 => self.rate(2 * TURNS * 16 * 16, || unsafe { wide() }),
            Isa::Avx2 | Isa::AvxVnni => self.rate(2 * TURNS * 12 * 8, || unsafe { narrow() }),
            _ => f64::NAN,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn multiply_add_roof(&self, _: bool) -> f64 {
        f64::NAN
    }
}

/// Asks for a line of memory that will be read soon, where the processor can be told.
fn ask_for(at: *const u32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: any address may be asked for.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
