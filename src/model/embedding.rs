//! From the rows that a model gives for a text's tokens to one vector, and what the files of `sentence-transformers` say of it
//! (`modules.json`, a pooling module's `config.json`, `sentence_bert_config.json`). Of encoders and of decoders alike.
use std::fmt;
use std::path::{Component, Path};

use serde_json::{Map, Value};

use crate::weights::{LoadError, read_json};

/// Largest JSON file that is read, in bytes.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// What `sentence-transformers` lists the parts of a model in.
const MODULES: &str = "modules.json";

/// What becomes of the rows, normalised: below this, nobody reads JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct EmbeddingSpec {
    pub pooling: Pooling,
    /// Vectors are scaled to length 1.
    pub normalize: bool,
}

/// How rows become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token's row.
    Cls,
    /// The mean of all rows.
    Mean,
    /// The largest value of each column.
    Max,
    /// The last token's row.
    Last,
}

impl Pooling {
    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Last => "last",
        }
    }
}

impl fmt::Display for EmbeddingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pooling = match self.pooling {
            Pooling::Cls => "the first token's row",
            Pooling::Mean => "the rows' mean",
            Pooling::Max => "the rows' maximum",
            Pooling::Last => "the last token's row",
        };
        write!(f, "vectors are {pooling}{}", if self.normalize { ", scaled to length 1" } else { "" })
    }
}

/// One text's rows on their way to its vector. They come in the order of their positions, in pieces of any size: what comes out is the
/// same to the bit.
#[derive(Debug, Clone)]
pub struct Pooler {
    pooling: Pooling,
    rows: usize,
    vector: Vec<f32>,
}

impl Pooler {
    #[must_use]
    pub fn new(pooling: Pooling) -> Self {
        Self { pooling, rows: 0, vector: Vec::new() }
    }

    /// Takes the next row.
    pub fn add(&mut self, row: &[f32]) {
        self.rows += 1;
        if self.rows == 1 {
            self.vector = row.to_vec();
            return;
        }
        let pairs = self.vector.iter_mut().zip(row);
        match self.pooling {
            Pooling::Cls => {}
            Pooling::Last => self.vector.copy_from_slice(row),
            Pooling::Mean => pairs.for_each(|(sum, v)| *sum += v),
            Pooling::Max => pairs.for_each(|(highest, v)| *highest = highest.max(*v)),
        }
    }

    /// The vector; empty if there was no row.
    #[must_use]
    pub fn finish(mut self) -> Vec<f32> {
        if self.pooling == Pooling::Mean {
            let count = self.rows as f32;
            self.vector.iter_mut().for_each(|v| *v /= count);
        }
        self.vector
    }
}

/// Scales a vector to length 1; zeros stay zeros.
pub fn normalize_vector(vector: &mut [f32]) {
    let length = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
}

/// Whether `sentence-transformers` has made the folder.
#[must_use]
pub fn has_modules(folder: &Path) -> bool {
    folder.join(MODULES).is_file()
}

/// The pooling and normalisation that `modules.json` lists, of rows of `hidden` values; without that file `None`.
///
/// # Errors
/// A file is damaged, or lists what wick does not run.
pub fn read_modules(folder: &Path, hidden: usize) -> Result<Option<EmbeddingSpec>, LoadError> {
    let path = folder.join(MODULES);
    if !path.is_file() {
        return Ok(None);
    }
    let json = read_json(&path, JSON_BYTES_MAX)?;
    let modules = json.as_array().ok_or_else(|| LoadError::malformed(&path, "not a list of modules"))?;
    let (mut pooled, mut normalize) = (None, false);
    for module in modules {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        match (kind.rsplit('.').next().unwrap_or_default(), &pooled) {
            ("Transformer", None) => {}
            ("Pooling", None) => {
                let place = module.get("path").and_then(Value::as_str).unwrap_or("1_Pooling");
                let plain = Path::new(place).components().all(|c| matches!(c, Component::Normal(_)));
                if !plain {
                    return Err(LoadError::malformed(&path, format!("`{place}` is not below the model's folder")));
                }
                pooled = Some(pooling(&folder.join(place).join("config.json"), hidden)?);
            }
            ("Normalize", Some(_)) => normalize = true,
            ("Dropout", _) => {}
            _ => {
                let reason =
                    format!("wick does not run the module `{kind}` there: it knows Transformer, Pooling, Normalize");
                return Err(LoadError::malformed(&path, reason));
            }
        }
    }
    let pooling = pooled.ok_or_else(|| LoadError::malformed(&path, "there is no Pooling module"))?;
    Ok(Some(EmbeddingSpec { pooling, normalize }))
}

fn pooling(path: &Path, hidden: usize) -> Result<Pooling, LoadError> {
    let config = object(path)?;
    let width = config.get("word_embedding_dimension").or_else(|| config.get("embedding_dimension"));
    if let Some(width) = width.and_then(Value::as_u64)
        && width != hidden as u64
    {
        return Err(LoadError::malformed(path, format!("pools rows of {width} values, but the model's have {hidden}")));
    }
    let mut modes: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let flags = config.iter().filter(|(_, on)| **on == Value::Bool(true));
    modes.extend(flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")));
    match modes.as_slice() {
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["max" | "max_tokens"] => Ok(Pooling::Max),
        ["lasttoken"] => Ok(Pooling::Last),
        other => {
            let reason =
                format!("wick cannot pool by [{}]: it knows one of cls, mean, max, lasttoken", other.join(", "));
            Err(LoadError::malformed(path, reason))
        }
    }
}

/// The longest input: what the model has positions for, or less where a file says that it was made for less.
///
/// # Errors
/// A file is damaged.
pub fn tokens_max(folder: &Path, positions: usize) -> Result<usize, LoadError> {
    let mut most = positions;
    for (file, key) in [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
    {
        let path = folder.join(file);
        if !path.is_file() {
            continue;
        }
        // Tokenizers without a limit say 1e30.
        let limit = object(&path)?.get(key).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            most = most.min(limit);
        }
    }
    Ok(most)
}

fn object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    match read_json(path, JSON_BYTES_MAX)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(LoadError::malformed(path, "not a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(pooling: Pooling, rows: &[&[f32]]) -> Vec<f32> {
        let mut pooler = Pooler::new(pooling);
        rows.iter().for_each(|row| pooler.add(row));
        pooler.finish()
    }

    #[test]
    fn rows_are_pooled() {
        let rows: [&[f32]; 3] = [&[1.0, -2.0], &[3.0, 4.0], &[5.0, 1.0]];
        assert_eq!(pool(Pooling::Cls, &rows), [1.0, -2.0]);
        assert_eq!(pool(Pooling::Last, &rows), [5.0, 1.0]);
        assert_eq!(pool(Pooling::Mean, &rows), [3.0, 1.0]);
        assert_eq!(pool(Pooling::Max, &rows), [5.0, 4.0]);
        assert_eq!(pool(Pooling::Mean, &[]), [0.0; 0]);
    }

    #[test]
    fn vectors_are_scaled_to_length_one() {
        let mut vector = [3.0, -4.0];
        normalize_vector(&mut vector);
        assert_eq!(vector, [0.6, -0.8]);
        let mut zeros = [0.0; 3];
        normalize_vector(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    proptest! {
        /// As if all rows were there at once.
        #[test]
        fn a_mean_is_the_sum_in_order_by_the_count(rows in prop::collection::vec(-1e3_f32..1e3, 1..40)) {
            let one: Vec<&[f32]> = rows.iter().map(std::slice::from_ref).collect();
            let sum = rows.iter().skip(1).fold(rows[0], |sum, v| sum + v);
            prop_assert_eq!(pool(Pooling::Mean, &one), vec![sum / rows.len() as f32]);
            let highest = rows.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(pool(Pooling::Max, &one), vec![highest]);
        }
    }
}
