//! The one `WeightSource`: tensors of any format under their Hugging Face names.
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use wick_kernels::{FloatMatrix, PackedMatrix, QuantType};

use super::types::TypeInfo;
use super::{LoadError, MappedBytes, MappedMatrix, Matrix, WeightForm, WeightMemory, WeightSource, names};
use crate::model::spec::NormWeight;

/// A stored tensor.
pub(crate) struct Entry {
    pub(crate) ty: TypeInfo,
    /// Slowest dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: MappedBytes,
    /// The rows of each head are stored in pairs for interleaved rope (GGUF's `llama`): the number of heads.
    pub(crate) interleaved_heads: Option<usize>,
}

/// Which conventions the file follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// Hugging Face's names; norms as trained.
    HuggingFace,
    /// ggml's names, already translated; its converter adds the one to Gemma's norms. `gemma` tells which norm names it used.
    Ggml { gemma: bool },
}

/// Named tensors, and which of them have been taken.
pub(crate) struct TensorStore {
    entries: BTreeMap<String, Entry>,
    taken: RefCell<BTreeSet<String>>,
    convention: Convention,
    /// There is a product with the embedding, or with an output matrix of its own.
    output: bool,
}

impl TensorStore {
    pub(crate) fn new(entries: BTreeMap<String, Entry>, convention: Convention) -> Self {
        Self { entries, taken: RefCell::default(), convention, output: true }
    }

    /// For a model that embeds: an output matrix is left out, and the embedding is only looked up in.
    pub(crate) fn without_output(mut self) -> Self {
        self.entries.remove("lm_head.weight");
        self.output = false;
        self
    }

    /// Finds tensor `name`, checks its shape and marks it as taken.
    fn take(&self, name: &str, shape: &[usize]) -> Result<&Entry, LoadError> {
        let entry = self.entries.get(name).ok_or_else(|| LoadError::MissingTensor { name: self.file_name(name) })?;
        if entry.shape != shape {
            return Err(LoadError::Shape {
                name: self.file_name(name),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        if !self.taken.borrow_mut().insert(name.to_owned()) {
            return Err(LoadError::TakenTwice { name: name.to_owned() });
        }
        Ok(entry)
    }

    /// What the file itself calls a tensor.
    fn file_name(&self, name: &str) -> String {
        match self.convention {
            Convention::HuggingFace => name.to_owned(),
            Convention::Ggml { gemma } => names::to_gguf(name, gemma).unwrap_or_else(|| name.to_owned()),
        }
    }

    fn values(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let entry = self.take(name, &[len])?;
        let values = to_f32(entry.ty, entry.bytes.as_slice()).ok_or_else(|| LoadError::UnknownType {
            name: self.file_name(name),
            found: format!("{} (for a vector)", entry.ty.name),
        })?;
        entry.bytes.release_all();
        match entry.interleaved_heads {
            Some(heads) => Ok(half_split_order(len, heads).map(|i| values[i]).collect()),
            None => Ok(values),
        }
    }
}

impl WeightSource for TensorStore {
    fn matrix(&self, name: &str, rows: usize, cols: usize, device: &Device) -> Result<Matrix, LoadError> {
        let entry = self.take(name, &[rows, cols])?;
        let bytes = match entry.interleaved_heads {
            Some(heads) => {
                let stored = entry.bytes.as_slice();
                let row = stored.len() / rows;
                let mut owned = Vec::with_capacity(stored.len());
                for i in half_split_order(rows, heads) {
                    owned.extend_from_slice(&stored[i * row..(i + 1) * row]);
                }
                entry.bytes.release_all();
                MappedBytes::Owned(owned.into())
            }
            None => entry.bytes.clone(),
        };
        Ok(Matrix::place(MappedMatrix { ty: entry.ty.ty, rows, cols, bytes }, device)?)
    }

    fn vector(&self, name: &str, len: usize, device: &Device) -> Result<Tensor, LoadError> {
        Ok(Tensor::from_vec(self.values(name, len)?, len, device)?)
    }

    fn norm(&self, name: &str, len: usize, kind: NormWeight, device: &Device) -> Result<Tensor, LoadError> {
        let mut values = self.values(name, len)?;
        if kind == NormWeight::OnePlus && self.convention == Convention::HuggingFace {
            for v in &mut values {
                *v += 1.0;
            }
        }
        Ok(Tensor::from_vec(values, len, device)?)
    }

    fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn memory(&self, packed: bool) -> WeightMemory {
        // An input embedding that is not the output matrix too is only looked up in, and not packed.
        let untied = !self.output || self.contains("lm_head.weight");
        let (mut bytes, mut copied) = (0, 0);
        for (name, entry) in &self.entries {
            let stored = entry.bytes.as_slice().len() as u64;
            let form = match entry.shape[..] {
                [rows, cols] if packed && !(untied && name == "model.embed_tokens.weight") => {
                    PackedMatrix::bytes_for(entry.ty.ty, rows, cols)
                        .or_else(|| FloatMatrix::bytes_for(entry.ty.ty, rows, cols))
                }
                _ => None,
            };
            let copy = if form.is_none() && entry.interleaved_heads.is_some() { stored } else { 0 };
            bytes += form.map_or(stored, |packed| packed as u64) + copy;
            copied += copy;
        }
        WeightMemory { bytes, form: if packed { WeightForm::Packed } else { WeightForm::Mapped { copied } } }
    }

    fn finish(&self) -> Result<(), LoadError> {
        let taken = self.taken.borrow();
        let names: Vec<String> =
            self.entries.keys().filter(|n| !taken.contains(*n)).map(|n| self.file_name(n)).collect();
        if names.is_empty() { Ok(()) } else { Err(LoadError::LeftOver { names }) }
    }
}

/// For each half-split row (first half of a head, then its second half), the index of the interleaved row that holds it:
/// llama.cpp's converter stores pair `i` of a head, rows `i` and `i + d/2`, as rows `2i` and `2i + 1`.
fn half_split_order(rows: usize, heads: usize) -> impl Iterator<Item = usize> {
    let dim = rows / heads;
    (0..rows).map(move |row| {
        let (head, within) = (row / dim, row % dim);
        let half = dim / 2;
        head * dim + if within < half { 2 * within } else { 2 * (within - half) + 1 }
    })
}

/// Little-endian values as f32; `None` for block formats.
pub(crate) fn to_f32(ty: TypeInfo, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match ty.ty {
        QuantType::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        QuantType::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        QuantType::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_split_order_undoes_the_converters_permutation() {
        // Two heads of four rows: the converter writes rows (0, 2, 1, 3) of each head.
        let stored = [0, 2, 1, 3, 4, 6, 5, 7];
        let restored: Vec<i32> = half_split_order(8, 2).map(|i| stored[i]).collect();
        assert_eq!(restored, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn values_of_every_dense_type() {
        let f32s = to_f32(TypeInfo::of(QuantType::F32), &1.5f32.to_le_bytes());
        let f16s = to_f32(TypeInfo::of(QuantType::F16), &f16::from_f32(-2.0).to_le_bytes());
        let bf16s = to_f32(TypeInfo::of(QuantType::BF16), &bf16::from_f32(0.5).to_le_bytes());
        assert_eq!((f32s, f16s, bf16s), (Some(vec![1.5]), Some(vec![-2.0]), Some(vec![0.5])));
        assert_eq!(to_f32(TypeInfo::of(QuantType::Q8_0), &[0; 34]), None);
    }
}
