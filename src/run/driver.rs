//! What NVIDIA's driver says of itself and its GPUs: for messages, where libtorch sees none.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

use libloading::os::unix::{Library, Symbol};

/// What libtorch's own wheels need.
pub(super) const NEEDS: &str = "the libtorch that setup.sh installs is built for CUDA 13 and needs driver 580 or newer and a \
    GPU of compute capability 7.5 or more";

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` of the driver's interface.
const CAPABILITY: [c_int; 2] = [75, 76];
/// Room for a GPU's name.
const NAME: usize = 128;

/// A GPU as the driver names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gpu {
    name: String,
    capability: [c_int; 2],
}

/// The driver; what it did not tell is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Driver {
    /// The newest CUDA that it can run, 1000 times the number before the point and 10 times the one behind it.
    cuda: Option<c_int>,
    gpus: Vec<Gpu>,
}

impl Driver {
    /// Asks the driver.
    pub fn ask(library: &Library) -> Self {
        Self { cuda: version(library), gpus: gpus(library).unwrap_or_default() }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the NVIDIA driver ")?;
        match self.cuda {
            Some(cuda) => write!(f, "supports CUDA {}.{}", cuda / 1000, cuda % 1000 / 10)?,
            None => f.write_str("does not tell its version")?,
        }
        if self.gpus.is_empty() {
            return f.write_str(" and sees no GPU");
        }
        for (i, Gpu { name, capability: [major, minor] }) in self.gpus.iter().enumerate() {
            write!(f, ", GPU {i}: {name}, compute capability {major}.{minor}")?;
        }
        Ok(())
    }
}

fn version(library: &Library) -> Option<c_int> {
    let mut cuda = 0;
    // SAFETY: the driver's interface has the function with this type since CUDA 2.2.
    unsafe {
        let get: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> =
            library.get(b"cuDriverGetVersion\0").ok()?;
        (get(&mut cuda) == 0).then_some(cuda)
    }
}

fn gpus(library: &Library) -> Option<Vec<Gpu>> {
    // SAFETY: the driver's interface has these functions with these types since CUDA 2.0; the buffer is as long as is told.
    unsafe {
        let init: Symbol<unsafe extern "C" fn(c_uint) -> c_int> = library.get(b"cuInit\0").ok()?;
        let count: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> =
            library.get(b"cuDeviceGetCount\0").ok()?;
        let name_of: Symbol<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int> =
            library.get(b"cuDeviceGetName\0").ok()?;
        let attribute: Symbol<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int> =
            library.get(b"cuDeviceGetAttribute\0").ok()?;
        let mut num = 0;
        if init(0) != 0 || count(&mut num) != 0 {
            return None;
        }
        let one = |device: c_int| {
            let mut text = [0; NAME];
            let mut capability = [0; 2];
            let mut works = name_of(text.as_mut_ptr(), NAME as c_int - 1, device) == 0;
            for (value, which) in capability.iter_mut().zip(CAPABILITY) {
                works &= attribute(value, which, device) == 0;
            }
            let name = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
            works.then_some(Gpu { name, capability })
        };
        Some((0..num).filter_map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_told_is_read_in_one_line() {
        let gpu = Gpu { name: "Some GPU".to_owned(), capability: [6, 1] };
        let driver = Driver { cuda: Some(12040), gpus: vec![gpu] };
        assert_eq!(
            driver.to_string(),
            "the NVIDIA driver supports CUDA 12.4, GPU 0: Some GPU, compute capability 6.1"
        );
        let silent = Driver::default().to_string();
        assert_eq!(silent, "the NVIDIA driver does not tell its version and sees no GPU");
    }
}
