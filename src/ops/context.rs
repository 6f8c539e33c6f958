//! Where and how ops run.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use wick_kernels::{
    AttentionScratch, Cpu, FloatMatrix, FloatScratch, FullAttentionScratch, MatmulScratch, PackedMatrix, PackedScratch,
    Precision, Turn,
};

use super::logits::Peaks;
use super::slices::take_values;
use crate::weights::Matrix;

/// The device of a model and, on the CPU, the kernels and their scratch memory. One thread owns it.
pub struct ExecContext {
    device: Device,
    kernels: Option<CpuKernels>,
}

/// What the CPU arms need: instruction set, threads and buffers that grow to the largest step and stay.
pub(super) struct CpuKernels {
    pub(super) cpu: Cpu,
    /// How finely activations are rounded for products with packed matrices.
    pub(super) activations: Precision,
    pub(super) matmul: RefCell<MatmulScratch>,
    pub(super) packed: RefCell<PackedScratch>,
    pub(super) floats: RefCell<FloatScratch>,
    pub(super) attention: RefCell<AttentionScratch>,
    /// Matrices that stay as they are in the file, by their format: there are no packed kernels for them.
    in_place: RefCell<BTreeMap<&'static str, usize>>,
    pub(super) full_attention: RefCell<FullAttentionScratch>,
    /// Memory of activations that are no longer needed.
    buffers: RefCell<Vec<Vec<f32>>>,
    /// Memory of logits, by far the largest, apart: whatever else took one would leave most of it to be cleared again.
    logits: RefCell<Vec<Vec<f32>>>,
}

/// Fewest bytes of a file that are given back while their matrix is packed: each time costs all threads some microseconds.
const RELEASED_MIN: usize = 256 << 10;
/// Most buffers that are kept: a layer has fewer activations at a time.
const BUFFERS_MAX: usize = 12;
/// Most logits that are kept: the engine samples from one step's while the next is computed.
const LOGITS_MAX: usize = 2;

/// `buffer` with `len` values of any kind.
fn with_len(mut buffer: Vec<f32>, len: usize) -> Vec<f32> {
    if cfg!(debug_assertions) {
        buffer.clear();
        buffer.resize(len, f32::NAN);
    } else {
        buffer.resize(len, 0.0);
    }
    buffer
}

impl CpuKernels {
    /// Room for an op's output, with values left over from some other: the op writes all of them. In the steady state nothing is
    /// allocated: fresh memory of a step's size would cost the system's zeroed pages every time.
    pub(super) fn buffer(&self, len: usize) -> Vec<f32> {
        let mut buffers = self.buffers.borrow_mut();
        // Of just this length, as the last step's were: those need not be filled up. Else the one that nobody has wanted for longest.
        let same = buffers.iter().position(|buffer| buffer.len() == len);
        let fitting = same.or_else(|| buffers.iter().position(|buffer| buffer.capacity() >= len));
        with_len(fitting.map(|i| buffers.remove(i)).unwrap_or_default(), len)
    }

    /// The same for logits.
    pub(super) fn logits_buffer(&self, len: usize) -> Vec<f32> {
        with_len(self.logits.borrow_mut().pop().unwrap_or_default(), len)
    }

    /// Gives a buffer back.
    pub(super) fn give_back(&self, buffer: Vec<f32>) {
        let mut buffers = self.buffers.borrow_mut();
        buffers.push(buffer);
        if buffers.len() > BUFFERS_MAX
            && let Some(smallest) = (0..buffers.len()).min_by_key(|&i| buffers[i].capacity())
        {
            buffers.remove(smallest);
        }
    }

    /// Takes back the memory of an activation that nobody else holds.
    pub fn recycle(&self, x: Tensor) {
        if let Some(buffer) = take_values(x) {
            self.give_back(buffer);
        }
    }
}

impl ExecContext {
    /// Runs on the CPU kernels.
    #[must_use]
    pub fn cpu(cpu: Cpu, activations: Precision) -> Self {
        let kernels = CpuKernels {
            cpu,
            activations,
            matmul: RefCell::default(),
            packed: RefCell::default(),
            floats: RefCell::default(),
            attention: RefCell::default(),
            in_place: RefCell::default(),
            full_attention: RefCell::default(),
            buffers: RefCell::default(),
            logits: RefCell::default(),
        };
        Self { device: Device::Cpu, kernels: Some(kernels) }
    }

    /// Runs every op through its `reference()` on `device`: the way of accelerators, and the oracle of tests on the CPU.
    #[must_use]
    pub fn reference(device: Device) -> Self {
        Self { device, kernels: None }
    }

    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `f(0)` to `f(tasks - 1)`, each once and in any order: on the kernels' threads, or on the caller's where there
    /// are none.
    pub fn spread(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        match &self.kernels {
            Some(k) => k.cpu.pool.run(tasks, f),
            None => (0..tasks).for_each(f),
        }
    }

    /// Waits for this context's turn on the kernels' threads, which the models of a process share. Nothing to wait for elsewhere.
    #[must_use]
    pub fn turn(&self) -> Option<Turn<'_>> {
        self.kernels.as_ref().map(|k| k.cpu.pool.turn())
    }

    /// As [`Self::place`], but where activations are rounded to 8 bits, so are the values of a float matrix, in groups of 32 with a scale
    /// of their own (`Q8_0`), and it is packed. Matrices whose rows are no whole number of groups stay as they are.
    ///
    /// # Errors
    /// Candle's, when the rounding fails.
    pub fn place_rounded(&self, matrix: Matrix) -> candle_core::Result<Matrix> {
        match matrix {
            Matrix::Mapped(mapped) if self.rounds(mapped.cols) => {
                let rounded = self.place(Matrix::Mapped(mapped.rounded()?));
                mapped.bytes.release_all();
                Ok(rounded)
            }
            other => Ok(self.place(other)),
        }
    }

    /// Whether [`Self::place_rounded`] rounds a float matrix of rows of `cols` values.
    #[must_use]
    pub fn rounds(&self, cols: usize) -> bool {
        const GROUP: usize = 32;
        let packs = |k: &CpuKernels| k.cpu.isa.packs() && k.activations == Precision::Int8;
        self.kernels.as_ref().is_some_and(packs) && cols.is_multiple_of(GROUP)
    }

    /// Packs a matrix for the instruction set of the CPU kernels, if they have a packed form of its format. The file's pages are given
    /// back while the work goes on: what is packed is no longer needed.
    #[must_use]
    pub fn place(&self, matrix: Matrix) -> Matrix {
        match (&self.kernels, matrix) {
            (Some(k), Matrix::Mapped(mapped)) if k.cpu.isa.packs() => {
                let (cpu, bytes) = (&k.cpu, mapped.as_ref());
                let done = |part: Range<usize>| {
                    if part.len() >= RELEASED_MIN {
                        mapped.bytes.release(part);
                    }
                };
                let packed = PackedMatrix::pack(cpu, bytes, &done).map(|packed| Matrix::Packed(Arc::new(packed)));
                let floats = || FloatMatrix::pack(cpu, bytes, &done).map(|floats| Matrix::Floats(Arc::new(floats)));
                match packed.or_else(floats) {
                    Some(packed) => {
                        // Small parts, and pages that came back when their neighbours were read.
                        mapped.bytes.release_all();
                        packed
                    }
                    None => {
                        *k.in_place.borrow_mut().entry(mapped.ty.name()).or_default() += 1;
                        Matrix::Mapped(mapped)
                    }
                }
            }
            (_, matrix) => matrix,
        }
    }

    /// How many matrices of which formats [`Self::place`] has left as they are in the file, for lack of packed kernels.
    #[must_use]
    pub fn left_in_place(&self) -> BTreeMap<&'static str, usize> {
        self.kernels().map_or_else(BTreeMap::new, |k| k.in_place.borrow().clone())
    }

    /// One line for the log: which arithmetic runs, on how many threads.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kernels {
            Some(k) if k.cpu.isa.packs() => {
                let activations = match k.activations {
                    Precision::Int8 | Precision::Mixed => "8-bit",
                    Precision::Exact => "16-bit",
                };
                format!("CPU kernels {:?}, {activations} activations, {} thread(s)", k.cpu.isa, k.cpu.pool.threads())
            }
            Some(k) => format!("CPU kernels {:?}, {} thread(s)", k.cpu.isa, k.cpu.pool.threads()),
            None => format!("candle operations on {:?}", self.device.location()),
        }
    }

    /// Takes back the memory of an activation that is no longer needed and that nobody else holds.
    pub fn recycle(&self, x: Tensor) {
        if let Some(kernels) = self.kernels() {
            kernels.recycle(x);
        }
    }

    /// Takes back the memory of [`super::logits()`].
    pub fn give_back(&self, logits: Vec<f32>, peaks: Peaks) {
        if let Some(kernels) = self.kernels() {
            kernels.give_back(peaks.values);
            let mut kept = kernels.logits.borrow_mut();
            kept.push(logits);
            kept.truncate(LOGITS_MAX);
        }
    }

    /// The CPU arm's tools; `None` sends an op to its `reference()`.
    pub(super) fn kernels(&self) -> Option<&CpuKernels> {
        self.kernels.as_ref()
    }
}
