//! The pipeline as a whole, by examples and properties.
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> Arc<SamplingParams> {
    let mut params = SamplingParams::default();
    change(&mut params);
    Arc::new(params)
}

fn sample_at(params: &Arc<SamplingParams>, row: &[f32], index: usize) -> u32 {
    Sampler::new(params.clone(), &[]).sample(&mut row.to_vec(), index, &[]).id
}

/// Ids seen in 100 draws from one row, sorted.
fn support(params: &Arc<SamplingParams>, row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..100).map(|index| sample_at(params, row, index)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Probabilities in double precision, the plain way.
fn softmax(row: &[f32], temperature: f64) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = row.iter().map(|&x| (f64::from(x - max) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Ids from the most to the least likely, ties by id.
fn ranked(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    ids
}

/// A fixed row that looks like a model's: few likely tokens, a long tail.
fn model_like(vocab: usize) -> Vec<f32> {
    (0..vocab as u64)
        .map(|i| {
            let hash = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let uniform = (hash >> 40) as f32 / (1 << 24) as f32;
            -12.0 + 14.0 * uniform * uniform
        })
        .collect()
}

/// The distribution that the parameters describe, the plain way.
fn expected(row: &[f32], p: &SamplingParams) -> Vec<f64> {
    let mut probabilities = softmax(row, f64::from(p.temperature));
    let best = probabilities.iter().copied().fold(0.0, f64::max);
    for q in &mut probabilities {
        if *q < f64::from(p.min_p) * best {
            *q = 0.0;
        }
    }
    let order = ranked(row);
    if p.top_k > 0 {
        for &id in order.iter().skip(p.top_k as usize) {
            probabilities[id as usize] = 0.0;
        }
    }
    let total: f64 = probabilities.iter().sum();
    let mut sum = 0.0;
    for &id in &order {
        if sum >= f64::from(p.top_p) * total {
            probabilities[id as usize] = 0.0;
        }
        sum += probabilities[id as usize];
    }
    let total: f64 = probabilities.iter().sum();
    probabilities.into_iter().map(|q| q / total).collect()
}

const DRAWS: usize = 30_000;

#[test]
fn draws_follow_the_distribution() {
    let row: Vec<f32> = (0..600).map(|i| if i % 37 == 5 { (i % 11) as f32 * 0.3 } else { -30.0 }).collect();
    let cases = [
        params(|_| {}),
        params(|p| p.temperature = 0.6),
        params(|p| p.temperature = 1.7),
        params(|p| p.top_k = 7),
        params(|p| p.top_p = 0.8),
        params(|p| p.min_p = 0.3),
        params(|p| (p.top_k, p.top_p, p.min_p) = (9, 0.9, 0.1)),
    ];
    for (case, params) in cases.into_iter().enumerate() {
        let mut counts = vec![0u32; row.len()];
        for index in 0..DRAWS {
            counts[sample_at(&params, &row, index) as usize] += 1;
        }
        let mut chi_square = 0.0;
        for (id, q) in expected(&row, &params).into_iter().enumerate() {
            let mean = q * DRAWS as f64;
            if q == 0.0 {
                assert_eq!(counts[id], 0, "case {case}: token {id} is filtered");
            } else if mean > 5.0 {
                chi_square += (f64::from(counts[id]) - mean).powi(2) / mean;
            }
        }
        // At most 16 degrees of freedom; 45 is beyond the 99.98 % quantile.
        assert!(chi_square < 45.0, "case {case}: chi-square {chi_square}");
    }
}

#[test]
fn top_k_breaks_ties_by_id() {
    assert_eq!(support(&params(|p| p.top_k = 3), &[1.0; 50]), [0, 1, 2]);
    assert!(support(&params(|p| p.top_k = 50), &[1.0; 50]).len() > 35);
}

#[test]
fn draws_reach_a_large_vocabulary() {
    let row = vec![0.0; 70_000];
    for p in [params(|_| {}), params(|p| p.top_p = 0.999), params(|p| p.top_k = 60_000), params(|p| p.min_p = 0.5)] {
        let ids = support(&p, &row);
        assert!(ids.len() > 95 && *ids.last().unwrap() > 55_000, "{} ids", ids.len());
    }
}

#[test]
fn bias_forces_and_forbids() {
    let row = model_like(1000);
    let best = ranked(&row)[0];
    assert_eq!(support(&params(|p| p.logit_bias = [(123, 100.0)].into()), &row), [123]);
    assert!(!support(&params(|p| p.logit_bias = [(best, -100.0)].into()), &row).contains(&best));
    let greedy =
        params(|p| (p.temperature, p.logit_bias) = (0.0, [(best, -100.0), (7, 60.0), (7, 40.0), (5000, 1.0)].into()));
    assert_eq!(sample_at(&greedy, &row, 0), 7);
}

#[test]
fn penalties_read_prompt_and_output_as_documented() {
    // Token 0 stands in the prompt, tokens 1 (twice) and 2 were generated.
    let penalised = |p: &Arc<SamplingParams>, row: &[f32]| {
        let mut row = row.to_vec();
        Sampler::resumed(p.clone(), &[0, 0], &[1, 2, 1]).sample(&mut row, 3, &[]);
        row
    };
    let row = [2.0, 2.0, -2.0, 2.0];
    assert_eq!(penalised(&params(|p| p.repetition_penalty = 2.0), &row), [1.0, 1.0, -4.0, 2.0]);
    assert_eq!(penalised(&params(|p| p.presence_penalty = 0.5), &row), [2.0, 1.5, -2.5, 2.0]);
    assert_eq!(penalised(&params(|p| p.frequency_penalty = 0.5), &row), [2.0, 1.0, -2.5, 2.0]);
    assert_eq!(penalised(&params(|_| {}), &row), row);
}

#[test]
fn penalties_act_on_greedy_decoding() {
    let mut sampler = Sampler::new(params(|p| (p.temperature, p.frequency_penalty) = (0.0, 0.6)), &[]);
    let row = [3.0, 2.5, 2.0];
    let ids: Vec<u32> = (0..6).map(|index| sampler.sample(&mut row.to_vec(), index, &[]).id).collect();
    assert_eq!(ids, [0, 1, 0, 2, 1, 0]);
}

#[test]
fn logprobs_come_from_the_raw_row() {
    let row = model_like(500);
    let p = params(|p| {
        p.logprobs = Some(4);
        p.temperature = 0.3;
        p.repetition_penalty = 1.8;
        p.logit_bias = [(9, 3.0), (9, 100.0)].into();
        p.min_tokens = 1;
    });
    let sampled = Sampler::new(p, &[9, 10]).sample(&mut row.clone(), 0, &[11]);
    assert_eq!(sampled.id, 9);
    let exact = softmax(&row, 1.0);
    let reported = sampled.logprobs.unwrap();
    assert_eq!(reported, logprobs(&row, 9, 4));
    assert!((f64::from(reported.logprob) - exact[9].ln()).abs() < 1e-6);
    assert_eq!(reported.top.iter().map(|t| t.0).collect::<Vec<_>>(), ranked(&row)[..4]);
    for (id, logprob) in reported.top {
        assert!((f64::from(logprob) - exact[id as usize].ln()).abs() < 1e-6);
    }
}

#[test]
fn bad_logits_never_panic() {
    const INF: f32 = f32::INFINITY;
    let rows: [&[f32]; 8] = [
        &[],
        &[f32::NAN; 5],
        &[-INF; 5],
        &[INF; 5],
        &[INF, -INF, f32::NAN, f32::MAX, f32::MIN],
        &[f32::MAX, f32::MIN, 0.0, 1.0, 2.0],
        &[f32::MIN; 5],
        &[0.0, -0.0, 1e-45, f32::NAN, -1e-45],
    ];
    for row in rows {
        for temperature in [0.0, 1e-6, 1e-5, 0.7, 1e30, INF, f32::NAN] {
            for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (2, 1.0, 0.0), (0, 0.5, 0.0), (3, 1e-9, 0.2), (0, 1.0, 1.0)] {
                let p = params(|p| {
                    (p.temperature, p.top_k, p.top_p, p.min_p) = (temperature, top_k, top_p, min_p);
                    (p.logprobs, p.repetition_penalty, p.min_tokens) = (Some(20), 1.1, 3);
                });
                for index in 0..5 {
                    let sampled = Sampler::new(p.clone(), &[1]).sample(&mut row.to_vec(), index, &[0, 2]);
                    assert!((sampled.id as usize) < row.len().max(1));
                    assert!(index >= 3 || row.is_empty() || ![0, 2].contains(&sampled.id));
                    let reported = sampled.logprobs.unwrap();
                    assert!(reported.logprob <= 0.0 && reported.top.iter().all(|t| t.1 <= 0.0));
                }
            }
        }
    }
    assert_eq!(sample_at(&params(|_| {}), &[f32::NAN; 5], 0), 0);
    assert_eq!(sample_at(&params(|_| {}), &[-INF, INF, 3.0], 0), 1);
}

#[test]
fn extreme_temperatures_have_their_limits() {
    let row = model_like(64);
    assert_eq!(support(&params(|p| p.temperature = 2e-5), &row), [ranked(&row)[0]]);
    assert!(support(&params(|p| p.temperature = 1e30), &row).len() > 40);
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        prop::collection::vec(-8.0f32..8.0, 1..120),
        // Many ties.
        prop::collection::vec((-3i8..3).prop_map(f32::from), 1..120),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn greedy_is_the_first_largest(row in rows(), seed: u64) {
        let p = params(|p| (p.temperature, p.seed) = (0.0, seed));
        prop_assert_eq!(sample_at(&p, &row, 3), ranked(&row)[0]);
    }

    #[test]
    fn filters_keep_what_they_say(row in rows(), top_k in 0u32..20, top_p in 0.05f32..1.0, min_p in 0.0f32..0.9, seed: u64) {
        let p = params(|p| (p.top_k, p.top_p, p.min_p, p.seed) = (top_k, top_p, min_p, seed));
        let kept = expected(&row, &p);
        if top_k > 0 {
            prop_assert!(kept.iter().filter(|&&q| q > 0.0).count() <= top_k as usize);
        }
        // Where a bound is met within rounding, either side is right.
        let q = softmax(&row, 1.0);
        let best = q.iter().copied().fold(0.0, f64::max);
        let clear = q.iter().all(|&q| (q - f64::from(min_p) * best).abs() > 1e-6 * best);
        prop_assume!(clear);
        let wider = expected(&row, &SamplingParams { top_p: (top_p + 1e-5).min(1.0), ..(*p).clone() });
        for id in support(&p, &row) {
            prop_assert!(wider[id as usize] > 0.0, "token {} is not kept", id);
        }
    }

    #[test]
    fn the_same_seed_and_index_repeat(row in rows(), seed: u64, index in 0usize..1000, top_p in 0.1f32..=1.0) {
        let p = params(|p| (p.seed, p.top_p, p.logprobs) = (seed, top_p, Some(3)));
        let mut busy = Sampler::new(p.clone(), &[]);
        busy.sample(&mut row.clone(), 0, &[]);
        let again = busy.sample(&mut row.clone(), index, &[]);
        prop_assert_eq!(Sampler::new(p, &[]).sample(&mut row.clone(), index, &[]), again);
    }

    #[test]
    fn a_resumed_sampler_equals_the_one_that_went_on(row in rows(), seed: u64, prompt in prop::collection::vec(0u32..40, 0..20)) {
        let p = params(|p| {
            (p.seed, p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (seed, 1.3, 0.2, -0.4);
        });
        let mut sampler = Sampler::new(p.clone(), &prompt);
        let mut output = Vec::new();
        for index in 0..12 {
            let resumed = Sampler::resumed(p.clone(), &prompt, &output).sample(&mut row.clone(), index, &[]);
            prop_assert_eq!(&resumed, &sampler.sample(&mut row.clone(), index, &[]));
            output.push(resumed.id);
        }
    }

    #[test]
    fn min_tokens_bans_stop_tokens(row in rows(), min_tokens in 1usize..8, seed: u64, stop in prop::collection::vec(0u32..60, 1..10)) {
        prop_assume!((0..row.len() as u32).any(|id| !stop.contains(&id)));
        let p = params(|p| {
            (p.min_tokens, p.seed) = (min_tokens, seed);
            p.logit_bias = stop.iter().map(|&id| (id, 100.0)).collect();
        });
        for index in 0..min_tokens {
            let id = Sampler::new(p.clone(), &[]).sample(&mut row.clone(), index, &stop).id;
            prop_assert!(!stop.contains(&id));
        }
    }

    #[test]
    fn a_larger_penalty_never_raises_a_logit(row in rows(), small in 1.0f32..2.0, extra in 0.0f32..2.0) {
        let logits = |repetition: f32, additive: f32| {
            let p = params(|p| {
                (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) = (repetition, additive, additive);
            });
            let mut row = row.clone();
            Sampler::resumed(p, &[0, 1, 2], &[2, 3, 3]).sample(&mut row, 3, &[]);
            row
        };
        let (weak, strong) = (logits(small, 0.1), logits(small + extra, 0.1 + extra));
        for id in 0..row.len() {
            prop_assert!(strong[id] <= weak[id] && weak[id] <= row[id]);
            if id > 3 {
                prop_assert_eq!(strong[id], row[id]);
            }
        }
    }

    #[test]
    fn probabilities_sum_to_one(row in rows()) {
        let reported = logprobs(&row, 0, row.len());
        let sum: f64 = reported.top.iter().map(|t| f64::from(t.1).exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5);
        prop_assert_eq!(reported.top.iter().map(|t| t.0).collect::<Vec<_>>(), ranked(&row));
        prop_assert_eq!(reported.top.iter().find(|t| t.0 == 0).map(|t| t.1), Some(reported.logprob));
    }
}
