//! From a row of logits to one token: penalties, filters and a counter-based random draw. Pure.
//!
//! The order of the steps is the one vLLM documents for its sampler, so that equal parameters mean the same thing:
//!
//! 1. log-probabilities, from the raw logits (`logprobs`);
//! 2. `logit_bias`, the repetition, frequency and presence penalties, the ban of stop tokens below `min_tokens` and the
//!    mask of a grammar (`processors`, `mask`): these also act on greedy decoding (the bans come last here, which only
//!    makes them absolute; a grammar that leaves nothing but stop tokens overrules `min_tokens`);
//! 3. temperature, `min_p`, `top_k`, `top_p` and the draw (`draw`), or the arg-max at temperature 0.
//!
//! **Same bytes always**: everything here is a function of one row, the parameters, the sequence's own tokens and the
//! output index. Sums have a fixed order that depends on the vocabulary's size only, equal logits are ordered by id, and
//! the random number of a token is a hash of (seed, output index) (`rng`).
//!
//! **Bad logits never panic**: NaN counts as minus infinity, plus infinity as the largest finite number. In a row
//! without any finite logit the lowest id that is not banned is chosen.
mod draw;
pub mod logprobs;
mod mask;
mod nucleus;
pub mod params;
mod processors;
mod rng;
mod row;
mod sampler;
mod select;
mod softmax;
#[cfg(test)]
#[expect(clippy::float_cmp, reason = "what is not touched stays exactly as it is")]
mod tests;

pub use logprobs::logprobs;
pub use mask::TokenMask;
pub use params::SamplingParams;
pub use row::LogitRow;
pub use sampler::Sampler;

/// Log-probabilities of one position, from the raw logits (before penalties, bias, temperature and filters).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural log-probability of the token itself; minus infinity when its logit is minus infinity or NaN.
    pub logprob: f32,
    /// The most likely tokens, most likely first (ties: lower id first), as (id, log-probability). As many as were asked
    /// for (at most 20 through the API), fewer when fewer tokens have a finite logit.
    pub top: Vec<(u32, f32)>,
}

/// One sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub id: u32,
    /// Present when the request asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
}
