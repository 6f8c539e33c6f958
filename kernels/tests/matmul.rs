//! Matrix products: right within the stated tolerance, and the same bits in any batch.

mod common;

use common::{Rng, assert_products, bits, cpu, isas};
use proptest::prelude::*;
use wick_kernels::{Cpu, Isa, MatmulScratch, MatrixRef, QuantType, dequantize, matmul};

fn product(cpu: &Cpu, w: MatrixRef<'_>, x: &[f32], m: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows];
    matmul(cpu, &[w], x, m, &mut [&mut out], &mut MatmulScratch::default());
    out
}

/// Columns that a format allows, to try: whole panels, part panels, and lengths that are no multiple of a vector.
fn widths(ty: QuantType) -> &'static [usize] {
    match ty.block_len() {
        1 => &[576, 7, 64, 1001],
        32 => &[576, 32, 256, 896],
        _ => &[512, 256, 1280],
    }
}

/// |error| of an output <= tolerance * |row of w| * |row of x|.
fn check(ty: QuantType, cpu: &Cpu, rows: usize, k: usize, m: usize, seed: u64) {
    let mut rng = Rng(seed);
    let data = rng.matrix(ty, rows, k);
    let x = rng.floats(m * k);
    let mut wide = vec![0.0; rows * k];
    dequantize(ty, &data, &mut wide);
    let got = product(cpu, MatrixRef { ty, rows, cols: k, data: &data }, &x, m);
    let tolerance = if matches!(ty, QuantType::F32 | QuantType::F16 | QuantType::BF16) { 1e-6 } else { 5e-5 };
    assert_products(&format!("{} {:?} k={k} m={m}", ty.name(), cpu.isa), &wide, &x, k, &got, tolerance);
}

#[test]
fn products_match_double_precision() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        for ty in QuantType::ALL {
            for (i, &k) in widths(ty).iter().enumerate() {
                for m in [1, 2, 3, 4, 5, 17] {
                    check(ty, &cpu, 13, k, m, i as u64);
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_on_any_number_of_threads() {
    for isa in isas() {
        let one = cpu(isa, 1);
        let pools = [cpu(isa, 2), cpu(isa, 3)];
        for ty in QuantType::ALL {
            for &k in widths(ty) {
                let (rows, m) = (37, 40);
                let mut rng = Rng(k as u64);
                let data = rng.matrix(ty, rows, k);
                let x = rng.floats(m * k);
                let w = MatrixRef { ty, rows, cols: k, data: &data };
                let alone: Vec<f32> = (0..m).flat_map(|r| product(&one, w, &x[r * k..(r + 1) * k], 1)).collect();
                for batch in 2..=m {
                    for cpu in std::iter::once(&one).chain(if batch % 7 == 0 { &pools[..] } else { &[] }) {
                        let got = product(cpu, w, &x[..batch * k], batch);
                        assert_eq!(bits(&got), bits(&alone[..batch * rows]), "{} {isa:?} k={k} m={batch}", ty.name());
                    }
                }
                // In another place of the batch, and in another place of the matrix.
                let shifted = product(&pools[0], w, &x[3 * k..], m - 3);
                assert_eq!(bits(&shifted), bits(&alone[3 * rows..]));
                let row_bytes = data.len() / rows;
                let tail = MatrixRef { rows: rows - 5, data: &data[5 * row_bytes..], ..w };
                assert_eq!(bits(&product(&one, tail, &x[..k], 1)), bits(&alone[5..rows]), "{} {isa:?}", ty.name());
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    for isa in isas().filter(|&isa| isa != Isa::Scalar) {
        let (reference, other) = (cpu(Isa::Scalar, 1), cpu(isa, 1));
        for ty in QuantType::ALL {
            for &k in widths(ty) {
                let mut rng = Rng(7);
                let data = rng.matrix(ty, 24, k);
                let x = rng.floats(6 * k);
                let w = MatrixRef { ty, rows: 24, cols: k, data: &data };
                let (a, b) = (product(&reference, w, &x, 6), product(&other, w, &x, 6));
                // Only the roundings of fused and separate multiply-adds differ.
                let size = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (a, b) in a.iter().zip(&b) {
                    assert!((a - b).abs() <= 4e-6 * size, "{} {isa:?} k={k}: {a} and {b}", ty.name());
                }
            }
        }
    }
}

#[test]
fn integer_parts_are_exact() {
    // Scales of one and integer activations that quantise without error: the result is an integer, known exactly.
    for isa in isas() {
        let cpu = cpu(isa, 1);
        let k = 512;
        let mut rng = Rng(3);
        let mut data = rng.matrix(QuantType::Q8_0, 9, k);
        for block in data.chunks_exact_mut(34) {
            block[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
        }
        let x: Vec<f32> = (0..k).map(|i| if i % 32 == 0 { 32767.0 } else { (rng.below(201) as f32) - 100.0 }).collect();
        let got = product(&cpu, MatrixRef { ty: QuantType::Q8_0, rows: 9, cols: k, data: &data }, &x, 1);
        for (j, got) in got.iter().enumerate() {
            let q = |i: usize| data[(j * k / 32 + i / 32) * 34 + 2 + i % 32] as i8;
            let want: i64 = (0..k).map(|i| i64::from(q(i)) * x[i] as i64).sum();
            // 8 lanes of f32 sums of integers below 2^31: each conversion and addition rounds once.
            assert!((f64::from(*got) - want as f64).abs() <= 64.0, "{isa:?} row {j}: {got} not {want}");
        }
    }
}

#[test]
fn a_group_of_matrices_gives_what_each_gives_alone() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let k = 512;
        let mut rng = Rng(11);
        let types = [QuantType::Q4K, QuantType::F16, QuantType::Q6K, QuantType::Q8_0];
        let rows = [64, 8, 33, 1];
        let data: Vec<Vec<u8>> = types.iter().zip(rows).map(|(&ty, n)| rng.matrix(ty, n, k)).collect();
        let ws: Vec<MatrixRef<'_>> =
            (0..4).map(|i| MatrixRef { ty: types[i], rows: rows[i], cols: k, data: &data[i] }).collect();
        let mut scratch = MatmulScratch::default();
        for m in [9, 1, 4] {
            let x = rng.floats(m * k);
            let mut outs: Vec<Vec<f32>> = rows.iter().map(|n| vec![f32::NAN; n * m]).collect();
            let mut views: Vec<&mut [f32]> = outs.iter_mut().map(|o| &mut o[..]).collect();
            matmul(&cpu, &ws, &x, m, &mut views, &mut scratch);
            for (w, out) in ws.iter().zip(&outs) {
                assert_eq!(bits(out), bits(&product(&cpu, *w, &x, m)));
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_show_in_the_result() {
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for ty in QuantType::ALL {
            let data = Rng(5).matrix(ty, 4, 512);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = Rng(6).floats(512);
                x[300] = bad;
                let got = product(&cpu, MatrixRef { ty, rows: 4, cols: 512, data: &data }, &x, 1);
                assert!(got.iter().all(|v| !v.is_finite()), "{} {isa:?} {bad}: {got:?}", ty.name());
            }
            let tiny = vec![1e-38; 512];
            let got = product(&cpu, MatrixRef { ty, rows: 4, cols: 512, data: &data }, &tiny, 1);
            assert!(got.iter().all(|v| v.abs() < 1e-30), "{} {isa:?}", ty.name());
        }
    }
}

#[test]
fn empty_products_do_nothing() {
    let cpu = cpu(Isa::detect(), 2);
    assert!(product(&cpu, MatrixRef { ty: QuantType::Q8_0, rows: 0, cols: 32, data: &[] }, &[0.0; 32], 1).is_empty());
    let data = Rng(1).matrix(QuantType::Q8_0, 2, 32);
    assert!(product(&cpu, MatrixRef { ty: QuantType::Q8_0, rows: 2, cols: 32, data: &data }, &[], 0).is_empty());
    assert_eq!(product(&cpu, MatrixRef { ty: QuantType::F32, rows: 2, cols: 0, data: &[] }, &[], 3), [0.0; 6]);
}

#[test]
#[should_panic(expected = "are not 2 rows")]
fn wrong_lengths_are_refused() {
    product(&cpu(Isa::Scalar, 1), MatrixRef { ty: QuantType::Q8_0, rows: 2, cols: 32, data: &[0; 67] }, &[0.0; 32], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_size(ty in 0..QuantType::ALL.len(), blocks in 1..20usize, rows in 1..70usize, m in 1..12usize, threads in 1..4usize, seed: u64) {
        let ty = QuantType::ALL[ty];
        let k = if ty.block_len() == 256 { 256 * blocks.div_ceil(4) } else { ty.block_len() * blocks };
        for isa in isas() {
            check(ty, &cpu(isa, threads), rows, k, m, seed);
        }
    }
}
