//! The paged keys and values of all layers, and writing to them.
use std::fmt;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;
use wick_kernels::{KV_GROUP, KV_PIECE, KV_QUAD, KvLayout, KvSlice, KvSliceMut, Pages, Plain, Untouched};

use super::batch::Indices;
use super::context::ExecContext;
use super::slices::f32_slice;

/// Type of the cached values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// Two bytes a value; keys and values are rounded to nearest even when written.
    #[default]
    F16,
    /// Two bytes a value with the range of f32; not with the CPU kernels, whose integers are as small and more exact.
    Bf16,
    F32,
    /// Integers with a scale for each head, two bytes a value, for CPUs that multiply pairs of them: attention then rounds queries and softmax
    /// weights to such integers, too. Only with the CPU kernels.
    I16,
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
            Self::I16 => 2 * head_dim + size_of::<f32>(),
            Self::I8 => head_dim + head_dim.div_ceil(KV_GROUP) * size_of::<f32>(),
        }
    }

    /// What the dimensions of a head and the tokens of a block must be a multiple of with the CPU kernels.
    #[must_use]
    pub fn multiple(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 | Self::F32 => 1,
            Self::I16 => KV_PIECE,
            Self::I8 => KV_QUAD,
        }
    }

    /// Whether the CPU kernels can keep heads and blocks of this size so.
    #[must_use]
    pub fn holds(self, head_dim: usize, block_size: usize) -> bool {
        head_dim.is_multiple_of(self.multiple()) && block_size.is_multiple_of(self.multiple())
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::I16 => "int16",
            Self::I8 => "int8",
        })
    }
}

/// Sizes of K and of V. The CPU kernels keep V as `[num_blocks, layers, kv_heads, block_size, head_dim]` and K with the last two
/// swapped; `reference()` keeps both layer by layer, in V's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    pub num_blocks: usize,
    pub layers: usize,
    pub kv_heads: usize,
    pub block_size: usize,
    pub head_dim: usize,
}

impl KvShape {
    fn elements(self) -> usize {
        self.heads() * self.head_dim
    }

    /// Keys of single heads that fit, over all layers.
    fn heads(self) -> usize {
        self.num_blocks * self.layers * self.kv_heads * self.block_size
    }
}

/// K and V of all layers.
pub struct PagedKv {
    shape: KvShape,
    dtype: KvDtype,
    k: KvStore,
    v: KvStore,
}

/// K and V of one layer.
pub struct LayerKv<'a> {
    kv: &'a mut PagedKv,
    layer: usize,
}

enum KvStore {
    HostF16(Pages<f16>),
    HostF32(Pages<f32>),
    HostI16 {
        pairs: Pages<u32>,
        scales: Pages<f32>,
    },
    HostI8 {
        quads: Pages<u32>,
        scales: Pages<f32>,
    },
    /// What `reference()` works on, for each layer `[num_blocks, kv_heads, block_size, head_dim]`.
    Tensors(Vec<Tensor>),
}

impl PagedKv {
    /// Zero-filled storage in the form that the context's arm works on. On the CPU kernels the memory comes from the system untouched, so
    /// blocks cost nothing until the large page they lie in is first written to.
    ///
    /// # Errors
    /// The device has no room, or cannot keep heads or blocks of this size so.
    pub fn new(cx: &ExecContext, shape: KvShape, dtype: KvDtype) -> Result<Self> {
        if cx.kernels().is_some() && !dtype.holds(shape.head_dim, shape.block_size) {
            bail!("a {dtype} KV cache cannot hold heads of {} in blocks of {}", shape.head_dim, shape.block_size)
        }
        let store = || -> Result<KvStore> {
            Ok(match (cx.kernels(), dtype) {
                (Some(_), KvDtype::F32) => KvStore::HostF32(Pages::zeroed(shape.elements())),
                (Some(_), KvDtype::F16) => KvStore::HostF16(Pages::zeroed(shape.elements())),
                (Some(_), KvDtype::Bf16) => bail!("a bf16 KV cache exists on other devices than the CPU: choose int16"),
                (Some(_), KvDtype::I16) => KvStore::HostI16 {
                    pairs: Pages::zeroed(shape.elements() / 2),
                    scales: Pages::zeroed_small_first(shape.heads()),
                },
                (Some(_), KvDtype::I8) => KvStore::HostI8 {
                    quads: Pages::zeroed(shape.elements() / 4),
                    scales: Pages::zeroed_small_first(shape.heads() * shape.head_dim.div_ceil(KV_GROUP)),
                },
                (None, KvDtype::F16) => KvStore::Tensors(zeros(cx.device(), shape, DType::F16)?),
                (None, KvDtype::Bf16) => KvStore::Tensors(zeros(cx.device(), shape, DType::BF16)?),
                (None, KvDtype::F32) => KvStore::Tensors(zeros(cx.device(), shape, DType::F32)?),
                (None, KvDtype::I16 | KvDtype::I8) => bail!("an {dtype} KV cache exists on the CPU only: choose f16"),
            })
        };
        Ok(Self { shape, dtype, k: store()?, v: store()? })
    }

    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Takes memory for blocks that will be written to soon, at most a large page of K and one of V each time: a step that reached several
    /// new ones at once would wait for all of them. `used` blocks from the first on, or fewer, are all that were written to; `soon` are
    /// expected.
    pub fn touch_next(&mut self, cx: &ExecContext, used: usize, soon: usize) {
        let blocks = self.shape.num_blocks.max(1);
        let pages = [&mut self.k, &mut self.v].map(|store| store.untouched(used, soon, blocks));
        if pages.iter().any(Option::is_some) {
            let pages = pages.map(Mutex::new);
            cx.spread(pages.len(), &|i| {
                let page = pages[i].lock().unwrap_or_else(PoisonError::into_inner).take();
                page.into_iter().for_each(Untouched::touch);
            });
        }
    }

    /// One of its layers.
    pub fn layer(&mut self, layer: usize) -> LayerKv<'_> {
        LayerKv { kv: self, layer }
    }
}

impl LayerKv<'_> {
    pub(super) fn shape(&self) -> KvShape {
        self.kv.shape
    }

    /// Whether dimensions of a key share a scale and so few bits that a large one takes those of the others.
    #[must_use]
    pub fn rounds_together(&self) -> bool {
        self.kv.dtype == KvDtype::I8
    }

    /// Where the layer is in the kernels' slices.
    pub(super) fn layout(&self) -> KvLayout {
        let KvShape { layers, kv_heads, block_size, head_dim, .. } = self.kv.shape;
        KvLayout { layers, layer: self.layer, kv_heads, head_dim, block_size }
    }

    /// K and V for the kernels.
    pub(super) fn slices(&self) -> Result<(KvSlice<'_>, KvSlice<'_>)> {
        Ok((self.kv.k.slice()?, self.kv.v.slice()?))
    }

    /// K and V for `reference()`.
    pub(super) fn tensors(&self) -> Result<(&Tensor, &Tensor)> {
        match (&self.kv.k, &self.kv.v) {
            (KvStore::Tensors(k), KvStore::Tensors(v)) => Ok((&k[self.layer], &v[self.layer])),
            _ => bail!("a KV cache of the CPU kernels reached candle's operations"),
        }
    }
}

fn zeros(device: &Device, shape: KvShape, dtype: DType) -> Result<Vec<Tensor>> {
    let layer = (shape.num_blocks, shape.kv_heads, shape.block_size, shape.head_dim);
    (0..shape.layers).map(|_| Tensor::zeros(layer, dtype, device)).collect()
}

impl KvStore {
    fn slice(&self) -> Result<KvSlice<'_>> {
        match self {
            Self::HostF16(values) => Ok(KvSlice::F16(values)),
            Self::HostF32(values) => Ok(KvSlice::F32(values)),
            Self::HostI16 { pairs, scales } => Ok(KvSlice::I16 { pairs, scales }),
            Self::HostI8 { quads, scales } => Ok(KvSlice::I8 { quads, scales }),
            Self::Tensors(_) => bail!("a KV cache made of tensors reached the CPU kernels"),
        }
    }

    /// The next page of the first `soon` of `blocks` blocks that nobody has touched; see [`PagedKv::touch_next`]. Scales are few.
    fn untouched(&mut self, used: usize, soon: usize, blocks: usize) -> Option<Untouched<'_>> {
        fn of<T: Plain>(pages: &mut Pages<T>, [used, soon, blocks]: [usize; 3]) -> Option<Untouched<'_>> {
            let block = pages.len() / blocks;
            pages.untouched(used * block, soon * block)
        }
        let range = [used, soon, blocks];
        match self {
            Self::HostF16(values) => of(values, range),
            Self::HostF32(values) => of(values, range),
            Self::HostI16 { pairs: values, .. } | Self::HostI8 { quads: values, .. } => of(values, range),
            Self::Tensors(_) => None,
        }
    }

    fn slice_mut(&mut self) -> Result<KvSliceMut<'_>> {
        match self {
            Self::HostF16(values) => Ok(KvSliceMut::F16(values)),
            Self::HostF32(values) => Ok(KvSliceMut::F32(values)),
            Self::HostI16 { pairs, scales } => Ok(KvSliceMut::I16 { pairs, scales }),
            Self::HostI8 { quads, scales } => Ok(KvSliceMut::I8 { quads, scales }),
            Self::Tensors(_) => bail!("a KV cache made of tensors reached the CPU kernels"),
        }
    }
}

/// Writes the step's keys and values, both `[tokens, kv_heads · head_dim]`, to `slots` (`block · block_size + offset`).
///
/// Both are taken by value, for their memory, and must not be shared. A layer writes the whole batch before it attends: sequences of one step may share blocks that one of them is filling.
///
/// # Errors
/// A shape does not fit, or candle failed.
pub fn write_kv(cx: &ExecContext, k: Tensor, v: Tensor, slots: &Indices, kv: &mut LayerKv<'_>) -> Result<()> {
    let shape = kv.shape();
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
        kv.layout(),
        kv.kv.k.slice_mut()?,
        kv.kv.v.slice_mut()?,
    );
    kernels.recycle(k);
    kernels.recycle(v);
    Ok(())
}

/// Index of every value of `[tokens · kv_heads, head_dim]` among the layer's rows, `[num_blocks · kv_heads · block_size, head_dim]`.
fn cache_rows(slots: &[u32], shape: KvShape, device: &Device) -> Result<Tensor> {
    let KvShape { kv_heads: heads, block_size: size, head_dim, .. } = shape;
    let mut rows = Vec::with_capacity(slots.len() * heads);
    for &slot in slots {
        let (block, offset) = (slot as usize / size, slot as usize % size);
        for head in 0..heads {
            let row = (block * heads + head) * size + offset;
            rows.push(u32::try_from(row)?);
        }
    }
    let count = rows.len();
    Tensor::from_vec(rows, (count, 1), device)?.broadcast_as((count, head_dim))?.contiguous()
}

fn write_reference(x: &Tensor, rows: &Tensor, cache: &Tensor, shape: KvShape) -> Result<()> {
    let all = cache.reshape((shape.num_blocks * shape.kv_heads * shape.block_size, shape.head_dim))?;
    let x = x.reshape(rows.shape())?.to_dtype(cache.dtype())?.contiguous()?;
    all.scatter_set(rows, &x, 0)
}
