//! An encoder with its head: tokens in, one vector or one number out.
use std::path::Path;

use candle_core::{Result, Tensor};

use super::bert::{Bert, EncoderBatch, Loader, ScoreLayers};
use super::config::{EncoderSpec, HeadSpec, ScoreHead};
use super::{EncodeError, EncoderInput, EncoderRunner};
use crate::model::embedding::{EmbeddingSpec, Pooler, normalize_vector};
use crate::ops::{self, ExecContext, Indices};
use crate::weights::{LoadError, WeightSource, open_tensors};

/// An encoder's files: its specification and its weights, mapped and not read.
pub struct EncoderFiles {
    pub spec: EncoderSpec,
    pub weights: Box<dyn WeightSource>,
}

/// Opens a folder of `config.json` and safetensors.
///
/// # Errors
/// As [`EncoderSpec::read`], and whatever is wrong with the weights' files.
pub fn open(folder: &Path) -> std::result::Result<EncoderFiles, LoadError> {
    let spec = EncoderSpec::read(folder)?;
    // Heads of the training, an embedding model's pooler, and the positions that old versions saved as a tensor.
    let is_unused = |name: &str| {
        let head = ["pooler.", "cls.", "lm_head."].iter().any(|part| name.contains(part));
        name.ends_with("embeddings.position_ids") || (head && !spec.is_reranker())
    };
    let weights = open_tensors(folder, is_unused)?;
    Ok(EncoderFiles { spec, weights })
}

enum Head {
    Embedding(EmbeddingSpec),
    Score { layers: ScoreLayers, sigmoid: bool },
}

/// A loaded encoder and the context it runs in. One thread owns it.
pub struct EncoderModel {
    cx: ExecContext,
    spec: EncoderSpec,
    bert: Bert,
    head: Head,
}

impl EncoderModel {
    /// Takes the weights of `files` to run in `cx`, and runs one token through them.
    ///
    /// # Errors
    /// A tensor is missing, left over or has another shape, or there is no room on the device.
    pub fn load(files: &EncoderFiles, cx: ExecContext) -> std::result::Result<Self, LoadError> {
        let EncoderFiles { spec, weights } = files;
        let source = weights.as_ref();
        let bare = source.contains("embeddings.word_embeddings.weight");
        let prefix = if bare { "" } else { spec.prefix };
        let loader = Loader { source, cx: &cx };
        let bert = Bert::load(spec, prefix, &loader)?;
        let head = match spec.head {
            HeadSpec::Embedding(embedding) => Head::Embedding(embedding),
            HeadSpec::Score { head, sigmoid } => {
                let (dense, out) = match head {
                    ScoreHead::Pooler => (format!("{prefix}pooler.dense"), "classifier"),
                    ScoreHead::Classifier => ("classifier.dense".to_owned(), "classifier.out_proj"),
                };
                Head::Score { layers: ScoreLayers::load(&dense, out, spec.hidden, &loader)?, sigmoid }
            }
        };
        source.finish()?;
        let mut model = Self { spec: spec.clone(), bert, head, cx };
        model.run(&[EncoderInput::text(vec![0])]).map_err(|EncodeError::Forward(error)| LoadError::Candle(error))?;
        Ok(model)
    }

    #[must_use]
    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    /// One line for the log: which arithmetic runs, on how many threads.
    #[must_use]
    pub fn describe(&self) -> String {
        self.cx.describe()
    }

    fn batch(&self, inputs: &[EncoderInput]) -> EncoderBatch {
        let mut batch = EncoderBatch::default();
        for input in inputs {
            let n = input.ids.len();
            batch.ids.extend_from_slice(&input.ids);
            let first = self.spec.first_position;
            // Beyond `u32` a position is beyond the table, too.
            batch.positions.extend((first..first + n).map(|p| u32::try_from(p).unwrap_or(u32::MAX)));
            let segments = self.spec.segments;
            batch.segments.extend((0..n).map(|at| u32::from(segments > 1 && at >= input.second)));
            batch.lengths.push(n);
        }
        batch
    }

    /// The first token's row of each sequence.
    fn first_rows(&self, rows: Tensor, batch: &EncoderBatch) -> Result<Tensor> {
        let starts = batch.lengths.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + *n as u32)));
        ops::gather_rows(&self.cx, rows, &Indices::new(starts.collect()))
    }

    fn forward(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        let batch = self.batch(inputs);
        let rows = self.bert.forward(&self.cx, &batch)?;
        match &self.head {
            Head::Embedding(embedding) => {
                let values = rows.flatten_all()?.to_vec1::<f32>()?;
                self.cx.recycle(rows);
                let mut rest = values.as_slice();
                let pooled = batch.lengths.iter().map(|n| {
                    let (rows, after) = rest.split_at(n * self.spec.hidden);
                    rest = after;
                    let mut pooler = Pooler::new(embedding.pooling);
                    rows.chunks_exact(self.spec.hidden).for_each(|row| pooler.add(row));
                    let mut vector = pooler.finish();
                    if embedding.normalize {
                        normalize_vector(&mut vector);
                    }
                    vector
                });
                Ok(pooled.collect())
            }
            Head::Score { layers, sigmoid } => {
                let scores = layers.forward(&self.cx, &self.first_rows(rows, &batch)?)?;
                let score = |score: f32| vec![if *sigmoid { 1.0 / (1.0 + (-score).exp()) } else { score }];
                Ok(scores.into_iter().map(score).collect())
            }
        }
    }
}

impl EncoderRunner for EncoderModel {
    fn run(&mut self, inputs: &[EncoderInput]) -> std::result::Result<Vec<Vec<f32>>, EncodeError> {
        Ok(self.forward(inputs)?)
    }
}
