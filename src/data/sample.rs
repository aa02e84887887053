//! One image of a dataset as the network takes it.

use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result, ensure};

use super::augment::remap_pose;
use super::consistency::off_center;
use super::view::{check_center, internal_size, to_internal};
use super::warp::{Raster, Size, paint_mask, warp_labels, warp_rgb};
use super::{Augmentation, DataConfig, Dataset, Frame, InputConfig};
use crate::geom::{Affine2, Camera, Pose};
use crate::io::picture::{self, Orientation};

/// An object of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleObject {
    /// 0-based, without the background.
    pub class: usize,
    /// Under the internal camera, mm.
    pub pose: Pose,
}

/// An image at internal size with its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// RGB, `[h, w, 3]`, not normalised.
    pub pixels: Vec<u8>,
    /// `[h, w]`; 0 none, i + 1 where `objects[i]` is seen.
    pub mask: Vec<u8>,
    /// The objects with enough visible pixels.
    pub objects: Vec<SampleObject>,
}

/// Turns images into samples: decodes, warps to the internal camera, augments.
#[derive(Debug, Clone)]
pub struct Preparer {
    camera: Camera,
    size: Size,
    min_visible_px: u32,
    antialias: bool,
}

impl Preparer {
    /// For the internal size and camera of `input`.
    ///
    /// # Errors
    /// If the internal camera is none or the internal size is 0.
    pub fn new(input: &InputConfig, data: &DataConfig) -> Result<Self> {
        Ok(Self {
            camera: input.camera()?,
            size: internal_size(input)?,
            min_visible_px: data.min_visible_px,
            antialias: data.antialias,
        })
    }

    /// Width and height of a sample, px.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Loads an image: to the internal camera, then, as the published code does, by a warp of its own, augmented.
    /// Objects with too few visible pixels in the end are left out; where the dataset was read without masks all stay.
    /// Pixels are taken as stored, whatever the picture's EXIF orientation says: so are the masks and the camera.
    ///
    /// # Errors
    /// If the image or a mask cannot be read, or is not of the size that the other and the camera have; names the
    /// file.
    pub fn load(
        &self,
        dataset: &Dataset,
        index: usize,
        augmentation: Option<&Augmentation>,
    ) -> Result<Sample> {
        let frame = &dataset.frames[index];
        let path = dataset.root.join(&frame.image);
        let (image, orientation) = picture::read_rgb_with_orientation(&path)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        check_center(&frame.camera, (width, height)).with_context(|| path.display().to_string())?;
        tell_oddities(&path, &frame.camera, (width, height), orientation);
        let source = Raster { pixels: image.as_raw(), width, height };
        let m = Affine2::between_cameras(&frame.camera, &self.camera);
        let at = || format!("warping {}", path.display());
        let pixels = to_internal(source, &m, self.size, self.antialias).with_context(at)?;
        let mask = self.mask(frame, &m, (width, height))?;
        let objects = frame.objects.iter();
        let objects = objects.map(|o| SampleObject { class: o.class, pose: o.pose }).collect();
        let mut sample = Sample { pixels, mask, objects };
        if frame.objects.iter().any(|object| object.mask.is_none()) {
            ensure!(
                augmentation.is_none(),
                "{}: augmenting takes the objects' masks",
                path.display()
            );
            return Ok(sample);
        }
        let Some(augmentation) = augmentation else {
            drop_hidden(&mut sample, self.min_visible_px);
            return Ok(sample);
        };
        let m = augmentation.affine(self.size.0, self.size.1);
        self.move_pixels(&mut sample, &m).with_context(at)?;
        drop_hidden(&mut sample, self.min_visible_px);
        for object in &mut sample.objects {
            self.move_pose(object, &m, dataset, &frame.image)
                .with_context(|| format!("augmenting {} by {augmentation:?}", path.display()))?;
        }
        Ok(sample)
    }

    /// The objects' masks at internal size, each by its place in the frame plus 1.
    fn mask(&self, frame: &Frame, m: &Affine2, (width, height): Size) -> Result<Vec<u8>> {
        let mut labels = vec![0; self.size.0 * self.size.1];
        for (i, object) in frame.objects.iter().enumerate() {
            let Some(file) = &object.mask else { continue };
            let at = file.display();
            let mask = picture::read_mask(file)?;
            let (w, h) = (mask.width() as usize, mask.height() as usize);
            ensure!(
                (w, h) == (width, height),
                "{at}: the mask is {w} x {h} px, expected {width} x {height} as {} is",
                frame.image
            );
            let label = u8::try_from(i + 1)
                .with_context(|| format!("{}: more than 255 objects", frame.image))?;
            let source = Raster { pixels: mask.as_raw(), width, height };
            paint_mask(source, m, self.size, label, &mut labels)
                .with_context(|| format!("warping {at}"))?;
        }
        Ok(labels)
    }

    fn move_pixels(&self, sample: &mut Sample, m: &Affine2) -> Result<()> {
        let (width, height) = self.size;
        let pixels = Raster { pixels: &sample.pixels, width, height };
        let mask = Raster { pixels: &sample.mask, width, height };
        (sample.pixels, sample.mask) =
            (warp_rgb(pixels, m, self.size)?, warp_labels(mask, m, self.size)?);
        Ok(())
    }

    fn move_pose(
        &self,
        object: &mut SampleObject,
        m: &Affine2,
        dataset: &Dataset,
        image: &str,
    ) -> Result<()> {
        let corners = &dataset.models[object.class].corners;
        let moved = remap_pose(&self.camera, &self.camera, m, &object.pose, corners).with_context(
            || {
                format!(
                    "a corner of the box of class {} is behind the camera (depth {} mm)",
                    object.class, object.pose.t_mm.z
                )
            },
        )?;
        tracing::debug!(
            image,
            class = object.class,
            residual_px = moved.mean_residual_px,
            "remapped an augmented pose"
        );
        object.pose = moved.pose;
        Ok(())
    }
}

/// Warns, once in a process each, of an image that another program would turn, and of a camera that seems to be of another
/// image size.
fn tell_oddities(path: &Path, camera: &Camera, size: Size, orientation: Orientation) {
    static TURNED: Once = Once::new();
    static OFF_CENTER: Once = Once::new();
    if orientation != Orientation::NoTransforms {
        TURNED.call_once(|| {
            tracing::warn!(
                "{}: images of a dataset are taken as stored, like their masks and cameras; the EXIF orientation of this one \
                 ({orientation:?}), which OpenCV's imread obeys, is ignored",
                path.display()
            );
        });
    }
    if let Some(odd) = off_center(camera, size) {
        OFF_CENTER.call_once(|| tracing::warn!("{}: {odd}", path.display()));
    }
}

/// Leaves out the objects with fewer than `min_visible_px` mask pixels and numbers the others anew.
fn drop_hidden(sample: &mut Sample, min_visible_px: u32) {
    let mut num_visible = [0u32; 256];
    for &label in &sample.mask {
        num_visible[usize::from(label)] += 1;
    }
    let mut new_label = [0u8; 256];
    let mut num_kept = 0;
    for label in 1..=sample.objects.len() {
        if num_visible[label] >= min_visible_px {
            num_kept += 1;
            new_label[label] = num_kept;
        }
    }
    if usize::from(num_kept) == sample.objects.len() {
        return;
    }
    let mut label = 0;
    sample.objects.retain(|_| {
        label += 1;
        new_label[label] != 0
    });
    for label in &mut sample.mask {
        *label = new_label[usize::from(*label)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Purpose;
    use crate::data::testing::{IMAGE, MASK, SCENE, TinyDataset};

    fn load(tiny: &TinyDataset, augmentation: Option<&Augmentation>) -> Result<Sample> {
        let dataset = tiny.open(false).unwrap();
        Preparer::new(&tiny.input, &tiny.data)?.load(&dataset, 0, augmentation)
    }

    #[test]
    fn a_sample_is_the_image_and_the_labels_under_the_internal_camera() {
        // The tiny dataset's images are 64 px, its internal size is 32 px: every second pixel.
        let tiny = TinyDataset::new();
        let sample = load(&tiny, None).unwrap();
        let image = picture::read_rgb(&tiny.root().join(IMAGE)).unwrap();
        let mask = picture::read_mask(&tiny.root().join(MASK)).unwrap();
        for (x, y) in [(0, 0), (5, 7), (31, 31)] {
            let at = (y * 32 + x) as usize;
            assert_eq!(sample.pixels[at * 3..at * 3 + 3], image.get_pixel(2 * x, 2 * y).0);
        }
        let seen: Vec<u8> = (0..32 * 32)
            .map(|at| u8::from(mask.get_pixel(at % 32 * 2, at / 32 * 2).0[0] > 0))
            .collect();
        assert_eq!(sample.mask, seen);
        let dataset = tiny.open(false).unwrap();
        assert_eq!(sample.objects[0].pose, dataset.frames[0].objects[0].pose);
    }

    #[test]
    fn a_half_turn_turns_pixels_masks_and_poses() {
        let tiny = TinyDataset::new();
        let plain = load(&tiny, None).unwrap();
        let half_turn = Augmentation { cut_px: [0, 0], angle_deg: 180.0, scale: 1.0 };
        let turned = load(&tiny, Some(&half_turn)).unwrap();
        // About (16, 16): pixel p comes from 32 - p.
        for at in [33, 100, 500, 32 * 32 - 1] {
            let (x, y) = (at % 32, at / 32);
            if x > 0 && y > 0 {
                let from = (32 - y) * 32 + 32 - x;
                assert_eq!(turned.pixels[at * 3..at * 3 + 3], plain.pixels[from * 3..from * 3 + 3]);
                assert_eq!(turned.mask[at], plain.mask[from]);
            }
        }
        let (a, b) = (plain.objects[0].pose, turned.objects[0].pose);
        assert!((a.t_mm.z - b.t_mm.z).abs() < 1e-6);
        assert!((a.t_mm.x + b.t_mm.x).abs() < 1e-6 && (a.r.row(0) + b.r.row(0)).norm() < 1e-8);
    }

    #[test]
    fn hidden_objects_are_dropped_and_the_others_numbered_anew() {
        let object = |class| SampleObject { class, pose: Pose::identity() };
        let mut sample = Sample {
            pixels: vec![0; 18],
            mask: vec![3, 3, 1, 2, 2, 0],
            objects: vec![object(0), object(1), object(2)],
        };
        drop_hidden(&mut sample, 2);
        assert_eq!(sample.mask, [2, 2, 0, 1, 1, 0]);
        assert_eq!(sample.objects.iter().map(|o| o.class).collect::<Vec<_>>(), [1, 2]);
        drop_hidden(&mut sample, 3);
        assert_eq!(sample.mask, [0; 6]);
        assert!(sample.objects.is_empty());
    }

    #[test]
    fn a_shift_out_of_the_image_leaves_no_object() {
        let tiny = TinyDataset::new();
        let away = Augmentation { cut_px: [40, 0], angle_deg: 0.0, scale: 1.0 };
        let sample = load(&tiny, Some(&away)).unwrap();
        assert!(sample.objects.is_empty() && sample.mask.iter().all(|&m| m == 0));
        assert!(sample.pixels.iter().all(|&p| p == 128));
    }

    #[test]
    fn antialiasing_changes_the_pixels_only() {
        let mut tiny = TinyDataset::new();
        let plain = load(&tiny, None).unwrap();
        tiny.data.antialias = true;
        let smooth = load(&tiny, None).unwrap();
        assert_ne!(plain.pixels, smooth.pixels);
        assert_eq!(plain.mask, smooth.mask);
    }

    #[test]
    fn bad_pictures_are_named() {
        let tiny = TinyDataset::new();
        tiny.truncate(IMAGE);
        let error = format!("{:#}", load(&tiny, None).unwrap_err());
        assert!(error.contains("rgb/000000.png"), "{error}");
        tiny.remove(IMAGE);
        let error = format!("{:#}", load(&tiny, None).unwrap_err());
        assert!(error.contains("rgb/000000.png"), "{error}");

        let tiny = TinyDataset::new();
        tiny.write_image(MASK, 60, 64);
        let error = format!("{:#}", load(&tiny, None).unwrap_err());
        assert!(
            error.contains("000000_000000.png: the mask is 60 x 64 px, expected 64 x 64"),
            "{error}"
        );
        tiny.truncate(MASK);
        let error = format!("{:#}", load(&tiny, None).unwrap_err());
        assert!(error.contains("000000_000000.png"), "{error}");
    }

    #[test]
    fn a_picture_smaller_than_its_camera_is_refused() {
        let tiny = TinyDataset::new();
        tiny.write_image(IMAGE, 32, 0);
        tiny.write_image(MASK, 32, 0);
        let error = format!("{:#}", load(&tiny, None).unwrap_err());
        assert!(
            error.contains("rgb/000000.png: the image is 32 x 64 px, but the middle of its camera is at (32, 32)"),
            "{error}"
        );
    }

    #[test]
    fn without_masks_every_object_stays() {
        let tiny = TinyDataset::new();
        let dataset = tiny.open_for(Purpose::Evaluation, false).unwrap();
        let preparer = Preparer::new(&tiny.input, &tiny.data).unwrap();
        let bare = preparer.load(&dataset, 0, None).unwrap();
        let full = load(&tiny, None).unwrap();
        assert_eq!((&bare.pixels, &bare.objects), (&full.pixels, &full.objects));
        assert!(bare.mask.iter().all(|label| *label == 0));
        let turn = Augmentation { cut_px: [0, 0], angle_deg: 10.0, scale: 1.0 };
        let error = preparer.load(&dataset, 0, Some(&turn)).unwrap_err();
        assert!(error.to_string().contains("000000.png: augmenting takes the objects' masks"));
    }

    #[test]
    fn a_box_that_reaches_behind_the_camera_cannot_be_augmented() {
        let tiny = TinyDataset::new();
        tiny.edit(&format!("{SCENE}/scene_gt.json"), "800.0", "20.0");
        assert!(load(&tiny, None).is_ok());
        let turn = Augmentation { cut_px: [0, 0], angle_deg: 10.0, scale: 1.0 };
        let error = format!("{:#}", load(&tiny, Some(&turn)).unwrap_err());
        assert!(error.contains("000000.png") && error.contains("behind the camera"), "{error}");
    }

    #[test]
    fn a_size_of_zero_is_refused() {
        let input = InputConfig { width: 0, ..InputConfig::default() };
        assert!(Preparer::new(&input, &DataConfig::default()).is_err());
    }
}
