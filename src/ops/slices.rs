//! Slices in and out of candle's CPU tensors.
use std::cell::RefCell;
use std::ops::Deref;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Read access to a contiguous f32 CPU tensor; holds the storage's lock.
///
/// # Errors
/// The tensor is not on the CPU, not f32 or not contiguous.
pub(super) fn f32_slice(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the CPU kernels want contiguous tensors, got {layout:?}")
    };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("the CPU kernels want f32 CPU tensors, got {:?} on {:?}", tensor.dtype(), tensor.device())
    }
    Ok(F32Slice { storage, start, end })
}

/// A locked storage, known to be f32 on the CPU, and the tensor's part of it.
struct F32Slice<S> {
    storage: S,
    start: usize,
    end: usize,
}

impl<S: Deref<Target = Storage>> Deref for F32Slice<S> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => unreachable!("f32_slice has checked it"),
        }
    }
}

/// Calls `f` on the values of a contiguous f32 CPU tensor, in place. Whoever else holds a clone of `tensor` sees the change: only for
/// tensors that the caller owns alone.
pub(super) fn with_f32_mut<T>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> T) -> Result<T> {
    let out = RefCell::new(None);
    let f = |values: &mut [f32]| *out.borrow_mut() = Some(f(values));
    tensor.inplace_op1(&InPlace(RefCell::new(Some(f))))?;
    Ok(out.into_inner().expect("candle calls an op once, anything else is a bug"))
}

/// Adapter from a closure to candle's door for in-place writes.
struct InPlace<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "wick-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("the CPU kernels want contiguous f32 tensors, got {layout:?}")
        };
        let f = self.0.borrow_mut().take().expect("candle calls an op once, anything else is a bug");
        f(&mut values[start..end]);
        Ok(())
    }
}

/// Takes the values out of an f32 CPU tensor that the caller owns alone; `None` for others. The tensor must not be used afterwards.
pub(super) fn take_values(tensor: Tensor) -> Option<Vec<f32>> {
    let taken = RefCell::new(None);
    tensor.inplace_op1(&Take(&taken)).ok()?;
    taken.into_inner()
}

struct Take<'a>(&'a RefCell<Option<Vec<f32>>>);

impl InplaceOp1 for Take<'_> {
    fn name(&self) -> &'static str {
        "wick-take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let CpuStorage::F32(values) = storage {
            *self.0.borrow_mut() = Some(std::mem::take(values));
        }
        Ok(())
    }
}

/// Wraps an op's output without copying it.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}
