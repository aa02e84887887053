//! What a trained network becomes for a device.
//!
//! - [`packed`]: one small file with weights of 1 to 8 bits. Start at [`packed::pack`] and [`packed::read`].

pub mod packed;
