//! The memory plan: what a model will take, decided and printed before anything is loaded.
use std::fmt;

use super::kv_cache::bytes_per_token;
use crate::model::spec::DecoderSpec;
use crate::ops::KvDtype;
use crate::weights::{WeightForm, WeightMemory};

/// Share of what weights and workspace leave that the KV cache takes when nobody says how much it may take: the rest is for the
/// operating system's file cache and for other programs.
const AUTOMATIC_KV_PERCENT: u64 = 50;

/// What the KV cache takes at most when nobody says how much, not even the system how much there is.
const UNKNOWN_MEMORY_KV_BYTES: u64 = 4 << 30;

/// What the plan is made from; plain numbers. [`PlanInputs::of`] reads the model's part off its specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanInputs {
    pub weights: WeightMemory,
    pub kv_bytes_per_token: u64,
    /// Bytes of activations per token of a step, at the widest point of a layer.
    pub activation_bytes_per_token: u64,
    /// Bytes of one row of logits, or of a hidden state where the model embeds.
    pub logit_row_bytes: u64,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Tokens of one sequence, prompt and output.
    pub context_max: usize,
    /// Sequences running at once.
    pub sequences_max: usize,
    /// Tokens computed in one step.
    pub batched_tokens_max: usize,
    /// Rows of logits in one step, beyond one per sequence.
    pub logit_rows_max: usize,
    /// Bytes the KV cache may take; `None` chooses.
    pub kv_memory: Option<u64>,
    /// Bytes this machine has left; `None` if it does not say.
    pub available: Option<u64>,
    /// Models, this one and those planned after it, that share what the KV cache takes when nobody says how much.
    pub kv_sharers: usize,
}

/// Limits of the server that the plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanLimits {
    pub block_size: usize,
    pub context_max: usize,
    pub sequences_max: usize,
    pub batched_tokens_max: usize,
    pub logit_rows_max: usize,
}

/// What will be taken, and the size of the block pool that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    pub inputs: PlanInputs,
    /// Blocks of the KV pool.
    pub num_blocks: usize,
    pub kv_bytes: u64,
    /// Activations, scratch and logits of the largest step.
    pub workspace_bytes: u64,
    pub total_bytes: u64,
}

/// Why there is no plan. Raised before loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "the model needs {} for its weights, {} of workspace and at least {} of KV cache for one sequence of {context_max} tokens, \
         but only {} of memory are available: use a smaller model or quantization, or lower --context or --batched-tokens",
        Bytes(*weights), Bytes(*workspace), Bytes(*kv), Bytes(*available)
    )]
    TooLittleMemory { weights: u64, workspace: u64, kv: u64, available: u64, context_max: usize },
    #[error(
        "--kv-memory {} is less than the {} that one sequence of {context_max} tokens needs: raise it, or lower --context",
        Bytes(*given), Bytes(*needed)
    )]
    KvMemoryTooSmall { given: u64, needed: u64, context_max: usize },
    #[error(
        "--kv-memory {} does not fit beside {} of weights and {} of workspace into the {} of memory available: lower it",
        Bytes(*given), Bytes(*weights), Bytes(*workspace), Bytes(*available)
    )]
    KvMemoryTooLarge { given: u64, weights: u64, workspace: u64, available: u64 },
}

impl PlanInputs {
    /// The inputs for `spec`, with nothing asked for and nothing known of the machine.
    #[must_use]
    pub fn of(spec: &DecoderSpec, weights: WeightMemory, dtype: KvDtype, limits: PlanLimits) -> Self {
        const F32: usize = 4;
        // Alive at the widest point of a layer: the residual, its norm, a block's output and the kernels' copy of a norm; beside them
        // either q, k, v and attention's output, or gate, up, their product and the kernels' copy of it.
        let widest = spec.layers.iter().map(|layer| {
            let (attn, inner) = (&layer.attn, layer.ffn.inner);
            (2 * (attn.heads + attn.kv_heads) * attn.head_dim).max(4 * inner)
        });
        let activations = (4 * spec.hidden + widest.max().unwrap_or(0)) * F32;
        Self {
            weights,
            kv_bytes_per_token: bytes_per_token(spec, dtype),
            activation_bytes_per_token: activations as u64,
            logit_row_bytes: (spec.row_width() * F32) as u64,
            block_size: limits.block_size,
            context_max: limits.context_max,
            sequences_max: limits.sequences_max,
            batched_tokens_max: limits.batched_tokens_max,
            logit_rows_max: limits.logit_rows_max,
            kv_memory: None,
            available: None,
            kv_sharers: 1,
        }
    }

    /// Bytes of one KV block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.kv_bytes_per_token.saturating_mul(self.block_size as u64)
    }

    fn workspace_bytes(&self) -> u64 {
        let rows =
            self.logit_rows_max.saturating_add(self.sequences_max).min(self.batched_tokens_max.max(self.sequences_max));
        // Twice the logits: the engine still samples from one step's while log-probabilities are worked out beside them.
        let logits = self.logit_row_bytes.saturating_mul(2).saturating_mul(rows as u64);
        self.activation_bytes_per_token.saturating_mul(self.batched_tokens_max as u64).saturating_add(logits)
    }
}

impl MemoryPlan {
    /// Sizes the block pool. With `kv_memory` it is as many blocks as fit there. Without, enough for every running sequence at full context,
    /// or half of what weights and workspace leave (4 GiB where the system does not say), shared with the models to come, if that is
    /// less, but at least one sequence.
    ///
    /// # Errors
    /// One sequence of `context_max` tokens does not fit; the error has the numbers.
    pub fn new(inputs: PlanInputs) -> Result<Self, PlanError> {
        let block_bytes = inputs.block_bytes().max(1);
        let one_sequence = inputs.context_max.div_ceil(inputs.block_size.max(1)).max(1) as u64;
        let workspace = inputs.workspace_bytes();
        let (weights, context_max) = (inputs.weights.bytes, inputs.context_max);
        let needed = one_sequence.saturating_mul(block_bytes);
        let left = inputs.available.map(|bytes| bytes.saturating_sub(weights.saturating_add(workspace)));
        if let (Some(left), Some(available)) = (left, inputs.available)
            && left < needed
        {
            return Err(PlanError::TooLittleMemory { weights, workspace, kv: needed, available, context_max });
        }
        let everyone = one_sequence.saturating_mul(inputs.sequences_max.max(1) as u64);
        let blocks = match (inputs.kv_memory, left) {
            (Some(given), _) if given < needed => {
                return Err(PlanError::KvMemoryTooSmall { given, needed, context_max });
            }
            (Some(given), Some(left)) if given > left => {
                let available = inputs.available.unwrap_or(left);
                return Err(PlanError::KvMemoryTooLarge { given, weights, workspace, available });
            }
            (Some(given), _) => given / block_bytes,
            (None, left) => {
                let share = left.map_or(UNKNOWN_MEMORY_KV_BYTES, |left| left / 100 * AUTOMATIC_KV_PERCENT);
                everyone.min(share / inputs.kv_sharers.max(1) as u64 / block_bytes).max(one_sequence)
            }
        };
        // Slots are 32-bit indices.
        let blocks = blocks.min(u64::from(u32::MAX) / inputs.block_size.max(1) as u64).max(1);
        let kv_bytes = blocks.saturating_mul(block_bytes);
        Ok(Self {
            inputs,
            num_blocks: usize::try_from(blocks).unwrap_or(usize::MAX),
            kv_bytes,
            workspace_bytes: workspace,
            total_bytes: weights.saturating_add(workspace).saturating_add(kv_bytes),
        })
    }

    /// Tokens that the block pool holds.
    #[must_use]
    pub fn kv_tokens(&self) -> usize {
        self.num_blocks.saturating_mul(self.inputs.block_size)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = &self.inputs;
        let size = |bytes: u64| Bytes(bytes).to_string();
        writeln!(f, "memory")?;
        write!(f, "  weights  {:>10}", size(inputs.weights.bytes))?;
        match inputs.weights.form {
            WeightForm::Packed => writeln!(f, "  packed for this processor")?,
            WeightForm::Mapped { copied: 0 } => writeln!(f, "  mapped from the file")?,
            WeightForm::Mapped { copied } => {
                writeln!(f, "  mapped from the file, {} of them copied into another order", size(copied))?
            }
        }
        writeln!(
            f,
            "  KV cache {:>10}  at most: {} blocks of {} tokens = {} tokens, {} a token",
            size(self.kv_bytes),
            self.num_blocks,
            inputs.block_size,
            self.kv_tokens(),
            size(inputs.kv_bytes_per_token)
        )?;
        writeln!(
            f,
            "  workspace{:>10}  for steps of {} tokens and {} sequences",
            size(self.workspace_bytes),
            inputs.batched_tokens_max,
            inputs.sequences_max
        )?;
        let of = inputs
            .available
            .map_or(String::from("of an unknown amount"), |bytes| format!("of {} available", size(bytes)));
        write!(f, "  total    {:>10}  {of}", size(self.total_bytes))
    }
}

/// Bytes for people, in binary units.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn mapped(bytes: u64, copied: u64) -> WeightMemory {
        WeightMemory { bytes, form: WeightForm::Mapped { copied } }
    }

    fn inputs() -> PlanInputs {
        PlanInputs {
            weights: mapped(100 * MIB, 0),
            kv_bytes_per_token: 1024,
            activation_bytes_per_token: 10 * 1024,
            logit_row_bytes: 4096,
            block_size: 16,
            context_max: 1000,
            sequences_max: 64,
            batched_tokens_max: 1024,
            logit_rows_max: 64,
            kv_memory: None,
            available: Some(4096 * MIB),
            kv_sharers: 1,
        }
    }

    #[test]
    fn models_share_the_automatic_cache_and_nothing_else() {
        let alone = MemoryPlan::new(PlanInputs { available: Some(151 * MIB), ..inputs() }).unwrap();
        let first = PlanInputs { available: Some(151 * MIB), kv_sharers: 2, ..inputs() };
        let plan = MemoryPlan::new(first).unwrap();
        assert_eq!((alone.kv_bytes / MIB, plan.kv_bytes / MIB), (19, 9));
        assert!(plan.to_string().ends_with("of 151.0 MiB available"), "{plan}");
        let asked = MemoryPlan::new(PlanInputs { kv_memory: Some(30 * MIB), ..first }).unwrap();
        assert_eq!(asked.kv_bytes, 30 * MIB);
    }

    #[test]
    fn an_easy_machine_holds_every_sequence() {
        let plan = MemoryPlan::new(inputs()).unwrap();
        assert_eq!(plan.num_blocks, 63 * 64);
        assert_eq!(plan.workspace_bytes, 10 * MIB + 2 * 128 * 4096);
        assert_eq!(plan.total_bytes, plan.kv_bytes + plan.workspace_bytes + 100 * MIB);
    }

    #[test]
    fn a_tight_machine_gives_half_of_what_is_left() {
        let plan = MemoryPlan::new(PlanInputs { available: Some(131 * MIB), ..inputs() }).unwrap();
        assert_eq!(plan.kv_bytes / MIB, 9); // half of 131 - 100 - 11, in whole blocks
        let plan = MemoryPlan::new(PlanInputs { available: Some(112 * MIB + 1000 * 1024), ..inputs() }).unwrap();
        assert_eq!(plan.num_blocks, 63, "one sequence always fits");
    }

    #[test]
    fn kv_memory_is_taken_as_given() {
        let plan = MemoryPlan::new(PlanInputs { kv_memory: Some(8 * MIB), ..inputs() }).unwrap();
        assert_eq!((plan.num_blocks, plan.kv_bytes), (512, 8 * MIB));
        let plan = MemoryPlan::new(PlanInputs { kv_memory: Some(8 * MIB), available: None, ..inputs() }).unwrap();
        assert_eq!(plan.num_blocks, 512);
    }

    #[test]
    fn an_unknown_machine_gets_a_moderate_cache() {
        let plan = MemoryPlan::new(PlanInputs { available: None, sequences_max: 100_000, ..inputs() }).unwrap();
        assert_eq!(plan.kv_bytes, 4096 * MIB);
    }

    #[test]
    fn too_little_memory_is_an_error_with_numbers() {
        let error = MemoryPlan::new(PlanInputs { available: Some(111 * MIB), ..inputs() }).unwrap_err();
        let text = error.to_string();
        for part in ["100.0 MiB", "11.0 MiB", "1008.0 KiB", "111.0 MiB", "1000 tokens", "--context"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let error = MemoryPlan::new(PlanInputs { kv_memory: Some(MIB / 2), ..inputs() }).unwrap_err();
        assert!(matches!(error, PlanError::KvMemoryTooSmall { .. }), "{error}");
        let error = MemoryPlan::new(PlanInputs { kv_memory: Some(4090 * MIB), ..inputs() }).unwrap_err();
        assert!(matches!(error, PlanError::KvMemoryTooLarge { .. }), "{error}");
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let huge = PlanInputs {
            weights: mapped(u64::MAX, 0),
            kv_bytes_per_token: u64::MAX,
            context_max: usize::MAX,
            sequences_max: usize::MAX,
            batched_tokens_max: usize::MAX,
            available: None,
            ..inputs()
        };
        let plan = MemoryPlan::new(huge).unwrap();
        assert!(plan.kv_tokens() <= u32::MAX as usize);
        assert!(MemoryPlan::new(PlanInputs { available: Some(MIB), ..huge }).is_err());
    }

    #[test]
    fn the_plan_is_readable() {
        let text = MemoryPlan::new(inputs()).unwrap().to_string();
        assert!(text.contains("weights   100.0 MiB  mapped from the file\n"), "{text}");
        let copied = MemoryPlan::new(PlanInputs { weights: mapped(100 * MIB, MIB), ..inputs() }).unwrap().to_string();
        assert!(copied.contains("from the file, 1.0 MiB of them copied into another order\n"), "{copied}");
        assert!(text.contains("4032 blocks of 16 tokens = 64512 tokens, 1.0 KiB a token"), "{text}");
        assert!(text.ends_with("of 4.0 GiB available"), "{text}");
    }
}
