//! Events → one response: exactly what the stream would have carried, joined.
use std::pin::pin;

use futures_util::StreamExt;

use super::choice::{Finish, TokenEntry};
use super::error::ApiError;
use super::gate::Tokens;
use super::pipeline::{Event, Job, events};
use crate::sampling::TokenLogprobs;

/// A complete choice.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenEntry>,
    pub(crate) token_ids: Vec<u32>,
    /// Log-probabilities of the prompt from its second token on.
    pub(crate) prompt: Option<Vec<TokenLogprobs>>,
    pub(crate) mean_logprob: f64,
    finish: Option<Finish>,
}

impl Folded {
    /// OpenAI's word for why the choice ended.
    pub(crate) fn finish_reason(&self) -> &'static str {
        self.finish.expect("an unfinished choice in a complete response is a bug").name()
    }
}

/// Waits for all choices, in the order of their indices. Dropping the future aborts them.
pub(crate) async fn fold(job: Job) -> Result<(Vec<Folded>, Tokens), ApiError> {
    let mut choices: Vec<Folded> = (0..job.choices()).map(|_| Folded::default()).collect();
    let mut usage = Tokens::default();
    let mut events = pin!(events(job));
    while let Some(event) = events.next().await {
        match event {
            Event::Begin { choice, prompt, .. } => choices[choice].prompt = prompt,
            Event::Delta { choice, delta, .. } => {
                let folded = &mut choices[choice];
                folded.text.push_str(&delta.text);
                folded.logprobs.extend(delta.logprobs);
                folded.token_ids.extend(delta.token_ids);
            }
            Event::Finish { choice, reason, mean_logprob, tokens } => {
                choices[choice].finish = Some(reason);
                choices[choice].mean_logprob = mean_logprob;
                usage = tokens;
            }
            Event::Failed(error) => return Err(error),
        }
    }
    Ok((choices, usage))
}
