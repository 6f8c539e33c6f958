//! One choice: tokens in, shown text out. Knows characters, stop strings and hidden tokens; nothing of JSON.
use std::collections::VecDeque;
use std::sync::Arc;

use super::params::TextRules;
use crate::sampling::{SampledToken, TokenLogprobs};
use crate::text::{Detokenizer, StopMatcher, Tokenizer};

/// A token with its log-probabilities, and where its text starts in the choice's text (in characters).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenEntry {
    pub(crate) id: u32,
    /// `None` for a prompt's first token, which nothing precedes.
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(u32, f32)>,
    pub(crate) offset: usize,
}

/// What may be shown after a token.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Delta {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenEntry>,
    pub(crate) token_ids: Vec<u32>,
}

impl Delta {
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty() && self.token_ids.is_empty()
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// A stop string or a stop token.
    Stop,
    /// The token limit.
    Length,
}

impl Finish {
    /// OpenAI's word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What of a choice is shown besides its text, and what the text follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) logprobs: bool,
    /// Log-probabilities also of tokens whose text is hidden: who scores tokens counts them.
    pub(crate) hidden_logprobs: bool,
    pub(crate) token_ids: bool,
    /// The text continues the prompt's text rather than standing on its own.
    pub(crate) continuing: bool,
}

/// The state of one choice.
///
/// A token's log-probabilities are shown with the first part of its text. Tokens that lie wholly within a matched stop
/// string show none. The stop token and hidden control tokens, which have no text, show theirs only if that is wanted
/// (completions); otherwise (chat) the shown tokens spell the shown text.
pub(crate) struct Choice {
    tokenizer: Arc<Tokenizer>,
    rules: Arc<TextRules>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    wanted: Wanted,
    /// Tokens whose log-probabilities are not shown yet, with the byte at which their text starts.
    pending: VecDeque<(usize, TokenEntry)>,
    pending_ids: Vec<u32>,
    /// Bytes and characters of text so far, shown or held back.
    decoded: usize,
    decoded_chars: usize,
    /// Bytes shown.
    shown: usize,
    generated: usize,
    logprob_sum: f64,
}

impl Choice {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, rules: Arc<TextRules>, wanted: Wanted) -> Self {
        let of = Arc::clone(&tokenizer);
        let detokenizer = if wanted.continuing { Detokenizer::continuing(of) } else { Detokenizer::new(of) };
        Self {
            tokenizer,
            detokenizer: detokenizer.show_control(!rules.skip_special),
            matcher: StopMatcher::new(Arc::clone(&rules.stops)),
            rules,
            wanted,
            pending: VecDeque::new(),
            pending_ids: Vec::new(),
            decoded: 0,
            decoded_chars: 0,
            shown: 0,
            generated: 0,
            logprob_sum: 0.0,
        }
    }

    /// The mean log-probability of the tokens, if the engine reported them.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    pub(crate) fn mean_logprob(&self) -> f64 {
        self.logprob_sum / self.generated.max(1) as f64
    }

    /// Takes a token. `true`: it completed a stop string, and nothing follows.
    pub(crate) fn token(&mut self, token: &SampledToken) -> (Delta, bool) {
        self.generated += 1;
        if self.wanted.token_ids {
            self.pending_ids.push(token.id);
        }
        self.logprob_sum += token.logprobs.as_ref().map_or(0.0, |logprobs| f64::from(logprobs.logprob));
        // A stop token always ends the sequence (the sampler bans it before `min_tokens`), and its text is hidden.
        let ends = self.rules.stop_tokens.contains(&token.id) && !self.rules.include_stop;
        let hidden = ends || self.rules.skip_special && self.tokenizer.is_control(token.id);
        if self.wanted.logprobs
            && (!hidden || self.wanted.hidden_logprobs)
            && let Some(logprobs) = &token.logprobs
        {
            let (logprob, top) = (Some(logprobs.logprob), logprobs.top.clone());
            let entry = TokenEntry { id: token.id, logprob, top, offset: self.decoded_chars };
            self.pending.push_back((self.decoded, entry));
        }
        if ends {
            return (Delta::default(), false);
        }
        let text = self.detokenizer.push(token.id);
        if self.generated <= self.rules.min_tokens {
            self.decode(&text);
            return (self.show(text), false);
        }
        self.match_stops(&text)
    }

    /// The engine ended the sequence: shows what was held back. The reason may become `Stop` if a stop string shows up
    /// only now.
    pub(crate) fn finish(&mut self, reason: Finish) -> (Delta, Finish) {
        let rest = self.detokenizer.finish();
        let (mut delta, matched) = self.match_stops(&rest);
        if matched {
            return (delta, Finish::Stop);
        }
        let held = self.matcher.finish();
        let last = self.show(held);
        delta.text.push_str(&last.text);
        delta.logprobs.extend(last.logprobs);
        delta.logprobs.extend(self.pending.drain(..).map(|(_, entry)| entry));
        delta.token_ids.extend(last.token_ids);
        (delta, reason)
    }

    fn decode(&mut self, text: &str) {
        self.decoded += text.len();
        self.decoded_chars += text.chars().count();
    }

    fn match_stops(&mut self, text: &str) -> (Delta, bool) {
        self.decode(text);
        let mut step = self.matcher.push(text);
        let matched = step.matched.is_some();
        if self.rules.include_stop
            && let Some(stop) = step.matched
        {
            step.text.push_str(&stop);
        }
        (self.show(step.text), matched)
    }

    /// Shows text with the tokens that start before its end, and every token id so far.
    fn show(&mut self, text: String) -> Delta {
        self.shown += text.len();
        let mut logprobs = Vec::new();
        while let Some((start, _)) = self.pending.front()
            && *start < self.shown
        {
            logprobs.extend(self.pending.pop_front().map(|(_, entry)| entry));
        }
        Delta { text, logprobs, token_ids: std::mem::take(&mut self.pending_ids) }
    }
}

/// Which of a prompt's tokens have text where the prompt is shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PromptText {
    /// Tokens before the client's own text (BOS).
    pub(crate) added: usize,
    /// Control tokens are shown as their text.
    pub(crate) control: bool,
}

/// A prompt's tokens with their log-probabilities; `entries` starts at the prompt's second token.
pub(crate) fn prompt_entries(
    tokenizer: &Arc<Tokenizer>,
    prompt: &[u32],
    entries: &[TokenLogprobs],
    shown: PromptText,
) -> Vec<TokenEntry> {
    let mut detokenizer = Detokenizer::new(tokenizer).show_control(shown.control);
    let mut offset = 0;
    let logprobs = std::iter::once(None).chain(entries.iter().map(Some));
    let entry = |((index, &id), logprobs): ((usize, &u32), Option<&TokenLogprobs>)| {
        let start = offset;
        if index >= shown.added {
            offset += detokenizer.push(id).chars().count();
        }
        let top = logprobs.map_or_else(Vec::new, |logprobs| logprobs.top.clone());
        TokenEntry { id, logprob: logprobs.map(|logprobs| logprobs.logprob), top, offset: start }
    };
    prompt.iter().enumerate().zip(logprobs).map(entry).collect()
}
