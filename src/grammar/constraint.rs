//! A grammar that sequences share, and a sequence's way through it.
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

/// Matchers that finished sequences leave to the next ones: they know the grammar's states already.
const SPARE_MATCHERS_MAX: usize = 4;

/// A compiled grammar of one model.
pub struct Grammar {
    /// At the grammar's start; never advanced.
    fresh: Mutex<Matcher>,
    /// Somewhere in the grammar, healthy.
    spare: Mutex<Vec<Matcher>>,
    /// The model's own ends of text.
    ends: Arc<[u32]>,
}

impl Grammar {
    pub(super) fn new(fresh: Matcher, ends: Arc<[u32]>) -> Self {
        Self { fresh: Mutex::new(fresh), spare: Mutex::default(), ends }
    }

    fn start(&self) -> Matcher {
        if let Some(mut matcher) = lock(&self.spare).pop()
            && matcher.reset().is_ok()
        {
            return matcher;
        }
        // Nothing is shared with the copy: what breaks one sequence's matcher breaks no other's.
        lock(&self.fresh).deep_clone()
    }

    fn give_back(&self, matcher: Matcher) {
        let mut spare = lock(&self.spare);
        if !matcher.is_error() && spare.len() < SPARE_MATCHERS_MAX {
            spare.push(matcher);
        }
    }
}

/// What the locks guard is valid between any two calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// A sequence cannot go on: its grammar has no next token, or became too complex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot be followed further: {0}")]
pub struct ConstraintError(String);

impl ConstraintError {
    fn new(reason: impl fmt::Display) -> Self {
        // llguidance's messages go on with dumps of its state.
        let reason = reason.to_string();
        Self(reason.lines().next().unwrap_or_default().to_owned())
    }
}

/// How far a sequence has come in its grammar, and what may come next.
pub struct Constraint {
    grammar: Arc<Grammar>,
    /// Ids that end the sequence.
    stop_tokens: Arc<[u32]>,
    /// Made when it is first needed.
    matcher: Option<Matcher>,
    /// What may come next, once that was asked.
    mask: Option<SimpleVob>,
}

impl Constraint {
    /// At the grammar's start. `stop_tokens` end the sequence: they may come exactly where the grammar accepts.
    #[must_use]
    pub fn new(grammar: Arc<Grammar>, stop_tokens: Arc<[u32]>) -> Self {
        Self { grammar, stop_tokens, matcher: None, mask: None }
    }

    /// The tokens that may come next, as the bits of words (see [`crate::sampling::TokenMask`]); at least one. Computed
    /// once for each place, by whoever asks first.
    ///
    /// # Errors
    /// When nothing can follow or the work exceeds its bound. Asking again gives an error again.
    pub fn allowed(&mut self) -> Result<&[u32], ConstraintError> {
        let mask = match self.mask.take() {
            Some(mask) => mask,
            None => self.compute()?,
        };
        Ok(self.mask.insert(mask).as_slice())
    }

    fn compute(&mut self) -> Result<SimpleVob, ConstraintError> {
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.start());
        let mut mask = matcher.compute_mask().map_err(ConstraintError::new)?;
        if matcher.is_accepting().map_err(ConstraintError::new)? {
            // The model's own ends are in the mask. Where the sequence ignores them they are left in if nothing else is:
            // then the grammar is complete.
            let ignored: Vec<u32> =
                self.grammar.ends.iter().copied().filter(|id| !self.stop_tokens.contains(id)).collect();
            for &id in &ignored {
                mask.disallow_token(id);
            }
            let tokens = mask.len();
            for &id in self.stop_tokens.iter().filter(|&&id| (id as usize) < tokens) {
                mask.allow_token(id);
            }
            if mask.is_zero() {
                for &id in &ignored {
                    mask.allow_token(id);
                }
            }
        }
        if mask.is_zero() {
            return Err(ConstraintError::new("no token can follow"));
        }
        Ok(mask)
    }

    /// Takes the sequence's next token, one of those allowed. `true`: the text is complete and nothing can follow, so the
    /// sequence ends here. (A stop token ends it anyway.)
    ///
    /// # Errors
    /// As [`Self::allowed`].
    pub fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        self.mask = None;
        if self.stop_tokens.contains(&token) {
            return Ok(false);
        }
        let matcher = self.matcher.get_or_insert_with(|| self.grammar.start());
        matcher.consume_token(token).map_err(ConstraintError::new)?;
        if !matcher.is_stopped() {
            return Ok(false);
        }
        let reason = matcher.stop_reason();
        if reason.is_ok() { Ok(true) } else { Err(ConstraintError::new(format_args!("{reason:?}"))) }
    }
}

impl Drop for Constraint {
    fn drop(&mut self) {
        if let Some(matcher) = self.matcher.take() {
            self.grammar.give_back(matcher);
        }
    }
}
