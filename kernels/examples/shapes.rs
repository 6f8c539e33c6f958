//! Speed of matrix products at the shapes of real models: for each format and shape the bytes of weights read a second with one row of
//! activations (weights from memory, as in a model), and the multiply-adds a second with 1, 8, 32 and 256 rows.
//!
//! `cargo run --release -p wick-kernels --example shapes -- [threads] [format]`

use std::num::NonZeroUsize;
use std::time::Instant;
use wick_kernels::{Cpu, Isa, MatmulScratch, MatrixRef, QuantType, ThreadPool, matmul};

/// Matrices of one call that share their input, by format: outputs of each, inputs.
const SHAPES: [(QuantType, &[usize], usize); 11] = [
    (QuantType::Q4_1, &[576, 192, 192], 576),
    (QuantType::Q4_1, &[1536, 1536], 576),
    (QuantType::Q4_1, &[576], 1536),
    (QuantType::Q8_0, &[49152], 576),
    (QuantType::Q5_0, &[896, 128, 128], 896),
    (QuantType::Q5_0, &[4864, 4864], 896),
    (QuantType::Q8_0, &[30000], 896),
    (QuantType::Q6K, &[896], 4864),
    (QuantType::Q4K, &[896], 4864),
    (QuantType::Q4K, &[1536], 8960),
    (QuantType::Q6K, &[1536], 8960),
];

/// Weights that the products cycle through, so that one row of activations finds them in memory and not in a cache.
const CYCLE_BYTES: usize = 96 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(1, |a| a.parse().expect("threads: a number"));
    let only = args.next();
    let cpu = Cpu {
        isa: Isa::detect(),
        pool: ThreadPool::new(NonZeroUsize::new(threads).expect("at least one thread")).into(),
    };
    println!("{threads} threads; GB/s and GMAC/s");
    for (ty, rows, k) in SHAPES {
        if only.as_deref().is_some_and(|name| name != ty.name()) {
            continue;
        }
        let row_bytes = ty.row_bytes(k).expect("shapes are whole blocks");
        let total: usize = rows.iter().sum();
        let copies = (CYCLE_BYTES / (total * row_bytes)).max(1);
        let data = vec![0x11u8; copies * total * row_bytes];
        let mut scratch = MatmulScratch::default();
        let rates = [1, 8, 32, 256].map(|m: usize| {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut out: Vec<Vec<f32>> = rows.iter().map(|n| vec![0.0; m * n]).collect();
            let work = (m * total * k) as f64;
            let mut best = f64::INFINITY;
            let end = Instant::now();
            let mut runs = 0;
            while runs < 3 || end.elapsed().as_secs_f64() < 0.35 {
                let mut at = runs % copies * total * row_bytes;
                let ws: Vec<MatrixRef<'_>> = rows
                    .iter()
                    .map(|&n| {
                        let data = &data[at..at + n * row_bytes];
                        at += n * row_bytes;
                        MatrixRef { ty, rows: n, cols: k, data }
                    })
                    .collect();
                let mut views: Vec<&mut [f32]> = out.iter_mut().map(|o| &mut o[..]).collect();
                let start = Instant::now();
                matmul(&cpu, &ws, &x, m, &mut views, &mut scratch);
                best = best.min(start.elapsed().as_secs_f64());
                runs += 1;
            }
            work / best / 1e9
        });
        println!(
            "{:5} {k:5} -> {rows:?}: {:5.1} GB/s; {:.1?}",
            ty.name(),
            rates[0] * row_bytes as f64 / k as f64,
            rates
        );
    }
}
