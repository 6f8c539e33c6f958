//! The paged keys and values of one layer, and writing to them.
use std::fmt;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;
use half::vec::HalfBitsVecExt;
use wick_kernels::{KV_GROUP, KV_PIECE, KvSlice, KvSliceMut};

use super::batch::Indices;
use super::context::ExecContext;
use super::slices::f32_slice;

/// Type of the cached values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// Two bytes a value; keys and values are rounded to nearest even when written.
    #[default]
    F16,
    /// Two bytes a value, for CPUs that multiply pairs of them: attention then rounds queries and softmax weights to bfloat16 too.
    Bf16,
    F32,
    /// Bytes with a scale for each 32 dimensions of a head; only with the CPU kernels.
    I8,
}

impl KvDtype {
    /// Bytes of one head's key, or of its value.
    #[must_use]
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2 * head_dim,
            Self::F32 => 4 * head_dim,
            Self::I8 => head_dim + head_dim.div_ceil(KV_GROUP) * size_of::<f32>(),
        }
    }

    /// Whether the CPU kernels can keep heads and blocks of this size so.
    #[must_use]
    pub fn holds(self, head_dim: usize, block_size: usize) -> bool {
        self != Self::Bf16 || head_dim.is_multiple_of(KV_PIECE) && block_size.is_multiple_of(KV_PIECE)
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::I8 => "int8",
        })
    }
}

/// Sizes of one layer's K and of its V. The CPU kernels keep V as `[num_blocks, kv_heads, block_size, head_dim]` and K with the last two
/// swapped; `reference()` keeps both in V's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKvShape {
    pub num_blocks: usize,
    pub kv_heads: usize,
    pub block_size: usize,
    pub head_dim: usize,
}

impl LayerKvShape {
    fn elements(self) -> usize {
        self.heads() * self.head_dim
    }

    /// Keys of single heads that fit.
    fn heads(self) -> usize {
        self.num_blocks * self.kv_heads * self.block_size
    }
}

/// K and V of one layer.
pub struct LayerKv {
    shape: LayerKvShape,
    k: KvStore,
    v: KvStore,
}

enum KvStore {
    HostF16(Vec<f16>),
    HostF32(Vec<f32>),
    HostBf16(Vec<u32>),
    HostI8 {
        values: Vec<i8>,
        scales: Vec<f32>,
    },
    /// What `reference()` works on, `[num_blocks, kv_heads, block_size, head_dim]`.
    Tensor(Tensor),
}

impl LayerKv {
    /// Zero-filled storage in the form that the context's arm works on. On the CPU kernels the memory comes from the system untouched, so
    /// a block costs nothing until it is first written.
    ///
    /// # Errors
    /// The device has no room, or cannot keep heads or blocks of this size so.
    pub fn new(cx: &ExecContext, shape: LayerKvShape, dtype: KvDtype) -> Result<Self> {
        if cx.kernels().is_some() && !dtype.holds(shape.head_dim, shape.block_size) {
            bail!("a {dtype} KV cache cannot hold heads of {} in blocks of {}", shape.head_dim, shape.block_size)
        }
        let store = || -> Result<KvStore> {
            Ok(match (cx.kernels(), dtype) {
                (Some(_), KvDtype::F32) => KvStore::HostF32(vec![0.0; shape.elements()]),
                // `vec![0u16; n]` asks the system for zeroed pages; `vec![f16::ZERO; n]` would write every one of them.
                (Some(_), KvDtype::F16) => KvStore::HostF16(vec![0_u16; shape.elements()].reinterpret_into()),
                (Some(_), KvDtype::Bf16) => KvStore::HostBf16(vec![0; shape.elements() / 2]),
                (Some(_), KvDtype::I8) => KvStore::HostI8 {
                    values: vec![0; shape.elements()],
                    scales: vec![0.0; shape.heads() * shape.head_dim.div_ceil(KV_GROUP)],
                },
                (None, KvDtype::F16) => KvStore::Tensor(zeros(cx.device(), shape, DType::F16)?),
                (None, KvDtype::Bf16) => KvStore::Tensor(zeros(cx.device(), shape, DType::BF16)?),
                (None, KvDtype::F32) => KvStore::Tensor(zeros(cx.device(), shape, DType::F32)?),
                (None, KvDtype::I8) => bail!("an 8-bit KV cache exists on the CPU only: choose f16"),
            })
        };
        Ok(Self { shape, k: store()?, v: store()? })
    }

    #[must_use]
    pub fn shape(&self) -> LayerKvShape {
        self.shape
    }

    /// K and V for the kernels.
    pub(super) fn slices(&self) -> Result<(KvSlice<'_>, KvSlice<'_>)> {
        Ok((self.k.slice()?, self.v.slice()?))
    }

    /// K and V for `reference()`.
    pub(super) fn tensors(&self) -> Result<(&Tensor, &Tensor)> {
        match (&self.k, &self.v) {
            (KvStore::Tensor(k), KvStore::Tensor(v)) => Ok((k, v)),
            _ => bail!("a KV cache of the CPU kernels reached candle's operations"),
        }
    }
}

fn zeros(device: &Device, shape: LayerKvShape, dtype: DType) -> Result<Tensor> {
    Tensor::zeros((shape.num_blocks, shape.kv_heads, shape.block_size, shape.head_dim), dtype, device)
}

impl KvStore {
    fn slice(&self) -> Result<KvSlice<'_>> {
        match self {
            Self::HostF16(values) => Ok(KvSlice::F16(values)),
            Self::HostF32(values) => Ok(KvSlice::F32(values)),
            Self::HostBf16(pairs) => Ok(KvSlice::Bf16(pairs)),
            Self::HostI8 { values, scales } => Ok(KvSlice::I8 { values, scales }),
            Self::Tensor(_) => bail!("a KV cache made of tensors reached the CPU kernels"),
        }
    }

    fn slice_mut(&mut self) -> Result<KvSliceMut<'_>> {
        match self {
            Self::HostF16(values) => Ok(KvSliceMut::F16(values)),
            Self::HostF32(values) => Ok(KvSliceMut::F32(values)),
            Self::HostBf16(pairs) => Ok(KvSliceMut::Bf16(pairs)),
            Self::HostI8 { values, scales } => Ok(KvSliceMut::I8 { values, scales }),
            Self::Tensor(_) => bail!("a KV cache made of tensors reached the CPU kernels"),
        }
    }
}

/// Writes the step's keys and values, both `[tokens, kv_heads · head_dim]`, to `slots` (`block · block_size + offset`).
///
/// Both are taken by value, for their memory, and must not be shared. A layer writes the whole batch before it attends: sequences of one step may share blocks that one of them is filling.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn write_kv(cx: &ExecContext, k: Tensor, v: Tensor, slots: &Indices, kv: &mut LayerKv) -> Result<()> {
    let shape = kv.shape;
    let Some(kernels) = cx.kernels() else {
        let rows = cache_rows(slots.as_slice(), shape, k.device())?;
        let (k_cache, v_cache) = kv.tensors()?;
        write_reference(&k, &rows, k_cache, shape)?;
        return write_reference(&v, &rows, v_cache, shape);
    };
    let capacity = shape.num_blocks * shape.block_size;
    if let Some(slot) = slots.as_slice().iter().find(|&&slot| slot as usize >= capacity) {
        bail!("slot {slot} is outside a cache of {capacity} tokens")
    }
    wick_kernels::write_kv(
        &kernels.cpu,
        &f32_slice(&k)?,
        &f32_slice(&v)?,
        slots.as_slice(),
        shape.kv_heads,
        shape.head_dim,
        shape.block_size,
        kv.k.slice_mut()?,
        kv.v.slice_mut()?,
    );
    kernels.recycle(k);
    kernels.recycle(v);
    Ok(())
}

/// Index of every value of `[tokens · kv_heads, head_dim]` among the cache's rows `[num_blocks · kv_heads · block_size, head_dim]`.
fn cache_rows(slots: &[u32], shape: LayerKvShape, device: &Device) -> Result<Tensor> {
    let (heads, size) = (shape.kv_heads, shape.block_size);
    let mut rows = Vec::with_capacity(slots.len() * heads);
    for &slot in slots {
        let (block, offset) = (slot as usize / size, slot as usize % size);
        for head in 0..heads {
            let row = (block * heads + head) * size + offset;
            rows.push(u32::try_from(row)?);
        }
    }
    let count = rows.len();
    Tensor::from_vec(rows, (count, 1), device)?.broadcast_as((count, shape.head_dim))?.contiguous()
}

fn write_reference(x: &Tensor, rows: &Tensor, cache: &Tensor, shape: LayerKvShape) -> Result<()> {
    let all = cache.reshape((shape.num_blocks * shape.kv_heads * shape.block_size, shape.head_dim))?;
    let x = x.reshape(rows.shape())?.to_dtype(cache.dtype())?.contiguous()?;
    all.scatter_set(rows, &x, 0)
}
