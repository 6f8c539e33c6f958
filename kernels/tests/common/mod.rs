//! Shared by the kernel tests: a small generator of numbers, processors to test, random matrices.
#![allow(dead_code)]

use std::fmt::Debug;
use std::num::NonZeroUsize;
use wick_kernels::{Cpu, Isa, Precision, QuantType, ThreadPool};

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Mostly small, now and then large: like hidden states.
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| if self.below(50) == 0 { 20.0 * self.float() } else { self.float() }).collect()
    }

    /// Random blocks of `rows` rows with scales of a sensible size.
    pub fn matrix(&mut self, ty: QuantType, rows: usize, cols: usize) -> Vec<u8> {
        let mut data: Vec<u8> = (0..rows * ty.row_bytes(cols).unwrap()).map(|_| self.next() as u8).collect();
        for block in data.chunks_exact_mut(ty.block_bytes()) {
            let halves: &[usize] = match ty {
                QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 => &[0],
                QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => &[0, 2],
                QuantType::Q2K => &[80, 82],
                QuantType::Q3K => &[108],
                QuantType::Q6K => &[208],
                QuantType::F16 => &[0],
                _ => &[],
            };
            for &at in halves {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(self.float() * 0.05).to_le_bytes());
            }
            match ty {
                QuantType::F32 | QuantType::Q8K => block[..4].copy_from_slice(&self.float().to_le_bytes()),
                QuantType::BF16 => block.copy_from_slice(&half::bf16::from_f32(self.float()).to_le_bytes()),
                _ => {}
            }
        }
        data
    }
}

pub fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu { isa, pool: ThreadPool::new(NonZeroUsize::new(threads).unwrap()).into() }
}

/// Every instruction set this machine can run.
pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Products of the rows of `x` with the rows of `wide`, `k` values each, are those of double precision:
/// |error| <= tolerance * |row of w| * |row of x|.
#[allow(dead_code)] // each test crate uses its own part
pub fn assert_products(what: &str, wide: &[f32], x: &[f32], k: usize, got: &[f32], tolerance: f64) {
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let rows = wide.len() / k;
    for (r, x) in x.chunks_exact(k).enumerate() {
        for (j, w) in wide.chunks_exact(k).enumerate() {
            let want: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let error = (f64::from(got[r * rows + j]) - want).abs();
            let limit = tolerance * norm(w) * norm(x);
            assert!(error <= limit, "{what} [{r},{j}]: {} not {want}, error {error} > {limit}", got[r * rows + j]);
        }
    }
}

/// Products of a group of matrices of `k` columns are, to the bit, those of each alone. `group` may keep buffers between its calls.
pub fn assert_group<M: Debug>(
    ws: &[(M, usize)],
    k: usize,
    rng: &mut Rng,
    mut group: impl FnMut(&[&M], &[f32], usize, &mut [&mut [f32]], Precision),
    alone: impl Fn(&M, &[f32], usize, Precision) -> Vec<f32>,
) {
    for (m, precision) in [(9, Precision::Int8), (1, Precision::Exact), (4, Precision::Int8), (5, Precision::Exact)] {
        let x = rng.floats(m * k);
        let mut outs: Vec<Vec<f32>> = ws.iter().map(|(_, rows)| vec![f32::NAN; rows * m]).collect();
        let mut views: Vec<&mut [f32]> = outs.iter_mut().map(|o| &mut o[..]).collect();
        group(&ws.iter().map(|(w, _)| w).collect::<Vec<_>>(), &x, m, &mut views, precision);
        for ((w, _), out) in ws.iter().zip(&outs) {
            assert_eq!(bits(out), bits(&alone(w, &x, m, precision)), "{w:?} m={m}");
        }
    }
}
