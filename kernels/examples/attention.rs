//! Speed of attention at the shapes of the catalogue's models, against this machine's limits, which are measured first: prefill as a share
//! of the float multiply-add roof, decode as a share of the bandwidth of reading memory. Keys and values are half precision in shuffled
//! blocks of 16; decode walks through more of them than the caches hold, as a model's layers do. Run with optimisation:
//!
//! `cargo run --release -p wick-kernels --example attention -- [threads] [isa] [model]`

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;
use wick_kernels::{AttentionArgs, AttentionScratch, Cpu, Isa, KvSlice, SeqSpan, ThreadPool, paged_attention};

const BLOCK_SIZE: usize = 16;
/// Bytes of K and of V: together more than the last-level cache.
const CACHE_BYTES: usize = 48 << 20;

struct Shape {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const SHAPES: [Shape; 4] = [
    Shape { name: "smollm2-135m", heads: 9, kv_heads: 3, head_dim: 64 },
    Shape { name: "qwen2.5-coder-0.5b", heads: 14, kv_heads: 2, head_dim: 64 },
    Shape { name: "qwen2.5-coder-1.5b", heads: 12, kv_heads: 2, head_dim: 128 },
    Shape { name: "gemma-3-270m", heads: 4, kv_heads: 1, head_dim: 256 },
];

/// Seconds of the fastest run in about 0.4 seconds.
fn best(mut f: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    while runs < 5 || begin.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// Floating-point operations a second of fused multiply-adds on all threads, with nothing to load, in 10^9.
#[cfg(target_arch = "x86_64")]
fn multiply_add_roof(cpu: &Cpu) -> f64 {
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
    let threads = cpu.pool.threads();
    // SAFETY: called only where `Isa::available` has found the features.
    let (per_thread, chains) = match cpu.isa {
        Isa::Avx512Vnni => (TURNS * 16 * 16, wide as unsafe fn()),
        Isa::Avx2 => (TURNS * 12 * 8, narrow as unsafe fn()),
        _ => return f64::NAN,
    };
    // SAFETY: as above.
    let seconds = best(|| cpu.pool.run(threads, &|_| unsafe { chains() }));
    (2 * threads * per_thread) as f64 / seconds / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add_roof(_: &Cpu) -> f64 {
    f64::NAN
}

/// Bytes a second of reading memory on all threads, in 10^9: pieces of 4 MB of a buffer that no cache holds.
fn bandwidth(cpu: &Cpu) -> f64 {
    let data = vec![1u64; 16 << 20];
    let mut pieces = data.chunks_exact(1 << 19).cycle();
    let seconds = best(|| {
        let piece = pieces.next().expect("a cycle does not end");
        let part = piece.len() / 16;
        cpu.pool.run(16, &|t| {
            let mut sums = [0u64; 16];
            for chunk in piece[t * part..(t + 1) * part].chunks_exact(16) {
                for (s, v) in sums.iter_mut().zip(chunk) {
                    *s ^= v;
                }
            }
            black_box(sums);
        });
    });
    (4 << 20) as f64 / seconds / 1e9
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(2, |a| a.parse().expect("threads: a number"));
    let isa = args.next().map_or(Isa::detect(), |a| Isa::from_name(&a).unwrap_or_else(|e| panic!("{e}")));
    let only = args.next();
    let cpu = Cpu { isa, pool: ThreadPool::new(NonZeroUsize::new(threads).expect("at least one thread")).into() };
    let (roof, memory) = (multiply_add_roof(&cpu), bandwidth(&cpu));
    println!("{threads} threads, {}: multiply-adds {roof:.0} GFLOP/s, reads {memory:.1} GB/s", isa.name());
    let values = CACHE_BYTES / 2;
    let cache: Vec<half::f16> = (0..values).map(|i| half::f16::from_f32((i % 97) as f32 / 97.0 - 0.5)).collect();
    let other = cache.clone();
    for shape in SHAPES.iter().filter(|s| only.as_deref().is_none_or(|name| name == s.name)) {
        let Shape { name, heads, kv_heads, head_dim } = *shape;
        let num_blocks = values / (kv_heads * head_dim * BLOCK_SIZE);
        // An odd factor permutes the blocks of a power of two.
        let whole = num_blocks.next_power_of_two() / 2;
        let table: Vec<u32> = (0..whole).map(|i| (i * 0x9e37_79b1 % whole) as u32).collect();
        let mut scratch = AttentionScratch::default();
        let mut run = |q_len: usize, context: usize| {
            let q: Vec<f32> = (0..q_len * heads * head_dim).map(|i| (i % 89) as f32 / 89.0 - 0.5).collect();
            let mut out = vec![0.0; q.len()];
            let mut sequences = table.chunks_exact(context.div_ceil(BLOCK_SIZE)).cycle();
            best(|| {
                let blocks = sequences.next().expect("the cache holds a sequence");
                let seqs = [SeqSpan { q_start: 0, q_len, context_len: context, blocks }];
                let args = AttentionArgs {
                    q: &q,
                    k: KvSlice::F16(&cache),
                    v: KvSlice::F16(&other),
                    heads,
                    kv_heads,
                    head_dim,
                    block_size: BLOCK_SIZE,
                    scale: 0.1,
                    window: None,
                    softcap: None,
                    seqs: &seqs,
                };
                paged_attention(&cpu, &args, &mut out, &mut scratch);
            })
        };
        println!("{name}: {heads}/{kv_heads} heads of {head_dim}");
        for context in [512, 2048] {
            let q_len = 512;
            let seconds = run(q_len, context);
            let keys: usize = (0..q_len).map(|i| context - i).sum();
            let rate = (4 * keys * heads * head_dim) as f64 / seconds / 1e9;
            println!(
                "  prefill, {q_len} tokens to {context:5}: {:8.0} us, {rate:6.1} GFLOP/s, {:3.0}% of the roof",
                seconds * 1e6,
                100.0 * rate / roof
            );
        }
        for context in [512, 4096, 16384] {
            let seconds = run(1, context);
            let rate = (4 * context * kv_heads * head_dim) as f64 / seconds / 1e9;
            println!(
                "  decode,   1 token at  {context:6}: {:8.1} us, {rate:6.1} GB/s, {:3.0}% of memory's",
                seconds * 1e6,
                100.0 * rate / memory
            );
        }
    }
}
