//! One table of kernels for each instruction set.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod avxvnni;
mod floats;
#[cfg(target_arch = "aarch64")]
pub mod neondot;
mod packed;
pub mod scalar;
