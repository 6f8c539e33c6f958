//! A weight matrix, placed for its device.
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use wick_kernels::{FloatMatrix, MatrixRef, PackedMatrix, QuantType};

use super::map::release;
use super::store::to_f32;
use super::types::TypeInfo;

/// Bytes of a tensor: borrowed from a mapped file, or owned. Owned bytes and those of GGUF files begin at a multiple of 8;
/// those of safetensors usually do, but the format does not promise it.
#[derive(Clone)]
pub enum MappedBytes {
    File { map: Arc<memmap2::Mmap>, start: usize, len: usize },
    Owned(Arc<[u8]>),
}

impl MappedBytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::File { map, start, len } => &map[*start..*start + *len],
            Self::Owned(b) => b,
        }
    }

    /// Gives the memory of some of a mapped file's bytes back to the system. They stay readable, from the file.
    pub fn release(&self, bytes: Range<usize>) {
        if let Self::File { map, start, .. } = self {
            release(map, start + bytes.start..start + bytes.end);
        }
    }

    /// The same for all of them.
    pub fn release_all(&self) {
        self.release(0..self.as_slice().len());
    }
}

/// A CPU matrix: raw ggml blocks (or f32/f16/bf16 values), row-major, used in place by the kernels.
#[derive(Clone)]
pub struct MappedMatrix {
    pub ty: QuantType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: MappedBytes,
}

impl MappedMatrix {
    /// The view that kernels take.
    #[must_use]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        MatrixRef { ty: self.ty, rows: self.rows, cols: self.cols, data: self.bytes.as_slice() }
    }
}

impl MappedMatrix {
    /// A float matrix with its values rounded to 8 bits, in groups of 32 with a scale of their own; one in blocks as it is.
    ///
    /// # Errors
    /// Candle's, when the rows are no whole number of groups.
    pub fn rounded(&self) -> candle_core::Result<Self> {
        let Some(values) = to_f32(TypeInfo::of(self.ty), self.bytes.as_slice()) else { return Ok(self.clone()) };
        let values = Tensor::from_vec(values, (self.rows, self.cols), &Device::Cpu)?;
        let blocks = QTensor::quantize(&values, GgmlDType::Q8_0)?;
        let bytes = MappedBytes::Owned(blocks.data()?.into_owned().into());
        Ok(Self { ty: QuantType::Q8_0, bytes, ..*self })
    }
}

/// A weight matrix `[rows (out), cols (in)]`. Closed on purpose: the ops match on it.
#[derive(Clone)]
pub enum Matrix {
    /// CPU, any format.
    Mapped(MappedMatrix),
    /// CPU, ggml blocks packed for the instruction set.
    Packed(Arc<PackedMatrix>),
    /// CPU, f32/f16/bf16 values packed for it.
    Floats(Arc<FloatMatrix>),
    /// Accelerator, f16/bf16/f32.
    Dense(Tensor),
    /// Accelerator, ggml blocks.
    Quantized(Arc<QTensor>),
}

impl Matrix {
    /// Puts a matrix where `device` computes: on the CPU its bytes stay where they are (products pack them later); an accelerator gets a copy, as dense
    /// values in the file's own type or as ggml blocks. `Q8_K` (which candle has no accelerator products for) becomes f16.
    ///
    /// # Errors
    /// Candle's, when the copy fails (out of memory).
    pub fn place(matrix: MappedMatrix, device: &Device) -> candle_core::Result<Self> {
        if device.is_cpu() {
            return Ok(Self::Mapped(matrix));
        }
        let shape = (matrix.rows, matrix.cols);
        let data = matrix.bytes.as_slice();
        let dense = |dtype| Tensor::from_raw_buffer(data, dtype, &[matrix.rows, matrix.cols], device).map(Self::Dense);
        let ggml = TypeInfo::of(matrix.ty).candle();
        match matrix.ty {
            QuantType::F32 => dense(DType::F32),
            QuantType::F16 => dense(DType::F16),
            QuantType::BF16 => dense(DType::BF16),
            QuantType::Q8K => {
                let blocks = QTensor::new(QStorage::from_data(Cow::Borrowed(data), &Device::Cpu, ggml)?, shape)?;
                let values = blocks.dequantize(&Device::Cpu)?.to_dtype(DType::F16)?;
                Ok(Self::Dense(values.to_device(device)?))
            }
            _ => {
                let storage = QStorage::from_data(Cow::Borrowed(data), device, ggml)?;
                Ok(Self::Quantized(Arc::new(QTensor::new(storage, shape)?)))
            }
        }
    }
}
