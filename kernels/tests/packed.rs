//! Packed matrices: the same weights as the file's, products right within the stated tolerance, and the same bits in any batch, on any
//! number of threads and with any instruction set.

mod common;

use common::{Rng, assert_group, assert_products, bits, cpu, isas};
use proptest::prelude::*;
use std::sync::Mutex;
use wick_kernels::{
    Activation, Cpu, Isa, MatrixRef, PackedMatrix, PackedScratch, Precision, QuantType, dequantize, gated_activation,
    packed_gated_matmul, packed_matmul, packed_matmul_with_peaks, packed_refine,
};

const TYPES: [QuantType; 8] = [
    QuantType::Q4_0,
    QuantType::Q4_1,
    QuantType::Q5_0,
    QuantType::Q5_1,
    QuantType::Q8_0,
    QuantType::Q4K,
    QuantType::Q5K,
    QuantType::Q6K,
];
const PRECISIONS: [Precision; 3] = [Precision::Int8, Precision::Mixed, Precision::Exact];

fn product(cpu: &Cpu, w: &PackedMatrix, x: &[f32], m: usize, precision: Precision) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows()];
    packed_matmul(cpu, &[w], x, m, &mut [&mut out], &mut PackedScratch::default(), precision);
    out
}

/// Activations as models have them: in every third row some values stand far out, so that 8-bit groups and 16-bit ones meet in a tile.
fn activations(rng: &mut Rng, m: usize, k: usize) -> Vec<f32> {
    let mut x = rng.floats(m * k);
    for (r, row) in x.chunks_exact_mut(k.max(1)).enumerate().filter(|(r, _)| r % 3 == 1) {
        for i in (r % 64..k).step_by(96 + 32 * (r % 4)) {
            row[i] *= 60.0;
        }
    }
    x
}

fn pack(cpu: &Cpu, ty: QuantType, rows: usize, cols: usize, data: &[u8]) -> PackedMatrix {
    PackedMatrix::pack(cpu, MatrixRef { ty, rows, cols, data }, &|_| {}).expect("a format that is packed")
}

fn widths(ty: QuantType) -> &'static [usize] {
    if ty.block_len() == 32 { &[576, 32, 256, 896] } else { &[512, 256, 1280] }
}

/// |error| of an output <= tolerance * |row of w| * |row of x|.
fn check(ty: QuantType, cpu: &Cpu, (rows, k, m): (usize, usize, usize), precision: Precision, seed: u64) {
    let mut rng = Rng(seed);
    let data = rng.matrix(ty, rows, k);
    let x = activations(&mut rng, m, k);
    let mut wide = vec![0.0; rows * k];
    dequantize(ty, &data, &mut wide);
    let got = product(cpu, &pack(cpu, ty, rows, k, &data), &x, m, precision);
    // Rounding a group changes each of its values by at most 1/254 (1/65024) of the largest, which in 8 bits is at most 8 times the row's
    // root mean square: 2.3% of the norm of 32 values whose largest stands alone, but errors of different signs cancel in a product.
    let tolerance = match precision {
        Precision::Int8 => 1.2e-2,
        Precision::Mixed => 6e-3,
        Precision::Exact => 5e-5,
    };
    assert_products(&format!("{} {:?} {precision:?} k={k} m={m}", ty.name(), cpu.isa), &wide, &x, k, &got, tolerance);
}

#[test]
fn rows_are_those_of_the_file() {
    let cpu = cpu(Isa::Scalar, 2);
    for ty in TYPES {
        for &k in widths(ty) {
            let data = Rng(k as u64).matrix(ty, 37, k);
            let mut want = vec![0.0; 37 * k];
            dequantize(ty, &data, &mut want);
            let packed = pack(&cpu, ty, 37, k, &data);
            let mut row = vec![0.0; k];
            for (r, want) in want.chunks_exact(k).enumerate() {
                packed.row(r, &mut row);
                // Equal as numbers: a zero of Q6_K may differ in its sign.
                assert!(row == want, "{} k={k} row {r}", ty.name());
            }
        }
    }
}

#[test]
fn sizes_are_known_in_advance() {
    let cpu = cpu(Isa::Scalar, 1);
    for ty in QuantType::ALL {
        for (rows, k) in [(1, 256), (16, 512), (33, 768), (0, 256), (5, 0)] {
            let data = Rng(1).matrix(ty, rows, k);
            let packed = PackedMatrix::pack(&cpu, MatrixRef { ty, rows, cols: k, data: &data }, &|_| {});
            assert_eq!(packed.map(|p| p.bytes()), PackedMatrix::bytes_for(ty, rows, k), "{} {rows} x {k}", ty.name());
            if TYPES.contains(&ty) && rows == 16 {
                let packed = PackedMatrix::bytes_for(ty, rows, k).expect("packed");
                assert!(packed * 100 <= data.len() * 103, "{}: {packed} bytes from {}", ty.name(), data.len());
            }
        }
    }
    assert_eq!(PackedMatrix::bytes_for(QuantType::Q8_0, 3, 33), None);
    assert_eq!(PackedMatrix::bytes_for(QuantType::Q8_0, usize::MAX, usize::MAX / 32 * 32), None);
}

#[test]
fn every_byte_is_done_once() {
    for threads in [1, 3] {
        let (rows, cols) = (5003, 4096);
        let data = vec![0; QuantType::Q4_0.row_bytes(cols).expect("whole blocks") * rows];
        let done = Mutex::new(Vec::new());
        let w = MatrixRef { ty: QuantType::Q4_0, rows, cols, data: &data };
        PackedMatrix::pack(&cpu(Isa::Scalar, threads), w, &|part| done.lock().unwrap().push(part));
        let mut done = done.into_inner().unwrap();
        done.sort_by_key(|part| part.start);
        assert!(done.iter().all(|part| part.len() <= 2 << 20), "in pieces: {done:?}");
        assert_eq!((done[0].start, done.last().unwrap().end), (0, data.len()));
        assert!(done.windows(2).all(|pair| pair[0].end == pair[1].start), "{done:?}");
    }
}

#[test]
fn products_match_double_precision() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        for ty in TYPES {
            for (i, &k) in widths(ty).iter().enumerate() {
                for m in [1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 17, 30] {
                    PRECISIONS.iter().for_each(|&precision| check(ty, &cpu, (19, k, m), precision, i as u64));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_on_any_number_of_threads_and_instruction_set() {
    let reference = cpu(Isa::Scalar, 1);
    for isa in isas() {
        let pools = [cpu(isa, 1), cpu(isa, 2), cpu(isa, 3)];
        for ty in TYPES {
            for &k in widths(ty) {
                let (rows, m) = (37, if isa == Isa::Scalar { 16 } else { 50 });
                let mut rng = Rng(k as u64);
                let data = rng.matrix(ty, rows, k);
                let x = activations(&mut rng, m, k);
                let w = pack(&pools[1], ty, rows, k, &data);
                for precision in PRECISIONS {
                    let alone: Vec<f32> =
                        x.chunks_exact(k).flat_map(|x| product(&reference, &w, x, 1, precision)).collect();
                    for batch in 1..=m {
                        let got = product(&pools[batch % 3], &w, &x[..batch * k], batch, precision);
                        let name = ty.name();
                        assert_eq!(bits(&got), bits(&alone[..batch * rows]), "{name} {isa:?} k={k} m={batch}");
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
    let (k, m, rows) = (8192, 300, 17);
    let mut rng = Rng(9);
    let data = rng.matrix(QuantType::Q5_0, rows, k);
    let x = activations(&mut rng, m, k);
    let w = pack(&cpu, QuantType::Q5_0, rows, k, &data);
    let all = product(&cpu, &w, &x, m, Precision::Int8);
    for r in [0, 1, 131, 132, 155, 299] {
        let one = product(&cpu, &w, &x[r * k..(r + 1) * k], 1, Precision::Int8);
        assert_eq!(bits(&one), bits(&all[r * rows..(r + 1) * rows]));
    }
}

#[test]
fn a_value_that_stands_out_does_not_coarsen_its_group() {
    // One huge value and 31 small ones in a group: 8 bits would round the small ones to zero.
    for isa in isas() {
        let cpu = cpu(isa, 1);
        let k = 1024;
        let block: Vec<u8> = half::f16::ONE.to_le_bytes().into_iter().chain([1; 32]).collect();
        let w = pack(&cpu, QuantType::Q8_0, 1, k, &block.repeat(k / 32));
        let mut x = vec![0.01; k];
        x[40] = 8.0;
        let want = 8.0 + 0.01 * 1023.0;
        let got = product(&cpu, &w, &x, 1, Precision::Int8)[0];
        assert!((got - want).abs() < 0.02, "{isa:?}: {got}, not {want}");
    }
}

#[test]
fn integer_parts_are_exact_at_the_extremes() {
    // Scales of one, the largest weights and activations that quantise without error: the results are known integers.
    for isa in isas() {
        let cpu = cpu(isa, 1);
        let k = 64;
        for (precision, max) in [(Precision::Int8, 127.0f32), (Precision::Exact, 32512.0)] {
            for weight in [-128i8, 127, -1] {
                let block: Vec<u8> = half::f16::ONE.to_le_bytes().into_iter().chain([weight as u8; 32]).collect();
                let w = pack(&cpu, QuantType::Q8_0, 3, k, &block.repeat(3 * k / 32));
                for sign in [1.0, -1.0] {
                    let got = product(&cpu, &w, &vec![sign * max; k], 1, precision);
                    let want = k as f32 * f32::from(weight) * sign * max;
                    assert_eq!(got, [want; 3], "{isa:?} {precision:?} weight {weight}");
                }
            }
        }
    }
}

#[test]
fn the_largest_values_of_every_format_give_the_scalar_tables_bits() {
    // Every quant at its largest, and activations whose bytes are the largest in magnitude, with either sign: sums in 16 bits must not
    // overflow. 32384 is 127 * 256 - 128.
    let (reference, k) = (cpu(Isa::Scalar, 1), 256);
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for ty in TYPES {
            let mut data = vec![0xff; 16 * ty.row_bytes(k).unwrap()];
            let halves: &[usize] = if ty == QuantType::Q6K { &[208] } else { &[0, 2] };
            for block in data.chunks_exact_mut(ty.block_bytes()) {
                let scales = if [QuantType::Q4_0, QuantType::Q5_0, QuantType::Q8_0].contains(&ty) {
                    &halves[..1]
                } else {
                    halves
                };
                scales.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes()));
                if ty == QuantType::Q8_0 {
                    block[2..].fill(127);
                }
            }
            let w = pack(&cpu, ty, 16, k, &data);
            for (precision, value, largest) in [
                (Precision::Int8, 127.0, 127.0),
                (Precision::Exact, 32512.0, 32512.0),
                (Precision::Exact, 32384.0, 32512.0),
            ] {
                for sign in [1.0, -1.0] {
                    let row: Vec<f32> = (0..k).map(|i| sign * if i % 32 == 5 { largest } else { value }).collect();
                    let x = row.repeat(12);
                    let want = product(&reference, &w, &x, 12, precision);
                    let got = product(&cpu, &w, &x, 12, precision);
                    assert_eq!(bits(&got), bits(&want), "{} {isa:?} {precision:?} {value}", ty.name());
                }
            }
        }
    }
}

#[test]
fn a_group_of_matrices_gives_what_each_gives_alone() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let (k, mut rng, mut scratch) = (512, Rng(11), PackedScratch::default());
        // More than one parallel region takes.
        let types = [QuantType::Q4K, QuantType::Q5_1, QuantType::Q6K, QuantType::Q8_0, QuantType::Q4_0];
        let pack = |(ty, rows)| (pack(&cpu, ty, rows, k, &rng.matrix(ty, rows, k)), rows);
        let ws: Vec<(PackedMatrix, usize)> = types.into_iter().zip([64, 8, 33, 1, 20]).map(pack).collect();
        assert_group(
            &ws,
            k,
            &mut rng,
            |ws, x, m, outs, precision| packed_matmul(&cpu, ws, x, m, outs, &mut scratch, precision),
            |w, x, m, precision| product(&cpu, w, x, m, precision),
        );
    }
}

#[test]
fn values_that_are_not_finite_show_in_the_result() {
    for isa in isas() {
        let cpu = cpu(isa, 1);
        for (ty, precision) in TYPES.into_iter().flat_map(|ty| PRECISIONS.map(|p| (ty, p))) {
            let w = pack(&cpu, ty, 4, 512, &Rng(5).matrix(ty, 4, 512));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = Rng(6).floats(3 * 512);
                x[512 + 300] = bad;
                let got = product(&cpu, &w, &x, 3, precision);
                assert!(got[4..8].iter().all(|v| !v.is_finite()), "{} {isa:?} {bad}: {got:?}", ty.name());
                assert!(got[..4].iter().chain(&got[8..]).all(|v| v.is_finite()), "{} {isa:?} {bad}", ty.name());
            }
            let got = product(&cpu, &w, &[1e-38; 512], 1, precision);
            assert!(got.iter().all(|v| v.abs() < 1e-30), "{} {isa:?}", ty.name());
        }
    }
}

#[test]
fn empty_products_do_nothing() {
    let cpu = cpu(Isa::detect(), 2);
    let empty = pack(&cpu, QuantType::Q8_0, 0, 32, &[]);
    assert!(product(&cpu, &empty, &[0.0; 32], 1, Precision::Int8).is_empty());
    let w = pack(&cpu, QuantType::Q8_0, 2, 32, &Rng(1).matrix(QuantType::Q8_0, 2, 32));
    assert!(product(&cpu, &w, &[], 0, Precision::Int8).is_empty());
    assert_eq!(product(&cpu, &pack(&cpu, QuantType::Q8_0, 2, 0, &[]), &[], 3, Precision::Int8), [0.0; 6]);
}

#[test]
#[should_panic(expected = "are not 2 rows")]
fn wrong_lengths_are_refused() {
    pack(&cpu(Isa::Scalar, 1), QuantType::Q8_0, 2, 32, &[0; 67]);
}

#[test]
#[should_panic(expected = "not 1 rows of 2")]
fn wrong_outputs_are_refused() {
    let cpu = cpu(Isa::Scalar, 1);
    let w = pack(&cpu, QuantType::Q8_0, 2, 32, &[0; 68]);
    packed_matmul(&cpu, &[&w], &[0.0; 32], 1, &mut [&mut [0.0; 3]], &mut PackedScratch::default(), Precision::Int8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_size(ty in 0..TYPES.len(), blocks in 1..20usize, rows in 1..70usize, m in 1..30usize, threads in 1..4usize, exact: bool, seed: u64) {
        let ty = TYPES[ty];
        let k = if ty.block_len() == 256 { 256 * blocks.div_ceil(4) } else { ty.block_len() * blocks };
        let precision = if exact { Precision::Exact } else { Precision::Int8 };
        for isa in isas() {
            check(ty, &cpu(isa, threads), (rows, k, m), precision, seed);
        }
    }
}

#[test]
fn refined_products_are_exact_near_the_largest_and_untouched_elsewhere() {
    let (rows, m) = (16 * 50 + 3, 7);
    let mut refined_by_isa = Vec::new();
    for isa in isas() {
        for ty in [QuantType::Q8_0, QuantType::Q4_1, QuantType::Q6K] {
            let cpus = [cpu(isa, 1), cpu(isa, 3)];
            let k = widths(ty)[0];
            let mut rng = Rng(9);
            let w = pack(&cpus[1], ty, rows, k, &rng.matrix(ty, rows, k));
            let x = activations(&mut rng, m, k);
            let coarse = product(&cpus[1], &w, &x, m, Precision::Int8);
            let exact = product(&cpus[1], &w, &x, m, Precision::Exact);
            let spread = coarse.chunks_exact(rows).map(|row| largest(row) - row.iter().sum::<f32>() / rows as f32);
            // From some strips to nearly all.
            for margin in [0.0, 0.2, 2.0].map(|part| part * spread.clone().fold(0.0, f32::max)) {
                let refine = |cpu: &Cpu, x: &[f32], out: &mut [f32]| {
                    let mut peaks = peaks_of(out, rows);
                    let parts = (&mut *out, &mut peaks[..]);
                    packed_refine(cpu, &w, x, x.len() / k, parts, &mut PackedScratch::default(), margin);
                    assert_eq!(bits(&peaks), bits(&peaks_of(out, rows)), "they are those of what is there now");
                };
                let mut refined = coarse.clone();
                refine(&cpus[1], &x, &mut refined);
                for (r, got) in refined.chunks_exact(rows).enumerate() {
                    let part = r * rows..(r + 1) * rows;
                    let (coarse, exact) = (&coarse[part.clone()], &exact[part]);
                    let mut peaks: Vec<f32> = coarse.chunks(16).map(largest).collect();
                    let limits = peaks.clone();
                    peaks.sort_by(|a, b| b.total_cmp(a));
                    let limit = (peaks[0] - margin).max(peaks[31]);
                    for (strip, peak) in limits.iter().enumerate() {
                        let want = if *peak >= limit { exact } else { coarse };
                        let part = strip * 16..(strip * 16 + 16).min(rows);
                        assert_eq!(bits(&got[part.clone()]), bits(&want[part]), "{} {isa:?} row {r}", ty.name());
                    }
                    let mut alone = coarse.to_vec();
                    refine(&cpus[0], &x[r * k..(r + 1) * k], &mut alone);
                    assert_eq!(bits(&alone), bits(got));
                }
                refined_by_isa.push(bits(&refined));
            }
        }
    }
    let (first, others) = refined_by_isa.split_at(9);
    others.chunks_exact(9).for_each(|other| assert!(other == first, "instruction sets differ"));
}

#[test]
fn peaks_are_the_largest_of_a_products_strips() {
    for isa in isas() {
        for (ty, m) in [(QuantType::Q8_0, 1), (QuantType::Q4_1, 5), (QuantType::Q6K, 60)] {
            let (rows, k, cpu) = (16 * 33 + 5, widths(ty)[0], cpu(isa, 3));
            let mut rng = Rng(m as u64);
            let w = pack(&cpu, ty, rows, k, &rng.matrix(ty, rows, k));
            let mut x = activations(&mut rng, m, k);
            // All of a row's products are no numbers then.
            x[k / 2] = if m > 1 { f32::NAN } else { 1.0 };
            for precision in PRECISIONS {
                let want = product(&cpu, &w, &x, m, precision);
                let (mut out, mut peaks) = (vec![f32::NAN; m * rows], vec![f32::NAN; m * 34]);
                let parts = (&mut out[..], &mut peaks[..]);
                packed_matmul_with_peaks(&cpu, &w, &x, m, parts, &mut PackedScratch::default(), precision);
                assert_eq!(bits(&out), bits(&want));
                assert_eq!(bits(&peaks), bits(&peaks_of(&want, rows)), "{} {isa:?}", ty.name());
            }
        }
    }
}

#[test]
fn gated_products_are_those_of_both_matrices() {
    for isa in isas() {
        for (types, m, threads) in [([QuantType::Q4_1; 2], 1, 2), ([QuantType::Q4K, QuantType::Q6K], 33, 3)] {
            let (rows, k, cpu) = (16 * 9 + 5, 512, cpu(isa, threads));
            let mut rng = Rng(m as u64);
            let [gate, up] = types.map(|ty| pack(&cpu, ty, rows, k, &rng.matrix(ty, rows, k)));
            let x = activations(&mut rng, m, k);
            for (act, precision) in [(Activation::Silu, Precision::Int8), (Activation::GeluTanh, Precision::Exact)] {
                let [a, b] = [&gate, &up].map(|w| product(&cpu, w, &x, m, precision));
                let [mut want, mut out] = [0, 1].map(|_| vec![f32::NAN; m * rows]);
                gated_activation(&cpu, act, &a, &b, &mut want);
                let scratch = &mut PackedScratch::default();
                packed_gated_matmul(&cpu, act, [&gate, &up], &x, m, &mut out, scratch, precision);
                assert_eq!(bits(&out), bits(&want), "{isa:?} {act:?}");
            }
        }
    }
}

/// The largest of each strip of rows of `rows` products.
fn peaks_of(products: &[f32], rows: usize) -> Vec<f32> {
    products.chunks(rows).flat_map(|row| row.chunks(16).map(largest)).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}
