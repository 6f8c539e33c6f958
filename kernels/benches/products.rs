//! Matrix products against this machine's limits, which are measured first: with one row of activations the bytes of weights read a
//! second, as a share of the bandwidth of reading memory; with more the multiply-adds a second, as a share of the integer dot product's.
//! First packed matrices, of blocks and of floats, then those that stay as they are in the file; then the small operations of a step with one row.
//!
//! `cargo bench -p wick-kernels --bench products -- [threads] [isa] [format or all] [packed, floats, blocks or small]`, on an idle machine. A format
//! that does not exist, such as `roofs`, leaves the limits alone.

mod common;

use common::Setup;
use std::hint::black_box;
use wick_kernels::{
    Activation, FloatMatrix, FloatScratch, MatmulScratch, MatrixRef, PackedMatrix, PackedScratch, Precision, QuantType,
    float_matmul, gated_activation, matmul, packed_matmul, rms_norm,
};

fn main() {
    let setup = Setup::from_args();
    let cpu = &setup.cpu;
    let only = setup.words.first().filter(|name| *name != "all").map(String::as_str);
    let form = setup.words.get(1).map(String::as_str);
    let wanted = |name: &str| form.is_none_or(|form| form == name);
    let bandwidth = setup.bandwidth();
    println!("{} threads, {}: read bandwidth {bandwidth:.1} GB/s", cpu.pool.threads(), cpu.isa.name());
    if cpu.isa.packs() && wanted("packed") {
        packed(&setup, bandwidth, only);
    }
    if cpu.isa.packs() && wanted("floats") {
        floats(&setup, bandwidth, only);
    }
    if wanted("blocks") {
        blocks(&setup, bandwidth, only);
    }
    if only.is_none() && wanted("small") {
        small(&setup);
    }
}

/// Bytes of weights that one product reads.
fn piece_bytes(setup: &Setup) -> usize {
    if setup.smoke { 256 << 10 } else { 4 << 20 }
}

fn blocks(setup: &Setup, bandwidth: f64, only: Option<&str>) {
    let cpu = &setup.cpu;
    println!(
        "{:6} {:>10} {:>8} {:>8} {:>8} {:>12} {:>12}",
        "format", "m=1 GB/s", "of roof", "GMAC/s", "cached", "m=8 GMAC/s", "m=64 GMAC/s"
    );
    for ty in QuantType::ALL {
        if only.is_some_and(|name| name != ty.name()) {
            continue;
        }
        // About 128 MB, well beyond the cache, read in pieces of 4 MB: short runs find a moment without other processes.
        let k = 2048;
        let row_bytes = ty.row_bytes(k).expect("2048 is a whole number of blocks");
        let rows = piece_bytes(setup) / row_bytes / 16 * 16;
        let data = vec![0x11u8; 32 * rows * row_bytes];
        let x: Vec<f32> = (0..64 * k).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut out = vec![0.0; 64 * rows];
        let mut scratch = MatmulScratch::default();
        let mut pieces = data.chunks_exact(rows * row_bytes).cycle();
        let gemv = setup.best(320, || {
            let data = pieces.next().expect("a cycle does not end");
            matmul(cpu, &[MatrixRef { ty, rows, cols: k, data }], &x[..k], 1, &mut [&mut out[..rows]], &mut scratch);
        });
        let n = rows.min(256);
        let part = MatrixRef { ty, rows: n, cols: k, data: &data[..n * row_bytes] };
        let mut rate = |m: usize| {
            let seconds =
                setup.best(60, || matmul(cpu, &[part], &x[..m * k], m, &mut [&mut out[..m * n]], &mut scratch));
            (m * n * k) as f64 / seconds / 1e9
        };
        let (cached, eight, many) = (rate(1), rate(8), rate(64));
        let speed = (rows * row_bytes) as f64 / gemv / 1e9;
        println!(
            "{:6} {speed:10.1} {:7.0}% {:8.1} {cached:8.1} {eight:12.1} {many:12.1}",
            ty.name(),
            100.0 * speed / bandwidth,
            (rows * k) as f64 / gemv / 1e9,
        );
    }
}

/// Multiply-adds a second of `vpdpbusd` on all threads, with nothing to load, in 10^9. NaN for instruction sets without its widest form.
#[cfg(target_arch = "x86_64")]
fn integer_roof(setup: &Setup) -> f64 {
    use std::arch::x86_64::*;
    const TURNS: usize = 100_000;
    if ![wick_kernels::Isa::Avx512Vnni, wick_kernels::Isa::Avx512Bf16].contains(&setup.cpu.isa) {
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
    // SAFETY: the instruction set is AVX-512 with VNNI, which `Isa::from_name` and `Isa::detect` have checked.
    setup.rate(TURNS * 16 * 64, || unsafe { chains() })
}

#[cfg(not(target_arch = "x86_64"))]
fn integer_roof(_: &Setup) -> f64 {
    f64::NAN
}

/// `rate`, and as a share of `roof` where that is known.
fn share(rate: f64, roof: f64) -> String {
    if roof.is_nan() { format!("{rate:.0}") } else { format!("{rate:.0} ({:.0}%)", 100.0 * rate / roof) }
}

/// How fast matrices of 2,048 columns are packed and multiplied.
struct Rates {
    /// Bytes of the file a second, in 10^9.
    packing: f64,
    /// One row: bytes of packed weights a second, in 10^9, and multiply-adds.
    speed: f64,
    one: f64,
    /// Multiply-adds a second, in 10^9, of some rows with weights from memory, and with weights from the cache.
    streamed: Vec<f64>,
    cached: Vec<f64>,
}

/// Measures matrices of `ty` that `pack` packs, `bytes` knows the size of, and `multiply` multiplies with so many rows: 1 and those of
/// `streamed` with weights from memory, in the first precision of `cached`, and those of `cached` with weights from the cache.
fn measure<M>(
    setup: &Setup,
    ty: QuantType,
    pack: impl Fn(MatrixRef<'_>) -> M,
    bytes: impl Fn(&M) -> usize,
    mut multiply: impl FnMut(&M, &[f32], usize, &mut [f32], Precision),
    streamed: &[usize],
    cached: &[(usize, Precision)],
) -> Rates {
    let k = 2048;
    let row_bytes = ty.row_bytes(k).expect("2048 is a whole number of blocks");
    let rows = 4 * piece_bytes(setup) / row_bytes / 32 * 32;
    let data = vec![0x11u8; rows * row_bytes];
    let pack = |rows: usize| pack(MatrixRef { ty, rows, cols: k, data: &data[..rows * row_bytes] });
    let packing = setup.best(5, || drop(black_box(pack(rows))));
    let pieces: Vec<M> = (0..8).map(|_| pack(rows)).collect();
    let x: Vec<f32> = (0..512 * k).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut out = vec![0.0; 512 * rows];
    let rate = |m: usize, rows: usize, seconds: f64| (m * rows * k) as f64 / seconds / 1e9;
    let mut next = pieces.iter().cycle();
    let mut stream = |m: usize, runs: usize| {
        setup.best(runs, || {
            let w = next.next().expect("a cycle does not end");
            multiply(w, &x[..m * k], m, &mut out[..m * rows], cached[0].1);
        })
    };
    let seconds = stream(1, 320);
    let streamed = streamed.iter().map(|&m| rate(m, rows, stream(m, 80))).collect();
    let n = rows.min(1024);
    let part = pack(n);
    let cached = cached.iter().map(|&(m, precision)| {
        let runs = if m > 64 { 20 } else { 60 };
        rate(m, n, setup.best(runs, || multiply(&part, &x[..m * k], m, &mut out[..m * n], precision)))
    });
    Rates {
        packing: data.len() as f64 / packing / 1e9,
        speed: bytes(&pieces[0]) as f64 / seconds / 1e9,
        one: rate(1, rows, seconds),
        streamed,
        cached: cached.collect(),
    }
}

/// Rows of activations that weights in the cache are multiplied with.
const CACHED: [usize; 5] = [1, 8, 32, 64, 512];

fn packed(setup: &Setup, bandwidth: f64, only: Option<&str>) {
    let cpu = &setup.cpu;
    let roof = integer_roof(setup);
    if !roof.is_nan() {
        println!("packed: vpdpbusd {roof:.0} GMAC/s");
    }
    println!(
        "{:6} {:>9} {:>10} {:>8} {:>9} {:>19} | cached: GMAC/s (of roof) with 1, 8, 32, 64 and 512 rows; 1 and 64 exact",
        "format", "pack GB/s", "m=1 GB/s", "of roof", "GMAC/s", "m=2, 4, 8, 12"
    );
    let cached = CACHED.map(|m| (m, Precision::Int8)).into_iter().chain([1, 64].map(|m| (m, Precision::Exact)));
    let cached: Vec<_> = cached.collect();
    for ty in QuantType::ALL {
        if only.is_some_and(|name| name != ty.name()) || PackedMatrix::bytes_for(ty, 1, 256).is_none() {
            continue;
        }
        let mut scratch = PackedScratch::default();
        let rates = measure(
            setup,
            ty,
            |w| PackedMatrix::pack(cpu, w, &|_| {}).expect("a format that is packed"),
            PackedMatrix::bytes,
            |w, x, m, out, precision| packed_matmul(cpu, &[w], x, m, &mut [out], &mut scratch, precision),
            &[2, 4, 8, 12],
            &cached,
        );
        let shares: Vec<String> = rates.cached.iter().map(|&rate| share(rate, roof)).collect();
        let (int8, exact) = shares.split_at(CACHED.len());
        println!(
            "{:6} {:9.2} {:10.1} {:7.0}% {:9.1} {} | {}; {}",
            ty.name(),
            rates.packing,
            rates.speed,
            100.0 * rates.speed / bandwidth,
            rates.one,
            rates.streamed.iter().map(|rate| format!("{rate:4.0}")).collect::<Vec<_>>().join(" "),
            int8.join(", "),
            exact.join(", ")
        );
    }
}

fn floats(setup: &Setup, bandwidth: f64, only: Option<&str>) {
    let cpu = &setup.cpu;
    let roof = setup.multiply_add_roof(false) / 2.0;
    if !roof.is_nan() {
        println!("floats: fused multiply-adds {roof:.0} GMAC/s");
    }
    println!(
        "{:12} {:>9} {:>10} {:>8} | GMAC/s (of roof) with 1 row cached, 8, 32, 64 and 512",
        "format", "pack GB/s", "m=1 GB/s", "of roof"
    );
    for (ty, precision) in [
        (QuantType::F32, Precision::Exact),
        (QuantType::F16, Precision::Exact),
        (QuantType::BF16, Precision::Exact),
        (QuantType::BF16, Precision::Int8),
    ] {
        if only.is_some_and(|name| name != ty.name()) {
            continue;
        }
        let mut scratch = FloatScratch::default();
        let rates = measure(
            setup,
            ty,
            |w| FloatMatrix::pack(cpu, w, &|_| {}).expect("a float format"),
            FloatMatrix::bytes,
            |w, x, m, out, precision| float_matmul(cpu, &[w], x, m, &mut [out], &mut scratch, precision),
            &[],
            &CACHED.map(|m| (m, precision)),
        );
        println!(
            "{:12} {:9.2} {:10.1} {:7.0}% | {}",
            if precision == Precision::Exact { ty.name().to_owned() } else { format!("{} rounded", ty.name()) },
            rates.packing,
            rates.speed,
            100.0 * rates.speed / bandwidth,
            rates.cached.iter().map(|&rate| share(rate, roof)).collect::<Vec<_>>().join(", "),
        );
    }
}

fn small(setup: &Setup) {
    let cpu = &setup.cpu;
    let (w, k) = (576 * 576 / 32 * 20, 576);
    let data = vec![0x11u8; w];
    let (x, mut out, mut scratch) = (vec![0.5; k], vec![0.0; 576], MatmulScratch::default());
    let w = MatrixRef { ty: QuantType::Q4_1, rows: 576, cols: k, data: &data };
    let matrix = setup.best(2000, || matmul(cpu, &[w], &x, 1, &mut [&mut out], &mut scratch));
    let packed = PackedMatrix::pack(cpu, w, &|_| {}).expect("a format that is packed");
    let mut packed_scratch = PackedScratch::default();
    let [int8, exact] = [Precision::Int8, Precision::Exact].map(|precision| {
        setup.best(2000, || packed_matmul(cpu, &[&packed], &x, 1, &mut [&mut out], &mut packed_scratch, precision))
    });
    let norm = setup.best(2000, || rms_norm(cpu, &x, &x, 1e-5, &mut out));
    let (gate, mut gated) = (vec![0.3; 1536], vec![0.0; 1536]);
    let silu = setup.best(2000, || gated_activation(cpu, Activation::Silu, &gate, &gate, &mut gated));
    let region = setup.best(2000, || cpu.pool.run(cpu.pool.threads(), &|_| {}));
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
