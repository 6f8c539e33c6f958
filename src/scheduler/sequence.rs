//! A sequence: tokens, and how many of them already have KV.
use std::sync::Arc;

use super::draft::Drafter;
use crate::kv::{BlockHash, BlockTable, CacheSalt, ClosestPrefix, PrefixId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// When a sequence ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopLimits {
    /// 0: the sequence ends with its prompt, and no token is sampled.
    pub max_new_tokens: usize,
    /// Sampling one of these ends the sequence (end-of-text ids are among them unless the request ignores them).
    pub stop_tokens: Arc<[u32]>,
}

/// What the engine hands to the scheduler.
#[derive(Debug, Clone)]
pub struct NewSequence {
    pub id: SeqId,
    pub prompt: Arc<[u32]>,
    pub limits: StopLimits,
    pub salt: CacheSalt,
    /// Every prompt position's logits are wanted, so nothing may be taken from the prefix cache.
    pub prompt_logits: bool,
    /// Fairness: running shares are balanced between groups (a tenant).
    pub tenant: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled (it counts as generated).
    StopToken(u32),
    /// `max_new_tokens` or the context's end was reached.
    Length,
    /// The last token completed the sequence's grammar: nothing can follow. (The engine knows grammars; a scheduler
    /// never gives this reason.)
    Complete,
}

/// Where the scheduler keeps a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the wait queue.
    Queued,
    /// Waits until a running sequence has computed the block of this hash.
    Parked(BlockHash),
    Running,
}

/// A sequence is its tokens, and how many of them already have KV. Prefix hits, chunks and recomputation after
/// preemption are nothing but `computed` catching up with `tokens.len()`.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SeqId,
    pub tenant: u64,
    pub salt: CacheSalt,
    pub limits: StopLimits,
    pub prompt_logits: bool,
    pub prompt_len: usize,
    /// Order of arrival; lower is older.
    pub age: u64,
    /// Prompt, then generated tokens.
    pub tokens: Vec<u32>,
    /// Tokens whose KV a committed step (or the prefix cache) has put into the table's blocks.
    pub computed: usize,
    /// Tokens of the step that is planned or runs, without its guesses; 0 between steps.
    pub in_flight: usize,
    /// Made when there is something to guess: with the first generated token.
    pub drafter: Option<Drafter>,
    pub table: BlockTable,
    /// Chained hashes of the full blocks of `tokens`, as far as they were needed.
    pub hashes: Vec<BlockHash>,
    /// Leading blocks of the table that the prefix cache knows (or knows a duplicate of).
    pub published: usize,
    /// Identity of the prefix that those blocks hold.
    pub prefix: PrefixId,
    /// Prompt positions whose rows of logits a committed step has delivered; see [`Sequence::reusable`].
    pub rows_delivered: usize,
    /// Expected tokens to compute, for the order among waiting prompts; fixed while it waits.
    pub estimate: usize,
    /// Tokens of sequences that were admitted while this one was refused for lack of blocks.
    pub overtaken: usize,
    /// Its first chunk was handed out.
    pub started: bool,
    /// It is to be compared with what is cached when it is admitted.
    pub explain: bool,
    /// What came of that.
    pub closest: Option<ClosestPrefix>,
    /// The step in which it was (last) admitted.
    pub admitted_in: u64,
    /// Tokens that had KV when it lost its blocks; the most if that happened more than once.
    pub lost_at: usize,
    /// Lost its blocks to an older one and did not run since: goes before all that wait.
    pub preempted: bool,
    pub place: Place,
}

impl Sequence {
    pub fn new(new: NewSequence, age: u64) -> Self {
        Self {
            id: new.id,
            tenant: new.tenant,
            salt: new.salt,
            limits: new.limits,
            prompt_logits: new.prompt_logits,
            prompt_len: new.prompt.len(),
            age,
            tokens: new.prompt.to_vec(),
            computed: 0,
            in_flight: 0,
            drafter: None,
            table: BlockTable::default(),
            hashes: Vec::new(),
            published: 0,
            prefix: PrefixId::Root(new.salt),
            rows_delivered: 0,
            estimate: new.prompt.len(),
            overtaken: 0,
            started: false,
            explain: false,
            closest: None,
            admitted_in: 0,
            lost_at: 0,
            preempted: false,
            place: Place::Queued,
        }
    }

    /// Known tokens without KV, those of the step in flight included.
    pub fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Rows of logits of every token at `position` are to be delivered.
    pub fn wants_rows_at(&self, position: usize) -> bool {
        self.prompt_logits && position >= self.rows_delivered && position < self.prompt_len
    }

    /// Tokens are sampled after the prompt.
    pub fn generates(&self) -> bool {
        self.limits.max_new_tokens > 0
    }

    /// One token behind: it produces a token in every step.
    pub fn is_decode(&self) -> bool {
        self.missing() == 1 && self.generates() && !self.wants_rows_at(self.computed)
    }

    /// Leading tokens that may come from the prefix cache. The last known token is always computed, since its row is what
    /// the next token is sampled from, or what was asked for. A sequence that wants its prompt's logits must compute every position once;
    /// after a preemption it may take from the cache what it has delivered already, and what it computes again of that
    /// yields no rows: each position's row is delivered exactly once.
    pub fn reusable(&self) -> usize {
        let last = self.tokens.len() - 1;
        if self.prompt_logits && self.rows_delivered < self.prompt_len { last.min(self.rows_delivered) } else { last }
    }

    /// Tokens that may be guessed beside the one that the next step gives for certain: not past the sequence's end.
    pub fn drafts_max(&self, context_max: usize) -> usize {
        let generated = self.tokens.len() - self.prompt_len;
        let left = self.limits.max_new_tokens.saturating_sub(generated).min(context_max - self.tokens.len());
        left.saturating_sub(1)
    }

    /// Adds a sampled token and says whether the sequence is done.
    pub fn push(&mut self, token: u32, context_max: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_len;
        if self.limits.stop_tokens.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else if generated >= self.limits.max_new_tokens || self.tokens.len() >= context_max {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
