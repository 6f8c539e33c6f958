//! Sources → grammars, for one model.
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};

use super::constraint::Grammar;
use super::{GrammarError, GrammarSource, budget, gbnf, schema, vocabulary};
use crate::text::Tokenizer;

/// Longest regular expression, in bytes, and longest list of choices together.
const REGEX_BYTES_MAX: usize = 16 << 10;
/// Longest grammar in Lark without its schemas, in bytes, and longest one in GBNF. (llguidance takes time with the square
/// of a regular expression's length.)
pub(super) const LARK_BYTES_MAX: usize = 16 << 10;
/// The same for a grammar of calls, with the rewritten grammars of its tools.
const CALLS_BYTES_MAX: usize = LARK_BYTES_MAX + budget::QUOTED_BYTES_MAX;
const GBNF_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting of brackets in a regular expression or grammar.
const NESTING_MAX: usize = 200;
/// Longest reason taken over from llguidance, in characters.
const REASON_MAX: usize = 300;

/// Stack of the thread that compiles: llguidance recurses along a source's structure.
const STACK_BYTES: usize = 64 << 20;

/// Bounds on work. llguidance's own defaults allow a step some 20 ms, which would be a pause for everyone in the batch,
/// and a state takes one or two kilobytes in every sequence.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 100_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// Compiles grammars for one model. Making one takes some 100 ms: it sorts the vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    ends: Arc<[u32]>,
}

impl GrammarCompiler {
    /// `vocab`: the tokens that the model has logits for.
    ///
    /// # Errors
    /// `Tokenizer`: the tokenizer does not say which bytes a token stands for.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, GrammarError> {
        let ends = tokenizer.stop_ids().into();
        let env: TokEnv = Arc::new(vocabulary::environment(tokenizer, vocab)?);
        let mut factory = guarded(|| ParserFactory::new_simple(&env).map_err(|error| explain(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self { factory, ends })
    }

    /// Compiles a source. Takes milliseconds for most, seconds at worst; not for a thread that others wait for.
    ///
    /// # Errors
    /// When the source is malformed, asks for what cannot be enforced, or is too large or too complex.
    pub fn compile(&self, source: &GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        let compile = || guarded(|| self.compile_here(source));
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("wick-grammar".into()).stack_size(STACK_BYTES);
            match thread.spawn_scoped(scope, compile) {
                Ok(thread) => thread.join().unwrap_or_else(|panic| Err(panicked(&*panic))),
                Err(error) => Err(GrammarError::too_large(format!("there is no thread to compile it: {error}"))),
            }
        })
    }

    fn compile_here(&self, source: &GrammarSource) -> Result<Arc<Grammar>, GrammarError> {
        let most = match source {
            GrammarSource::Regex(_) | GrammarSource::Choice(_) => REGEX_BYTES_MAX,
            GrammarSource::Gbnf(_) => GBNF_BYTES_MAX,
            GrammarSource::JsonSchema { .. } | GrammarSource::Lark(_) | GrammarSource::Calls(_) => schema::BYTES_MAX,
        };
        if source.bytes() > most {
            let reason = format!("it has {} bytes, more than the limit of {most}", source.bytes());
            return Err(GrammarError::too_large(reason));
        }
        let grammar = match source {
            GrammarSource::JsonSchema { schema, compact } => {
                TopLevelGrammar::from_json_schema(schema::prepare(schema, *compact)?)
            }
            GrammarSource::Regex(regex) => {
                check_nesting(regex)?;
                TopLevelGrammar::from_regex(without_anchors(regex))
            }
            GrammarSource::Choice(choices) => TopLevelGrammar::from_regex(&one_of(choices)),
            GrammarSource::Lark(text) => {
                check_nesting(text)?;
                TopLevelGrammar::from_lark(schema::prepare_blocks(text, LARK_BYTES_MAX)?)
            }
            GrammarSource::Calls(text) => {
                check_nesting(text)?;
                TopLevelGrammar::from_lark(schema::prepare_blocks(text, CALLS_BYTES_MAX)?)
            }
            GrammarSource::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        };
        let parser = self.factory.create_parser(grammar).map_err(|error| explain(&error.to_string()))?;
        let mut fresh = Matcher::new(Ok(parser));
        // Finds out what only shows when the grammar is used, and leaves its first states to all who follow it.
        let accepting = fresh.is_accepting();
        let first = accepting.and_then(|accepting| fresh.compute_mask().map(|mask| (accepting, mask)));
        let (accepting, first) = first.map_err(|error| explain(&error.to_string()))?;
        let mut empty = accepting;
        first.iter_set_entries(|id| empty &= self.ends.iter().any(|&end| end as usize == id));
        if empty {
            return Err(GrammarError::invalid("only an empty answer would match it"));
        }
        Ok(Arc::new(Grammar::new(fresh, Arc::clone(&self.ends))))
    }
}

/// llguidance is large: a panic in it is one client's error.
fn guarded<T>(job: impl FnOnce() -> Result<T, GrammarError>) -> Result<T, GrammarError> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn Any + Send)) -> GrammarError {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("(no message)"), "compiling a grammar panicked");
    GrammarError::invalid("compiling it failed unexpectedly; simplify it")
}

fn check_nesting(text: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(GrammarError::too_large(format!("its brackets are nested more than {NESTING_MAX} deep")));
        }
    }
    Ok(())
}

/// The whole answer must match, so anchors at the ends say nothing; inside they are not known.
pub(super) fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

fn one_of(choices: &[String]) -> String {
    let mut regex = String::new();
    for choice in choices {
        regex.push(if regex.is_empty() { '(' } else { '|' });
        for c in choice.chars() {
            if c.is_ascii_punctuation() {
                regex.push('\\');
            }
            regex.push(c);
        }
    }
    regex + ")"
}

/// llguidance's message as an error of ours.
fn explain(message: &str) -> GrammarError {
    let mut lines = message.lines();
    let first = lines.next().unwrap_or_default();
    // The first line says of a regular expression only that it is wrong.
    let fault = lines.rev().find_map(|line| line.trim().strip_prefix("error: "));
    let reason: String = fault.map_or(first.to_owned(), |fault| format!("{first} {fault}"));
    let reason: String = reason.chars().take(REASON_MAX).collect();
    if reason.starts_with("panic") {
        tracing::error!(panic = reason, "compiling a grammar panicked");
        return GrammarError::invalid("compiling it failed unexpectedly; simplify it");
    }
    if reason.contains("NoExtension") {
        return GrammarError::invalid("no answer could match it");
    }
    let lower = reason.to_lowercase();
    let unsupported = |keyword: &str, hint: &str| GrammarError::Unsupported {
        keyword: keyword.to_owned(),
        path: String::new(),
        hint: hint.to_owned(),
    };
    if let Some(rest) = reason.split("Unimplemented keys: [\"").nth(1) {
        return unsupported(rest.split('"').next().unwrap_or_default(), "");
    }
    if lower.contains("oneof constraints are not supported") {
        return unsupported("oneOf", " where its options may overlap; use `anyOf`");
    }
    if lower.contains("unknown format") || lower.contains("invalid format") {
        return unsupported("format", &format!(": {reason}"));
    }
    if ["too large", "too big", "too complex", "limit", "fuel", "too many"].iter().any(|word| lower.contains(word)) {
        return GrammarError::too_large(format!("it is too complex: {reason}"));
    }
    GrammarError::invalid(reason)
}
