//! Pictures of one camera as the network takes them.

use anyhow::{Result, ensure};
use image::RgbImage;

use super::undistort::SourceMap;
use super::warp::{Raster, Size, warp_rgb, warp_rgb_antialiased};
use super::{DataConfig, InputConfig};
use crate::geom::{Affine2, Camera, Lens, Vec2};

/// Points a side of the picture that [`View::coverage`] looks at.
const COVERAGE_POINTS: u32 = 32;

/// Turns pictures of one lens into the network's input.
#[derive(Debug, Clone)]
pub struct View {
    lens: Lens,
    image_size: Option<Size>,
    internal: Camera,
    size: Size,
    antialias: bool,
    /// For a lens that distorts.
    map: Option<SourceMap>,
}

impl View {
    /// For pictures of `lens`, `image_size` px large if that is known, under the internal camera of `input`.
    ///
    /// # Errors
    /// If the internal camera is none or the internal size is 0.
    pub fn new(
        lens: Lens,
        image_size: Option<Size>,
        input: &InputConfig,
        data: &DataConfig,
    ) -> Result<Self> {
        let size = internal_size(input)?;
        let internal = input.camera()?;
        let map = (!lens.distortion().is_none())
            .then(|| SourceMap::new(&lens, &internal, size, data.antialias));
        Ok(Self { lens, image_size, internal, size, antialias: data.antialias, map })
    }

    /// The lens.
    pub fn lens(&self) -> &Lens {
        &self.lens
    }

    /// Width and height of the network's input, px.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Whether a picture of that size can be the lens's.
    ///
    /// # Errors
    /// If it is not of the camera's size or, where that is not known, the camera's middle lies outside it.
    pub fn check_size(&self, (width, height): Size) -> Result<()> {
        let Some((w, h)) = self.image_size else {
            return check_center(self.lens.camera(), (width, height));
        };
        ensure!(
            (w, h) == (width, height),
            "the image is {width} x {height} px, but its camera is for {w} x {h} px: scale the camera's fx, fy, cx, cy \
             with the image, or calibrate at its size"
        );
        Ok(())
    }

    /// The picture under the internal camera: RGB, `[h, w, 3]`.
    ///
    /// # Errors
    /// If the picture is of another size than the camera's.
    pub fn picture(&self, image: &RgbImage) -> Result<Vec<u8>> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        self.check_size((width, height))?;
        let source = Raster { pixels: image.as_raw(), width, height };
        match &self.map {
            Some(map) => map.apply(source),
            None => {
                let m = Affine2::between_cameras(self.lens.camera(), &self.internal);
                to_internal(source, &m, self.size, self.antialias)
            }
        }
    }

    /// The fraction of a picture's area that the network gets to see, 0 to 1.
    pub fn coverage(&self, (width, height): (u32, u32)) -> f64 {
        let n = COVERAGE_POINTS;
        let at = |i: u32, side: u32| (f64::from(i) + 0.5) / f64::from(n) * f64::from(side) - 0.5;
        let inside = |v: f64, side: usize| (-0.5..side as f64 - 0.5).contains(&v);
        let points = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
        let seen = points.filter(|&(i, j)| {
            let pixel = Vec2::new(at(i, width), at(j, height));
            self.lens.direction_of(&pixel).is_some_and(|d| {
                let p = self.internal.project(&crate::geom::Vec3::new(d.x, d.y, 1.0));
                inside(p.x, self.size.0) && inside(p.y, self.size.1)
            })
        });
        seen.count() as f64 / f64::from(n * n)
    }
}

/// Width and height of the network's input, px.
///
/// # Errors
/// If one is 0.
pub(super) fn internal_size(input: &InputConfig) -> Result<Size> {
    let (width, height) = (input.width, input.height);
    ensure!(
        width > 0 && height > 0,
        "INPUT.INTERNAL_WIDTH and INTERNAL_HEIGHT are {width} and {height} px, expected more than 0"
    );
    Ok((width, height))
}

/// Whether a picture can be a camera's: the middle of a camera lies in its pictures.
pub(super) fn check_center(camera: &Camera, (width, height): Size) -> Result<()> {
    let center = camera.center_px();
    ensure!(
        (0.0..width as f64).contains(&center.x) && (0.0..height as f64).contains(&center.y),
        "the image is {width} x {height} px, but the middle of its camera is at ({}, {}) px: is it of another size?",
        center.x,
        center.y
    );
    Ok(())
}

/// A pinhole's picture under the internal camera.
pub(super) fn to_internal(
    source: Raster,
    m: &Affine2,
    size: Size,
    antialias: bool,
) -> Result<Vec<u8>> {
    let warp = if antialias { warp_rgb_antialiased } else { warp_rgb };
    warp(source, m, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Preparer;
    use crate::data::testing::{IMAGE, TinyDataset};
    use crate::geom::Distortion;
    use crate::io::picture::read_rgb;

    #[test]
    fn a_view_gives_the_pixels_of_a_sample() {
        let mut tiny = TinyDataset::new();
        for antialias in [false, true] {
            tiny.data.antialias = antialias;
            let dataset = tiny.open(false).unwrap();
            let sample = Preparer::new(&tiny.input, &tiny.data).unwrap();
            let sample = sample.load(&dataset, 0, None).unwrap();
            let lens = Lens::from(dataset.frames[0].camera);
            let view = View::new(lens, None, &tiny.input, &tiny.data).unwrap();
            let image = read_rgb(&tiny.root().join(IMAGE)).unwrap();
            assert_eq!(view.picture(&image).unwrap(), sample.pixels);
            assert_eq!(view.coverage((64, 64)), 1.0);
        }
    }

    #[test]
    fn pictures_of_another_size_are_refused() {
        let input = InputConfig { width: 32, height: 32, ..InputConfig::default() };
        let camera = Camera::new(100.0, 100.0, 64.0, 40.0).unwrap();
        let distortion = Distortion::polynomial(&[-0.2, 0.0, 0.0, 0.0]).unwrap();
        let view = |size| {
            let lens = Lens::new(camera, distortion);
            View::new(lens, size, &input, &DataConfig::default()).unwrap()
        };
        let of = |w, h| RgbImage::new(w, h);
        assert!(view(Some((128, 80))).picture(&of(128, 80)).is_ok());
        let error = view(Some((128, 80))).picture(&of(64, 40)).unwrap_err().to_string();
        assert!(error.contains("is 64 x 40 px, but its camera is for 128 x 80 px"), "{error}");
        assert!(view(None).picture(&of(128, 80)).is_ok());
        let error = view(None).picture(&of(64, 40)).unwrap_err().to_string();
        assert!(error.contains("middle of its camera is at (64, 40)"), "{error}");
    }

    #[test]
    fn coverage_is_the_fraction_of_the_picture_that_is_seen() {
        // The internal camera sees x / z and y / z within +-0.32, the picture's within +-0.64.
        let k = [100.0, 0.0, 31.5, 0.0, 100.0, 31.5, 0.0, 0.0, 1.0];
        let input = InputConfig { width: 64, height: 64, k, ..InputConfig::default() };
        let camera = Camera::new(100.0, 100.0, 63.5, 63.5).unwrap();
        let view = View::new(camera.into(), None, &input, &DataConfig::default()).unwrap();
        assert_eq!(view.coverage((128, 128)), 0.25);
    }
}
