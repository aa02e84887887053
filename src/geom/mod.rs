//! Cameras and their lenses, rigid poses, image-plane affine maps and the pose refiner; f64, no tensors.
//!
//! Frames: `obj` is the mesh's frame (mm), `cam` the camera's (x right, y down, z forward, mm).
//! A [`Pose`] maps `obj` to `cam`: `x_cam = R x_obj + t`. Pixels have the centre of the top-left
//! pixel at (0, 0). Start at [`Camera`] and [`Pose`].

mod affine;
mod camera;
mod correspondences;
mod depth;
mod distortion;
mod lens;
mod pose;
mod refine;
mod turn;

pub use affine::Affine2;
pub use camera::Camera;
pub use correspondences::Correspondences;
pub use depth::{DepthPatch, render_depth};
pub use distortion::Distortion;
pub use lens::Lens;
pub use pose::{Pose, nearest_rotation};
pub use refine::{Refined, moved_by, refine_pose, refine_pose_weighted, reprojection_jacobian};
pub use turn::best_turn;

use nalgebra::{Vector2, Vector3};

/// A point or direction in 3D, mm.
pub type Vec3 = Vector3<f64>;
/// A point in the image, px.
pub type Vec2 = Vector2<f64>;

/// The 8 corners of a mesh's axis-aligned box, mm, in the order of the dataset's bounding-box file
/// (x slowest, z fastest: index = 4 (x > 0) + 2 (y > 0) + (z > 0)).
pub type Corners = [Vec3; 8];

/// The corners of the axis-aligned box of `points`, in [`Corners`] order; zeros when there are none.
pub fn box_corners<'a>(points: impl IntoIterator<Item = &'a [f64; 3]>) -> Corners {
    let mut low = [f64::INFINITY; 3];
    let mut high = [f64::NEG_INFINITY; 3];
    let mut num_points = 0;
    for p in points {
        num_points += 1;
        for a in 0..3 {
            low[a] = low[a].min(p[a]);
            high[a] = high[a].max(p[a]);
        }
    }
    if num_points == 0 {
        return [Vec3::zeros(); 8];
    }
    std::array::from_fn(|i| {
        let pick = |bit: usize, axis: usize| if i & bit != 0 { high[axis] } else { low[axis] };
        Vec3::new(pick(4, 0), pick(2, 1), pick(1, 2))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners_run_with_x_slowest_and_z_fastest() {
        let c = box_corners(&[[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]]);
        assert_eq!(c[0], Vec3::new(-1.0, -2.0, -3.0));
        assert_eq!(c[1], Vec3::new(-1.0, -2.0, 3.0));
        assert_eq!(c[2], Vec3::new(-1.0, 2.0, -3.0));
        assert_eq!(c[4], Vec3::new(1.0, -2.0, -3.0));
        assert_eq!(c[7], Vec3::new(1.0, 2.0, 3.0));
    }
}
