//! The CPU arm of each op against its `reference()`, on the same tensors.
use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use wick_kernels::{Cpu, Isa, Precision, QuantType, ThreadPool};

use super::*;
use crate::weights::{MappedBytes, MappedMatrix, Matrix};

fn contexts() -> Vec<ExecContext> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.available());
    isas.flat_map(|isa| {
        let cpu = || Cpu { isa, pool: ThreadPool::new(NonZeroUsize::new(2).unwrap()).into() };
        [Precision::Int8, Precision::Exact].map(|activations| ExecContext::cpu(cpu(), activations))
    })
    .collect()
}

/// For an op that takes its input's memory.
fn own(x: &Tensor) -> Tensor {
    x.copy().unwrap()
}

fn reference() -> ExecContext {
    ExecContext::reference(Device::Cpu)
}

/// Fixed values between -1 and 1 without a pattern that an op could be blind to.
fn values(rows: usize, cols: usize, seed: usize) -> Tensor {
    let data: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect();
    Tensor::from_vec(data, (rows, cols), &Device::Cpu).unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let (a, b) =
        (a.flatten_all().unwrap().to_vec1::<f32>().unwrap(), b.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "value {i}: {x} and {y}");
    }
}

fn f32_matrix(t: &Tensor) -> Matrix {
    float_matrix(QuantType::F32, t)
}

/// A matrix in the file's form, of f32 values that `ty` has too.
fn float_matrix(ty: QuantType, t: &Tensor) -> Matrix {
    let (rows, cols) = t.dims2().unwrap();
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bytes: Vec<u8> = match ty {
        QuantType::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
        QuantType::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Matrix::Mapped(MappedMatrix { ty, rows, cols, bytes: MappedBytes::Owned(bytes.into()) })
}

#[test]
fn grouped_products_with_biases() {
    let (a, b) = (f32_matrix(&values(48, 64, 1)), f32_matrix(&values(20, 64, 2)));
    let bias = values(1, 48, 3).flatten_all().unwrap();
    let x = values(5, 64, 4);
    let group = [Projection { weight: &a, bias: Some(&bias) }, Projection { weight: &b, bias: None }];
    let expected = matmul(&reference(), &group, own(&x)).unwrap();
    for cx in contexts() {
        let outs = matmul(&cx, &group, own(&x)).unwrap();
        outs.iter().zip(&expected).for_each(|(out, want)| assert_close(out, want, 1e-5));
    }
}

#[test]
fn every_form_of_a_matrix_gives_the_same_product_and_rows() {
    let dense = values(40, 64, 1);
    let stored = Arc::new(QTensor::quantize(&dense, GgmlDType::Q8_0).unwrap());
    let exact = stored.dequantize(&Device::Cpu).unwrap();
    let bytes = MappedBytes::Owned(stored.data().unwrap().as_ref().into());
    let mapped = Matrix::Mapped(MappedMatrix { ty: QuantType::Q8_0, rows: 40, cols: 64, bytes });
    let (quantized, plain) = (Matrix::Quantized(stored), Matrix::Dense(exact.clone()));
    let x = values(3, 64, 2);
    let product = |cx: &ExecContext, weight: &Matrix| {
        matmul(cx, &[Projection { weight, bias: None }], own(&x)).unwrap().swap_remove(0)
    };
    let ids = Indices::new(vec![39, 0, 7, 7]);
    let rows = exact.index_select(ids.tensor(&Device::Cpu).unwrap(), 0).unwrap();
    for form in [&mapped, &quantized, &plain] {
        // 8-bit activations where the product quantizes them: about 1 part in 250 of a term, averaged over 64.
        assert_close(&product(&reference(), form), &product(&reference(), &plain), 2e-2);
        assert_close(&embedding(&reference(), form, &ids, 3.0).unwrap(), &(&rows * 3.0).unwrap(), 1e-6);
    }
    for cx in contexts() {
        let placed = cx.place(mapped.clone());
        for form in [&mapped, &placed] {
            assert_close(&product(&cx, form), &product(&reference(), &plain), 2e-2);
            assert_close(&embedding(&cx, form, &ids, 3.0).unwrap(), &(&rows * 3.0).unwrap(), 1e-6);
            assert_close(&product(&reference(), form), &product(&reference(), &plain), 2e-2);
            assert_close(&embedding(&reference(), form, &ids, 3.0).unwrap(), &(&rows * 3.0).unwrap(), 1e-6);
        }
        assert!(matmul(&cx, &[Projection { weight: &plain, bias: None }], own(&x)).is_err());
        assert!(embedding(&cx, &mapped, &Indices::new(vec![40]), 1.0).is_err());
    }
}

#[test]
fn every_form_of_a_float_matrix_gives_the_same_product_rows_and_logits() {
    let dense = values(40, 65, 1);
    let x = values(3, 65, 2);
    let ids = Indices::new(vec![39, 0, 7, 7]);
    for (ty, dtype) in [(QuantType::F32, DType::F32), (QuantType::F16, DType::F16), (QuantType::BF16, DType::BF16)] {
        let stored = dense.to_dtype(dtype).unwrap();
        let exact = stored.to_dtype(DType::F32).unwrap();
        let rows = exact.index_select(ids.tensor(&Device::Cpu).unwrap(), 0).unwrap();
        let plain = Matrix::Dense(exact.clone());
        let mapped = float_matrix(ty, &exact);
        // BF16's activations may be rounded to 8 bits of precision.
        let rounding = if ty == QuantType::BF16 { 1e-2 } else { 1e-5 };
        let want = matmul(&reference(), &[Projection { weight: &plain, bias: None }], own(&x)).unwrap().swap_remove(0);
        for cx in contexts() {
            let placed = cx.place(mapped.clone());
            for form in [&mapped, &placed] {
                let product =
                    |cx| matmul(cx, &[Projection { weight: form, bias: None }], own(&x)).unwrap().swap_remove(0);
                assert_close(&product(&cx), &want, rounding);
                assert_close(&product(&reference()), &want, 1e-6);
                assert_close(&embedding(&cx, form, &ids, 3.0).unwrap(), &(&rows * 3.0).unwrap(), 0.0);
                assert_close(&embedding(&reference(), form, &ids, 3.0).unwrap(), &(&rows * 3.0).unwrap(), 0.0);
                let logits =
                    Tensor::from_vec(logits(&cx, form, own(&x), Some(1.0)).unwrap().0, (3, 40), &Device::Cpu).unwrap();
                assert_close(&logits, &want.tanh().unwrap(), rounding);
            }
        }
    }
}

#[test]
fn norms_and_residual_sums() {
    let (x, residual) = (values(7, 48, 1), values(7, 48, 2));
    let weight = values(1, 48, 3).flatten_all().unwrap();
    let expected = rms_norm(&reference(), &x, &weight, 1e-5).unwrap();
    let (sum, normed) = add_rms_norm(&reference(), residual.clone(), own(&x), &weight, 1e-5).unwrap();
    for cx in contexts() {
        assert_close(&rms_norm(&cx, &x, &weight, 1e-5).unwrap(), &expected, 1e-5);
        assert_close(&rms_norm_owned(&cx, own(&x), &weight, 1e-5).unwrap(), &expected, 1e-5);
        let (cpu_sum, cpu_normed) = add_rms_norm(&cx, own(&residual), own(&x), &weight, 1e-5).unwrap();
        assert_close(&cpu_sum, &sum, 0.0);
        assert_close(&cpu_normed, &normed, 1e-5);
    }
}

#[test]
fn rotations_of_whole_and_partial_heads() {
    let positions = Indices::new(vec![0, 1, 5, 1000, 8191]);
    for rotary_dim in [16, 8] {
        let inv_freq = (0..rotary_dim / 2).map(|i| 10_000_f32.powf(-2.0 * i as f32 / rotary_dim as f32)).collect();
        let params = RopeParams { rotary_dim, inv_freq, mscale: 1.25 };
        let (q, k) = (values(5, 48, 1), values(5, 16, 2));
        let (q_weight, k_weight) = (values(1, 16, 3).flatten_all().unwrap(), values(1, 16, 4).flatten_all().unwrap());
        let norm = |weight| HeadNorm { weight, eps: 1e-5 };
        for norms in [None, Some((norm(&q_weight), norm(&k_weight)))] {
            let run = |cx: &ExecContext| {
                let rotation = rotation(cx, &params, &positions).unwrap();
                rotate_heads(cx, (own(&q), own(&k)), 16, norms, &rotation).unwrap()
            };
            let (expected_q, expected_k) = run(&reference());
            for cx in contexts() {
                let (q, k) = run(&cx);
                assert_close(&q, &expected_q, 1e-5);
                assert_close(&k, &expected_k, 1e-5);
            }
        }
        let cx = &contexts()[0];
        assert!(rotate_heads(cx, (q, k), 16, None, &rotation(&reference(), &params, &positions).unwrap()).is_err());
    }
}

#[test]
fn gathered_rows_and_capped_logits() {
    let x = (values(4, 40, 1) * 6.0).unwrap();
    let matrix = f32_matrix(&values(30, 40, 3));
    let rows = Indices::new(vec![3, 1]);
    for cx in contexts() {
        let expected = gather_rows(&reference(), own(&x), &rows).unwrap();
        assert_close(&gather_rows(&cx, own(&x), &rows).unwrap(), &expected, 0.0);
        assert!(gather_rows(&cx, own(&x), &Indices::new(vec![4])).is_err());
        for cap in [None, Some(2.0)] {
            let (expected, _) = logits(&reference(), &matrix, own(&x), cap).unwrap();
            let (got, _) = logits(&cx, &matrix, own(&x), cap).unwrap();
            let shape = (4, 30);
            let tensor = |v: Vec<f32>| Tensor::from_vec(v, shape, &Device::Cpu).unwrap();
            assert_close(&tensor(got), &tensor(expected), 1e-5);
        }
    }
}

#[test]
fn feed_forward_of_more_rows_than_go_through_together() {
    let x = (values(100, 32, 1) * 3.0).unwrap();
    let [gate, up] = [2, 3].map(|seed| f32_matrix(&values(40, 32, seed)));
    let down = f32_matrix(&values(24, 40, 4));
    let bias = values(1, 40, 5).flatten_all().unwrap();
    for act in [Activation::Silu, Activation::GeluTanh] {
        let plain = |weight| Projection { weight, bias: None };
        let gate = Projection { weight: &gate, bias: Some(&bias) };
        let ffn = GatedFeedForward { gate, up: plain(&up), down: plain(&down), act };
        let expected = gated_feed_forward(&reference(), &ffn, own(&x)).unwrap();
        for cx in contexts() {
            assert_close(&gated_feed_forward(&cx, &ffn, own(&x)).unwrap(), &expected, 1e-4);
        }
    }
}

#[test]
fn feed_forward_of_packed_matrices_and_logits_with_peaks() {
    let stored = |rows, cols, seed| {
        let quantized = QTensor::quantize(&values(rows, cols, seed), GgmlDType::Q8_0).unwrap();
        let bytes = MappedBytes::Owned(quantized.data().unwrap().as_ref().into());
        Matrix::Mapped(MappedMatrix { ty: QuantType::Q8_0, rows, cols, bytes })
    };
    let [gate, up, down, output] =
        [(96, 64, 1), (96, 64, 2), (40, 96, 3), (45, 64, 4)].map(|(r, c, s)| stored(r, c, s));
    let x = values(100, 64, 5);
    for cx in contexts() {
        let placed = [&gate, &up, &down, &output].map(|matrix| cx.place(matrix.clone()));
        let [gate, up, down, output] = &placed;
        let plain = |weight| Projection { weight, bias: None };
        let ffn = GatedFeedForward { gate: plain(gate), up: plain(up), down: plain(down), act: Activation::Silu };
        // One op after the other.
        let parts = matmul(&cx, &[plain(gate), plain(up)], own(&x)).unwrap();
        let [g, u] = [0, 1].map(|i| parts[i].flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let mut gated = vec![0.0; g.len()];
        wick_kernels::gated_activation(&cx.kernels().unwrap().cpu, Activation::Silu, &g, &u, &mut gated);
        let gated = Tensor::from_vec(gated, (100, 96), &Device::Cpu).unwrap();
        let expected = matmul(&cx, &[plain(down)], gated).unwrap().swap_remove(0);
        assert_close(&gated_feed_forward(&cx, &ffn, own(&x)).unwrap(), &expected, 0.0);
        let (rows, peaks) = logits(&cx, output, own(&x), Some(3.0)).unwrap();
        if peaks.run > 0 {
            let largest = |run: &[f32]| run.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let want: Vec<f32> = rows.chunks(45).flat_map(|row| row.chunks(peaks.run).map(largest)).collect();
            assert_eq!(peaks.values, want);
        }
        assert_eq!(peaks.run > 0, matches!(output, Matrix::Packed(_)));
    }
}

#[test]
fn the_memory_of_an_activation_serves_the_next_one() {
    for cx in contexts() {
        let kernels = cx.kernels().unwrap();
        let x = values(8, 16, 1);
        let before = slices::f32_slice(&x).unwrap().as_ptr();
        cx.recycle(x);
        let small = kernels.buffer(100);
        assert_eq!((small.as_ptr(), small.len()), (before, 100));
        let other = kernels.buffer(100);
        assert_ne!(other.as_ptr(), before, "it is in use");
        kernels.give_back(small);
        (0..50).for_each(|n| kernels.give_back(Vec::with_capacity(n)));
        let largest = kernels.buffer(128);
        assert_eq!(largest.as_ptr(), before, "the largest are kept");
    }
}

/// Two sequences, one mid-way, over scattered blocks.
fn two_sequences() -> ForwardBatch {
    let (block_ids, size) = (vec![4, 0, 5, 2], 4);
    let slot = |table: &[u32], position: u32| table[position as usize / size] * size as u32 + position % size as u32;
    let first: Vec<u32> = (0..9).collect();
    let slots = first.iter().map(|&p| slot(&block_ids[..3], p)).chain([0, 1].map(|p| slot(&block_ids[3..], p)));
    ForwardBatch {
        input_ids: Indices::new(vec![0; 11]),
        positions: Indices::new(first.iter().copied().chain([0, 1]).collect()),
        slots: Indices::new(slots.collect()),
        seqs: vec![
            SeqRange { q_start: 0, q_len: 9, context_len: 9, blocks: 0..3 },
            SeqRange { q_start: 9, q_len: 2, context_len: 2, blocks: 3..4 },
        ],
        block_ids,
        logit_rows: Indices::new(vec![10]),
    }
}

#[test]
fn columns_are_multiplied_by_their_factors() {
    let (x, factors) = (values(3, 8, 1), values(1, 8, 2).flatten_all().unwrap());
    let expected = scale_columns(&reference(), own(&x), &factors).unwrap();
    contexts().iter().for_each(|cx| assert_close(&scale_columns(cx, own(&x), &factors).unwrap(), &expected, 0.0));
    assert!(scale_columns(&contexts()[0], own(&values(3, 7, 1)), &factors).is_err());
}

#[test]
fn attention_over_written_blocks() {
    let shape = KvShape { num_blocks: 6, layers: 3, kv_heads: 2, block_size: 4, head_dim: 16 };
    let batch = two_sequences();
    let (q, k, v) = (values(11, 64, 1), values(11, 32, 2), values(11, 32, 3));
    for (window, softcap) in [(None, None), (Some(3), None), (None, Some(1.5)), (Some(1), Some(1.5))] {
        let params = AttentionParams { heads: 4, scale: 0.25, window, softcap };
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::I8] {
            let run = |cx: &ExecContext| {
                // Candle's operations have no 8-bit cache.
                let exact = dtype == KvDtype::I8 && cx.kernels().is_none();
                let dtype = if exact { KvDtype::F32 } else { dtype };
                let mut kv = PagedKv::new(cx, shape, dtype).unwrap();
                // Another layer's are not to be seen.
                write_kv(cx, own(&v), own(&k), &batch.slots, &mut kv.layer(0)).unwrap();
                write_kv(cx, own(&v), own(&k), &batch.slots, &mut kv.layer(2)).unwrap();
                let mut layer = kv.layer(1);
                write_kv(cx, own(&k), own(&v), &batch.slots, &mut layer).unwrap();
                paged_attention(cx, own(&q), &layer, params, &batch).unwrap()
            };
            let expected = run(&reference());
            let tolerance = if dtype == KvDtype::I8 { 2e-2 } else { 1e-5 };
            contexts().iter().for_each(|cx| assert_close(&run(cx), &expected, tolerance));
        }
    }
}

#[test]
fn attention_over_pairs_of_integers() {
    let shape = KvShape { num_blocks: 3, layers: 1, kv_heads: 2, block_size: 16, head_dim: 16 };
    let batch = ForwardBatch {
        input_ids: Indices::new(vec![0; 20]),
        positions: Indices::new((0..20).collect()),
        slots: Indices::new((32..48).chain(16..20).collect()),
        seqs: vec![SeqRange { q_start: 0, q_len: 20, context_len: 20, blocks: 0..2 }],
        block_ids: vec![2, 1],
        logit_rows: Indices::default(),
    };
    let (q, k, v) = (values(20, 64, 1), values(20, 32, 2), values(20, 32, 3));
    let params = AttentionParams { heads: 4, scale: 0.25, window: Some(18), softcap: Some(1.5) };
    let run = |cx: &ExecContext, dtype| {
        let mut kv = PagedKv::new(cx, shape, dtype).unwrap();
        write_kv(cx, own(&k), own(&v), &batch.slots, &mut kv.layer(0)).unwrap();
        paged_attention(cx, own(&q), &kv.layer(0), params, &batch).unwrap()
    };
    let expected = run(&reference(), KvDtype::F32);
    contexts().iter().for_each(|cx| assert_close(&run(cx, KvDtype::I16), &expected, 1e-3));
}

#[test]
fn reference_attention_is_a_softmax_over_the_visible_keys() {
    // One head of two dimensions, window 2, against sums written out by hand.
    let cx = reference();
    let shape = KvShape { num_blocks: 2, layers: 1, kv_heads: 1, block_size: 2, head_dim: 2 };
    let batch = ForwardBatch {
        input_ids: Indices::new(vec![0; 3]),
        positions: Indices::new(vec![0, 1, 2]),
        slots: Indices::new(vec![2, 3, 0]),
        seqs: vec![SeqRange { q_start: 0, q_len: 3, context_len: 3, blocks: 0..2 }],
        block_ids: vec![1, 0],
        logit_rows: Indices::default(),
    };
    let rows = |data: [[f32; 2]; 3]| Tensor::new(&data, &Device::Cpu).unwrap();
    let (q, k) = (rows([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), rows([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]]));
    let v = rows([[1.0, 0.0], [0.0, 1.0], [3.0, 5.0]]);
    let mut kv = PagedKv::new(&cx, shape, KvDtype::F32).unwrap();
    let mut layer = kv.layer(0);
    write_kv(&cx, own(&k), own(&v), &batch.slots, &mut layer).unwrap();
    let params = AttentionParams { heads: 1, scale: 1.0, window: Some(2), softcap: None };
    let out = paged_attention(&cx, own(&q), &layer, params, &batch).unwrap();
    let second = {
        let (a, b) = (2_f32.exp(), (-1_f32).exp());
        [a / (a + b), b / (a + b)]
    };
    let third = {
        let (b, c) = ((-0.5_f32).exp(), 2_f32.exp());
        [3.0 * c / (b + c), (b + 5.0 * c) / (b + c)]
    };
    assert_close(&out, &rows([[1.0, 0.0], second, third]), 1e-6);
}

#[test]
fn malformed_batches_are_errors() {
    let shape = KvShape { num_blocks: 6, layers: 3, kv_heads: 2, block_size: 4, head_dim: 16 };
    let params = AttentionParams { heads: 4, scale: 0.25, window: None, softcap: None };
    let q = values(11, 64, 1);
    for cx in contexts().into_iter().chain([reference()]) {
        let mut kv = PagedKv::new(&cx, shape, KvDtype::F32).unwrap();
        let mut short = two_sequences();
        short.seqs[0].blocks = 0..2;
        assert!(paged_attention(&cx, own(&q), &kv.layer(1), params, &short).is_err());
        let mut outside = two_sequences();
        outside.block_ids[1] = 6;
        assert!(paged_attention(&cx, own(&q), &kv.layer(1), params, &outside).is_err());
        assert!(paged_attention(&cx, values(11, 60, 1), &kv.layer(1), params, &two_sequences()).is_err());
        let one = values(1, 32, 2);
        assert!(write_kv(&cx, own(&one), own(&one), &Indices::new(vec![24]), &mut kv.layer(0)).is_err());
    }
}

#[test]
fn an_f16_cache_halves_the_memory_and_starts_at_zero() {
    let shape = KvShape { num_blocks: 2, layers: 1, kv_heads: 1, block_size: 2, head_dim: 4 };
    for cx in contexts() {
        let mut kv = PagedKv::new(&cx, shape, KvDtype::F16).unwrap();
        let layer = kv.layer(0);
        let (wick_kernels::KvSlice::F16(k), _) = layer.slices().unwrap() else { panic!("asked for f16") };
        assert_eq!(k.len(), 16);
        assert!(k.iter().all(|v| v.to_bits() == 0));
    }
    let mut tensors = PagedKv::new(&reference(), shape, KvDtype::F16).unwrap();
    assert_eq!(tensors.layer(0).tensors().unwrap().0.dtype(), DType::F16);
}

#[test]
fn caches_that_cannot_be_are_errors() {
    let shape = KvShape { num_blocks: 2, layers: 1, kv_heads: 1, block_size: 16, head_dim: 24 };
    let error = |cx: &ExecContext, dtype| PagedKv::new(cx, shape, dtype).err().unwrap().to_string();
    for cx in contexts() {
        assert!(error(&cx, KvDtype::I16).contains("heads of 24 in blocks of 16"));
        assert!(error(&cx, KvDtype::Bf16).contains("choose int16"));
    }
    for dtype in [KvDtype::I16, KvDtype::I8] {
        assert!(error(&reference(), dtype).contains("on the CPU only"));
    }
}

/// Attention, feed-forward, norm and sums of embeddings of an encoder.
#[test]
fn ops_of_encoders() {
    let (hidden, inner, lengths) = (64, 96, [5, 1, 17]);
    let tokens: usize = lengths.iter().sum();
    let vector = |seed| values(1, hidden, seed).flatten_all().unwrap();
    let (bias, weight, shift, inner_bias) =
        (vector(1), vector(2), vector(3), values(1, inner, 4).flatten_all().unwrap());
    let (up, down) = (f32_matrix(&values(inner, hidden, 5)), f32_matrix(&values(hidden, inner, 6)));
    let x = values(tokens, hidden, 7);
    let qkv = || [8, 9, 10].map(|seed| values(tokens, hidden, seed));
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7 % 90).collect();
    let run = |cx: &ExecContext| {
        let shape = FullAttentionShape { heads: 4, head_dim: 16, lengths: &lengths };
        let attended = full_attention(cx, qkv(), [&bias, &weight, &shift], shape).unwrap();
        let norm = LayerNormParams { weight: &weight, shift: &shift, eps: 1e-6 };
        let normed = add_layer_norm(cx, own(&attended), Some(&bias), Some(own(&x)), norm).unwrap();
        let ffn = FeedForward { up: &up, up_bias: &inner_bias, act: Pointwise::Gelu, down: &down };
        let fed = feed_forward(cx, &ffn, &normed).unwrap();
        let tables: [(&Matrix, &[u32]); 2] = [(&up, &ids), (&up, &ids)];
        [attended, normed, fed, sum_embeddings(cx, &tables).unwrap()]
    };
    let expected = run(&reference());
    for cx in contexts() {
        for (got, want) in run(&cx).iter().zip(&expected) {
            assert_close(got, want, 2e-5);
        }
        assert!(sum_embeddings(&cx, &[(&up, &[96])]).is_err());
        assert!(sum_embeddings(&cx, &[(&up, &[1]), (&up, &[1, 2])]).is_err());
    }
}
