//! An encoder's memory plan: what it will take, decided and printed before anything is loaded.
use std::fmt;

use super::config::EncoderSpec;
use super::model::EncoderFiles;
use crate::ops::ExecContext;
use crate::runner::plan::Bytes;
use crate::weights::LoadError;

/// Bytes of a packed 8-bit value with its share of a scale: 34 for 32 values.
const ROUNDED_BYTES: (u64, u64) = (34, 32);

/// What an encoder will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderPlan {
    pub weights_bytes: u64,
    /// Whether the layers' matrices are rounded to 8 bits as they are loaded.
    pub rounded: bool,
    /// Activations of the largest batch.
    pub workspace_bytes: u64,
    /// Tokens of the largest batch.
    pub batch_tokens: usize,
    pub total_bytes: u64,
    /// Bytes this machine has left; `None` if it does not say.
    pub available: Option<u64>,
}

impl EncoderPlan {
    /// For a model that runs in `cx` in batches of `batch_tokens` (or a single input that is longer).
    ///
    /// # Errors
    /// It does not fit into what is available; the error has the numbers.
    pub fn new(
        files: &EncoderFiles,
        cx: &ExecContext,
        batch_tokens: usize,
        available: Option<u64>,
    ) -> Result<Self, LoadError> {
        let spec = &files.spec;
        let rounded = cx.rounds(spec.hidden) && cx.rounds(spec.inner);
        let stored = files.weights.memory(false).bytes;
        Self::of(spec, stored, rounded, batch_tokens, available)
    }

    fn of(
        spec: &EncoderSpec,
        stored: u64,
        rounded: bool,
        batch_tokens: usize,
        available: Option<u64>,
    ) -> Result<Self, LoadError> {
        const F32: u64 = 4;
        let batch_tokens = batch_tokens.max(spec.tokens_max);
        let weights_bytes = if rounded {
            let (bytes, values) = ROUNDED_BYTES;
            // Tables stay as they are in the file, in floats of at most 4 bytes.
            let tables = ((spec.vocab + spec.positions + spec.segments) * spec.hidden) as u64 * F32;
            tables.saturating_add(spec.matrix_values() / values * bytes).min(stored)
        } else {
            stored
        };
        // Alive at the widest point of a layer: its input, q, k, v, attention's output, and the kernels' copy of the rows.
        let per_token = (6 * spec.hidden + spec.inner) as u64 * F32;
        // Attention's copies of one head, and the scores of a few rows, for each of some threads.
        let per_head = (spec.tokens_max * (4 * spec.hidden.div_ceil(spec.heads) + 4)) as u64 * F32 * 8;
        let workspace_bytes = per_token.saturating_mul(batch_tokens as u64).saturating_add(per_head);
        let total_bytes = weights_bytes.saturating_add(workspace_bytes);
        if let Some(available) = available
            && available < total_bytes
        {
            return Err(LoadError::Config(format!(
                "the encoder needs {} for its weights and {} of workspace, but only {} of memory are available: \
                 serve fewer models, or lower --kv-memory or --batched-tokens",
                Bytes(weights_bytes),
                Bytes(workspace_bytes),
                Bytes(available)
            )));
        }
        Ok(Self { weights_bytes, rounded, workspace_bytes, batch_tokens, total_bytes, available })
    }
}

impl fmt::Display for EncoderPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| Bytes(bytes).to_string();
        writeln!(f, "memory")?;
        let form = if self.rounded { "matrices rounded to 8 bits and packed" } else { "as in the file" };
        writeln!(f, "  weights  {:>10}  {form}", size(self.weights_bytes))?;
        writeln!(f, "  workspace{:>10}  for batches of {} tokens", size(self.workspace_bytes), self.batch_tokens)?;
        let of =
            self.available.map_or("of an unknown amount".to_owned(), |bytes| format!("of {} available", size(bytes)));
        write!(f, "  total    {:>10}  {of}", size(self.total_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{EmbeddingSpec, HeadSpec, Pooling};
    use crate::ops::Pointwise;

    fn minilm() -> EncoderSpec {
        EncoderSpec {
            hidden: 384,
            inner: 1536,
            layers: 6,
            heads: 12,
            vocab: 30522,
            positions: 512,
            first_position: 0,
            segments: 2,
            eps: 1e-12,
            act: Pointwise::Gelu,
            prefix: "bert.",
            tokens_max: 256,
            head: HeadSpec::Embedding(EmbeddingSpec { pooling: Pooling::Mean, normalize: true }),
        }
    }

    #[test]
    fn the_plan_is_readable_and_rounding_takes_a_quarter_of_the_matrices() {
        let stored = 90_000_000;
        let exact = EncoderPlan::of(&minilm(), stored, false, 512, Some(1 << 30)).unwrap();
        let rounded = EncoderPlan::of(&minilm(), stored, true, 512, Some(1 << 30)).unwrap();
        assert_eq!(exact.weights_bytes, stored);
        assert!((57_000_000..60_000_000).contains(&rounded.weights_bytes), "{}", rounded.weights_bytes);
        let text = rounded.to_string();
        assert!(text.contains("for batches of 512 tokens\n") && text.ends_with("of 1.0 GiB available"), "{text}");
    }

    #[test]
    fn too_little_memory_is_an_error_with_numbers() {
        let error = EncoderPlan::of(&minilm(), 90 << 20, false, 64, Some(50 << 20)).unwrap_err().to_string();
        assert!(error.contains("90.0 MiB") && error.contains("50.0 MiB"), "{error}");
    }
}
