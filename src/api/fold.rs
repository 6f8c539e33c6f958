//! Events → one response: exactly what the stream would have carried, joined.
use std::pin::pin;

use futures_util::StreamExt;

use super::choice::{Finish, TokenEntry};
use super::error::ApiError;
use super::gate::Tokens;
use super::pipeline::{Event, Job, events};
use crate::sampling::TokenLogprobs;
use crate::text::Segment;

/// A complete choice.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    /// The content.
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<FoldedCall>,
    pub(crate) logprobs: Vec<TokenEntry>,
    pub(crate) token_ids: Vec<u32>,
    /// Log-probabilities of the prompt from its second token on.
    pub(crate) prompt: Option<Vec<TokenLogprobs>>,
    pub(crate) mean_logprob: f64,
    /// The stop string that ended it.
    pub(crate) stop: Option<String>,
    finish: Option<Finish>,
}

/// A call of a tool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FoldedCall {
    pub(crate) name: String,
    /// The tool takes free text, which is in `arguments`.
    pub(crate) custom: bool,
    pub(crate) arguments: String,
}

impl Folded {
    fn take(&mut self, segment: Segment) {
        match segment {
            Segment::Content(text) => self.text.push_str(&text),
            Segment::Reasoning(text) => self.reasoning.push_str(&text),
            Segment::CallBegin { name, custom } => {
                self.calls.push(FoldedCall { name, custom, arguments: String::new() });
            }
            Segment::CallArguments(text) => {
                let call = self.calls.last_mut().expect("arguments before a call are a bug");
                call.arguments.push_str(&text);
            }
            Segment::CallEnd => {}
        }
    }

    /// Why the choice ended.
    pub(crate) fn finish(&self) -> Finish {
        self.finish.expect("an unfinished choice in a complete response is a bug")
    }

    /// OpenAI's word for it.
    pub(crate) fn finish_reason(&self) -> &'static str {
        self.finish().name()
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
                delta.segments.into_iter().for_each(|segment| folded.take(segment));
                folded.logprobs.extend(delta.logprobs);
                folded.token_ids.extend(delta.token_ids);
            }
            Event::Finish { choice, reason, stop, mean_logprob, tokens } => {
                choices[choice].stop = stop;
                choices[choice].finish = Some(reason);
                choices[choice].mean_logprob = mean_logprob;
                usage = tokens;
            }
            Event::Failed(error) => return Err(error),
        }
    }
    Ok((choices, usage))
}
