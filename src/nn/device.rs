//! How a device is written for people and in files.

use tch::Device;

/// `cpu`, or `cuda:N`.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The name of a device as checkpoints hold it: until 0.1 they had `Cpu` and `Cuda(N)`.
pub(crate) fn device_name_of(text: &str) -> String {
    let index = text.strip_prefix("Cuda(").and_then(|rest| rest.strip_suffix(')'));
    match index {
        Some(index) => format!("cuda:{index}"),
        None if text == "Cpu" => "cpu".to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_old_checkpoints_are_read_as_those_of_today() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            let name = device_name(device);
            assert_eq!(device_name_of(&format!("{device:?}")), name);
            assert_eq!(device_name_of(&name), name);
        }
        assert_eq!(device_name(Device::Cuda(3)), "cuda:3");
    }
}
