//! One table of kernels for each instruction set.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
pub mod scalar;
