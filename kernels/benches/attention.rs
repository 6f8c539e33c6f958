//! Speed of attention at the shapes of the catalogue's models, against this machine's limits, which are measured first: prefill as a share
//! of the float multiply-add roof, decode as a share of the bandwidth of reading memory. Keys and values are half precision, or pairs of
//! bfloat16, in shuffled blocks of 16; decode walks through more of them than the caches hold, as a model's layers do.
//!
//! `cargo bench -p wick-kernels --bench attention -- [threads] [isa] [model]`, on an idle machine.

mod common;

use common::Setup;
use wick_kernels::{AttentionArgs, AttentionScratch, KvLayout, KvSlice, SeqSpan, paged_attention};

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

fn main() {
    let setup = Setup::from_args();
    let cpu = &setup.cpu;
    let only = setup.words.first();
    let memory = setup.bandwidth();
    println!("{} threads, {}: reads {memory:.1} GB/s", cpu.pool.threads(), cpu.isa.name());
    let values = CACHE_BYTES / 2;
    let cache: Vec<half::f16> = (0..values).map(|i| half::f16::from_f32((i % 97) as f32 / 97.0 - 0.5)).collect();
    let other = cache.clone();
    let pairs = vec![0x3e80_3e80_u32; values / 2];
    let other_pairs = pairs.clone();
    for shape in SHAPES.iter().filter(|s| only.is_none_or(|name| name == s.name)) {
        let Shape { name, heads, kv_heads, head_dim } = *shape;
        let num_blocks = values / (kv_heads * head_dim * BLOCK_SIZE);
        // An odd factor permutes the blocks of a power of two.
        let whole = num_blocks.next_power_of_two() / 2;
        let table: Vec<u32> = (0..whole).map(|i| (i * 0x9e37_79b1 % whole) as u32).collect();
        let mut scratch = AttentionScratch::default();
        let mut run = |count: usize, q_len: usize, context: usize, paired: bool| {
            let q: Vec<f32> = (0..count * q_len * heads * head_dim).map(|i| (i % 89) as f32 / 89.0 - 0.5).collect();
            let mut out = vec![0.0; q.len()];
            let mut tables = table.chunks_exact(context.div_ceil(BLOCK_SIZE)).cycle();
            setup.best(if q_len > 1 { 40 } else { 1000 / count }, || {
                let sequence = |(i, blocks)| SeqSpan { q_start: i * q_len, q_len, context_len: context, blocks };
                let seqs: Vec<SeqSpan<'_>> = tables.by_ref().take(count).enumerate().map(sequence).collect();
                let args = AttentionArgs {
                    q: &q,
                    k: if paired { KvSlice::Bf16(&pairs) } else { KvSlice::F16(&cache) },
                    v: if paired { KvSlice::Bf16(&other_pairs) } else { KvSlice::F16(&other) },
                    layout: KvLayout { layers: 1, layer: 0, kv_heads, head_dim, block_size: BLOCK_SIZE },
                    heads,
                    scale: 0.1,
                    window: None,
                    softcap: None,
                    seqs: &seqs,
                };
                paged_attention(cpu, &args, &mut out, &mut scratch);
            })
        };
        println!("{name}: {heads}/{kv_heads} heads of {head_dim}");
        for (paired, label) in [(false, "half precision"), (true, "pairs of bfloat16")] {
            // Others widen the pairs: a way to read the cache, not a fast one.
            if paired && !cpu.isa.pairs() {
                continue;
            }
            let roof = setup.multiply_add_roof(paired);
            println!(" {label}, multiply-adds {roof:.0} GFLOP/s");
            for context in [512, 2048] {
                let q_len = 512;
                let seconds = run(1, q_len, context, paired);
                let keys: usize = (0..q_len).map(|i| context - i).sum();
                let rate = (4 * keys * heads * head_dim) as f64 / seconds / 1e9;
                println!(
                    "  prefill, {q_len} tokens to {context:5}: {:8.0} us, {rate:6.1} GFLOP/s, {:3.0}% of the roof",
                    seconds * 1e6,
                    100.0 * rate / roof
                );
            }
            for (count, context) in [(1, 512), (1, 4096), (1, 16384), (32, 300)] {
                let seconds = run(count, 1, context, paired);
                let rate = (4 * count * context * kv_heads * head_dim) as f64 / seconds / 1e9;
                println!(
                    "  decode,  {count:2} tokens at {context:6}: {:8.1} us, {rate:6.1} GB/s, {:3.0}% of memory's",
                    seconds * 1e6,
                    100.0 * rate / memory
                );
            }
        }
    }
}
