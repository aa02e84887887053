//! The network's outputs by name, and what they say: cells to the correspondences of each instance of each class.

use anyhow::{Result, ensure};
use tch::Tensor;

use super::anchors::AnchorGrid;
use super::candidates::{CandidateConfig, ClassCandidates, LevelOutput, best_confidence, select};
use super::net::PoseNet;
use super::outputs::output_shapes;
use crate::geom::{Corners, Correspondences};
use crate::nn::{
    self, Decode, Decoded, Detection, Engine, Evidence, HostOutputs, NoDetection, OutputShape,
};

/// Correspondences of a cell: one a corner.
const CORNERS: usize = 8;

impl Engine for PoseNet {
    fn outputs(&self, width: usize, height: usize) -> Vec<OutputShape> {
        output_shapes(&self.grid(width, height), self.num_classes() as usize)
    }

    fn forward(&self, images: &Tensor) -> Result<nn::Outputs> {
        let outputs = tch::no_grad(|| self.forward_t(images, false));
        Ok(outputs.named(&self.config().strides()))
    }
}

/// Reads correspondences from the outputs of a [`PoseNet`], in whatever engine: of each class and instance, the 8 corners of its
/// best cells.
///
/// Reasons for no detection: `no_cell` (none is above the confidence threshold) and `no_usable_cell` (some are, but none
/// with finite offsets on a pyramid level for the size that they predict).
#[derive(Debug)]
pub struct CellDecoder {
    grid: AnchorGrid,
    outputs: Vec<OutputShape>,
    /// Of each class.
    corners: Vec<Corners>,
    config: CandidateConfig,
}

impl CellDecoder {
    /// For outputs on `grid` of a network of `num_classes` classes, whose boxes have these corners.
    ///
    /// # Errors
    /// If there are not as many boxes as classes.
    pub fn new(
        grid: AnchorGrid,
        num_classes: usize,
        corners: Vec<Corners>,
        config: CandidateConfig,
    ) -> Result<Self> {
        ensure!(
            num_classes == corners.len(),
            "the network has {num_classes} classes, but there are {} objects",
            corners.len()
        );
        let outputs = output_shapes(&grid, num_classes);
        Ok(Self { grid, outputs, corners, config })
    }

    /// An image's outputs by pyramid level.
    fn levels<'a>(&self, outputs: &'a HostOutputs, image: usize) -> Vec<LevelOutput<'a>> {
        let values: Vec<&[f32]> = outputs.of_image(image).map(|(_, values)| values).collect();
        let (cls, reg) = values.split_at(self.grid.levels.len());
        let levels = self.grid.levels.iter().zip(cls.iter().zip(reg));
        levels
            .map(|(level, (cls, reg))| LevelOutput {
                cls,
                reg,
                h: level.h,
                w: level.w,
                stride_px: level.stride as f64,
                anchor_px: level.size_px,
            })
            .collect()
    }

    fn detection(&self, candidates: ClassCandidates) -> Detection {
        let corners = self.corners[candidates.class].iter().copied().cycle();
        let points = corners.take(candidates.pixels.len()).collect();
        Detection {
            score: f64::from(candidates.score),
            evidence: Evidence::Correspondences(Correspondences {
                points,
                pixels: candidates.pixels,
                group_size: CORNERS,
            }),
        }
    }

    fn no_detection(&self, levels: &[LevelOutput], class: usize) -> NoDetection {
        let best = best_confidence(levels, class);
        let threshold = self.config.confidence_threshold;
        if best > threshold {
            let detail = format!(
                "cells are above the confidence threshold (the best one at {best:.3}), but none with finite offsets on a \
                 level for the size they predict"
            );
            return NoDetection { reason: "no_usable_cell", detail };
        }
        let detail = format!(
            "no cell is above the confidence threshold {threshold}, the best one is at {best:.3}"
        );
        NoDetection { reason: "no_cell", detail }
    }
}

impl Decode for CellDecoder {
    fn outputs(&self) -> &[OutputShape] {
        &self.outputs
    }

    fn decode(&self, outputs: &HostOutputs, image: usize) -> Vec<Decoded> {
        let levels = self.levels(outputs, image);
        let num_classes = self.corners.len();
        let mut selected = select(&levels, num_classes, &self.config).into_iter().peekable();
        let mut decoded = Vec::with_capacity(num_classes);
        for class in 0..num_classes {
            let before = decoded.len();
            while let Some(candidates) = selected.next_if(|c| c.class == class) {
                decoded.push(Decoded { class, found: Ok(self.detection(candidates)) });
            }
            if decoded.len() == before {
                let found = Err(self.no_detection(&levels, class));
                decoded.push(Decoded { class, found });
            }
        }
        decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::{Vec2, Vec3};
    use crate::topology::wdr::NetworkConfig;
    use crate::topology::wdr::candidates::REG_CHANNELS;
    use tch::Device;

    fn decoder(num_classes: usize) -> CellDecoder {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth_tiny(), 64, 48);
        let corners = |class| std::array::from_fn(|i| Vec3::new(i as f64, class as f64, 1.0));
        let corners = (0..num_classes).map(corners).collect();
        CellDecoder::new(grid, num_classes, corners, CandidateConfig::default()).unwrap()
    }

    /// HeadOutputs of an image in which every cell of class 1 above `logit` sees the corners at `pixels`, and class 0 is nowhere.
    fn host(decoder: &CellDecoder, logit: f32, pixels: &[Vec2; 8]) -> HostOutputs {
        let grid = &decoder.grid;
        let mut values = Vec::new();
        for level in &grid.levels {
            values.extend(std::iter::repeat_n(-9.0, level.num_cells()));
            values.extend(std::iter::repeat_n(logit, level.num_cells()));
        }
        for level in &grid.levels {
            values.extend(std::iter::repeat_n(0.0, REG_CHANNELS * level.num_cells()));
            let targets: Vec<_> = level.cells().map(|cell| grid.encode(cell, pixels)).collect();
            values.extend((0..REG_CHANNELS).flat_map(|c| targets.iter().map(move |t| t[c] as f32)));
        }
        HostOutputs::new(decoder.outputs.clone(), 1, values).unwrap()
    }

    #[test]
    fn a_network_gives_what_its_decoder_reads() {
        let net = PoseNet::new(&NetworkConfig::widedepth_tiny(), 2, Device::Cpu, 3).unwrap();
        let decoder = decoder(2);
        assert_eq!(Engine::outputs(&net, 64, 48), decoder.outputs());
        let images = Tensor::zeros([2, 3, 48, 64], (tch::Kind::Float, Device::Cpu));
        let outputs = net.forward(&images).unwrap();
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name).collect();
        assert_eq!(names[..2], ["cls_p3", "cls_p4"]);
        assert_eq!(names.last(), Some(&"reg_p5"));
        let host = outputs.to_host(decoder.outputs(), 2).unwrap();
        let decoded = decoder.decode(&host, 1);
        assert_eq!(decoded.iter().map(|d| d.class).collect::<Vec<_>>(), [0, 1]);
        let missing = decoded[0].found.as_ref().unwrap_err();
        assert_eq!(missing.reason, "no_cell", "an untrained network is not confident");
    }

    #[test]
    fn classes_come_with_their_own_corners_or_the_reason_for_none() {
        let decoder = decoder(2);
        let pixels: [Vec2; 8] = std::array::from_fn(|i| {
            Vec2::new(20.0 + 3.0 * (i / 2) as f64, 9.0 + 9.0 * (i % 2) as f64)
        });
        let decoded = decoder.decode(&host(&decoder, 4.0, &pixels), 0);
        assert_eq!(decoded[0].found.as_ref().unwrap_err().reason, "no_cell");
        let found = decoded[1].found.as_ref().unwrap();
        assert!((found.score - (1.0 / (1.0 + (-4.0f64).exp())).sqrt()).abs() < 1e-6);
        let Evidence::Correspondences(c) = &found.evidence else { panic!("{found:?}") };
        assert!(c.group_size == 8 && !c.is_empty() && c.len().is_multiple_of(8), "{c:?}");
        assert_eq!(
            (c.points[2], c.points[10]),
            (Vec3::new(2.0, 1.0, 1.0), Vec3::new(2.0, 1.0, 1.0))
        );
        assert!((c.pixels[11] - pixels[3]).norm() < 1e-4);
        let unusable = decoder.decode(&host(&decoder, 4.0, &[Vec2::new(f64::NAN, 0.0); 8]), 0);
        assert_eq!(unusable[1].found.as_ref().unwrap_err().reason, "no_usable_cell");
    }

    #[test]
    fn boxes_are_counted() {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth_tiny(), 64, 48);
        let error = CellDecoder::new(grid, 2, vec![], CandidateConfig::default()).unwrap_err();
        assert!(error.to_string().contains("2 classes, but there are 0 objects"), "{error}");
    }
}
