//! One choice: tokens in, shown text out, taken apart into content, thoughts and calls. Knows characters, stop strings and
//! hidden tokens; nothing of JSON.
use std::collections::VecDeque;
use std::sync::Arc;

use super::params::TextRules;
use crate::sampling::{SampledToken, TokenLogprobs};
use crate::text::{Detokenizer, OutputParser, Segment, StopMatcher, TextTools, Thinking, Tokenizer, Tool};

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
    pub(crate) segments: Vec<Segment>,
    pub(crate) logprobs: Vec<TokenEntry>,
    pub(crate) token_ids: Vec<u32>,
}

impl Delta {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.logprobs.is_empty() && self.token_ids.is_empty()
    }

    /// The content alone: all there is, where calls and thoughts are not looked for.
    pub(crate) fn content(&self) -> String {
        let content = |segment: &Segment| match segment {
            Segment::Content(text) => Some(text.clone()),
            _ => None,
        };
        self.segments.iter().filter_map(content).collect()
    }
}

/// How a choice's text is read, beyond plain content.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// What may be called; empty: calls are not looked for.
    pub(crate) tools: Arc<[Tool]>,
    /// Whether generation goes on after the first call.
    pub(crate) parallel: bool,
    pub(crate) thinking: Thinking,
    /// Thoughts are left out of the answer.
    pub(crate) hide_reasoning: bool,
}

impl Reading {
    /// The whole text is content.
    pub(crate) fn plain() -> Self {
        Self { tools: Arc::default(), parallel: true, thinking: Thinking::Never, hide_reasoning: false }
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// A stop string or a stop token.
    Stop,
    /// A stop, after the model has called tools.
    ToolCalls,
    /// The token limit.
    Length,
}

impl Finish {
    /// OpenAI's word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::ToolCalls => "tool_calls",
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
    text: Arc<TextTools>,
    rules: Arc<TextRules>,
    reading: Reading,
    /// `None`: all is content.
    parser: Option<OutputParser>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// The stop string that was found.
    stop: Option<String>,
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
    pub(crate) fn new(text: Arc<TextTools>, rules: Arc<TextRules>, wanted: Wanted, reading: Reading) -> Self {
        let of = &text.tokenizer;
        let detokenizer = if wanted.continuing { Detokenizer::continuing(of) } else { Detokenizer::new(of) };
        let calls = (!reading.tools.is_empty()).then(|| (text.output.calls, Arc::clone(&reading.tools)));
        let reads = calls.is_some() || reading.thinking != Thinking::Never;
        Self {
            parser: reads.then(|| OutputParser::new(calls, reading.thinking)),
            detokenizer: detokenizer.show_control(!rules.skip_special),
            matcher: StopMatcher::new(Arc::clone(&rules.stops)),
            stop: None,
            text,
            rules,
            reading,
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

    /// Whether the model is thinking.
    pub(crate) fn is_thinking(&self) -> bool {
        self.parser.as_ref().is_some_and(OutputParser::is_thinking)
    }

    /// The reason to report for the engine's or a stop string's.
    pub(crate) fn reason(&self, reason: Finish) -> Finish {
        let called = self.parser.as_ref().is_some_and(OutputParser::has_called);
        if called && reason == Finish::Stop { Finish::ToolCalls } else { reason }
    }

    /// The stop string that ended the text.
    pub(crate) fn take_stop(&mut self) -> Option<String> {
        self.stop.take()
    }

    /// The mean log-probability of the tokens, if the engine reported them.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
    pub(crate) fn mean_logprob(&self) -> f64 {
        self.logprob_sum / self.generated.max(1) as f64
    }

    /// Takes a token. `true`: it completed a stop string, or the one call that may be made, and nothing follows.
    pub(crate) fn token(&mut self, token: &SampledToken) -> (Delta, bool) {
        self.generated += 1;
        if self.wanted.token_ids {
            self.pending_ids.push(token.id);
        }
        self.logprob_sum += token.logprobs.as_ref().map_or(0.0, |logprobs| f64::from(logprobs.logprob));
        // A stop token always ends the sequence (the sampler bans it before `min_tokens`), and its text is hidden.
        let ends = self.rules.stop_tokens.contains(&token.id) && !self.rules.include_stop;
        let marks = self.parser.is_some() && self.text.output.is_marker(token.id);
        let hidden = ends || self.rules.skip_special && !marks && self.text.tokenizer.is_control(token.id);
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
        let text = if marks { self.detokenizer.push_shown(token.id) } else { self.detokenizer.push(token.id) };
        if self.generated <= self.rules.min_tokens {
            self.decode(&text);
            let delta = self.show(&text);
            return self.close(delta, false);
        }
        let (delta, stopped) = self.match_stops(&text);
        self.close(delta, stopped)
    }

    /// The engine ended the sequence: shows what was held back. The reason may become another if a stop string or the end
    /// of a call shows up only now.
    pub(crate) fn finish(&mut self, reason: Finish) -> (Delta, Finish) {
        let rest = self.detokenizer.finish();
        let (mut delta, matched) = self.match_stops(&rest);
        if !matched {
            let held = self.matcher.finish();
            let last = self.show(&held);
            delta.segments.extend(last.segments);
            delta.logprobs.extend(last.logprobs);
            delta.logprobs.extend(self.pending.drain(..).map(|(_, entry)| entry));
            delta.token_ids.extend(last.token_ids);
        }
        let (delta, _) = self.close(delta, true);
        (delta, self.reason(if matched { Finish::Stop } else { reason }))
    }

    /// Adds what the parser held back, if the text ended; ends it after the first call, if there may be but one.
    fn close(&mut self, mut delta: Delta, mut ended: bool) -> (Delta, bool) {
        if ended && let Some(parser) = &mut self.parser {
            delta.segments.extend(parser.finish());
        }
        if !self.reading.parallel
            && let Some(at) = delta.segments.iter().position(|segment| *segment == Segment::CallEnd)
        {
            delta.segments.truncate(at + 1);
            ended = true;
        }
        if self.reading.hide_reasoning {
            delta.segments.retain(|segment| !matches!(segment, Segment::Reasoning(_)));
        }
        (delta, ended)
    }

    fn decode(&mut self, text: &str) {
        self.decoded += text.len();
        self.decoded_chars += text.chars().count();
    }

    fn match_stops(&mut self, text: &str) -> (Delta, bool) {
        self.decode(text);
        let mut step = self.matcher.push(text);
        self.stop = step.matched;
        if self.rules.include_stop
            && let Some(stop) = &self.stop
        {
            step.text.push_str(stop);
        }
        (self.show(&step.text), self.stop.is_some())
    }

    /// Shows text with the tokens that start before its end, and every token id so far.
    fn show(&mut self, text: &str) -> Delta {
        self.shown += text.len();
        let mut logprobs = Vec::new();
        while let Some((start, _)) = self.pending.front()
            && *start < self.shown
        {
            logprobs.extend(self.pending.pop_front().map(|(_, entry)| entry));
        }
        let segments = match &mut self.parser {
            Some(parser) => parser.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Segment::Content(text.to_owned())],
        };
        Delta { segments, logprobs, token_ids: std::mem::take(&mut self.pending_ids) }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Map;

    use super::*;

    /// What a choice makes of `said`, tokenized with its control tokens.
    fn read(tokenizer: &str, template: &str, said: &str, tools: &[&str]) -> Vec<Segment> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let folder = golden.join("tokenizers/tiny").join(tokenizer);
        let template = golden.join("templates/src").join(template);
        let text = Arc::new(TextTools::load(&folder, Some(&template)).unwrap());
        let tool = |name: &&str| Tool {
            name: (*name).to_owned(),
            description: None,
            parameters: Map::new(),
            strict: false,
            custom: false,
            input: None,
        };
        let reading = Reading { tools: tools.iter().map(tool).collect(), ..Reading::plain() };
        let rules = Arc::new(TextRules { skip_special: true, ..TextRules::default() });
        let wanted = Wanted { logprobs: false, hidden_logprobs: false, token_ids: false, continuing: false };
        let ids = text.tokenizer.encode_with_special(said, false).unwrap();
        assert!(text.tokenizer.is_control(ids[0]) || text.tokenizer.is_control(ids[1]), "{said}");
        let mut choice = Choice::new(text, rules, wanted, reading);
        let mut segments = Vec::new();
        for id in ids {
            let (delta, stopped) = choice.token(&SampledToken { id, logprobs: None });
            assert!(!stopped);
            segments.extend(delta.segments);
        }
        let (delta, reason) = choice.finish(Finish::Stop);
        segments.extend(delta.segments);
        assert_eq!(reason == Finish::ToolCalls, segments.contains(&Segment::CallEnd));
        segments.dedup_by(|next, last| match (last, next) {
            (Segment::CallArguments(last), Segment::CallArguments(next)) => {
                last.push_str(next);
                true
            }
            _ => false,
        });
        segments
    }

    /// Control tokens are hidden from clients; those that mark calls are not hidden from the parser.
    #[test]
    fn markers_may_be_control_tokens() {
        let begin = Segment::CallBegin { name: "f".into(), custom: false };
        let call = [begin, Segment::CallArguments("{}".into()), Segment::CallEnd];
        let mistral = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}}]";
        assert_eq!(read("mistral-v3", "mistral-v0.3.jinja", mistral, &["f"]), call);
        let llama = "<|python_tag|>f.call()";
        assert_eq!(read("llama3", "llama3.1.jinja", llama, &["f"]), call);
        let content = |segments: &[Segment]| -> String {
            let text = |segment: &Segment| match segment {
                Segment::Content(text) => text.clone(),
                other => panic!("{other:?}"),
            };
            segments.iter().map(text).collect()
        };
        // Without tools they stay hidden; what is no call keeps them.
        assert_eq!(content(&read("llama3", "llama3.1.jinja", "<|python_tag|>x", &[])), "x");
        assert_eq!(content(&read("llama3", "llama3.1.jinja", "<|python_tag|>x", &["f"])), "<|python_tag|>x");
    }
}
