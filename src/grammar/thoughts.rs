//! A bound on a model's thoughts: once it is spent, the text that ends them is all that may come next.
use std::fmt;
use std::sync::Arc;

use crate::text::{TextError, Tokenizer};

/// Spaces before thoughts, in bytes, beyond which there are none.
const SPACE_MAX: usize = 256;

/// How long an answer's thoughts may be, and how they are marked. Shared by the choices of a request.
pub struct ThoughtBudget {
    /// Tokens of thoughts, the marks around them not counted.
    tokens: usize,
    /// The prompt has begun the thoughts; else the answer may begin with them.
    is_open: bool,
    begin: Vec<u8>,
    end: Vec<u8>,
    /// What is forced: the end's tokens.
    end_ids: Vec<u32>,
    tokenizer: Arc<Tokenizer>,
}

impl ThoughtBudget {
    /// `marks`: what begins and what ends thoughts. `is_open`: the prompt has begun them.
    ///
    /// # Errors
    /// The end cannot be tokenized.
    pub fn new(
        tokens: usize,
        is_open: bool,
        (begin, end): (&str, &str),
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self, TextError> {
        let end_ids = tokenizer.encode_with_special(end, false)?;
        Ok(Self { tokens, is_open, begin: begin.into(), end: end.into(), end_ids, tokenizer })
    }
}

impl fmt::Debug for ThoughtBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThoughtBudget").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// How much of its budget a sequence has spent. It follows from the sequence's tokens alone.
pub struct Thoughts {
    budget: Arc<ThoughtBudget>,
    state: State,
}

enum State {
    /// The text so far: spaces, and a part of what begins thoughts.
    Before(Vec<u8>),
    Inside {
        spent: usize,
        /// The text's end, which may be the beginning of what ends thoughts.
        tail: Vec<u8>,
        /// Tokens of the end that have been forced.
        forced: usize,
    },
    /// The thoughts have ended, or there are none, or their end cannot be forced.
    Over,
}

impl Thoughts {
    /// At the answer's beginning.
    #[must_use]
    pub fn new(budget: Arc<ThoughtBudget>) -> Self {
        let state = if budget.is_open { State::inside(&[]) } else { State::Before(Vec::new()) };
        Self { budget, state }
    }

    /// The one token that may come next, if the budget is spent and the thoughts have not ended.
    #[must_use]
    pub fn forced(&self) -> Option<u32> {
        match &self.state {
            State::Inside { spent, forced, .. } if *spent >= self.budget.tokens => {
                self.budget.end_ids.get(*forced).copied()
            }
            _ => None,
        }
    }

    /// Takes the sequence's next token.
    pub fn accept(&mut self, token: u32) {
        let is_forced = self.forced() == Some(token);
        let ThoughtBudget { begin, end, end_ids, tokenizer, .. } = &*self.budget;
        let text = tokenizer.token_bytes(token).unwrap_or_default();
        let next = match &mut self.state {
            State::Before(before) => {
                before.extend_from_slice(text);
                let begun = before.trim_ascii_start();
                match begun.strip_prefix(begin.as_slice()) {
                    Some(rest) => Some(State::inside(rest)),
                    None if begin.starts_with(begun) && before.len() <= SPACE_MAX => None,
                    None => Some(State::Over),
                }
            }
            State::Inside { spent, tail, forced } => {
                // A grammar blocks the end that has been begun: begun again and again, it would be all that is written.
                let is_blocked = *forced > 0 && !is_forced;
                *spent += 1;
                *forced += usize::from(is_forced);
                tail.extend_from_slice(text);
                let has_ended =
                    tail.windows(end.len()).any(|part| part == end) || is_forced && *forced == end_ids.len();
                tail.drain(..tail.len().saturating_sub(end.len() - 1));
                (has_ended || is_blocked).then_some(State::Over)
            }
            State::Over => None,
        };
        if let Some(next) = next {
            self.state = next;
        }
    }
}

impl State {
    fn inside(text: &[u8]) -> Self {
        Self::Inside { spent: 0, tail: text.to_vec(), forced: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: (&str, &str) = ("<think>", "</think>");

    /// What is written by somebody who would say `wanted`, a byte a token, and then `y` for ever; cut after 60 tokens.
    fn written(tokens: usize, is_open: bool, wanted: &str) -> String {
        let mut thoughts = Thoughts::new(ThoughtBudget::new(tokens, is_open, MARKS, Tokenizer::tiny()).unwrap().into());
        let mut wanted = wanted.bytes().chain(std::iter::repeat(b'y'));
        let mut text = Vec::new();
        for _ in 0..60 {
            let token = thoughts.forced().unwrap_or_else(|| u32::from(wanted.next().unwrap()));
            thoughts.accept(token);
            text.push(u8::try_from(token).unwrap());
        }
        String::from_utf8(text).unwrap().trim_end_matches('y').to_owned()
    }

    #[test]
    fn thoughts_end_when_the_budget_is_spent() {
        assert_eq!(written(4, true, "abcdefgh"), "abcd</think>efgh");
        assert_eq!(written(4, false, "\n <think>abcdefgh"), "\n <think>abcd</think>efgh");
        assert_eq!(written(0, true, "abc"), "</think>abc");
        assert_eq!(written(0, false, "<think>abc"), "<think></think>abc");
    }

    #[test]
    fn thoughts_that_end_by_themselves_are_left_alone() {
        for budget in [12, 30] {
            assert_eq!(written(budget, true, "abc</think>defghijklmnop"), "abc</think>defghijklmnop");
            assert_eq!(written(budget, false, "<think>abc</think>defghijkl"), "<think>abc</think>defghijkl");
        }
        assert_eq!(
            written(5, true, "<<<</</</think>z"),
            "<<<</</think></</think>z",
            "an end that is not reached in time"
        );
    }

    #[test]
    fn answers_without_thoughts_have_no_budget() {
        for answer in ["no thoughts <think> here", "<thing>", "  <", &" ".repeat(50)] {
            assert_eq!(written(0, false, answer), answer.trim_end_matches('y'));
        }
    }

    /// A grammar may allow the end's first token and not its second.
    #[test]
    fn an_end_that_is_blocked_once_it_has_begun_is_not_forced_again() {
        let budget = ThoughtBudget::new(1, true, MARKS, Tokenizer::tiny()).unwrap();
        let mut thoughts = Thoughts::new(budget.into());
        // Before it has begun it waits: a character may be half written.
        for token in b"a\xc3\xa9" {
            assert_eq!(thoughts.forced(), (*token != b'a').then_some(u32::from(b'<')));
            thoughts.accept(u32::from(*token));
        }
        for token in b"</x" {
            assert!(thoughts.forced().is_some());
            thoughts.accept(u32::from(*token));
        }
        for token in b"yz</think>" {
            assert_eq!(thoughts.forced(), None);
            thoughts.accept(u32::from(*token));
        }
    }
}
