//! Compiled grammars of one model: compiled beside everything else, once for all who ask, and kept for a while.
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::error::ApiError;
use super::structured::Asked;
use crate::grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource, Lru};
use crate::text::Tokenizer;

/// Grammars that are kept, and the bytes of all their sources.
const KEPT_MAX: usize = 128;
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Grammars compiled at once: a request that nobody should have sent blocks no other.
const LANES: usize = 2;
/// Grammars compiled or waiting for it.
const WAITING_MAX: usize = 64;
/// Longest time to compile one. The limits of work end it sooner; what does not end is left to itself, in its lane.
const COMPILE_MAX: Duration = Duration::from_secs(4);
/// Longest wait for a lane and the compiler together.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Longest search for the part of a grammar that is at fault.
const SEARCH_MAX: Duration = Duration::from_secs(3);

type Outcome = Result<Arc<Grammar>, GrammarError>;

/// The grammars of one model. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Grammars {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: Arc<Tokenizer>,
    vocab: usize,
    /// Made by the first request that needs it.
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
    known: Mutex<Lru<GrammarSource, watch::Receiver<Option<Outcome>>>>,
    lanes: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Grammars {
    /// `vocab`: the tokens that the model has logits for.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, vocab: usize) -> Self {
        let shared = Shared {
            tokenizer,
            vocab,
            compiler: OnceLock::new(),
            known: Mutex::new(Lru::new(KEPT_MAX, KEPT_BYTES_MAX)),
            lanes: Arc::new(Semaphore::new(LANES)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The grammar that a request asks for. Equal sources are compiled once, for requests at the same time, too.
    pub(crate) async fn get(&self, asked: Asked) -> Result<Arc<Grammar>, ApiError> {
        self.outcome(asked, true).await
    }

    /// What is wrong with the first of these that cannot be compiled, as far as that is found out in a short time. None of
    /// them is kept: that would cost others their grammars.
    pub(crate) async fn first_error(&self, parts: impl Iterator<Item = Asked>) -> Option<ApiError> {
        let search = async {
            for asked in parts {
                if let Err(error @ ApiError::Schema { .. }) = self.outcome(asked, false).await {
                    return Some(error);
                }
            }
            None
        };
        tokio::time::timeout(SEARCH_MAX, search).await.ok().flatten()
    }

    async fn outcome(&self, Asked { source, param }: Asked, keep: bool) -> Result<Arc<Grammar>, ApiError> {
        let kind = source.kind();
        let mut outcome = self.known_or_begun(source, keep)?;
        let done = tokio::time::timeout(WAIT_MAX, outcome.wait_for(Option::is_some)).await;
        let Ok(done) = done else { return Err(busy()) };
        // The sender is only dropped without a result when the runtime shuts down.
        let result = done.ok().and_then(|result| result.clone()).ok_or(ApiError::Internal)?;
        result.map_err(|error| ApiError::schema(param, kind, &error))
    }

    fn known_or_begun(&self, source: GrammarSource, keep: bool) -> Result<watch::Receiver<Option<Outcome>>, ApiError> {
        let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = known.get(&source) {
            return Ok(outcome);
        }
        let Ok(waiting) = Arc::clone(&self.shared.waiting).try_acquire_owned() else { return Err(busy()) };
        let (sender, outcome) = watch::channel(None);
        if keep {
            known.insert(source.clone(), outcome.clone(), source.bytes());
        }
        drop(known);
        let shared = Arc::clone(&self.shared);
        // It goes on when the client leaves: another one may wait for it.
        tokio::spawn(async move {
            let _waiting = waiting;
            let lane = Arc::clone(&shared.lanes).acquire_owned().await;
            let mut job = tokio::task::spawn_blocking(move || {
                let _lane = lane;
                shared.compile(&source)
            });
            let result = match tokio::time::timeout(COMPILE_MAX, &mut job).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(GrammarError::Invalid { reason: "compiling it failed unexpectedly".to_owned() }),
                Err(_) => {
                    let seconds = COMPILE_MAX.as_secs();
                    let reason = format!("compiling it takes more than {seconds} seconds");
                    sender.send_replace(Some(Err(GrammarError::TooLarge { reason })));
                    // It keeps its place until it ends.
                    let _ = job.await;
                    return;
                }
            };
            sender.send_replace(Some(result));
        });
        Ok(outcome)
    }
}

impl Shared {
    fn compile(&self, source: &GrammarSource) -> Outcome {
        let compiler = self.compiler.get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.vocab));
        compiler.as_ref().map_err(Clone::clone)?.compile(source)
    }
}

fn busy() -> ApiError {
    ApiError::Overloaded {
        reason: "too many new schemas and grammars are waiting to be compiled".to_owned(),
        retry_after: Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(schema: &str) -> Asked {
        let source = GrammarSource::JsonSchema { schema: schema.to_owned(), compact: false };
        Asked { source, param: "response_format".to_owned() }
    }

    #[tokio::test]
    async fn the_search_for_a_fault_costs_nobody_a_grammar() {
        let grammars = Grammars::new(Tokenizer::tiny(), 259);
        let kept = grammars.get(asked(r#"{"enum": [1, 2]}"#)).await.unwrap();
        let parts = || (0..KEPT_MAX + 1).map(|i| asked(&format!(r#"{{"enum": ["{i}"]}}"#)));
        assert!(grammars.first_error(parts()).await.is_none());
        let error = grammars.first_error(parts().take(3).chain([asked(r#"{"not": {}}"#)])).await;
        assert!(matches!(error, Some(ApiError::Schema { code: "unsupported_schema", .. })), "{error:?}");
        assert!(Arc::ptr_eq(&grammars.get(asked(r#"{"enum": [1, 2]}"#)).await.unwrap(), &kept));
    }

    #[tokio::test]
    async fn equal_sources_are_compiled_once_and_kept() {
        let grammars = Grammars::new(Tokenizer::tiny(), 259);
        let same = || grammars.get(asked(r#"{"enum": [1, 2]}"#));
        let together = futures_util::future::join_all([same(), same(), same(), same()]).await;
        let first = together[0].as_ref().unwrap();
        assert!(together.iter().all(|grammar| Arc::ptr_eq(grammar.as_ref().unwrap(), first)));
        assert!(Arc::ptr_eq(&same().await.unwrap(), first));
        assert!(!Arc::ptr_eq(&grammars.get(asked(r#"{"enum": [2, 1]}"#)).await.unwrap(), first));
        // What is wrong with a source is known the second time, too.
        for _ in 0..2 {
            let error = grammars.get(asked(r#"{"not": {}}"#)).await.unwrap_err();
            assert!(matches!(error, ApiError::Schema { code: "unsupported_schema", .. }), "{error}");
        }
    }
}
