//! Output that follows a grammar: JSON schemas, regular expressions, lists of choices, Lark and GBNF, by `llguidance`.
//!
//! [`GrammarCompiler`] is made once for each model: it knows what every token stands for. It turns a [`GrammarSource`]
//! into a [`Grammar`], which sequences share; each of them follows it with a [`Constraint`] of its own. A [`ThoughtBudget`]
//! bounds what a model thinks before it answers.
//!
//! **What may come next** is a set of tokens: those whose bytes the grammar can take, and the sequence's stop tokens exactly
//! where the text so far is complete. Control tokens have no bytes: only a grammar that names one allows it.
//!
//! **Bounds.** Sources are bounded in size and nesting before anything is compiled, compiling and each mask are bounded in
//! work by llguidance's limits. Whoever compiles for others also bounds the time (`api::grammars`).
mod budget;
mod compiler;
mod constraint;
mod gbnf;
mod lru;
mod quoted;
mod schema;
#[cfg(test)]
mod tests;
mod thoughts;
mod vocabulary;

use std::fmt;

pub use budget::QuoteBudget;
pub use compiler::GrammarCompiler;
pub use constraint::{Constraint, ConstraintError, Grammar};
pub use lru::Lru;
pub use quoted::{json_quoted, json_quoted_regex};
pub use thoughts::{ThoughtBudget, Thoughts};

/// What a grammar is made from. Equal sources give equal grammars.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrammarSource {
    /// A JSON schema's text. `compact`: no white space between the tokens of the JSON; else a bounded amount.
    JsonSchema { schema: String, compact: bool },
    /// The whole answer matches it.
    Regex(String),
    /// The answer is one of these.
    Choice(Vec<String>),
    /// llguidance's Lark: may hold `%json {…}` blocks, to which the same bounds apply as to a schema by itself, and name
    /// control tokens.
    Lark(String),
    /// The same, made for calls of tools, whose grammars were bounded before they were rewritten.
    Calls(String),
    /// llama.cpp's notation.
    Gbnf(String),
}

impl GrammarSource {
    /// A grammar in Lark or, if it has a `::=`, in GBNF.
    #[must_use]
    pub fn of_grammar(text: String) -> Self {
        if gbnf::is_gbnf(&text) { Self::Gbnf(text) } else { Self::Lark(text) }
    }

    /// Any JSON object.
    #[must_use]
    pub fn json_object() -> Self {
        Self::JsonSchema { schema: r#"{"type":"object"}"#.to_owned(), compact: false }
    }

    /// Bytes of text.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::JsonSchema { schema: text, .. }
            | Self::Regex(text)
            | Self::Lark(text)
            | Self::Calls(text)
            | Self::Gbnf(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
        }
    }

    /// What it is, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema { .. } => "schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) | Self::Calls(_) | Self::Gbnf(_) => "grammar",
        }
    }
}

/// Why there is no grammar for a source. The messages continue a sentence that names the source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Well formed, but it cannot be enforced.
    #[error("`{keyword}`{at} is not supported{hint}", at = At(.path))]
    Unsupported {
        /// The keyword at fault.
        keyword: String,
        /// Where it stands, as a JSON pointer; empty where that is not known.
        path: String,
        hint: String,
    },
    #[error("{reason}")]
    Invalid { reason: String },
    /// A bound is exceeded: of size, of nesting or of work.
    #[error("{reason}")]
    TooLarge { reason: String },
    /// The model's tokens have no fixed bytes.
    #[error("this model's tokenizer does not tell the text of single tokens, so its answers cannot be constrained")]
    Tokenizer,
}

/// ` at PATH`, or nothing.
struct At<'a>(&'a str);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (at `{}`)", self.0) }
    }
}

impl GrammarError {
    fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }

    fn too_large(reason: impl Into<String>) -> Self {
        Self::TooLarge { reason: reason.into() }
    }
}
