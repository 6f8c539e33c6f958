//! Added tokens: the ones that are found in a text as a whole, before the model sees it.
//!
//! The matching follows the `tokenizers` crate (leftmost, then longest; `single_word`, `lstrip` and `rstrip` applied
//! to each match), with one more way of reading: a prompt, in which control tokens count only where their exact text
//! stands, so that no normalisation of user text can produce one. The crate's own matcher cannot be used because it
//! is fixed to one way of reading per tokenizer, and would need the vocabulary twice.
use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};
use std::ops::Range;

/// A token that is found in the text as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    /// A control token: dropped in decoding, and never read from text that must stay text.
    pub special: bool,
    /// Found in the normalised text (in its normalised form), not in the raw one.
    pub normalized: bool,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
}

impl AddedToken {
    /// A token found in raw text exactly as written.
    pub fn exact(id: u32, content: impl Into<String>, special: bool) -> Self {
        let content = content.into();
        Self { id, content, special, normalized: false, single_word: false, lstrip: false, rstrip: false }
    }
}

/// How control tokens in a text are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// They are plain text.
    Text,
    /// They become control tokens, as the reference tokenizer does by default.
    Parse,
    /// They become control tokens where their exact text stands without the guard character inside.
    Prompt { guard: Option<char> },
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    Token(u32),
    Text(Range<usize>),
}

/// Finds added tokens.
pub struct AddedTokens {
    tokens: Vec<AddedToken>,
    raw: Option<Matcher>,
    normalized: Option<Matcher>,
}

struct Matcher {
    automaton: AhoCorasick,
    /// Pattern → index into `AddedTokens::tokens`.
    token_of: Vec<usize>,
}

impl Matcher {
    fn build(patterns: Vec<(String, usize)>) -> Result<Option<Self>, String> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let (texts, token_of): (Vec<String>, Vec<usize>) = patterns.into_iter().unzip();
        let automaton = AhoCorasickBuilder::new()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| format!("added tokens: {error}"))?;
        Ok(Some(Self { automaton, token_of }))
    }
}

impl AddedTokens {
    /// `normalize` gives the normalised form of a token's content. Tokens without content are left out, as the
    /// reference does.
    pub fn new(tokens: Vec<AddedToken>, normalize: impl Fn(&str) -> Result<String, String>) -> Result<Self, String> {
        let tokens: Vec<AddedToken> = tokens.into_iter().filter(|token| !token.content.is_empty()).collect();
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for (index, token) in tokens.iter().enumerate() {
            if token.normalized {
                let form = normalize(&token.content)?;
                if !form.is_empty() {
                    normalized.push((form, index));
                }
            } else {
                raw.push((token.content.clone(), index));
            }
        }
        Ok(Self { raw: Matcher::build(raw)?, normalized: Matcher::build(normalized)?, tokens })
    }

    pub fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    pub fn has_normalized(&self) -> bool {
        self.normalized.is_some()
    }

    /// Splits raw text at the tokens that are found before normalisation.
    pub fn split_raw(&self, text: &str, reading: Reading) -> Vec<Span> {
        let keep = |token: &AddedToken| !(token.special && reading == Reading::Text);
        self.split(self.raw.as_ref(), text, |token, _| keep(token))
    }

    /// Splits normalised text at the tokens that are found after normalisation. `original` gives the raw text behind
    /// a range of the normalised one.
    pub fn split_normalized(
        &self,
        text: &str,
        reading: Reading,
        original: impl Fn(Range<usize>) -> Option<String>,
    ) -> Vec<Span> {
        self.split(self.normalized.as_ref(), text, |token, range| match reading {
            Reading::Parse => true,
            Reading::Text => !token.special,
            Reading::Prompt { .. } => !token.special || original(range).is_some_and(|raw| raw.contains(&token.content)),
        })
    }

    fn split(
        &self,
        matcher: Option<&Matcher>,
        text: &str,
        keep: impl Fn(&AddedToken, Range<usize>) -> bool,
    ) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut done = 0;
        if let Some(matcher) = matcher {
            for found in matcher.automaton.find_iter(text) {
                let token = &self.tokens[matcher.token_of[found.pattern().as_usize()]];
                let (mut start, mut end) = (found.start(), found.end());
                if !keep(token, start..end) {
                    continue;
                }
                if token.single_word && (ends_in_word(&text[..start]) || starts_with_word(&text[end..])) {
                    continue;
                }
                // What a former token stripped on its right is gone.
                start = start.max(done);
                if token.lstrip {
                    start = done + text[done..start].trim_end().len();
                }
                if token.rstrip {
                    end = text.len() - text[end..].trim_start().len();
                }
                if done < start {
                    spans.push(Span::Text(done..start));
                }
                spans.push(Span::Token(token.id));
                done = end.max(done);
            }
        }
        if done < text.len() {
            spans.push(Span::Text(done..text.len()));
        }
        spans
    }
}

/// `\w` as the reference's expressions have it: letters, marks, digits, connectors.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(tokens: Vec<AddedToken>) -> AddedTokens {
        AddedTokens::new(tokens, |s| Ok(s.to_lowercase())).unwrap()
    }

    #[test]
    fn the_longest_token_wins_and_control_tokens_may_stay_text() {
        let tokens = added(vec![
            AddedToken::exact(1, "<s>", true),
            AddedToken::exact(2, "<s>>", true),
            AddedToken::exact(3, "\n\n", false),
        ]);
        assert_eq!(
            tokens.split_raw("a<s>><s>\n\n\nb", Reading::Parse),
            [Span::Text(0..1), Span::Token(2), Span::Token(1), Span::Token(3), Span::Text(10..12)]
        );
        assert_eq!(tokens.split_raw("a<s>\n\nb", Reading::Text), [Span::Text(0..4), Span::Token(3), Span::Text(6..7)]);
    }

    #[test]
    fn strips_spaces_once() {
        let strip =
            |id, content: &str| AddedToken { lstrip: true, rstrip: true, ..AddedToken::exact(id, content, true) };
        let tokens = added(vec![strip(1, "<a>"), strip(2, "<b>")]);
        assert_eq!(
            tokens.split_raw("x  <a>  <b>  y", Reading::Parse),
            [Span::Text(0..1), Span::Token(1), Span::Token(2), Span::Text(13..14)]
        );
    }

    #[test]
    fn a_prompt_takes_a_normalised_control_token_only_from_its_exact_text() {
        let token = AddedToken { normalized: true, ..AddedToken::exact(1, "<S>", true) };
        let tokens = added(vec![token]);
        let prompt = Reading::Prompt { guard: None };
        let spans = |raw: &str, reading| {
            let raw = raw.to_owned();
            tokens.split_normalized(&raw.to_lowercase(), reading, |range| Some(raw[range].to_owned()))
        };
        assert_eq!(spans("<s>", Reading::Parse), [Span::Token(1)]);
        assert_eq!(spans("<s>", prompt), [Span::Text(0..3)]);
        assert_eq!(spans("<S>", prompt), [Span::Token(1)]);
        assert_eq!(spans("<S>", Reading::Text), [Span::Text(0..3)]);
    }
}
