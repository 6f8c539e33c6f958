//! Log-probabilities from raw logits.
use super::row::View;
use super::select::{self, Candidate};
use super::{TokenLogprobs, softmax};

/// Log-probability of `token` in `logits` and the `top` best alternatives, as of the whole, untransformed row.
///
/// A token outside the row, or with a logit of minus infinity or NaN, has log-probability minus infinity.
#[must_use]
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let chosen = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    RawLogprobs::of(logits.into(), top).with_chosen(chosen)
}

/// What must be read from a row before it is transformed: its normaliser and its best tokens.
pub(super) struct RawLogprobs {
    /// `None`: no logit above minus infinity.
    log_sum_exp: Option<f64>,
    top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    pub(super) fn of(row: View<'_>, top: usize) -> Self {
        let log_sum_exp = softmax::log_sum_exp(row);
        let mut best: Vec<Candidate> = Vec::new();
        select::largest(row, top, f32::NEG_INFINITY, &mut best);
        let top = best.iter().map(|c| (c.id(), logprob(c.logit(), log_sum_exp))).collect();
        Self { log_sum_exp, top }
    }

    /// `logit`: the raw logit of the token that was chosen.
    pub(super) fn with_chosen(self, logit: f32) -> TokenLogprobs {
        TokenLogprobs { logprob: logprob(logit, self.log_sum_exp), top: self.top }
    }
}

fn logprob(logit: f32, log_sum_exp: Option<f64>) -> f32 {
    match log_sum_exp {
        Some(norm) if !logit.is_nan() => (f64::from(logit.min(f32::MAX)) - norm) as f32,
        _ => f32::NEG_INFINITY,
    }
}
