//! What a measurement or a training holds for: the machine and the versions.

use std::fs;

use serde::{Deserialize, Serialize};
use tch::Device;

use super::device::LIBTORCH_VERSION;
use crate::nn::device_name;

/// Instructions that decide what integer and float kernels can do, as the kernel names them.
const TELLING: [&str; 10] = [
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
];

/// Where a bench or a training ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the CPU.
    pub cpu: String,
    /// Of its instructions those that decide about speed here.
    pub instructions: Vec<String>,
    /// Cores, where the system tells.
    pub cores: Option<usize>,
    /// CPUs (hardware threads) that this process may use.
    pub cpus: usize,
    /// Processes that wanted to run over the last minute, when it began.
    pub load_average: Option<f64>,
    /// Where networks computed: `cpu`, `cuda:0`.
    pub device: String,
    /// Its name, where it is not a CPU and the driver tells it.
    pub device_name: Option<String>,
    /// Operating system and architecture.
    pub system: String,
    /// Version of this program.
    pub mqat: String,
    /// The commit that it was built from; none outside a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Version of libtorch.
    pub libtorch: String,
    /// The ONNX Runtime in use, where there is one: its own description.
    pub onnxruntime: Option<String>,
}

impl Machine {
    /// This one, before anything was measured.
    pub(crate) fn here(device: Device) -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu: model(&info).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            instructions: instructions(&info),
            cores: num_cores(&info),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: load.split(' ').next().and_then(|first| first.parse().ok()),
            device: device_name(device),
            device_name: match device {
                Device::Cuda(index) => gpu_name(index),
                _ => None,
            },
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            mqat: env!("CARGO_PKG_VERSION").to_owned(),
            commit: Some(env!("MQAT_COMMIT").to_owned()).filter(|commit| !commit.is_empty()),
            libtorch: LIBTORCH_VERSION.to_owned(),
            onnxruntime: None,
        }
    }

    /// A word on other programs, if they took a fraction of the machine.
    pub(crate) fn busy(&self) -> Option<String> {
        let load = self.load_average?;
        (load > 0.5).then(|| {
            format!(
                "the machine was busy: load average {load:.2} on {} CPUs when this began; compare ratios, and measure \
                 again on a quiet machine",
                self.cpus
            )
        })
    }

    /// One line.
    pub(crate) fn text(&self) -> String {
        let cores = self.cores.map_or(String::new(), |n| format!("{n} cores, "));
        let device = match &self.device_name {
            Some(name) => format!("{} ({name})", self.device),
            None => self.device.clone(),
        };
        let ort = match &self.onnxruntime {
            Some(text) => format!(", ONNX Runtime {text}"),
            None => String::new(),
        };
        format!(
            "{}: {cores}{} CPUs, on {device}; mqat {}, libtorch {}{ort}",
            self.cpu, self.cpus, self.mqat, self.libtorch
        )
    }
}

/// The values of a key of `/proc/cpuinfo`, one for each CPU.
fn values<'a>(info: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    info.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn model(info: &str) -> Option<String> {
    values(info, "model name").next().map(str::to_owned)
}

fn instructions(info: &str) -> Vec<String> {
    let flags = values(info, "flags").chain(values(info, "Features")).next().unwrap_or_default();
    let flags: Vec<&str> = flags.split(' ').collect();
    TELLING.iter().filter(|name| flags.contains(name)).map(|name| (*name).to_owned()).collect()
}

/// Different pairs of socket and core.
fn num_cores(info: &str) -> Option<usize> {
    let sockets = values(info, "physical id");
    let mut cores: Vec<_> = sockets.zip(values(info, "core id")).collect();
    cores.sort_unstable();
    cores.dedup();
    (!cores.is_empty()).then_some(cores.len())
}

/// The name that the NVIDIA driver gives a GPU, where only one kind is there (its order need not be CUDA's).
fn gpu_name(index: usize) -> Option<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten() {
        let text = fs::read_to_string(entry.path().join("information")).ok()?;
        names.push(values(&text, "Model").next()?.to_owned());
    }
    names.sort();
    names.dedup();
    match names.as_slice() {
        [one] => Some(one.clone()),
        several => {
            tracing::debug!(?several, index, "GPUs of several kinds");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nphysical id\t: 0\ncore id\t\t: 0\n\
        flags\t\t: fpu avx2 fma avx512f avx512_vnni\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n\
        physical id\t: 0\ncore id\t\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 2\nphysical id\t: 0\ncore id\t\t: 1\n";

    #[test]
    fn the_cpu_is_read_as_the_kernel_tells_it() {
        assert_eq!(model(INFO).unwrap(), "Some CPU @ 2 GHz");
        assert_eq!(num_cores(INFO), Some(2));
        assert_eq!(instructions(INFO), ["avx2", "fma", "avx512f", "avx512_vnni"]);
        assert_eq!((model(""), num_cores(""), instructions("").len()), (None, None, 0));
    }

    #[test]
    fn a_busy_machine_is_told() {
        let mut machine = Machine::here(Device::Cpu);
        assert!(machine.cpus >= 1 && machine.text().contains("libtorch"), "{}", machine.text());
        machine.load_average = Some(1.75);
        assert!(machine.busy().unwrap().contains("1.75"));
        machine.load_average = Some(0.1);
        assert_eq!(machine.busy(), None);
    }
}
