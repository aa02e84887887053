//! What a network computes, by name: on its device as [`Outputs`], on the CPU as [`HostOutputs`].

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

/// The outputs of a network for a batch of images: named tensors in the network's own order, images first
/// (`[n, ...]`).
#[derive(Debug, Default)]
pub struct Outputs(Vec<(String, Tensor)>);

/// Name and shape of an output for one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputShape {
    /// As in [`Outputs`] and in ONNX files.
    pub name: String,
    /// Without the dimension of images: `[C, h, w]` of a dense output.
    pub shape: Vec<i64>,
}

impl OutputShape {
    /// Numbers in the output of one image.
    pub fn num_values(&self) -> usize {
        self.shape.iter().product::<i64>().max(0) as usize
    }
}

impl Outputs {
    /// The named tensors, in order.
    pub fn new(named: Vec<(String, Tensor)>) -> Self {
        Self(named)
    }

    /// The named tensors, in order.
    pub fn into_named(self) -> Vec<(String, Tensor)> {
        self.0
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// If there is none; tells the names that there are.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let found = self.iter().find(|(own, _)| *own == name).map(|(_, tensor)| tensor);
        found.with_context(|| {
            let names: Vec<&str> = self.iter().map(|(own, _)| own).collect();
            format!("the network has no output {name}, its outputs are {}", names.join(", "))
        })
    }

    /// Names and tensors, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The outputs of `layout` for `num_images` images, moved to the CPU as f32 in one transfer.
    ///
    /// # Errors
    /// If an output of `layout` is missing or has another shape; names it.
    pub fn to_host(&self, layout: &[OutputShape], num_images: usize) -> Result<HostOutputs> {
        let flat = |output: &OutputShape| -> Result<Tensor> {
            let tensor = self.get(&output.name)?;
            let expected = [&[num_images as i64], output.shape.as_slice()].concat();
            let found = tensor.size();
            ensure!(
                found == expected,
                "the network's output {} has the shape {found:?}, expected {expected:?}",
                output.name
            );
            Ok(tensor.flatten(1, -1))
        };
        let flat = layout.iter().map(flat).collect::<Result<Vec<_>>>()?;
        let joined = Tensor::f_cat(&flat, 1).context("joining the network's outputs")?;
        let joined = joined.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let values = Vec::<f32>::try_from(joined.view([-1]))?;
        Ok(HostOutputs { layout: layout.to_vec(), num_images, values })
    }
}

/// The outputs for a batch of images on the CPU: f32, of each image one output after the other, each row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostOutputs {
    layout: Vec<OutputShape>,
    num_images: usize,
    values: Vec<f32>,
}

impl HostOutputs {
    /// Values as they are laid out: `[num_images, sum of the outputs' numbers]`.
    ///
    /// # Errors
    /// If their count is another one.
    pub fn new(layout: Vec<OutputShape>, num_images: usize, values: Vec<f32>) -> Result<Self> {
        let expected = num_images * layout.iter().map(OutputShape::num_values).sum::<usize>();
        ensure!(
            values.len() == expected,
            "{} values, expected {expected} for {num_images} images",
            values.len()
        );
        Ok(Self { layout, num_images, values })
    }

    /// Names and shapes, in order.
    pub fn layout(&self) -> &[OutputShape] {
        &self.layout
    }

    /// Images of the batch.
    pub fn num_images(&self) -> usize {
        self.num_images
    }

    /// The outputs of an image, in order.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn of_image(&self, image: usize) -> impl Iterator<Item = (&OutputShape, &[f32])> {
        assert!(image < self.num_images, "image {image} of a batch of {}", self.num_images);
        let mut at = image * (self.values.len() / self.num_images);
        self.layout.iter().map(move |output| {
            let start = at;
            at += output.num_values();
            (output, &self.values[start..at])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Vec<OutputShape> {
        let output = |name: &str, shape: &[i64]| OutputShape {
            name: name.to_owned(),
            shape: shape.to_vec(),
        };
        vec![output("cls", &[2, 2, 3]), output("pose", &[4])]
    }

    /// Two images; the dense output in channels-last memory, as a network's own may be.
    fn outputs() -> Outputs {
        let cls = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([2, 2, 3, 2]);
        let pose = Tensor::arange(8, (Kind::Double, Device::Cpu)).reshape([2, 4]) + 100.0;
        let cls = cls.permute([0, 3, 1, 2]);
        Outputs::new(vec![("pose".into(), pose), ("more".into(), cls.copy()), ("cls".into(), cls)])
    }

    #[test]
    fn outputs_survive_the_transfer() {
        let outputs = outputs();
        let host = outputs.to_host(&layout(), 2).unwrap();
        assert_eq!((host.num_images(), host.layout()), (2, layout().as_slice()));
        for image in 0..2 {
            for (output, values) in host.of_image(image) {
                let tensor = outputs.get(&output.name).unwrap().get(image as i64);
                let tensor = tensor.to_kind(Kind::Float).contiguous().view([-1]);
                assert_eq!(values, Vec::<f32>::try_from(tensor).unwrap(), "{output:?}");
            }
        }
        let values: Vec<f32> = host.of_image(1).flat_map(|(_, values)| values.to_vec()).collect();
        assert_eq!(values[12..], [104.0, 105.0, 106.0, 107.0]);
        let alone = HostOutputs::new(layout(), 1, values.clone()).unwrap();
        assert!(alone.of_image(0).eq(host.of_image(1)));
        assert!(HostOutputs::new(layout(), 2, values).is_err());
    }

    #[test]
    fn outputs_that_do_not_fit_are_named() {
        let error =
            |layout: &[OutputShape], n| outputs().to_host(layout, n).unwrap_err().to_string();
        let text = error(&layout(), 3);
        assert!(
            text.contains("output cls has the shape [2, 2, 2, 3], expected [3, 2, 2, 3]"),
            "{text}"
        );
        let other = OutputShape { name: "reg".into(), shape: vec![1] };
        let text = error(&[other], 2);
        assert_eq!(text, "the network has no output reg, its outputs are pose, more, cls");
    }
}
