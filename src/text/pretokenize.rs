//! Splitting text into words before the model, in time linear in the text.
//!
//! The split expressions of the byte-level families end in `\s+(?!\S)|\s+`. A backtracking engine gives up on (or
//! crawls through) megabytes of spaces with them. Here the tail is replaced by `\s+` as a second pattern of a linear
//! engine, and its match is shortened by one character where the look-ahead would have done that.
use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::pattern::Pattern;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior};

/// GPT-2's words (its encoder's expression); also the regex of `ByteLevel` with `use_regex`.
pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3 (its published tokenizer.json): digits in groups of up to three.
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2, Qwen2.5 and Qwen3 (their tokenizer.json): single digits.
pub const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's tekken (Mistral Nemo's tokenizer.json): words also end where lower case turns to upper.
pub const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const LOOKAHEAD_TAIL: &str = r"|\s+(?!\S)|\s+";

/// A split expression.
pub enum Words {
    /// `spaces_last`: pattern 1 is the `\s+` that stands for the look-ahead tail.
    Linear { regex: Box<Regex>, spaces_last: bool },
    /// Look-around of another form: bounded backtracking, an error where the bound is hit.
    Backtracking(Box<fancy_regex::Regex>),
}

impl Words {
    pub fn new(expression: &str) -> Result<Self, String> {
        if let Some(head) = expression.strip_suffix(LOOKAHEAD_TAIL)
            && let Ok(regex) = Regex::new_many(&[head, r"\s+"])
        {
            return Ok(Self::Linear { regex: Box::new(regex), spaces_last: true });
        }
        if let Ok(regex) = Regex::new(expression) {
            return Ok(Self::Linear { regex: Box::new(regex), spaces_last: false });
        }
        fancy_regex::Regex::new(expression)
            .map(|regex| Self::Backtracking(Box::new(regex)))
            .map_err(|error| format!("the split expression `{expression}` cannot be compiled: {error}"))
    }

    /// Ranges of the matches, in order, none of them empty.
    fn matches(&self, text: &str) -> Result<Vec<Offsets>, String> {
        let mut found = Vec::new();
        match self {
            Self::Linear { regex, spaces_last } => {
                let mut at = 0;
                while at < text.len() {
                    let input = Input::new(text).range(at..).anchored(Anchored::No);
                    let Some(hit) = regex.search(&input) else { break };
                    let mut end = hit.end();
                    if hit.is_empty() {
                        at = end + text[end..].chars().next().map_or(1, char::len_utf8);
                        continue;
                    }
                    if *spaces_last && hit.pattern().as_usize() == 1 && end < text.len() {
                        // `\s+(?!\S)`: the last space of a run belongs to the word after it.
                        let last = text[hit.range()].chars().next_back().map_or(0, char::len_utf8);
                        if hit.len() > last {
                            end -= last;
                        }
                    }
                    found.push((hit.start(), end));
                    at = end;
                }
            }
            Self::Backtracking(regex) => {
                for hit in regex.find_iter(text) {
                    let hit = hit.map_err(|error| {
                        format!("the model's pre-tokenizer expression gave up on this text: {error}")
                    })?;
                    if !hit.as_str().is_empty() {
                        found.push((hit.start(), hit.end()));
                    }
                }
            }
        }
        Ok(found)
    }
}

impl Pattern for &Words {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let mut done = 0;
        for (start, end) in self.matches(inside)? {
            if done < start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
        }
        if done < inside.len() {
            pieces.push(((done, inside.len()), false));
        }
        Ok(pieces)
    }
}

enum Step {
    /// Isolates, removes or attaches the matches of an expression.
    Split { words: Words, behavior: SplitDelimiterBehavior, invert: bool },
    /// A space before each piece that has none.
    PrefixSpace,
    /// A step of the `tokenizers` crate. The second one serves pieces that do not start the text.
    Library(Box<PreTokenizerWrapper>, Option<Box<PreTokenizerWrapper>>),
}

/// The steps between normalisation and the model.
#[derive(Default)]
pub struct PreTokenizer {
    steps: Vec<Step>,
}

impl PreTokenizer {
    pub fn new(wrapper: Option<PreTokenizerWrapper>) -> Result<Self, String> {
        let mut steps = Vec::new();
        if let Some(wrapper) = wrapper {
            add_steps(wrapper, &mut steps)?;
        }
        Ok(Self { steps })
    }

    /// Splits at the matches of `expression`, each a word of its own, then maps bytes to the byte-level alphabet.
    pub fn byte_level(before: Option<PreTokenizerWrapper>, expression: &str) -> Result<Self, String> {
        let mut pre = Self::new(before)?;
        pre.steps.push(Step::Split {
            words: Words::new(expression)?,
            behavior: SplitDelimiterBehavior::Isolated,
            invert: false,
        });
        pre.steps.push(bytes_only());
        Ok(pre)
    }

    /// `starts_text`: the piece is the beginning of the whole text (some schemes put a space there and only there).
    pub fn split(&self, text: &mut PreTokenizedString, starts_text: bool) -> Result<(), String> {
        self.steps
            .iter()
            .try_for_each(|step| match step {
                Step::Split { words, behavior, invert } => text.split(|_, piece| {
                    if *invert {
                        piece.split(tokenizers::tokenizer::pattern::Invert(words), *behavior)
                    } else {
                        piece.split(words, *behavior)
                    }
                }),
                Step::PrefixSpace => text.normalize(|piece| {
                    if !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    Ok(())
                }),
                Step::Library(first, later) => match later {
                    Some(later) if !starts_text => later.pre_tokenize(text),
                    _ => first.pre_tokenize(text),
                },
            })
            .map_err(|error| error.to_string())
    }
}

fn bytes_only() -> Step {
    Step::Library(Box::new(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false))), None)
}

fn add_steps(wrapper: PreTokenizerWrapper, steps: &mut Vec<Step>) -> Result<(), String> {
    match wrapper {
        PreTokenizerWrapper::Sequence(sequence) => {
            sequence.into_iter().try_for_each(|inner| add_steps(inner, steps))?;
        }
        PreTokenizerWrapper::Split(split) => match &split.pattern {
            SplitPattern::Regex(expression) => steps.push(Step::Split {
                words: Words::new(expression)?,
                behavior: split.behavior,
                invert: split.invert,
            }),
            SplitPattern::String(_) => steps.push(Step::Library(Box::new(PreTokenizerWrapper::Split(split)), None)),
        },
        PreTokenizerWrapper::ByteLevel(bytes) => {
            if bytes.add_prefix_space {
                steps.push(Step::PrefixSpace);
            }
            if bytes.use_regex {
                let behavior = SplitDelimiterBehavior::Isolated;
                steps.push(Step::Split { words: Words::new(GPT2)?, behavior, invert: false });
            }
            steps.push(bytes_only());
        }
        PreTokenizerWrapper::Metaspace(meta) if meta.prepend_scheme == PrependScheme::First => {
            let later = Metaspace::new(meta.get_replacement(), PrependScheme::Never, meta.get_split());
            steps.push(Step::Library(
                Box::new(PreTokenizerWrapper::Metaspace(meta)),
                Some(Box::new(PreTokenizerWrapper::Metaspace(later))),
            ));
        }
        other => steps.push(Step::Library(Box::new(other), None)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn linear(expression: &str) -> Words {
        let words = Words::new(expression).unwrap();
        assert!(matches!(words, Words::Linear { spaces_last: true, .. }));
        words
    }

    proptest! {
        /// The linear engine with the shortened tail finds what the look-ahead finds.
        #[test]
        fn equals_backtracking(text in "[ \\n\\r\\ta-cA-Cé1-9२.,!'’sS/\u{3000}\u{a0}語ǅʰ\u{301}😀]{0,40}") {
            for expression in [GPT2, LLAMA3, QWEN2, TEKKEN] {
                let slow = Words::Backtracking(Box::new(fancy_regex::Regex::new(expression).unwrap()));
                prop_assert_eq!(linear(expression).matches(&text).unwrap(), slow.matches(&text).unwrap());
            }
        }
    }

    #[test]
    fn megabytes_of_one_character_are_one_pass() {
        for text in [" ".repeat(2_000_000), "a".repeat(2_000_000), format!("{}x", " ".repeat(2_000_000))] {
            for expression in [GPT2, LLAMA3, QWEN2, TEKKEN] {
                let total: usize = linear(expression).matches(&text).unwrap().iter().map(|(a, b)| b - a).sum();
                assert_eq!(total, text.len());
            }
        }
    }

    #[test]
    fn a_bounded_engine_reports_that_it_gave_up() {
        let words = Words::new(r"(?<!x)(?:a|b|ab)*c(?!y)").unwrap();
        assert!(matches!(words, Words::Backtracking(_)));
        assert!(words.matches(&"ab".repeat(50)).is_err());
    }
}
