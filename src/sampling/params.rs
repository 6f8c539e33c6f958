//! Sampling parameters, already validated.
use std::sync::Arc;

/// Below this temperature decoding is greedy: dividing by it would only overflow (vLLM draws the line at the same value).
pub const GREEDY_BELOW: f32 = 1e-5;

/// How tokens are picked. Neutral values switch a step off.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 (or anything below [`GREEDY_BELOW`]) = greedy (arg-max, ties to the lower id).
    pub temperature: f32,
    /// In (0, 1]; 1 = off. Keeps the smallest set of most likely tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// 0 = off. Keeps exactly this many most likely tokens; among equals the lower ids.
    pub top_k: u32,
    /// In [0, 1]; 0 = off. Drops tokens less likely than this share of the most likely one.
    pub min_p: f32,
    /// -2..=2; 0 = off. Subtracted once from the logit of every token already generated.
    pub presence_penalty: f32,
    /// -2..=2; 0 = off. Subtracted from a token's logit for every time it was generated.
    pub frequency_penalty: f32,
    /// > 0; 1 = off. Divides the positive and multiplies the other logits of tokens in the prompt or the output.
    pub repetition_penalty: f32,
    /// Added to the logits: (token id, bias -100..=100). Shared by the choices of a request.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// Stop tokens are banned before this many tokens were generated.
    pub min_tokens: usize,
    /// `Some(n)`: report the chosen token's log-probability and `n` alternatives (0..=20).
    pub logprobs: Option<u8>,
}

impl SamplingParams {
    /// Whether the arg-max is taken; a NaN temperature counts as greedy.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature.is_nan() || self.temperature < GREEDY_BELOW
    }

    /// Whether any penalty needs to know the tokens seen so far.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "neutral values are exact")]
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Arc::default(),
            seed: 0,
            min_tokens: 0,
            logprobs: None,
        }
    }
}
