//! Speed of the kernels on this machine: read bandwidth, then for each format the bytes of weights read a second with one row of
//! activations and the multiply-adds a second with 64 rows; then the same for packed matrices, with up to 512 rows, against the measured
//! limit of the integer dot product. Run with optimisation, on an idle machine:
//!
//! `cargo run --release -p wick-kernels --example speed -- [threads] [isa] [format or all] [blocks, packed or small]`

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;
use wick_kernels::{
    Activation, AttentionArgs, AttentionScratch, Cpu, Isa, KvSlice, MatmulScratch, MatrixRef, PackedMatrix,
    PackedScratch, Precision, QuantType, SeqSpan, ThreadPool, gated_activation, matmul, packed_matmul, paged_attention,
    rms_norm,
};

/// Seconds of the fastest of some runs.
fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn bandwidth(cpu: &Cpu) -> f64 {
    let data = vec![1u64; 32 << 20];
    let mut pieces = data.chunks_exact(1 << 19).cycle();
    let seconds = best(320, || {
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
    let only = args.next().filter(|name| name != "all");
    let form = args.next();
    let wanted = |name: &str| form.as_deref().is_none_or(|form| form == name);
    let cpu = Cpu { isa, pool: ThreadPool::new(NonZeroUsize::new(threads).expect("at least one thread")).into() };
    let roof = bandwidth(&cpu);
    println!("{} threads, {}: read bandwidth {roof:.1} GB/s", threads, isa.name());
    println!(
        "{:6} {:>10} {:>8} {:>8} {:>8} {:>12} {:>12}",
        "format", "m=1 GB/s", "of roof", "GMAC/s", "cached", "m=8 GMAC/s", "m=64 GMAC/s"
    );
    for ty in QuantType::ALL.into_iter().filter(|_| wanted("blocks")) {
        if only.as_deref().is_some_and(|name| name != ty.name()) {
            continue;
        }
        // About 128 MB, well beyond the cache, read in pieces of 4 MB: short runs find a moment without other processes.
        let k = 2048;
        let row_bytes = ty.row_bytes(k).expect("2048 is a whole number of blocks");
        let rows = (4 << 20) / row_bytes / 16 * 16;
        let data = vec![0x11u8; 32 * rows * row_bytes];
        let x: Vec<f32> = (0..64 * k).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut out = vec![0.0; 64 * rows];
        let mut scratch = MatmulScratch::default();
        let mut pieces = data.chunks_exact(rows * row_bytes).cycle();
        let gemv = best(320, || {
            let data = pieces.next().expect("a cycle does not end");
            matmul(&cpu, &[MatrixRef { ty, rows, cols: k, data }], &x[..k], 1, &mut [&mut out[..rows]], &mut scratch);
        });
        let n = rows.min(256);
        let part = MatrixRef { ty, rows: n, cols: k, data: &data[..n * row_bytes] };
        let mut rate = |m: usize| {
            let seconds = best(60, || matmul(&cpu, &[part], &x[..m * k], m, &mut [&mut out[..m * n]], &mut scratch));
            (m * n * k) as f64 / seconds / 1e9
        };
        let (cached, eight, many) = (rate(1), rate(8), rate(64));
        let speed = (rows * row_bytes) as f64 / gemv / 1e9;
        println!(
            "{:6} {speed:10.1} {:7.0}% {:8.1} {cached:8.1} {eight:12.1} {many:12.1}",
            ty.name(),
            100.0 * speed / roof,
            (rows * k) as f64 / gemv / 1e9,
        );
    }
    if isa.packs() && wanted("packed") {
        packed(&cpu, roof, only.as_deref());
    }
    if only.is_none() && (form.is_none() || wanted("small")) {
        small(&cpu);
        attention(&cpu);
    }
}

/// Multiply-adds a second of `vpdpbusd` on all threads, with nothing to load, in 10^9. NaN for instruction sets without its widest form.
#[cfg(target_arch = "x86_64")]
fn integer_roof(cpu: &Cpu) -> f64 {
    use std::arch::x86_64::*;
    const TURNS: usize = 100_000;
    if cpu.isa != Isa::Avx512Vnni {
        return f64::NAN;
    }
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn chains() {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }
    let threads = cpu.pool.threads();
    // SAFETY: the instruction set is AVX-512 with VNNI, which `Isa::from_name` and `Isa::detect` have checked.
    let seconds = best(20, || cpu.pool.run(threads, &|_| unsafe { chains() }));
    (threads * TURNS * 16 * 64) as f64 / seconds / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn integer_roof(_: &Cpu) -> f64 {
    f64::NAN
}

fn packed(cpu: &Cpu, bandwidth: f64, only: Option<&str>) {
    let roof = integer_roof(cpu);
    if !roof.is_nan() {
        println!("packed: vpdpbusd {roof:.0} GMAC/s");
    }
    println!(
        "{:6} {:>9} {:>10} {:>8} {:>9} | GMAC/s (of roof) with 1 row cached, 8, 32, 64 and 512; 1 and 64 exact",
        "format", "pack GB/s", "m=1 GB/s", "of roof", "GMAC/s"
    );
    for ty in QuantType::ALL {
        let k = 2048;
        let row_bytes = ty.row_bytes(k).expect("2048 is a whole number of blocks");
        let rows = (16 << 20) / row_bytes / 16 * 16;
        if only.is_some_and(|name| name != ty.name()) || PackedMatrix::bytes_for(ty, rows, k).is_none() {
            continue;
        }
        let data = vec![0x11u8; rows * row_bytes];
        let pack = |n: usize| {
            let data = &data[..n * row_bytes];
            PackedMatrix::pack(cpu, MatrixRef { ty, rows: n, cols: k, data }).expect("a format that is packed")
        };
        let packing = best(5, || drop(black_box(pack(rows))));
        let pieces: Vec<PackedMatrix> = (0..8).map(|_| pack(rows)).collect();
        let x: Vec<f32> = (0..512 * k).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut out = vec![0.0; 512 * rows];
        let mut scratch = PackedScratch::default();
        let mut next = pieces.iter().cycle();
        let gemv = best(320, || {
            let w = next.next().expect("a cycle does not end");
            packed_matmul(cpu, &[w], &x[..k], 1, &mut [&mut out[..rows]], &mut scratch, Precision::Int8);
        });
        let n = rows.min(1024);
        let part = pack(n);
        let mut rate = |m: usize, precision| {
            let out = &mut out[..m * n];
            let seconds = best(if m > 64 { 20 } else { 60 }, || {
                packed_matmul(cpu, &[&part], &x[..m * k], m, &mut [&mut *out], &mut scratch, precision);
            });
            let rate = (m * n * k) as f64 / seconds / 1e9;
            if roof.is_nan() { format!("{rate:.0}") } else { format!("{rate:.0} ({:.0}%)", 100.0 * rate / roof) }
        };
        let rates: Vec<String> = [1, 8, 32, 64, 512].into_iter().map(|m| rate(m, Precision::Int8)).collect();
        let speed = pieces[0].bytes() as f64 / gemv / 1e9;
        println!(
            "{:6} {:9.2} {speed:10.1} {:7.0}% {:9.1} | {}; {}, {}",
            ty.name(),
            data.len() as f64 / packing / 1e9,
            100.0 * speed / bandwidth,
            (rows * k) as f64 / gemv / 1e9,
            rates.join(", "),
            rate(1, Precision::Exact),
            rate(64, Precision::Exact)
        );
    }
}

fn small(cpu: &Cpu) {
    let (w, k) = (576 * 576 / 32 * 20, 576);
    let data = vec![0x11u8; w];
    let (x, mut out, mut scratch) = (vec![0.5; k], vec![0.0; 576], MatmulScratch::default());
    let w = MatrixRef { ty: QuantType::Q4_1, rows: 576, cols: k, data: &data };
    let matrix = best(2000, || matmul(cpu, &[w], &x, 1, &mut [&mut out], &mut scratch));
    let packed = PackedMatrix::pack(cpu, w).expect("a format that is packed");
    let mut packed_scratch = PackedScratch::default();
    let [int8, exact] = [Precision::Int8, Precision::Exact].map(|precision| {
        best(2000, || packed_matmul(cpu, &[&packed], &x, 1, &mut [&mut out], &mut packed_scratch, precision))
    });
    let norm = best(2000, || rms_norm(cpu, &x, &x, 1e-5, &mut out));
    let (gate, mut gated) = (vec![0.3; 1536], vec![0.0; 1536]);
    let silu = best(2000, || gated_activation(cpu, Activation::Silu, &gate, &gate, &mut gated));
    let region = best(2000, || cpu.pool.run(cpu.pool.threads(), &|_| {}));
    println!(
        "one row: Q4_1 576x576 {:.1} us, packed {:.1} us, packed and exact {:.1} us, rms_norm 576 {:.2} us, silu 1536 {:.2} us, empty region {:.2} us",
        matrix * 1e6,
        int8 * 1e6,
        exact * 1e6,
        norm * 1e6,
        silu * 1e6,
        region * 1e6
    );
}

fn attention(cpu: &Cpu) {
    let (heads, kv_heads, head_dim, block_size, context) = (12, 2, 128, 16, 1024);
    let cache = vec![0.01f32; context * kv_heads * head_dim];
    let half: Vec<half::f16> = cache.iter().map(|&v| half::f16::from_f32(v)).collect();
    let blocks: Vec<u32> = (0..(context / block_size) as u32).collect();
    for (name, kv) in [("f32", KvSlice::F32(&cache)), ("f16", KvSlice::F16(&half))] {
        for q_len in [1, 512] {
            let q = vec![0.02; q_len * heads * head_dim];
            let mut out = vec![0.0; q.len()];
            let seqs = [SeqSpan { q_start: 0, q_len, context_len: context, blocks: &blocks }];
            let args = AttentionArgs {
                q: &q,
                k: kv,
                v: kv,
                heads,
                kv_heads,
                head_dim,
                block_size,
                scale: 0.1,
                window: None,
                softcap: None,
                seqs: &seqs,
            };
            let mut scratch = AttentionScratch::default();
            let seconds = best(20, || paged_attention(cpu, &args, &mut out, &mut scratch));
            let keys: usize = (0..q_len).map(|i| context - i).sum();
            let rate = (2 * keys * heads * head_dim) as f64 / seconds / 1e9;
            println!(
                "attention {name}, {heads}/{kv_heads} heads of {head_dim}, context {context}, {q_len} rows: {:.0} us, {rate:.1} GMAC/s",
                seconds * 1e6
            );
        }
    }
}
