//! Choosing the device, and loading CUDA only where there is a GPU.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

use super::driver::{Driver, NEEDS};

/// The libtorch that the program is built for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU; CUDA is not even loaded.
    Cpu,
    /// The GPU of that number; an error when it cannot be used.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(Self::Cuda(index)),
                _ => bail!("expected auto, cpu, cuda or cuda:N"),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// Loads what the choice needs and returns the device. Call it before any other use of libtorch: libtorch asks
    /// once whether CUDA is there and keeps the answer.
    ///
    /// # Errors
    /// If CUDA was asked for by name and cannot be loaded, finds no driver, or has no GPU of that number.
    pub fn open(self) -> Result<Device> {
        self.open_for(0)
    }

    /// As [`DeviceChoice::open`], for the process of that number on this machine: [`DeviceChoice::Auto`] gives each its own
    /// GPU.
    ///
    /// # Errors
    /// As [`DeviceChoice::open`], and if there are GPUs, but fewer than processes.
    pub fn open_for(self, local_rank: usize) -> Result<Device> {
        let wanted = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Auto => None,
            Self::Cuda(index) => Some(index),
        };
        let driver = match (load_cuda(), wanted) {
            (Ok(driver), _) => driver,
            (Err(why), None) => {
                why.tell();
                return Ok(Device::Cpu);
            }
            (Err(why), Some(index)) => {
                bail!("--device cuda:{index}: {why}; use --device cpu to compute without a GPU")
            }
        };
        let num_devices = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match wanted {
            None if num_devices == 0 => {
                tracing::warn!(
                    "computing on the CPU: libtorch sees no GPU, and {driver}; {NEEDS}; --device cpu leaves this warning out"
                );
                Ok(Device::Cpu)
            }
            None => {
                ensure!(
                    local_rank < num_devices,
                    "process {local_rank} of this machine has no GPU: libtorch sees {num_devices}; start as many processes, or \
                     name one device for all with --device"
                );
                Ok(Device::Cuda(local_rank))
            }
            Some(index) => {
                let seen = match num_devices {
                    0 => format!("no GPU, and {driver}; {NEEDS}"),
                    1 => "1 GPU, cuda:0".to_owned(),
                    n => format!("{n} GPUs, cuda:0 to cuda:{}", n - 1),
                };
                ensure!(
                    index < num_devices,
                    "--device cuda:{index}: libtorch sees {seen}; check nvidia-smi and CUDA_VISIBLE_DEVICES"
                );
                Ok(Device::Cuda(index))
            }
        }
    }
}

/// Why CUDA cannot be used.
enum NoCuda {
    /// The usual case: there is no GPU.
    NoDriver(String),
    /// There is one, and this libtorch cannot use it.
    NoLibtorch(Driver, String),
}

impl NoCuda {
    /// Tells users who left the choice to the program.
    fn tell(&self) {
        match self {
            Self::NoDriver(why) => tracing::debug!(%why, "no NVIDIA driver, computing on the CPU"),
            Self::NoLibtorch(..) => {
                tracing::warn!(
                    "computing on the CPU: {self}; --device cpu leaves this warning out"
                );
            }
        }
    }
}

impl fmt::Display for NoCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver(why) => write!(f, "no NVIDIA driver ({why})"),
            Self::NoLibtorch(driver, why) => write!(
                f,
                "this libtorch has no CUDA half ({why}), and {driver}; run setup.sh on this machine; {NEEDS}"
            ),
        }
    }
}

/// Loads libtorch's CUDA half into the process, for good.
fn load_cuda() -> Result<Driver, NoCuda> {
    // The driver first: without one, the 0.2 s and 230 MiB of libtorch_cuda would be for nothing.
    let library = load("libcuda.so.1").map_err(NoCuda::NoDriver)?;
    let beside = format!("{}/libtorch_cuda.so", env!("MQAT_TORCH_LIB"));
    let torch = load("libtorch_cuda.so").or_else(|_| load(&beside));
    let driver = Driver::ask(&library);
    // Unloading either is not supported.
    std::mem::forget(library);
    torch.map(std::mem::forget).map_err(|why| NoCuda::NoLibtorch(driver.clone(), why))?;
    Ok(driver)
}

fn load(name: &str) -> Result<Library, String> {
    // SAFETY: the driver's and libtorch's own initialisers run; nothing else of libtorch has run yet.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for text in ["gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(DeviceChoice::Cpu.open().unwrap(), Device::Cpu);
    }
}
