//! A scheduler's step → the index lists of a forward pass.
use super::RunnerError;
use crate::ops::{ForwardBatch, Indices, SeqRange};
use crate::scheduler::{LogitRows, ScheduledSeq, SchedulerOutput};

/// What a step must respect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    pub vocab: usize,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
}

/// Lays the step's sequences out one after another.
///
/// # Errors
/// [`RunnerError::BadStep`] if a sequence has no tokens, a token is beyond the vocabulary, or a block table is too short or leaves the pool.
pub fn forward_batch(step: &SchedulerOutput, limits: StepLimits) -> Result<ForwardBatch, RunnerError> {
    let total = step.total_tokens();
    let mut input_ids = Vec::with_capacity(total);
    let mut positions = Vec::with_capacity(total);
    let mut slots = Vec::with_capacity(total);
    let mut logit_rows = Vec::new();
    let mut seqs = Vec::with_capacity(step.seqs.len());
    let mut block_ids = Vec::new();
    for seq in &step.seqs {
        check(seq, limits)?;
        let (q_start, q_len) = (input_ids.len(), seq.tokens.len());
        let context_len = seq.start + q_len;
        let table = &seq.blocks[..context_len.div_ceil(limits.block_size)];
        input_ids.extend_from_slice(&seq.tokens);
        for position in seq.start..context_len {
            let block = table[position / limits.block_size].0 as usize;
            positions.push(index(position)?);
            slots.push(index(block * limits.block_size + position % limits.block_size)?);
        }
        match seq.logits {
            LogitRows::None => {}
            LogitRows::Last => logit_rows.push(index(q_start + q_len - 1)?),
            LogitRows::All => {
                for row in q_start..q_start + q_len {
                    logit_rows.push(index(row)?);
                }
            }
        }
        let first_block = block_ids.len();
        block_ids.extend(table.iter().map(|b| b.0));
        seqs.push(SeqRange { q_start, q_len, context_len, blocks: first_block..block_ids.len() });
    }
    Ok(ForwardBatch {
        input_ids: Indices::new(input_ids),
        positions: Indices::new(positions),
        slots: Indices::new(slots),
        seqs,
        block_ids,
        logit_rows: Indices::new(logit_rows),
    })
}

fn check(seq: &ScheduledSeq, limits: StepLimits) -> Result<(), RunnerError> {
    if seq.tokens.is_empty() {
        return Err(RunnerError::BadStep("a sequence has no tokens to compute"));
    }
    if seq.tokens.iter().any(|&token| token as usize >= limits.vocab) {
        return Err(RunnerError::BadStep("a token id is beyond the model's vocabulary"));
    }
    let needed = seq.start.checked_add(seq.tokens.len()).ok_or(RunnerError::BadStep("a position overflows"))?;
    if seq.blocks.len() < needed.div_ceil(limits.block_size) {
        return Err(RunnerError::BadStep("a block table is shorter than its sequence"));
    }
    if seq.blocks.iter().any(|b| b.0 as usize >= limits.num_blocks) {
        return Err(RunnerError::BadStep("a block is outside the KV cache"));
    }
    Ok(())
}

fn index(value: usize) -> Result<u32, RunnerError> {
    u32::try_from(value).map_err(|_| RunnerError::BadStep("an index does not fit into 32 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::BlockId;
    use crate::scheduler::SeqId;

    const LIMITS: StepLimits = StepLimits { vocab: 10, block_size: 4, num_blocks: 8 };

    fn seq(start: usize, tokens: &[u32], blocks: &[u32], logits: LogitRows) -> ScheduledSeq {
        ScheduledSeq {
            id: SeqId(1),
            start,
            tokens: tokens.to_vec(),
            drafts: 0,
            blocks: blocks.iter().map(|&b| BlockId(b)).collect(),
            logits,
            sample: false,
            cached_tokens: None,
        }
    }

    fn step(seqs: Vec<ScheduledSeq>) -> SchedulerOutput {
        SchedulerOutput { seqs, preempted: vec![] }
    }

    #[test]
    fn rows_positions_and_slots_follow_the_block_tables() {
        let batch = forward_batch(
            &step(vec![
                seq(3, &[7, 8, 9], &[5, 2, 6], LogitRows::Last),
                seq(0, &[1], &[0], LogitRows::None),
                seq(7, &[2, 3], &[1, 7, 4], LogitRows::All),
            ]),
            LIMITS,
        )
        .unwrap();
        assert_eq!(batch.input_ids.as_slice(), [7, 8, 9, 1, 2, 3]);
        assert_eq!(batch.positions.as_slice(), [3, 4, 5, 0, 7, 8]);
        assert_eq!(batch.slots.as_slice(), [23, 8, 9, 0, 31, 16]);
        assert_eq!(batch.logit_rows.as_slice(), [2, 4, 5]);
        assert_eq!(batch.block_ids, [5, 2, 0, 1, 7, 4], "a table ends with the context; spare blocks are left out");
        let contexts: Vec<_> = batch.seqs.iter().map(|s| (s.q_start, s.q_len, s.context_len)).collect();
        assert_eq!(contexts, [(0, 3, 6), (3, 1, 1), (4, 2, 9)]);
    }

    #[test]
    fn malformed_steps_are_errors() {
        let bad = [
            seq(0, &[], &[0], LogitRows::Last),
            seq(0, &[10], &[0], LogitRows::Last),
            seq(4, &[1], &[0], LogitRows::Last),
            seq(0, &[1], &[8], LogitRows::Last),
            seq(usize::MAX, &[1], &[0], LogitRows::Last),
        ];
        for seq in bad {
            assert!(matches!(forward_batch(&step(vec![seq.clone()]), LIMITS), Err(RunnerError::BadStep(_))), "{seq:?}");
        }
    }
}
