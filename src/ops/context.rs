//! Where and how ops run.
use std::cell::RefCell;

use candle_core::Device;
use wick_kernels::{AttentionScratch, Cpu, MatmulScratch};

/// The device of a model and, on the CPU, the kernels and their scratch memory. One thread owns it.
pub struct ExecContext {
    device: Device,
    kernels: Option<CpuKernels>,
}

/// What the CPU arms need: instruction set, threads and buffers that grow to the largest step and stay.
pub(super) struct CpuKernels {
    pub(super) cpu: Cpu,
    pub(super) matmul: RefCell<MatmulScratch>,
    pub(super) attention: RefCell<AttentionScratch>,
}

impl ExecContext {
    /// Runs on the CPU kernels.
    #[must_use]
    pub fn cpu(cpu: Cpu) -> Self {
        let kernels = CpuKernels { cpu, matmul: RefCell::default(), attention: RefCell::default() };
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

    /// One line for the log: which arithmetic runs, on how many threads.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kernels {
            Some(k) => format!("CPU kernels {:?}, {} thread(s)", k.cpu.isa, k.cpu.pool.threads()),
            None => format!("candle operations on {:?}", self.device.location()),
        }
    }

    /// The CPU arm's tools; `None` sends an op to its `reference()`.
    pub(super) fn kernels(&self) -> Option<&CpuKernels> {
        self.kernels.as_ref()
    }
}
