//! Attention against a naive double-precision one, and the same bits however the work is cut.

mod common;

use common::{Rng, bits, cpu, isas};
use half::f16;
use proptest::prelude::*;
use wick_kernels::{
    AttentionArgs, AttentionScratch, Cpu, Isa, KV_GROUP, KV_PIECE, KV_QUAD, KvLayout, KvSlice, KvSliceMut, SeqSpan,
    paged_attention, write_kv,
};

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    cached: Cached,
}

/// Layers of the caches; one of them is used, and the others stay NaN.
const LAYERS: usize = 3;

impl Shape {
    fn layout(&self) -> KvLayout {
        let Shape { kv_heads, head_dim, block_size, .. } = *self;
        KvLayout { layers: LAYERS, layer: 1, kv_heads, head_dim, block_size }
    }
}

/// What a cache is made of. Values are such that it holds them exactly, but for 16-bit integers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cached {
    F32,
    F16,
    I16,
    I8,
}
use Cached::{F16, F32, I8, I16};

const PLAIN: Shape =
    Shape { heads: 6, kv_heads: 2, head_dim: 64, block_size: 16, window: None, softcap: None, cached: F32 };

/// A cache with the tokens of some sequences in shuffled blocks; unused slots are NaN.
struct Case {
    shape: Shape,
    contexts: Vec<usize>,
    tables: Vec<Vec<u32>>,
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    k32: Vec<f32>,
    v32: Vec<f32>,
    k16: Vec<f16>,
    v16: Vec<f16>,
    k_pairs: Vec<u32>,
    v_pairs: Vec<u32>,
    pair_scales: [Vec<f32>; 2],
    k_quads: Vec<u32>,
    v_quads: Vec<u32>,
    k_scales: Vec<f32>,
    v_scales: Vec<f32>,
}

impl Case {
    fn new(shape: Shape, contexts: &[usize], seed: u64) -> Case {
        // Numbers of their own for the blocks: the values do not depend on the size of a block.
        let (mut rng, mut order) = (Rng(seed), Rng(!seed));
        let Shape { heads, kv_heads, head_dim, block_size, .. } = shape;
        let total: usize = contexts.iter().map(|c| c.div_ceil(block_size)).sum();
        let mut free: Vec<u32> = (0..total as u32 + 2).collect();
        let size = free.len() * LAYERS * block_size * kv_heads * head_dim;
        let mut case = Case {
            shape,
            contexts: contexts.to_vec(),
            tables: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            k32: vec![f32::NAN; size],
            v32: vec![f32::NAN; size],
            k16: vec![f16::NAN; size],
            v16: vec![f16::NAN; size],
            k_pairs: vec![0x6363_6363; size / 2],
            v_pairs: vec![0x6363_6363; size / 2],
            pair_scales: [0, 1].map(|_| vec![f32::NAN; size / head_dim]),
            k_quads: vec![0x6363_6363; size / 4],
            v_quads: vec![0x6363_6363; size / 4],
            k_scales: vec![f32::NAN; size / head_dim * head_dim.div_ceil(KV_GROUP)],
            v_scales: vec![f32::NAN; size / head_dim * head_dim.div_ceil(KV_GROUP)],
        };
        for &context in contexts {
            let table: Vec<u32> =
                (0..context.div_ceil(block_size)).map(|_| free.swap_remove(order.below(free.len()))).collect();
            let slots: Vec<u32> =
                (0..context).map(|t| table[t / block_size] * block_size as u32 + (t % block_size) as u32).collect();
            let mut make = |n: usize| -> Vec<f32> {
                let value = |i: usize| match shape.cached {
                    F32 | I16 => 2.0 * rng.float(),
                    F16 => f16::from_f32(2.0 * rng.float()).to_f32(),
                    // The scale of every group is 1/64.
                    I8 if (i % head_dim).is_multiple_of(KV_GROUP) => 127.0 / 64.0,
                    I8 => (rng.below(255) as f32 - 127.0) / 64.0,
                };
                (0..n).map(value).collect()
            };
            let (k, v) = (make(context * kv_heads * head_dim), make(context * kv_heads * head_dim));
            case.q.push(make(context * heads * head_dim));
            let cpu = cpu(Isa::detect(), 2);
            write_kv(
                &cpu,
                &k,
                &v,
                &slots,
                shape.layout(),
                KvSliceMut::F32(&mut case.k32),
                KvSliceMut::F32(&mut case.v32),
            );
            write_kv(
                &cpu,
                &k,
                &v,
                &slots,
                shape.layout(),
                KvSliceMut::F16(&mut case.k16),
                KvSliceMut::F16(&mut case.v16),
            );
            if head_dim.is_multiple_of(16) && block_size.is_multiple_of(16) {
                let [k_scales, v_scales] = &mut case.pair_scales;
                let k_cache = KvSliceMut::I16 { pairs: &mut case.k_pairs, scales: k_scales };
                let v_cache = KvSliceMut::I16 { pairs: &mut case.v_pairs, scales: v_scales };
                write_kv(&cpu, &k, &v, &slots, shape.layout(), k_cache, v_cache);
            }
            if head_dim.is_multiple_of(KV_QUAD) && block_size.is_multiple_of(KV_QUAD) {
                let k_cache = KvSliceMut::I8 { quads: &mut case.k_quads, scales: &mut case.k_scales };
                let v_cache = KvSliceMut::I8 { quads: &mut case.v_quads, scales: &mut case.v_scales };
                write_kv(&cpu, &k, &v, &slots, shape.layout(), k_cache, v_cache);
            }
            case.k.push(k);
            case.v.push(v);
            case.tables.push(table);
        }
        case
    }

    /// Attention of the last `counts[s]` rows of the first `ends[s]` tokens of each sequence.
    fn run(&self, cpu: &Cpu, ends: &[usize], counts: &[usize]) -> Vec<Vec<f32>> {
        let Shape { heads, head_dim, window, softcap, cached, .. } = self.shape;
        let width = heads * head_dim;
        let mut q = Vec::new();
        let mut seqs = Vec::new();
        for (s, (&end, &count)) in ends.iter().zip(counts).enumerate() {
            seqs.push(SeqSpan { q_start: q.len() / width, q_len: count, context_len: end, blocks: &self.tables[s] });
            q.extend_from_slice(&self.q[s][(end - count) * width..end * width]);
        }
        let (k, v) = match cached {
            F32 => (KvSlice::F32(&self.k32), KvSlice::F32(&self.v32)),
            F16 => (KvSlice::F16(&self.k16), KvSlice::F16(&self.v16)),
            I16 => (
                KvSlice::I16 { pairs: &self.k_pairs, scales: &self.pair_scales[0] },
                KvSlice::I16 { pairs: &self.v_pairs, scales: &self.pair_scales[1] },
            ),
            I8 => (
                KvSlice::I8 { quads: &self.k_quads, scales: &self.k_scales },
                KvSlice::I8 { quads: &self.v_quads, scales: &self.v_scales },
            ),
        };
        let scale = 1.0 / (head_dim as f32).sqrt();
        let args =
            AttentionArgs { q: &q, k, v, layout: self.shape.layout(), heads, scale, window, softcap, seqs: &seqs };
        let mut out = vec![f32::NAN; q.len()];
        paged_attention(cpu, &args, &mut out, &mut AttentionScratch::default());
        seqs.iter().map(|s| out[s.q_start * width..(s.q_start + s.q_len) * width].to_vec()).collect()
    }

    fn naive(&self, s: usize) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim: d, window, softcap, .. } = self.shape;
        let at = |v: &[f32], row: usize, heads: usize, h: usize, i: usize| f64::from(v[(row * heads + h) * d + i]);
        let mut out = Vec::new();
        for row in 0..self.contexts[s] {
            let low = window.map_or(0, |w| (row + 1).saturating_sub(w));
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let scores: Vec<f64> = (low..=row)
                    .map(|j| {
                        let dot: f64 =
                            (0..d).map(|i| at(&self.q[s], row, heads, h, i) * at(&self.k[s], j, kv_heads, kv, i)).sum();
                        let score = dot / (d as f64).sqrt();
                        softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..d {
                    out.push(
                        weights
                            .iter()
                            .enumerate()
                            .map(|(n, w)| w * at(&self.v[s], low + n, kv_heads, kv, i))
                            .sum::<f64>()
                            / sum,
                    );
                }
            }
        }
        out
    }

    fn check(&self, cpu: &Cpu) {
        let got = self.run(cpu, &self.contexts, &self.contexts);
        for (s, got) in got.iter().enumerate() {
            for (i, (got, want)) in got.iter().zip(self.naive(s)).enumerate() {
                // Of values up to 2: a 16-bit cache rounds them to 12 bits; beside an 8-bit one queries and weights may have 16.
                let vnni = matches!(cpu.isa, Isa::Avx512Vnni | Isa::Avx512Bf16);
                let tolerance = match self.shape.cached {
                    I16 => 1e-3,
                    I8 if vnni => 3e-4,
                    _ => 3e-6,
                };
                assert!(
                    (f64::from(*got) - want).abs() < tolerance,
                    "{:?} {:?} sequence {s} value {i}: {got} not {want}",
                    cpu.isa,
                    self.shape
                );
            }
        }
    }
}

fn shapes() -> Vec<Shape> {
    let shapes = [
        PLAIN,
        Shape { cached: F16, ..PLAIN },
        Shape { cached: I8, ..PLAIN },
        Shape { window: Some(5), ..PLAIN },
        Shape { window: Some(33), softcap: Some(2.0), cached: F16, ..PLAIN },
        Shape { softcap: Some(50.0), heads: 4, kv_heads: 4, ..PLAIN },
        Shape { heads: 9, kv_heads: 3, head_dim: 20, block_size: 4, cached: I8, ..PLAIN },
        Shape { heads: 2, kv_heads: 1, head_dim: 256, block_size: 32, window: Some(1), ..PLAIN },
        Shape { heads: 7, kv_heads: 1, head_dim: 80, block_size: 48, cached: I8, ..PLAIN },
        Shape { heads: 14, kv_heads: 2, head_dim: 8, block_size: 1, cached: F16, ..PLAIN },
        Shape { heads: 1, kv_heads: 1, head_dim: 96, block_size: 200, window: Some(130), ..PLAIN },
    ];
    let packs = |s: &Shape| s.head_dim.is_multiple_of(16) && s.block_size.is_multiple_of(16);
    let packed = shapes.into_iter().filter(packs).flat_map(|shape| [I16, I8].map(|cached| Shape { cached, ..shape }));
    shapes.into_iter().chain(packed).collect()
}

/// Around the ends of the spans in which keys are taken.
const CONTEXTS: [usize; 6] = [1, 16, 17, 127, 129, 260];

#[test]
fn matches_double_precision() {
    for isa in isas() {
        for shape in shapes() {
            Case::new(shape, &CONTEXTS, 1).check(&cpu(isa, 2));
        }
    }
}

#[test]
fn cutting_the_work_never_changes_bits() {
    for isa in isas() {
        for shape in shapes() {
            let case = Case::new(shape, &[61, 40], 2);
            let whole = case.run(&cpu(isa, 1), &[61, 40], &[61, 40]);
            for threads in [1, 2, 3] {
                for chunk in [1, 2, 7, 16, 33] {
                    same_in_chunks(&case, &cpu(isa, threads), chunk, 0, &whole);
                }
            }
        }
    }
}

#[test]
fn cutting_long_contexts_never_changes_bits() {
    for isa in isas() {
        for shape in shapes() {
            let case = Case::new(shape, &[420, 270], 5);
            let whole = case.run(&cpu(isa, 1), &[420, 270], &[420, 270]);
            // Many threads cut single rows into spans, few do not.
            for threads in [2, 9] {
                for (chunk, start) in [(1, 413), (3, 250), (64, 0)] {
                    same_in_chunks(&case, &cpu(isa, threads), chunk, start, &whole);
                }
            }
        }
    }
}

/// Rows from `start` on are the same computed a chunk at a time, with and without the other sequence in the batch.
fn same_in_chunks(case: &Case, cpu: &Cpu, chunk: usize, start: usize, whole: &[Vec<f32>]) {
    let width = case.shape.heads * case.shape.head_dim;
    for (s, whole) in whole.iter().enumerate() {
        let context = case.contexts[s];
        for start in (start..context).step_by(chunk) {
            let end = (start + chunk).min(context);
            let mut ends = [0, 0];
            let mut counts = [0, 0];
            (ends[s], counts[s]) = (end, end - start);
            let alone = case.run(cpu, &ends, &counts);
            (ends[1 - s], counts[1 - s]) = (20, 3);
            let together = case.run(cpu, &ends, &counts);
            let wanted = &whole[start * width..end * width];
            assert!(bits(&alone[s]) == bits(wanted), "{:?} {:?} {start}..{end}", cpu.isa, case.shape);
            assert!(bits(&together[s]) == bits(wanted), "{:?} {:?} {start}..{end}, together", cpu.isa, case.shape);
        }
    }
}

#[test]
fn neither_the_size_of_a_block_nor_the_width_of_its_values_changes_bits() {
    for isa in isas() {
        for (head_dim, window) in [(64, None), (20, Some(150))] {
            let shape = Shape { head_dim, window, cached: F16, ..PLAIN };
            same_in_blocks(isa, shape, &[F32, F16], &[1, 5, 8, 17, 32, 48, 64, 400]);
        }
        // Attention over packed values may be another computation.
        for ((head_dim, window), cached) in [(64, None), (48, Some(151))].into_iter().zip([I16, I8]) {
            same_in_blocks(isa, Shape { head_dim, window, cached, ..PLAIN }, &[cached], &[16, 32, 48, 400]);
        }
        // Bytes that are widened: their values are such that others hold them exactly.
        let shape = Shape { head_dim: 20, window: Some(150), cached: I8, ..PLAIN };
        same_in_blocks(isa, shape, &[F32, F16, I8], &[4, 8, 20, 64, 400]);
    }
}

fn same_in_blocks(isa: Isa, shape: Shape, formats: &[Cached], sizes: &[usize]) {
    let whole = Case::new(shape, &[290], 6).run(&cpu(isa, 2), &[290], &[290]);
    for &block_size in sizes {
        for &cached in formats {
            let mut case = Case::new(Shape { block_size, ..shape }, &[290], 6);
            case.shape.cached = cached;
            let got = case.run(&cpu(isa, 2), &[290], &[290]);
            assert!(bits(&got[0]) == bits(&whole[0]), "{isa:?} {shape:?} {block_size} {cached:?}");
        }
    }
}

#[test]
fn a_row_that_meets_nan_or_infinity_does_not_reach_others() {
    let plain = Shape { heads: 3, kv_heads: 1, head_dim: 16, ..PLAIN };
    let width = plain.heads * plain.head_dim;
    for (isa, cached) in isas().flat_map(|isa| [F32, I16, I8].map(|cached| (isa, cached))) {
        let shape = Shape { cached, ..plain };
        for bad in [3, 130, 140] {
            for (poison, in_k) in [(f32::NAN, true), (f32::NAN, false), (f32::INFINITY, false)] {
                let clean = Case::new(shape, &[150], 7);
                let mut case = Case::new(shape, &[150], 7);
                let block = (case.tables[0][bad / 16] as usize * LAYERS + 1) * 16 * 16;
                // One key's first dimension, or one value's.
                let (k, v) = (block + bad % 16, block + bad % 16 * 16);
                match (cached, in_k) {
                    (F32, true) => case.k32[k] = poison,
                    (F32, false) => case.v32[v] = poison,
                    // The scale of all dimensions.
                    (I8, true) => case.k_scales[k - block + block / 16] = f32::NAN,
                    (I8, false) => case.v_scales[k - block + block / 16] = f32::NAN,
                    (_, true) => case.pair_scales[0][k - block + block / 16] = f32::NAN,
                    (_, false) => case.pair_scales[1][k - block + block / 16] = f32::NAN,
                }
                let (got, want) = (case.run(&cpu(isa, 2), &[150], &[150]), clean.run(&cpu(isa, 2), &[150], &[150]));
                let (before, from) = got[0].split_at(bad * width);
                assert!(bits(before) == bits(&want[0][..bad * width]), "{isa:?} rows before {bad}");
                for (i, value) in from.iter().enumerate() {
                    let hit = in_k || i % 16 == 0 || cached != F32;
                    assert_eq!(value.is_finite(), !hit, "{isa:?} key {bad}, {poison}, value {i}: {value}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "outside the cache")]
fn a_block_outside_the_cache_is_refused() {
    let mut case = Case::new(PLAIN, &[20], 3);
    case.tables[0][1] = 99;
    case.run(&cpu(Isa::Scalar, 1), &[20], &[1]);
}

#[test]
#[should_panic(expected = "slot 64 is outside")]
fn a_slot_outside_the_cache_is_refused() {
    let mut cache = [vec![0.0; 64 * 8], vec![0.0; 64 * 8]];
    let [k, v] = &mut cache;
    let layout = KvLayout { layers: 1, layer: 0, kv_heads: 1, head_dim: 8, block_size: 16 };
    write_kv(&cpu(Isa::Scalar, 1), &[0.0; 8], &[0.0; 8], &[64], layout, KvSliceMut::F32(k), KvSliceMut::F32(v));
}

#[test]
fn eight_bits_round_to_the_nearest_and_pass_on_what_is_not_finite() {
    let cpu = cpu(Isa::detect(), 1);
    let (d, block_size) = (40, 4);
    let mut rng = Rng(9);
    let mut row: Vec<f32> = (0..d).map(|_| rng.float()).collect();
    row[35] = f32::INFINITY;
    let (mut k, mut v) = (vec![0; d], vec![0; d]);
    let (mut k_scales, mut v_scales) = (vec![0.0; 8], vec![0.0; 8]);
    let k_cache = KvSliceMut::I8 { quads: &mut k, scales: &mut k_scales };
    let v_cache = KvSliceMut::I8 { quads: &mut v, scales: &mut v_scales };
    let layout = KvLayout { layers: 1, layer: 0, kv_heads: 1, head_dim: d, block_size };
    write_kv(&cpu, &row, &row, &[1], layout, k_cache, v_cache);
    let amax = row[..KV_GROUP].iter().fold(0.0f32, |m, x| m.max(x.abs()));
    // Groups are four slots apart.
    assert_eq!([k_scales[1], v_scales[1]], [amax / 127.0; 2]);
    assert!(k_scales[5].is_nan() && v_scales[5].is_nan());
    for (i, x) in row[..KV_GROUP].iter().enumerate() {
        // Four dimensions of a key, the second of four values.
        let (key, value) = (k[i / 4 * 4 + 1].to_le_bytes()[i % 4], v[i].to_le_bytes()[1]);
        assert_eq!([key, value], [((x * (127.0 / amax)).round_ties_even() as i8).cast_unsigned(); 2], "dimension {i}");
    }
}

#[test]
fn sixteen_bits_have_a_norm_or_a_largest_value_and_pass_on_what_is_not_finite() {
    let cpu = cpu(Isa::detect(), 1);
    let (d, block_size) = (32, 16);
    let mut rng = Rng(9);
    let row: Vec<f32> = (0..d).map(|_| rng.float()).collect();
    let (mut k, mut v) = (vec![0; d / 2 * block_size], vec![0; d / 2 * block_size]);
    let (mut k_scales, mut v_scales) = (vec![0.0; block_size], vec![0.0; block_size]);
    let layout = KvLayout { layers: 1, layer: 0, kv_heads: 1, head_dim: d, block_size };
    let mut write = |slot: u32, row: &[f32]| {
        let k_cache = KvSliceMut::I16 { pairs: &mut k, scales: &mut k_scales };
        let v_cache = KvSliceMut::I16 { pairs: &mut v, scales: &mut v_scales };
        write_kv(&cpu, row, row, &[slot], layout, k_cache, v_cache);
    };
    let mut infinite = row.clone();
    infinite[5] = f32::INFINITY;
    write(3, &row);
    write(4, &infinite);
    write(5, &[0.0; 32]);
    let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!((f64::from(k_scales[3]) * 32000.0 / norm - 1.0).abs() < 1e-6);
    assert_eq!(v_scales[3], largest / 4095.0);
    assert!(k_scales[4].is_nan() && v_scales[4].is_nan());
    assert_eq!([k_scales[5], v_scales[5]], [0.0; 2]);
    for (i, x) in row.iter().enumerate() {
        let half = |pair: u32, high: bool| f32::from((pair >> (16 * u32::from(high))) as i16);
        let key = half(k[i / 2 * block_size + 3], i % 2 == 1) * k_scales[3];
        let value = half(v[d + i], true) * v_scales[3];
        assert!((key - x).abs() <= 0.501 * k_scales[3], "dimension {i} of the key: {key}, not {x}");
        assert!((value - x).abs() <= 0.501 * v_scales[3], "dimension {i} of the value: {value}, not {x}");
    }
}

#[test]
fn no_sequences_are_no_work() {
    for threads in [1, 3] {
        Case::new(PLAIN, &[20], 3).run(&cpu(Isa::detect(), threads), &[], &[]);
    }
}

#[test]
fn every_table_rounds_to_the_same_sixteen_bits() {
    let (d, block_size, tokens) = (80, 16, 40);
    let layout = KvLayout { layers: 2, layer: 1, kv_heads: 3, head_dim: d, block_size };
    let mut rng = Rng(13);
    let mut rows: Vec<f32> = (0..tokens * 3 * d).map(|_| rng.float() * 8.0).collect();
    (rows[7], rows[3 * d + 9], rows[6 * d + 1]) = (f32::NAN, f32::INFINITY, 1e30);
    rows[9 * d..10 * d].fill(0.0);
    // Blocks in no order; the last tokens are written to one again.
    let slots: Vec<u32> =
        (0..tokens as u32).map(|t| [48, 0, 16, 48][t as usize / 16 + usize::from(t > 36)] + t % 16).collect();
    let written = |isa| {
        let words = 4 * 2 * 3 * block_size * d / 2;
        let (mut k, mut v) = (vec![0x1234_5678; words], vec![0x1234_5678; words]);
        let (mut k_scales, mut v_scales) = (vec![0.0; words * 2 / d], vec![0.0; words * 2 / d]);
        let k_cache = KvSliceMut::I16 { pairs: &mut k, scales: &mut k_scales };
        let v_cache = KvSliceMut::I16 { pairs: &mut v, scales: &mut v_scales };
        write_kv(&cpu(isa, 3), &rows, &rows, &slots, layout, k_cache, v_cache);
        (k, v, bits(&k_scales), bits(&v_scales))
    };
    let reference = written(Isa::Scalar);
    for isa in isas() {
        assert!(written(isa) == reference, "{isa:?}");
    }
}

/// All in one dimension, or all alike: sums are as large as they can be, and exact.
#[test]
fn sums_of_sixteen_bits_never_overflow() {
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 256, cached: I16, ..PLAIN };
    for one in [true, false] {
        for sign in [1.0f32, -1.0] {
            let mut case = Case::new(shape, &[128], 11);
            let row: Vec<f32> = (0..256).map(|i| if one && i > 0 { 0.0 } else { sign * 3.0 }).collect();
            let all: Vec<f32> = row.iter().copied().cycle().take(128 * 256).collect();
            (case.q[0], case.k[0], case.v[0]) = (all.clone(), all.iter().map(|x| x.abs()).collect(), all);
            let table = &case.tables[0];
            let slots: Vec<u32> = (0..128).map(|t| table[t / 16] * 16 + (t % 16) as u32).collect();
            let [k_scales, v_scales] = &mut case.pair_scales;
            let k_cache = KvSliceMut::I16 { pairs: &mut case.k_pairs, scales: k_scales };
            let v_cache = KvSliceMut::I16 { pairs: &mut case.v_pairs, scales: v_scales };
            write_kv(&cpu(Isa::detect(), 1), &case.k[0], &case.v[0], &slots, shape.layout(), k_cache, v_cache);
            for isa in isas() {
                case.check(&cpu(isa, 1));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(
        kv_heads in 1..4usize, group in 1..5usize, head_dim in 1..40usize, block_size in 1..20usize,
        window in proptest::option::of(1..40usize), cached in prop::sample::select(vec![F32, F16, I16, I8]),
        contexts in proptest::collection::vec(1..50usize, 1..4), seed: u64,
    ) {
        let of = match cached {
            F32 | F16 => 1,
            I16 => KV_PIECE,
            I8 => KV_QUAD,
        };
        let (head_dim, block_size) = (head_dim.next_multiple_of(of), block_size.next_multiple_of(of));
        let shape = Shape { heads: kv_heads * group, kv_heads, head_dim, block_size, window, softcap: None, cached };
        let case = Case::new(shape, &contexts, seed);
        for isa in isas() {
            case.check(&cpu(isa, 2));
        }
    }
}
