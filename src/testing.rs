//! Test doubles shared by unit tests, integration tests and benches.
use std::time::Duration;

use crate::runner::{Logits, Runner, RunnerError};
use crate::scheduler::{LogitRows, ScheduledSeq, SchedulerOutput};

/// Chooses the next token from the whole context.
pub type NextToken = Box<dyn Fn(&[u32]) -> u32 + Send>;

/// What a [`FakeRunner`] does besides computing tokens.
#[derive(Default)]
pub struct FakeOptions {
    /// Steps that fail, counted from 0. A failing step writes garbage into the slots it was to fill.
    pub fail_steps: Vec<u64>,
    /// Every step that computes this token fails.
    pub fail_on_token: Option<u32>,
    /// How long a step takes.
    pub step_delay: Option<Duration>,
    /// The most likely token after a context; by default [`next_token`].
    pub next: Option<NextToken>,
    /// Neither store nor check anything: the next token follows from the last one and its position, or with a `next` from
    /// the last one alone. For measurements of what is around the runner.
    pub free_of_cost: bool,
    /// The model embeds: rows have so many values, which follow from the context all the same.
    pub dimensions: Option<usize>,
}

/// A model whose "KV" of a token is the token itself and a hash of everything before it.
///
/// A step writes its tokens into their slots (those of all sequences first, like every layer of a real model), then reads
/// each sequence's whole context back through its block table. A slot that was never written, that was written by a
/// failed step, or whose content was computed after other tokens than those that stand before it now, makes the step
/// fail with [`RunnerError::BadStep`]; [`FakeRunner::fault`] says which. The logits follow from the context alone.
pub struct FakeRunner {
    vocab: usize,
    block_size: usize,
    slots: Vec<Slot>,
    steps: u64,
    options: FakeOptions,
    fault: Option<String>,
    context: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot {
    token: u32,
    /// Hash of all tokens up to and including this one, `None` for garbage.
    prefix: Option<u64>,
    /// The step that wrote it.
    step: u64,
}

/// Hash of a context, token by token.
fn extend(prefix: u64, token: u32) -> u64 {
    let x = (prefix.rotate_left(7) ^ u64::from(token).wrapping_add(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 29)
}

/// The most likely token after `context` for a [`FakeRunner`] with default options.
///
/// # Panics
/// When `vocab` is 0.
#[must_use]
pub fn next_token(context: &[u32], vocab: usize) -> u32 {
    token_of(context.iter().fold(0, |prefix, &token| extend(prefix, token)), vocab)
}

/// The tokens that a [`FakeRunner`] with default options generates greedily after `prompt`.
///
/// # Panics
/// When `vocab` is 0.
#[must_use]
pub fn generate(prompt: &[u32], count: usize, vocab: usize) -> Vec<u32> {
    let mut prefix = prompt.iter().fold(0, |prefix, &token| extend(prefix, token));
    let one = |_| {
        let token = token_of(prefix, vocab);
        prefix = extend(prefix, token);
        token
    };
    (0..count).map(one).collect()
}

fn token_of(prefix: u64, vocab: usize) -> u32 {
    u32::try_from((prefix >> 11) % vocab as u64).expect("a vocabulary beyond u32 is a bug")
}

impl FakeRunner {
    /// A runner with `num_blocks` blocks of `block_size` slots.
    ///
    /// # Panics
    /// When `vocab` or `block_size` is 0.
    #[must_use]
    pub fn new(vocab: usize, block_size: usize, num_blocks: usize) -> Self {
        Self::with_options(vocab, block_size, num_blocks, FakeOptions::default())
    }

    /// # Panics
    /// When `vocab` or `block_size` is 0.
    #[must_use]
    pub fn with_options(vocab: usize, block_size: usize, num_blocks: usize, options: FakeOptions) -> Self {
        assert!(vocab > 0 && block_size > 0, "a model without tokens or slots is a bug");
        let empty = Slot { token: 0, prefix: None, step: u64::MAX };
        let slots = if options.free_of_cost { Vec::new() } else { vec![empty; block_size * num_blocks] };
        Self { vocab, block_size, slots, steps: 0, options, fault: None, context: Vec::new() }
    }

    fn width(&self) -> usize {
        self.options.dimensions.unwrap_or(self.vocab)
    }

    /// What was wrong with the last step that was malformed.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Makes the next step fail, as [`FakeOptions::fail_steps`] does.
    pub fn fail_next_step(&mut self) {
        self.options.fail_steps.push(self.steps);
    }

    /// Steps executed, failed ones included.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn run(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        for seq in &step.seqs {
            self.write(seq).map_err(|message| self.bad_step(seq, &message))?;
        }
        if self.injects_failure(step) {
            for seq in &step.seqs {
                for position in seq.start..seq.start + seq.tokens.len() {
                    let at = self.slot(seq, position).map_err(|message| self.bad_step(seq, &message))?;
                    self.slots[at].prefix = None;
                }
            }
            return Err(RunnerError::BadStep("this failure was asked for by the test"));
        }
        let mut logits = Logits { width: self.width(), ..Logits::default() };
        for seq in &step.seqs {
            self.read(seq, &mut logits).map_err(|message| self.bad_step(seq, &message))?;
        }
        Ok(logits)
    }

    fn injects_failure(&self, step: &SchedulerOutput) -> bool {
        let poisoned = |token| step.seqs.iter().any(|seq| seq.tokens.contains(&token));
        self.options.fail_steps.contains(&self.steps) || self.options.fail_on_token.is_some_and(poisoned)
    }

    fn bad_step(&mut self, seq: &ScheduledSeq, message: &str) -> RunnerError {
        self.fault = Some(format!("step {}, sequence {}: {message}", self.steps, seq.id.0));
        RunnerError::BadStep("the fake model read or wrote a wrong slot; FakeRunner::fault says which")
    }

    fn slot(&self, seq: &ScheduledSeq, position: usize) -> Result<usize, String> {
        let block = seq.blocks.get(position / self.block_size);
        let block = block.ok_or_else(|| format!("the block table ends before position {position}"))?;
        let at = block.index() * self.block_size + position % self.block_size;
        if at < self.slots.len() { Ok(at) } else { Err(format!("{block:?} does not exist")) }
    }

    /// Writes a chunk into its slots, in the state that the tokens before it leave behind.
    fn write(&mut self, seq: &ScheduledSeq) -> Result<(), String> {
        let mut prefix = match seq.start.checked_sub(1) {
            None => Some(0),
            Some(before) => self.slots[self.slot(seq, before)?].prefix,
        };
        for (position, &token) in (seq.start..).zip(&seq.tokens) {
            let at = self.slot(seq, position)?;
            if self.slots[at].step == self.steps {
                return Err(format!("position {position} goes to a slot that this step has written already"));
            }
            prefix = prefix.map(|prefix| extend(prefix, token));
            self.slots[at] = Slot { token, prefix, step: self.steps };
        }
        Ok(())
    }

    /// Reads a sequence's context back, checks it, and appends the rows of logits it asks for.
    fn read(&mut self, seq: &ScheduledSeq, logits: &mut Logits) -> Result<(), String> {
        let end = seq.start + seq.tokens.len();
        let mut context = std::mem::take(&mut self.context);
        context.clear();
        let mut prefix = 0;
        for position in 0..end {
            let slot = self.slots[self.slot(seq, position)?];
            prefix = extend(prefix, slot.token);
            if slot.prefix != Some(prefix) {
                let what = if slot.prefix.is_none() { "garbage" } else { "the KV of another context" };
                return Err(format!("position {position} of {end} holds {what} (chunk starts at {})", seq.start));
            }
            context.push(slot.token);
            let wanted = match seq.logits {
                LogitRows::None => false,
                LogitRows::Last => position + 1 == end,
                LogitRows::All => position >= seq.start,
            };
            if wanted {
                let best =
                    self.options.next.as_ref().map_or_else(|| token_of(prefix, self.vocab), |next| next(&context));
                push_row(logits, best, prefix);
            }
        }
        self.context = context;
        Ok(())
    }

    fn run_free_of_cost(&self, step: &SchedulerOutput) -> Logits {
        let mut logits = Logits { width: self.width(), ..Logits::default() };
        for seq in &step.seqs {
            let from = match seq.logits {
                LogitRows::None => seq.tokens.len(),
                LogitRows::Last => seq.tokens.len() - 1,
                LogitRows::All => 0,
            };
            for (position, &token) in (seq.start..).zip(&seq.tokens).skip(from) {
                let state = extend(position as u64, token);
                let chosen = self.options.next.as_ref().map(|next| next(&[token]));
                push_row(&mut logits, chosen.unwrap_or_else(|| token_of(state, self.vocab)), state);
            }
        }
        logits
    }
}

/// Appends a row whose values are all different: highest at `best`, falling from there upwards and around.
#[allow(clippy::cast_precision_loss, reason = "vocabularies of tests are small")]
fn push_row(logits: &mut Logits, best: u32, state: u64) {
    let (vocab, best) = (logits.width, best as usize % logits.width);
    let range = 4.0 + (state % 8) as f32;
    let rank = |token: usize| (token + vocab - best) % vocab;
    logits.data.extend((0..vocab).map(|token| range * (0.5 - rank(token) as f32 / vocab as f32)));
}

impl Runner for FakeRunner {
    fn execute(&mut self, step: &SchedulerOutput) -> Result<Logits, RunnerError> {
        if let Some(delay) = self.options.step_delay {
            std::thread::sleep(delay);
        }
        let result = if !self.options.free_of_cost {
            self.run(step)
        } else if self.injects_failure(step) {
            Err(RunnerError::BadStep("this failure was asked for by the test"))
        } else {
            Ok(self.run_free_of_cost(step))
        };
        self.steps += 1;
        result
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn dimensions(&self) -> Option<usize> {
        self.options.dimensions
    }
}

/// The tokens a step samples when every sequence is decoded greedily, as [`crate::scheduler::Scheduler::commit`] wants
/// them.
///
/// # Panics
/// When `logits` has too few rows for `step`.
#[must_use]
pub fn greedy(step: &SchedulerOutput, logits: &Logits) -> Vec<Vec<u32>> {
    let mut rows = logits.data.chunks_exact(logits.width.max(1));
    let arg_max = |row: &[f32]| (0..).zip(row).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token);
    let sampled = |seq: &ScheduledSeq| {
        let rows: Vec<&[f32]> = match seq.logits {
            LogitRows::None => Vec::new(),
            LogitRows::Last => rows.by_ref().take(1).collect(),
            LogitRows::All => rows.by_ref().take(seq.tokens.len()).collect(),
        };
        let mut tokens = Vec::new();
        if seq.sample {
            tokens.push(arg_max(rows[rows.len() - 1 - seq.drafts]));
            for (&guess, row) in seq.drafted().iter().zip(&rows[rows.len() - seq.drafts..]) {
                if tokens.last() != Some(&guess) {
                    break;
                }
                tokens.push(arg_max(row));
            }
        }
        tokens
    };
    step.seqs.iter().map(sampled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::scheduler::SeqId;

    fn part(id: u64, start: usize, tokens: &[u32], blocks: &[u32], logits: LogitRows) -> ScheduledSeq {
        ScheduledSeq {
            id: SeqId(id),
            start,
            tokens: tokens.to_vec(),
            drafts: 0,
            blocks: blocks.iter().copied().map(BlockId).collect(),
            logits,
            sample: logits != LogitRows::None,
            cached_tokens: None,
        }
    }

    fn step(seqs: Vec<ScheduledSeq>) -> SchedulerOutput {
        SchedulerOutput { seqs, preempted: Vec::new() }
    }

    #[test]
    fn chunks_and_shared_blocks_give_what_the_whole_prompt_gives() {
        let prompt = [3, 1, 4, 1, 5];
        let expected = generate(&prompt, 1, 50)[0];
        assert_eq!(expected, next_token(&prompt, 50));
        let mut runner = FakeRunner::new(50, 2, 8);
        let whole = step(vec![part(0, 0, &prompt, &[0, 1, 2], LogitRows::All)]);
        let logits = runner.execute(&whole).unwrap();
        assert_eq!(logits.data.len(), 5 * 50);
        assert_eq!(greedy(&whole, &logits), [[expected]]);
        let shared = step(vec![
            part(1, 4, &prompt[4..], &[0, 1, 5], LogitRows::Last),
            part(2, 2, &prompt[2..3], &[0, 6], LogitRows::None),
        ]);
        let logits = runner.execute(&shared).unwrap();
        assert_eq!(greedy(&shared, &logits), [vec![expected], vec![]]);
        let mut row = logits.data.clone();
        row.sort_by(f32::total_cmp);
        row.dedup();
        assert_eq!(row.len(), 50, "all values differ");
    }

    #[test]
    fn wrong_slots_are_found() {
        let fault = |second: Vec<ScheduledSeq>| {
            let mut runner = FakeRunner::new(50, 2, 8);
            runner.execute(&step(vec![part(0, 0, &[1, 2, 3], &[0, 1], LogitRows::Last)])).unwrap();
            assert!(runner.execute(&step(second)).is_err());
            runner.fault().unwrap_or_default().to_owned()
        };
        assert!(fault(vec![part(1, 2, &[3], &[4, 1], LogitRows::Last)]).contains("position 0 of 3 holds garbage"));
        assert!(fault(vec![part(1, 2, &[3], &[1, 5], LogitRows::Last)]).contains("another context"));
        assert!(fault(vec![part(1, 2, &[3], &[0], LogitRows::Last)]).contains("table ends before position 2"));
        assert!(fault(vec![part(1, 0, &[3], &[9], LogitRows::Last)]).contains("BlockId(9) does not exist"));
        let twice = vec![part(1, 0, &[1], &[5], LogitRows::Last), part(2, 0, &[1], &[5], LogitRows::Last)];
        assert!(fault(twice).contains("sequence 2: position 0 goes to a slot"));
    }

    #[test]
    fn a_failed_step_leaves_garbage() {
        let options = FakeOptions { fail_steps: vec![0], fail_on_token: Some(7), ..FakeOptions::default() };
        let mut runner = FakeRunner::with_options(50, 2, 8, options);
        let first = step(vec![part(0, 0, &[1, 2], &[0], LogitRows::Last)]);
        assert!(runner.execute(&first).is_err());
        assert!(runner.fault().is_none());
        assert!(runner.execute(&step(vec![part(0, 2, &[3], &[0, 1], LogitRows::Last)])).is_err());
        assert!(runner.fault().is_some_and(|fault| fault.contains("garbage")));
        assert!(runner.execute(&first).is_ok());
        assert!(runner.execute(&step(vec![part(1, 0, &[7], &[2], LogitRows::Last)])).is_err());
        assert_eq!(runner.steps(), 4);
    }

    #[test]
    fn a_test_can_choose_the_next_token() {
        let next: NextToken = Box::new(|context| context.iter().sum());
        let mut runner = FakeRunner::with_options(9, 2, 8, FakeOptions { next: Some(next), ..FakeOptions::default() });
        let step = step(vec![part(0, 0, &[1, 2, 3], &[0, 1], LogitRows::Last)]);
        let logits = runner.execute(&step).unwrap();
        assert_eq!(greedy(&step, &logits), [[6]]);
    }
}
