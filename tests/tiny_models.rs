//! Same bytes, always: on tiny seeded models, one per thing a decoder's specification can say, the logits of a sequence are equal **bit
//! for bit** whatever happens around it. And they are right: near candle's generic operations here, near `transformers` in `golden`.
#[path = "tiny_models/golden.rs"]
mod golden;
#[path = "tiny_models/harness.rs"]
mod harness;

use harness::{Model, assert_same_bits, prompt};
use wick::ops::KvDtype;
use wick::runner::testing::{SeededWeights, base_spec, variants};
use wick::weights::LoadError;
use wick_kernels::{Isa, Precision, QuantType};

/// Kernels against candle's operations, f32 weights and cache: both sum in f32, in different orders.
const REFERENCE_TOLERANCE: f32 = 2e-4;
/// An f16 cache rounds keys and values to 11 bits; behind it an 8-bit activation may round to its neighbour.
const CACHE_TOLERANCES: [(KvDtype, f32, f32); 3] =
    [(KvDtype::F16, 2e-2, 4e-2), (KvDtype::I16, 2e-2, 4e-2), (KvDtype::I8, 2e-1, 2e-1)];

/// Formats of the tested ones whose products depend on how activations are rounded.
const ROUNDED: [QuantType; 4] = [QuantType::Q8_0, QuantType::Q4_0, QuantType::Q5_1, QuantType::BF16];

fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available()).collect()
}

/// Every variant in f32, the base one in a few stored formats too, on every instruction set this machine has.
fn models() -> Vec<(String, Model)> {
    let stored = [QuantType::F16, QuantType::BF16, QuantType::Q8_0, QuantType::Q4_0, QuantType::Q5_1];
    let plain = variants().into_iter().map(|(name, spec)| (name, spec, QuantType::F32));
    let formats = stored.into_iter().map(|ty| ("grouped-query", base_spec(), ty));
    let all: Vec<_> = plain.chain(formats).collect();
    let mut models = Vec::new();
    for isa in isas() {
        for (name, spec, ty) in &all {
            let model = Model::new(spec.clone(), *ty).isa(isa);
            if isa.packs() && ROUNDED.contains(ty) {
                models.push((format!("{name} {ty:?} {isa:?} int8"), model.clone().activations(Precision::Int8)));
            }
            models.push((format!("{name} {ty:?} {isa:?}"), model));
        }
    }
    models
}

#[test]
fn chunking_changes_nothing() {
    for (name, model) in models() {
        let tokens = prompt(1, 37);
        let whole = model.runner().rows_of(&tokens, &[37]);
        for chunk in [1, 3, 16] {
            let chunks: Vec<usize> = (0..37).step_by(chunk).map(|at| chunk.min(37 - at)).collect();
            assert_same_bits(&model.runner().rows_of(&tokens, &chunks), &whole, &format!("{name}, chunks of {chunk}"));
        }
    }
}

#[test]
fn batch_mates_change_nothing() {
    for (name, model) in models() {
        for size in [8, 32] {
            let prompts: Vec<_> = (0..size).map(|i| prompt(i, 3 + i * 5 % 29)).collect();
            let mut runner = model.runner();
            // Sequence i computes i % 7 + 1 tokens a step: single tokens and chunks of several lengths side by side.
            let together = runner.rows_together(&prompts, |i| i % 7 + 1);
            for (i, tokens) in prompts.iter().enumerate() {
                let alone = model.runner().rows_of(tokens, &[tokens.len()]);
                assert_same_bits(&together[i], &alone, &format!("{name}, sequence {i} of {size}"));
            }
        }
    }
}

#[test]
fn a_warm_prefix_changes_nothing() {
    for (name, model) in models() {
        let tokens = prompt(5, 30);
        let cold = model.runner().rows_of(&tokens, &[30]);
        let mut runner = model.runner();
        // Another sequence computes the first 24 tokens as part of its own prompt; ours takes over its first blocks.
        let mut other = prompt(6, 28);
        other[..24].copy_from_slice(&tokens[..24]);
        let blocks = runner.blocks_for(28);
        runner.compute(&other, 0, 28, &blocks);
        let mut shared = runner.blocks_for(30);
        let kept = 24 / runner.block_size();
        shared[..kept].copy_from_slice(&blocks[..kept]);
        let rows = runner.compute(&tokens, 24, 30, &shared);
        assert_same_bits(&rows, &cold[24..], &format!("{name}, warm prefix"));
    }
}

#[test]
fn siblings_may_share_a_block_that_this_very_step_fills() {
    for (name, model) in models() {
        let tokens = prompt(7, 20);
        let cold = model.runner().rows_of(&tokens, &[20]);
        let mut runner = model.runner();
        let block = runner.block_size();
        let first = runner.blocks_for(20);
        let mut second = runner.blocks_for(20);
        second[..2].copy_from_slice(&first[..2]);
        let rows = runner.step(&[(&tokens, 0, 20, &first), (&tokens, 2 * block, 20, &second)]);
        assert_same_bits(&rows[0], &cold, &format!("{name}, the one who fills"));
        assert_same_bits(&rows[1], &cold[2 * block..], &format!("{name}, the one who shares"));
    }
}

#[test]
fn recomputing_after_preemption_changes_nothing() {
    for (name, model) in models() {
        let tokens = prompt(8, 26);
        let cold = model.runner().rows_of(&tokens, &[26]);
        let mut runner = model.runner();
        let lost = runner.blocks_for(26);
        runner.compute(&tokens, 0, 21, &lost);
        // The blocks go to someone else, who writes other tokens; ours starts again elsewhere, partly in the same blocks, reversed.
        runner.compute(&prompt(9, 26), 0, 26, &lost);
        let again: Vec<u32> = lost.iter().rev().copied().collect();
        let rows = runner.compute(&tokens, 0, 26, &again);
        assert_same_bits(&rows, &cold, &format!("{name}, recomputed"));
    }
}

#[test]
fn threads_change_nothing() {
    for (name, model) in models() {
        let prompts: Vec<_> = (0..4).map(|i| prompt(i, 9 + 7 * i)).collect();
        let one = model.clone().threads(1).runner().rows_together(&prompts, |i| 5 + i);
        for threads in [2, 3] {
            let many = model.clone().threads(threads).runner().rows_together(&prompts, |i| 5 + i);
            many.iter().zip(&one).for_each(|(a, b)| assert_same_bits(a, b, &format!("{name}, {threads} threads")));
        }
    }
}

#[test]
fn only_the_wanted_rows_come_back() {
    for (name, model) in models() {
        let tokens = prompt(2, 12);
        let all = model.runner().rows_of(&tokens, &[12]);
        let last = model.runner().last_row_of(&tokens);
        assert_same_bits(&[last], &all[11..], &format!("{name}, last row alone"));
        let mut runner = model.runner();
        assert!(runner.rows_without_logits(&tokens).is_empty(), "{name}");
    }
}

#[test]
fn a_rounded_cache_keeps_the_same_bytes_rule_and_stays_near_f32() {
    for (name, model) in models() {
        let tokens = prompt(3, 33);
        let exact = model.runner().rows_of(&tokens, &[33]);
        for (dtype, tolerance, int8_tolerance) in CACHE_TOLERANCES {
            let Some(rounded) = model.clone().holding(dtype) else { continue };
            let whole = rounded.runner().rows_of(&tokens, &[33]);
            let chunks = [1, 15, 2, 1, 14];
            let cut = rounded.runner().rows_of(&tokens, &chunks);
            assert_same_bits(&cut, &whole, &format!("{name}, {dtype} cache, chunks"));
            let worst = harness::worst_difference(&whole, &exact);
            let tolerance = if name.ends_with("int8") { int8_tolerance } else { tolerance };
            assert!(worst < tolerance, "{name}: the {dtype} cache moves logits by {worst}");
            assert!(worst > 0.0, "{name}: the {dtype} cache was not used");
        }
    }
}

#[test]
fn kernels_agree_with_candles_operations() {
    for (name, spec) in variants() {
        let model = Model::new(spec, QuantType::F32);
        let prompts: Vec<_> = (0..3).map(|i| prompt(i, 8 + 11 * i)).collect();
        let expected = model.clone().reference().runner().rows_together(&prompts, |i| 3 + 4 * i);
        for isa in isas() {
            let rows = model.clone().isa(isa).runner().rows_together(&prompts, |i| 3 + 4 * i);
            for (got, want) in rows.iter().zip(&expected) {
                let worst = harness::worst_difference(got, want);
                assert!(worst < REFERENCE_TOLERANCE, "{name} on {isa:?} differs from candle's operations by {worst}");
            }
        }
    }
}

#[test]
fn every_variant_changes_the_logits() {
    // Otherwise a specification field that nobody reads would pass every test above.
    let tokens = prompt(4, 24);
    let base = Model::new(base_spec(), QuantType::F32).runner().rows_of(&tokens, &[24]);
    for (name, spec) in variants().into_iter().skip(1) {
        let rows = Model::new(spec, QuantType::F32).runner().rows_of(&tokens, &[24]);
        let differs = harness::worst_difference(&rows, &base);
        assert!(differs > 1e-3, "{name} computes the same as the base model (within {differs})");
    }
}

#[test]
fn malformed_steps_fail_and_the_runner_goes_on() {
    let model = Model::new(base_spec(), QuantType::F32);
    let mut runner = model.runner();
    let before = runner.rows_of(&prompt(1, 5), &[5]);
    runner.assert_bad_steps_are_refused();
    assert_same_bits(&runner.rows_of(&prompt(1, 5), &[5]), &before, "after refused steps");
}

#[test]
fn missing_left_over_and_misshapen_tensors_are_named() {
    let spec = base_spec();
    let load =
        |weights: &SeededWeights| Model::new(spec.clone(), QuantType::F32).load(weights).map(|_| ()).unwrap_err();
    let weights = || SeededWeights::new(&spec, 1, QuantType::F32);

    let mut lacking = weights();
    lacking.remove("model.layers.1.mlp.up_proj.weight");
    assert!(matches!(load(&lacking), LoadError::MissingTensor { name } if name == "model.layers.1.mlp.up_proj.weight"));

    let mut extra = weights();
    extra.insert("model.layers.1.self_attn.q_norm.weight", &[16]);
    assert!(
        matches!(load(&extra), LoadError::LeftOver { names } if names == ["model.layers.1.self_attn.q_norm.weight"])
    );

    let mut misshapen = weights();
    misshapen.insert("model.norm.weight", &[65]);
    assert!(matches!(load(&misshapen), LoadError::Shape { name, .. } if name == "model.norm.weight"));
}

#[test]
fn a_tied_matrix_saved_twice_is_read_once() {
    let (_, spec) = variants().into_iter().find(|(name, _)| *name == "tied").unwrap();
    let mut twice = SeededWeights::new(&spec, 1, QuantType::F32);
    twice.insert("lm_head.weight", &[250, 64]);
    let model = Model::new(spec, QuantType::F32);
    let rows = model.load(&twice).unwrap().rows_of(&prompt(1, 6), &[6]);
    assert_same_bits(&rows, &model.runner().rows_of(&prompt(1, 6), &[6]), "the embeddings are the output matrix");
}
