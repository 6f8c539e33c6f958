//! Speed of attention at the shapes of the catalogue's models, against this machine's limits, which are measured first: prefill as a share
//! of the multiply-add roof, decode as a share of the bandwidth of reading memory. Keys and values are half precision, pairs of
//! integers, or bytes, in shuffled blocks of 16; decode walks through many times as much as the caches hold, in large pages, as a model's
//! layers do.
//!
//! `cargo bench -p wick-kernels --bench attention -- [threads] [isa] [model]`, on an idle machine.

mod common;

use common::Setup;
use half::f16;
use wick_kernels::{AttentionArgs, AttentionScratch, KV_GROUP, KvLayout, KvSlice, Pages, SeqSpan, paged_attention};

const BLOCK_SIZE: usize = 16;
/// Values of K, and of V.
const VALUES: usize = 96 << 20;

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
    let caches = [0, 1].map(|_| Cache::new());
    let [k, v] = &caches;
    for shape in SHAPES.iter().filter(|s| only.is_none_or(|name| name == s.name)) {
        let Shape { name, heads, kv_heads, head_dim } = *shape;
        let mut table: Vec<u32> = (0..(VALUES / (kv_heads * head_dim * BLOCK_SIZE)) as u32).collect();
        let mut seed = 1_u64;
        for i in 1..table.len() {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            table.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let mut scratch = AttentionScratch::default();
        let mut run = |count: usize, q_len: usize, context: usize, cached: Cached| {
            let q: Vec<f32> = (0..count * q_len * heads * head_dim).map(|i| (i % 89) as f32 / 89.0 - 0.5).collect();
            let mut out = vec![0.0; q.len()];
            let mut tables = table.chunks_exact(context.div_ceil(BLOCK_SIZE)).cycle();
            setup.best(if q_len > 1 { 40 } else { 1000 / count }, || {
                let sequence = |(i, blocks)| SeqSpan { q_start: i * q_len, q_len, context_len: context, blocks };
                let seqs: Vec<SeqSpan<'_>> = tables.by_ref().take(count).enumerate().map(sequence).collect();
                let args = AttentionArgs {
                    q: &q,
                    k: k.slice(cached, head_dim),
                    v: v.slice(cached, head_dim),
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
        for cached in [Cached::Half, Cached::Pairs, Cached::Bytes] {
            // Others widen the pairs: a way to read the cache, not a fast one.
            if cached == Cached::Pairs && !cpu.isa.shorts() {
                continue;
            }
            let roof = setup.multiply_add_roof(cached == Cached::Pairs);
            println!(" {}, its multiply-adds {roof:.0} GFLOP/s", cached.label());
            for (q_len, context) in [(512, 512), (512, 2048), (512, 8192), (64, 2048), (8, 2048)] {
                let seconds = run(1, q_len, context, cached);
                let keys: usize = (0..q_len).map(|i| context - i).sum();
                let rate = (4 * keys * heads * head_dim) as f64 / seconds / 1e9;
                println!(
                    "  prefill, {q_len:3} tokens to {context:5}: {:8.0} us, {rate:6.1} GFLOP/s, {:3.0}% of the roof",
                    seconds * 1e6,
                    100.0 * rate / roof
                );
            }
            for (count, context) in [(1, 512), (1, 4096), (1, 16384), (32, 85), (32, 300)] {
                let seconds = run(count, 1, context, cached);
                let rate = cached.bytes(2 * count * context * kv_heads * head_dim) / seconds / 1e9;
                println!(
                    "  decode,  {count:2} tokens at {context:6}: {:8.1} us, {rate:6.1} GB/s, {:3.0}% of memory's",
                    seconds * 1e6,
                    100.0 * rate / memory
                );
            }
        }
    }
}

/// What keys and values are cached as.
#[derive(Clone, Copy, PartialEq)]
enum Cached {
    Half,
    Pairs,
    Bytes,
}

impl Cached {
    fn label(self) -> &'static str {
        match self {
            Cached::Half => "half precision",
            Cached::Pairs => "pairs of integers",
            Cached::Bytes => "bytes",
        }
    }

    fn bytes(self, values: usize) -> f64 {
        values as f64 * if self == Cached::Bytes { 1.125 } else { 2.0 } // a scale for each head is left out
    }
}

/// The same values in each form.
struct Cache {
    halves: Pages<f16>,
    pairs: Pages<u32>,
    quads: Pages<u32>,
    scales: Pages<f32>,
}

impl Cache {
    fn new() -> Cache {
        let mut cache = Cache {
            halves: Pages::zeroed(VALUES),
            pairs: Pages::zeroed(VALUES / 2),
            quads: Pages::zeroed(VALUES / 4),
            scales: Pages::zeroed(VALUES / KV_GROUP),
        };
        cache.halves.fill(f16::from_f32(0.25));
        cache.pairs.fill(0x0fff_0fff);
        cache.quads.fill(0x7f7f_7f7f);
        cache.scales.fill(0.25 / 127.0);
        cache
    }

    fn slice(&self, cached: Cached, head_dim: usize) -> KvSlice<'_> {
        match cached {
            Cached::Half => KvSlice::F16(&self.halves),
            Cached::Pairs => KvSlice::I16 { pairs: &self.pairs, scales: &self.scales[..VALUES / head_dim] },
            Cached::Bytes => KvSlice::I8 { quads: &self.quads, scales: &self.scales },
        }
    }
}
