//! `--device`: which device runs the model.
use std::fmt;
use std::str::FromStr;

use std::sync::Arc;

use candle_core::Device;
use wick_kernels::{Cpu, Isa, Precision, ThreadPool};

use crate::ops::{ExecContext, KvDtype};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// An accelerator if this build and this machine have one, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
    Metal,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("`{0}` is no device: give auto, cpu, cuda, cuda:N (N from 0) or metal")]
    Unknown(String),
    #[error(
        "device {choice} needs a build with it: cargo build --release --features {feature}; or start with --device cpu"
    )]
    NotBuilt { choice: DeviceChoice, feature: &'static str },
    #[error("device {choice} is not usable on this machine: {reason}; start with --device cpu or --device auto")]
    Unusable { choice: DeviceChoice, reason: String },
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text)
    }
}

impl DeviceChoice {
    /// Reads `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] for anything else.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(unknown());
                }
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// What models run on, chosen once for all of them.
#[derive(Debug, Clone)]
pub struct Machine {
    pub device: Device,
    /// Of the CPU kernels.
    pub isa: Isa,
}

impl Machine {
    /// The device, and the instruction set asked for or the best there is; also the line for the log.
    ///
    /// # Errors
    /// As [`select`].
    pub fn choose(device: DeviceChoice, isa: Option<Isa>) -> Result<(Self, String), DeviceError> {
        let (device, why) = select(device)?;
        Ok((Self { device, isa: isa.unwrap_or_else(Isa::detect) }, why))
    }

    /// The context that a model's ops run in: the kernels on these threads on the CPU, candle's operations elsewhere.
    #[must_use]
    pub fn context(&self, pool: Arc<ThreadPool>, activations: Precision) -> ExecContext {
        if self.device.is_cpu() {
            ExecContext::cpu(Cpu { isa: self.isa, pool }, activations)
        } else {
            ExecContext::reference(self.device.clone())
        }
    }

    /// Whether weights are packed as they are loaded.
    #[must_use]
    pub fn packs(&self) -> bool {
        self.device.is_cpu() && self.isa.packs()
    }

    /// The KV format that is fastest here for a model with heads of such sizes: of two bytes a value in any case, and none is more exact.
    #[must_use]
    pub fn kv_dtype(&self, head_dims: &[usize], block_size: usize) -> KvDtype {
        let multiplied = self.device.is_cpu() && self.isa.shorts();
        let fit = head_dims.iter().all(|&head_dim| KvDtype::I16.holds(head_dim, block_size));
        if multiplied && fit { KvDtype::I16 } else { KvDtype::F16 }
    }
}

/// Opens the chosen device. Returns it with one line for the log: what was chosen, and why.
///
/// # Errors
/// The device asked for is not in this build or not on this machine. `auto` and `cpu` never fail.
pub fn select(choice: DeviceChoice) -> Result<(Device, String), DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, "CPU, as asked for".to_owned())),
        DeviceChoice::Cuda(_) | DeviceChoice::Metal => Ok((open(choice)?, format!("{choice}, as asked for"))),
        DeviceChoice::Auto => {
            let mut passed_over = Vec::new();
            for candidate in [DeviceChoice::Cuda(0), DeviceChoice::Metal] {
                match open(candidate) {
                    Ok(device) => return Ok((device, format!("{candidate}, the first accelerator that works"))),
                    Err(DeviceError::NotBuilt { feature, .. }) => passed_over.push(format!("built without {feature}")),
                    Err(DeviceError::Unusable { reason, .. }) => passed_over.push(format!("{candidate}: {reason}")),
                    Err(DeviceError::Unknown(_)) => {}
                }
            }
            Ok((Device::Cpu, format!("CPU ({})", passed_over.join("; "))))
        }
    }
}

fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    let (built, feature, opened) = match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => return Ok(Device::Cpu),
        // A stream of its own: candle's default stream belongs to the thread that opened it, and steps run on the engine's thread.
        DeviceChoice::Cuda(n) => (cfg!(feature = "cuda"), "cuda", Device::new_cuda_with_stream(n)),
        DeviceChoice::Metal => (cfg!(feature = "metal"), "metal", Device::new_metal(0)),
    };
    match opened {
        _ if !built => Err(DeviceError::NotBuilt { choice, feature }),
        Ok(device) => Ok(device),
        Err(error) => Err(DeviceError::Unusable { choice, reason: first_line(&error) }),
    }
}

/// Candle's errors carry a backtrace; people want the sentence.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed_and_printed() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
            ("metal", DeviceChoice::Metal),
        ] {
            assert_eq!(DeviceChoice::parse(text), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "cuda:99999999999999999999", "metal:0"]
        {
            let error = DeviceChoice::parse(text).unwrap_err();
            assert!(error.to_string().contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn cpu_and_auto_always_work() {
        assert!(select(DeviceChoice::Cpu).unwrap().0.is_cpu());
        let (_, why) = select(DeviceChoice::Auto).unwrap();
        assert_eq!(why.lines().count(), 1, "{why}");
        if cfg!(not(any(feature = "cuda", feature = "metal"))) {
            assert_eq!(why, "CPU (built without cuda; built without metal)");
        }
    }

    #[test]
    fn a_device_outside_this_build_names_the_feature() {
        if cfg!(not(feature = "cuda")) {
            let error = select(DeviceChoice::Cuda(1)).unwrap_err();
            assert_eq!(error, DeviceError::NotBuilt { choice: DeviceChoice::Cuda(1), feature: "cuda" });
            assert!(error.to_string().contains("--features cuda"), "{error}");
        }
        if cfg!(not(feature = "metal")) {
            assert!(select(DeviceChoice::Metal).unwrap_err().to_string().contains("--features metal"));
        }
    }
}
