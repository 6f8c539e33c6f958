//! What encoders need: right, near the same on every instruction set, and the same bits in any batch.

mod common;

use common::{Rng, bits, cpu, isas};
use wick_kernels::{
    Cpu, FullAttentionArgs, FullAttentionScratch, Pointwise, add_layer_norm, bias_activation, full_attention,
};

#[test]
fn layer_norm_is_right_and_rows_are_independent() {
    for d in [1, 7, 32, 384, 1000] {
        let mut rng = Rng(d as u64);
        let rows = 53;
        let (x, residual) = (rng.floats(rows * d), rng.floats(rows * d));
        let (bias, weight, shift) = (rng.floats(d), rng.floats(d), rng.floats(d));
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            for threads in [1, 3] {
                let cpu = cpu(isa, threads);
                let mut out = x.clone();
                add_layer_norm(&cpu, &mut out, Some(&bias), Some(&residual), &weight, &shift, 1e-5);
                for r in 0..rows {
                    let sum = |i: usize| f64::from(x[r * d + i] + bias[i] + residual[r * d + i]);
                    let mean = (0..d).map(sum).sum::<f64>() / d as f64;
                    let variance = (0..d).map(|i| (sum(i) - mean).powi(2)).sum::<f64>() / d as f64;
                    for i in 0..d {
                        let want =
                            (sum(i) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(shift[i]);
                        let got = f64::from(out[r * d + i]);
                        assert!((got - want).abs() < 2e-5 * want.abs().max(1.0), "{isa:?} d={d}: {got} not {want}");
                    }
                }
                let mut alone = x[5 * d..6 * d].to_vec();
                add_layer_norm(&cpu, &mut alone, Some(&bias), Some(&residual[5 * d..6 * d]), &weight, &shift, 1e-5);
                assert_eq!(bits(&alone), bits(&out[5 * d..6 * d]));
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?} d={d}");
            }
        }
    }
}

#[test]
fn activations_add_the_bias_of_their_column() {
    let (rows, d) = (400, 96);
    let mut rng = Rng(3);
    let (x, bias) = (rng.floats(rows * d), rng.floats(d));
    for act in [Pointwise::Gelu, Pointwise::GeluTanh, Pointwise::Relu, Pointwise::Silu, Pointwise::Tanh] {
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            let mut out = x.clone();
            bias_activation(&cpu(isa, 2), act, &bias, &mut out);
            for (i, (y, x)) in out.iter().zip(&x).enumerate() {
                let v = f64::from(x + bias[i % d]);
                let want = match act {
                    Pointwise::Gelu | Pointwise::GeluTanh => {
                        let tanh = (0.797_884_560_802_865_4 * (v + 0.044_715 * v.powi(3))).tanh();
                        0.5 * v * (1.0 + tanh)
                    }
                    Pointwise::Relu => v.max(0.0),
                    Pointwise::Silu => v / (1.0 + (-v).exp()),
                    Pointwise::Tanh => v.tanh(),
                };
                // The two forms of GELU differ by less than 0.0005.
                let tolerance = if act == Pointwise::Gelu { 1e-3 } else { 1e-6 * v.abs().max(1.0) };
                assert!((f64::from(*y) - want).abs() < tolerance, "{act:?}({v}) = {y}, not {want}");
            }
            assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?} {act:?}");
        }
    }
}

/// Sequences of odd lengths with heads of one size.
struct Case {
    heads: usize,
    dim: usize,
    lengths: Vec<usize>,
    qkv: [Vec<f32>; 3],
    bias: [Vec<f32>; 3],
}

impl Case {
    fn new(heads: usize, dim: usize, lengths: &[usize]) -> Self {
        let mut rng = Rng((heads * 1000 + dim) as u64);
        let tokens: usize = lengths.iter().sum();
        let qkv = std::array::from_fn(|_| rng.floats(tokens * heads * dim));
        let bias = std::array::from_fn(|_| rng.floats(heads * dim));
        Self { heads, dim, lengths: lengths.to_vec(), qkv, bias }
    }

    /// Attends over the sequences from `first` on.
    fn run(&self, cpu: &Cpu, first: usize, count: usize) -> Vec<f32> {
        let width = self.heads * self.dim;
        let start: usize = self.lengths[..first].iter().sum();
        let lengths = &self.lengths[first..first + count];
        let tokens: usize = lengths.iter().sum();
        let part = |x: &'_ Vec<f32>| x[start * width..(start + tokens) * width].to_vec();
        let qkv = self.qkv.each_ref().map(part);
        let args = FullAttentionArgs {
            qkv: qkv.each_ref().map(Vec::as_slice),
            bias: self.bias.each_ref().map(Vec::as_slice),
            heads: self.heads,
            head_dim: self.dim,
            scale: 1.0 / (self.dim as f32).sqrt(),
            lengths,
        };
        let mut out = vec![f32::NAN; tokens * width];
        full_attention(cpu, &args, &mut out, &mut FullAttentionScratch::default());
        out
    }

    /// In double precision.
    fn expected(&self) -> Vec<f64> {
        let width = self.heads * self.dim;
        let value = |part: usize, row: usize, column: usize| {
            f64::from(self.qkv[part][row * width + column]) + f64::from(self.bias[part][column])
        };
        let mut out = vec![0.0; self.qkv[0].len()];
        let mut start = 0;
        for &n in &self.lengths {
            for head in 0..self.heads {
                let columns = head * self.dim..(head + 1) * self.dim;
                for r in start..start + n {
                    let score = |k| -> f64 { columns.clone().map(|c| value(0, r, c) * value(1, k, c)).sum() };
                    let scores: Vec<f64> = (start..start + n).map(|k| score(k) / (self.dim as f64).sqrt()).collect();
                    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for c in columns.clone() {
                        let sum: f64 = weights.iter().enumerate().map(|(k, w)| w * value(2, start + k, c)).sum();
                        out[r * width + c] = sum / total;
                    }
                }
            }
            start += n;
        }
        out
    }
}

#[test]
fn attention_is_right_and_sequences_are_independent() {
    for (heads, dim, lengths) in
        [(2, 8, vec![1, 3, 17, 4, 16]), (3, 32, vec![5, 40, 2]), (1, 64, vec![33, 1]), (2, 20, vec![70])]
    {
        let case = Case::new(heads, dim, &lengths);
        let expected = case.expected();
        for isa in isas() {
            let mut first: Option<Vec<u32>> = None;
            for threads in [1, 2, 3] {
                let cpu = cpu(isa, threads);
                let out = case.run(&cpu, 0, lengths.len());
                for (got, want) in out.iter().zip(&expected) {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error < 2e-4 * want.abs().max(1.0), "{isa:?} {heads}x{dim}: {got} not {want}");
                }
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?} on {threads} threads");
                let mut at = 0;
                for (i, n) in lengths.iter().enumerate() {
                    let rows = n * heads * dim;
                    assert_eq!(bits(&case.run(&cpu, i, 1)), bits(&out[at..at + rows]), "{isa:?}: alone");
                    at += rows;
                }
            }
        }
    }
}
