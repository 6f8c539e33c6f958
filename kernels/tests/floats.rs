//! Packed floats: the file's weights, products right within the stated tolerance, and the same bits in any batch and on any number of
//! threads; but for pairs of bfloat16, with any instruction set.

mod common;

use common::{Rng, assert_group, assert_products, bits, cpu, isas};
use half::bf16;
use proptest::prelude::*;
use wick_kernels::{
    Cpu, FloatMatrix, FloatScratch, Isa, MatrixRef, Precision, QuantType, dequantize, float_matmul, float_refine,
};

const TYPES: [QuantType; 3] = [QuantType::F32, QuantType::F16, QuantType::BF16];
const PRECISIONS: [Precision; 3] = [Precision::Int8, Precision::Mixed, Precision::Exact];
const WIDTHS: [usize; 8] = [576, 1, 2, 15, 16, 33, 256, 1001];

fn product(cpu: &Cpu, w: &FloatMatrix, x: &[f32], m: usize, precision: Precision) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows()];
    float_matmul(cpu, &[w], x, m, &mut [&mut out], &mut FloatScratch::default(), precision);
    out
}

fn pack(cpu: &Cpu, ty: QuantType, rows: usize, cols: usize, data: &[u8]) -> FloatMatrix {
    FloatMatrix::pack(cpu, MatrixRef { ty, rows, cols, data }, &|_| {}).expect("a float format")
}

/// Whether activations are rounded to bfloat16.
fn rounds(cpu: &Cpu, ty: QuantType, precision: Precision) -> bool {
    ty == QuantType::BF16 && precision != Precision::Exact && cpu.isa == Isa::Avx512Bf16
}

/// |error| of an output <= tolerance * |row of w| * |row of x|.
fn check(ty: QuantType, cpu: &Cpu, (rows, k, m): (usize, usize, usize), precision: Precision, seed: u64) {
    let mut rng = Rng(seed);
    let data = rng.matrix(ty, rows, k);
    let mut x = rng.floats(m * k);
    let mut wide = vec![0.0; rows * k];
    dequantize(ty, &data, &mut wide);
    let got = product(cpu, &pack(cpu, ty, rows, k, &data), &x, m, precision);
    let mut tolerance = 1e-6;
    if rounds(cpu, ty, precision) {
        // Once the activations are rounded, what is left are the roundings of sums.
        x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        tolerance = 2e-6;
    }
    assert_products(&format!("{} {:?} {precision:?} k={k} m={m}", ty.name(), cpu.isa), &wide, &x, k, &got, tolerance);
}

#[test]
fn rows_are_those_of_the_file() {
    let cpu = cpu(Isa::Scalar, 2);
    for ty in TYPES {
        for k in WIDTHS {
            let data = Rng(k as u64).matrix(ty, 37, k);
            let mut want = vec![0.0; 37 * k];
            dequantize(ty, &data, &mut want);
            let packed = pack(&cpu, ty, 37, k, &data);
            let mut row = vec![0.0; k];
            for (r, want) in want.chunks_exact(k).enumerate() {
                packed.row(r, &mut row);
                assert_eq!(bits(&row), bits(want), "{} k={k} row {r}", ty.name());
            }
        }
    }
}

#[test]
fn sizes_are_known_in_advance() {
    let cpu = cpu(Isa::Scalar, 1);
    for ty in QuantType::ALL {
        for (rows, k) in [(1, 256), (32, 512), (33, 768), (0, 256), (5, 0)] {
            let data = Rng(1).matrix(ty, rows, k);
            let packed = FloatMatrix::pack(&cpu, MatrixRef { ty, rows, cols: k, data: &data }, &|_| {});
            assert_eq!(packed.map(|p| p.bytes()), FloatMatrix::bytes_for(ty, rows, k), "{} {rows} x {k}", ty.name());
        }
        if TYPES.contains(&ty) {
            assert_eq!(FloatMatrix::bytes_for(ty, 64, 512), Some(64 * ty.row_bytes(512).unwrap()), "{}", ty.name());
            assert_eq!(FloatMatrix::bytes_for(ty, usize::MAX, usize::MAX), None);
        }
    }
}

#[test]
fn products_match_double_precision() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        for ty in TYPES {
            for (i, &k) in WIDTHS.iter().enumerate() {
                for m in [1, 2, 3, 4, 5, 7, 9, 11, 13, 30] {
                    PRECISIONS.iter().for_each(|&precision| check(ty, &cpu, (35, k, m), precision, i as u64));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
    let reference = cpu(Isa::Scalar, 1);
    for isa in isas() {
        let pools = [cpu(isa, 1), cpu(isa, 2), cpu(isa, 3)];
        for ty in TYPES {
            for k in WIDTHS {
                let (rows, m) = (71, if isa == Isa::Scalar { 8 } else { 50 });
                let mut rng = Rng(k as u64);
                let data = rng.matrix(ty, rows, k);
                let x = rng.floats(m * k);
                let w = pack(&pools[1], ty, rows, k, &data);
                for precision in [Precision::Int8, Precision::Exact] {
                    // Unless pairs are multiplied the bits are those of all instruction sets.
                    let alone = if rounds(&pools[0], ty, precision) { &pools[0] } else { &reference };
                    let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(alone, &w, x, 1, precision)).collect();
                    for batch in 1..=m {
                        let got = product(&pools[batch % 3], &w, &x[..batch * k], batch, precision);
                        assert_eq!(bits(&got), bits(&alone[..batch * rows]), "{} {isa:?} k={k} m={batch}", ty.name());
                    }
                    // In another place of the batch, and in another place of the matrix.
                    let shifted = product(&pools[1], &w, &x[3 * k..], m - 3, precision);
                    assert_eq!(bits(&shifted), bits(&alone[3 * rows..]));
                    let row_bytes = data.len() / rows;
                    let tail = pack(&pools[0], ty, rows - 5, k, &data[5 * row_bytes..]);
                    assert_eq!(bits(&product(&pools[0], &tail, &x[..k], 1, precision)), bits(&alone[5..rows]));
                }
            }
        }
    }
}

#[test]
fn more_rows_than_one_region_takes_give_the_same_bits() {
    let cpu = cpu(Isa::detect(), 2);
    let (k, m, rows) = (8192, 200, 33);
    let mut rng = Rng(9);
    let x = rng.floats(m * k);
    for ty in TYPES {
        let w = pack(&cpu, ty, rows, k, &rng.matrix(ty, rows, k));
        let all = product(&cpu, &w, &x, m, Precision::Int8);
        for r in [0, 1, 47, 48, 96, 131, 132, 199] {
            let one = product(&cpu, &w, &x[r * k..(r + 1) * k], 1, Precision::Int8);
            assert_eq!(bits(&one), bits(&all[r * rows..(r + 1) * rows]), "{} row {r}", ty.name());
        }
    }
}

#[test]
fn a_group_of_matrices_gives_what_each_gives_alone() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let (k, mut rng, mut scratch) = (130, Rng(11), FloatScratch::default());
        let types = [QuantType::BF16, QuantType::F16, QuantType::F32, QuantType::BF16];
        let pack = |(ty, rows)| (pack(&cpu, ty, rows, k, &rng.matrix(ty, rows, k)), rows);
        let ws: Vec<(FloatMatrix, usize)> = types.into_iter().zip([64, 8, 33, 1]).map(pack).collect();
        assert_group(
            &ws,
            k,
            &mut rng,
            |ws, x, m, outs, precision| float_matmul(&cpu, ws, x, m, outs, &mut scratch, precision),
            |w, x, m, precision| product(&cpu, w, x, m, precision),
        );
    }
}

#[test]
fn refined_products_are_exact_near_the_largest_and_untouched_elsewhere() {
    let (rows, k, m) = (32 * 40 + 3, 130, 5);
    for isa in isas() {
        let cpus = [cpu(isa, 1), cpu(isa, 3)];
        for ty in TYPES {
            let mut rng = Rng(9);
            let w = pack(&cpus[1], ty, rows, k, &rng.matrix(ty, rows, k));
            let x = rng.floats(m * k);
            let [coarse, exact] = [Precision::Int8, Precision::Exact].map(|p| product(&cpus[1], &w, &x, m, p));
            let margin = 0.1 * coarse.chunks_exact(rows).map(largest).fold(f32::INFINITY, f32::min);
            let refine = |cpu: &Cpu, x: &[f32], out: &mut [f32], precision| {
                let m = x.len() / k;
                let mut peaks = vec![f32::NAN; m * 41];
                let parts = (&mut *out, &mut peaks[..]);
                float_refine(cpu, &w, x, m, parts, &mut FloatScratch::default(), precision, margin);
                let want: Vec<f32> = out.chunks(rows).flat_map(|row| row.chunks(32).map(largest)).collect();
                assert_eq!(bits(&peaks), bits(&want));
            };
            let mut refined = coarse.clone();
            refine(&cpus[1], &x, &mut refined, Precision::Int8);
            for (r, got) in refined.chunks_exact(rows).enumerate() {
                let (coarse, exact) = (&coarse[r * rows..(r + 1) * rows], &exact[r * rows..(r + 1) * rows]);
                let limit = largest(coarse) - margin;
                let strips = || (0..rows).step_by(32).map(|at| at..rows.min(at + 32));
                let near = strips().filter(|part| largest(&coarse[part.clone()]) >= limit).count();
                assert!((1..32).contains(&near), "{near} strips are no test");
                for part in strips() {
                    let want = if largest(&coarse[part.clone()]) >= limit { exact } else { coarse };
                    assert_eq!(bits(&got[part.clone()]), bits(&want[part]), "{} {isa:?} row {r}", ty.name());
                }
                let mut alone = coarse.to_vec();
                refine(&cpus[0], &x[r * k..(r + 1) * k], &mut alone, Precision::Int8);
                assert_eq!(bits(&alone), bits(got));
            }
            // Nothing to do for what is exact: any products stay.
            let mut any = vec![1.0; m * rows];
            refine(&cpus[0], &x, &mut any, Precision::Exact);
            assert!(any.iter().all(|&y| y == 1.0));
        }
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[test]
fn values_that_are_not_finite_show_in_their_row_alone() {
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for ty in TYPES {
            let w = pack(&cpu, ty, 4, 512, &Rng(5).matrix(ty, 4, 512));
            for precision in PRECISIONS {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut x = Rng(6).floats(3 * 512);
                    x[512 + 300] = bad;
                    let got = product(&cpu, &w, &x, 3, precision);
                    let what = format!("{} {isa:?} {precision:?} {bad}: {got:?}", ty.name());
                    assert!(got[4..8].iter().all(|v| !v.is_finite()), "{what}");
                    assert!(got[..4].iter().chain(&got[8..]).all(|v| v.is_finite()), "{what}");
                }
                let tiny = product(&cpu, &w, &[1e-38; 512], 1, precision);
                assert!(tiny.iter().all(|v| v.abs() < 1e-30), "{} {isa:?}", ty.name());
            }
        }
    }
}

#[test]
fn empty_products_do_nothing() {
    let cpu = cpu(Isa::detect(), 2);
    for ty in TYPES {
        let none = pack(&cpu, ty, 0, 32, &[]);
        assert!(product(&cpu, &none, &[0.0; 32], 1, Precision::Int8).is_empty());
        let some = pack(&cpu, ty, 2, 32, &Rng(1).matrix(ty, 2, 32));
        assert!(product(&cpu, &some, &[], 0, Precision::Int8).is_empty());
        assert_eq!(product(&cpu, &pack(&cpu, ty, 2, 0, &[]), &[], 3, Precision::Int8), [0.0; 6]);
    }
    assert!(
        FloatMatrix::pack(&cpu, MatrixRef { ty: QuantType::Q8_0, rows: 0, cols: 32, data: &[] }, &|_| {}).is_none()
    );
}

#[test]
#[should_panic(expected = "are not 2 rows")]
fn wrong_lengths_are_refused() {
    pack(&cpu(Isa::Scalar, 1), QuantType::F16, 2, 32, &[0; 127]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_size(ty in 0..TYPES.len(), k in 1..200usize, rows in 1..100usize, m in 1..30usize, threads in 1..4usize, precision in 0..PRECISIONS.len(), seed: u64) {
        for isa in isas() {
            check(TYPES[ty], &cpu(isa, threads), (rows, k, m), PRECISIONS[precision], seed);
        }
    }
}
