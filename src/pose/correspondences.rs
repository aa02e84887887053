//! Correspondences prepared for the solver: finite ones alone, sorted, in the object's own unit.

use std::ops::Range;

use nalgebra::Matrix3;

use crate::geom::{Camera, Pose, Vec2, Vec3};

/// Points spread less than this fraction of their largest spread are flat, or on a line.
const FLATNESS: f64 = 1e-4;
/// Sightings of each point from which on their median is worth something.
const MIN_SIGHTINGS: usize = 3;

/// Sorted correspondences: equal points stand together, and the order of the input is gone.
pub(super) struct SortedCorrespondences {
    /// Points about their mean, in units of their spread.
    pub points: Vec<Vec3>,
    /// Pixels.
    pub pixels: Vec<Vec2>,
    /// Unit directions of the pixels.
    pub rays: Vec<Vec3>,
    /// Ranges of equal points.
    pub groups: Vec<Range<usize>>,
    given: Vec<usize>,
    center: Vec3,
    unit: f64,
    /// Normal of the plane that holds all points (about their mean), if one does.
    plane: Option<Vec3>,
}

/// Correspondences without repeats of a point.
pub(super) struct Condensed {
    pub points: Vec<Vec3>,
    pub pixels: Vec<Vec2>,
    pub weights: Vec<f64>,
}

impl Condensed {
    /// Point, pixel and weight of each.
    pub fn iter(&self) -> impl Iterator<Item = (&Vec3, &Vec2, f64)> {
        let pairs = self.points.iter().zip(&self.pixels);
        pairs.zip(&self.weights).map(|((x, p), w)| (x, p, *w))
    }
}

impl SortedCorrespondences {
    /// Keeps what is finite; none when fewer than 4 distinct points are left or they are on a line.
    pub fn new(camera: &Camera, points: &[Vec3], pixels: &[Vec2]) -> Option<Self> {
        let finite = |i: &usize| {
            points[*i].iter().all(|v| v.is_finite()) && pixels[*i].iter().all(|v| v.is_finite())
        };
        let mut given: Vec<usize> = (0..points.len()).filter(finite).collect();
        let key = |i: usize| {
            let (x, p) = (&points[i], &pixels[i]);
            // Adding 0 makes -0 equal to 0.
            [x.x + 0.0, x.y + 0.0, x.z + 0.0, p.x, p.y]
        };
        given.sort_by(|&i, &j| {
            let (a, b) = (key(i), key(j));
            let pairs = a.iter().zip(&b);
            pairs.map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne()).unwrap_or(i.cmp(&j))
        });
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (place, &i) in given.iter().enumerate() {
            match groups.last_mut() {
                Some(last) if points[given[last.start]] == points[i] => last.end = place + 1,
                _ => groups.push(place..place + 1),
            }
        }
        if groups.len() < 4 {
            return None;
        }
        // Over distinct points: how often one is seen is not part of the object's shape.
        let distinct: Vec<Vec3> = groups.iter().map(|g| points[given[g.start]]).collect();
        let center = distinct.iter().sum::<Vec3>() / distinct.len() as f64;
        let squares = distinct.iter().map(|x| (x - center).norm_squared());
        let unit = (squares.sum::<f64>() / distinct.len() as f64).sqrt();
        if !(unit > 0.0 && unit.is_finite()) {
            return None;
        }
        let mut covariance = Matrix3::zeros();
        for x in &distinct {
            let d = (x - center) / unit;
            covariance += d * d.transpose();
        }
        let svd = covariance.try_svd(true, false, f64::EPSILON, 100)?;
        let is_flat =
            |i: usize| svd.singular_values[i] <= FLATNESS.powi(2) * svd.singular_values[0];
        if is_flat(1) {
            return None;
        }
        let plane = if is_flat(2) { svd.u.map(|u| u.column(2).into_owned()) } else { None };
        let pixels: Vec<Vec2> = given.iter().map(|&i| pixels[i]).collect();
        let rays: Vec<Vec3> = pixels.iter().map(|p| camera.ray(p).normalize()).collect();
        if !rays.iter().all(|r| r.iter().all(|v| v.is_finite())) {
            return None;
        }
        let points = given.iter().map(|&i| (points[i] - center) / unit).collect();
        Some(Self { points, pixels, rays, groups, given, center, unit, plane })
    }

    /// Index of a correspondence in the caller's lists.
    pub fn given_index(&self, i: usize) -> usize {
        self.given[i]
    }

    /// A pose of the prepared points as one of the caller's.
    pub fn in_given_unit(&self, pose: &Pose) -> Pose {
        Pose { r: pose.r, t_mm: pose.t_mm * self.unit - pose.r * self.center }
    }

    /// Reprojection distance of each correspondence, px.
    pub fn distances_px(&self, camera: &Camera, pose: &Pose) -> Vec<f64> {
        let mut distances = Vec::with_capacity(self.points.len());
        for group in &self.groups {
            let seen = camera.project(&pose.apply(&self.points[group.start]));
            distances.extend(self.pixels[group.clone()].iter().map(|p| (seen - p).norm()));
        }
        distances
    }

    /// Correspondences within `inlier_px`; none when a point is not in front of the camera.
    pub fn inliers(&self, camera: &Camera, pose: &Pose, inlier_px: f64) -> Option<Vec<usize>> {
        let mut inliers = Vec::with_capacity(self.points.len());
        for group in &self.groups {
            let x_cam = pose.apply(&self.points[group.start]);
            if x_cam.z.is_nan() || x_cam.z <= 0.0 {
                return None;
            }
            let seen = camera.project(&x_cam);
            let near = |i: &usize| (seen - self.pixels[*i]).norm() < inlier_px;
            inliers.extend(group.clone().filter(near));
        }
        Some(inliers)
    }

    /// Weight 1 for some correspondences, 0 for the others.
    pub fn indicator(&self, indices: &[usize]) -> Vec<f64> {
        let mut weights = vec![0.0; self.points.len()];
        indices.iter().for_each(|&i| weights[i] = 1.0);
        weights
    }

    /// Each distinct point once, at the weighted mean of its pixels and with their total weight: the squared
    /// error of a pose over these differs from that over all by a constant. Points without weight drop out.
    pub fn condensed(&self, weights: &[f64]) -> Condensed {
        let mut condensed = Condensed { points: vec![], pixels: vec![], weights: vec![] };
        for group in &self.groups {
            let total: f64 = weights[group.clone()].iter().sum();
            if total > 0.0 {
                let sum: Vec2 = group.clone().map(|i| self.pixels[i] * weights[i]).sum();
                condensed.points.push(self.points[group.start]);
                condensed.pixels.push(sum / total);
                condensed.weights.push(total);
            }
        }
        condensed
    }

    /// Each distinct point with the median of its pixels, when every one of at least 4 is seen often enough.
    pub fn medians(&self) -> Option<(Vec<Vec3>, Vec<Vec2>)> {
        if self.groups.iter().any(|g| g.len() < MIN_SIGHTINGS) {
            return None;
        }
        let median = |group: &Range<usize>, axis: usize| {
            let mut values: Vec<f64> = self.pixels[group.clone()].iter().map(|p| p[axis]).collect();
            let middle = values.len() / 2;
            *values.select_nth_unstable_by(middle, f64::total_cmp).1
        };
        let pair = |g: &Range<usize>| (self.points[g.start], Vec2::new(median(g, 0), median(g, 1)));
        Some(self.groups.iter().map(pair).unzip())
    }

    /// For points in a plane: the pose that looks alike from afar, the plane tilted the other way.
    pub fn other_side(&self, pose: &Pose) -> Option<Pose> {
        let normal = self.plane?;
        let reversed = self.depth_reversed(pose);
        // Points of the plane do not move under their mirror image, which -1 makes a half turn about the normal.
        let half_turn = normal * normal.transpose() * 2.0 - Matrix3::identity();
        Some(Pose { r: reversed.r * half_turn, t_mm: reversed.t_mm })
    }

    /// The pose of the mirrored points (-x) that looks alike from afar: depths about the centre reversed.
    pub fn depth_reversed(&self, pose: &Pose) -> Pose {
        // A half turn about the line of sight negates what is across it and keeps what is along it, so that of -x
        // the depths alone are reversed.
        let half_turn = pose.t_mm.try_normalize(0.0).map_or_else(Matrix3::identity, |sight| {
            sight * sight.transpose() * 2.0 - Matrix3::identity()
        });
        Pose { r: half_turn * pose.r, t_mm: pose.t_mm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera() -> Camera {
        Camera::new(100.0, 100.0, 50.0, 50.0).unwrap()
    }

    /// A square with a tip; the first point is seen three times.
    fn scene() -> (Vec<Vec3>, Vec<Vec2>) {
        let points = [
            (1.0, 1.0, 0.0),
            (-1.0, 1.0, 0.0),
            (1.0, 1.0, 0.0),
            (-1.0, -1.0, 0.0),
            (1.0, -1.0, 0.0),
            (0.0, 0.0, 1.0),
            (1.0, 1.0, 0.0),
        ];
        let points = points.map(|(x, y, z)| Vec3::new(x, y, z)).to_vec();
        let pixels = (0..7).map(|i| Vec2::new(f64::from(i), f64::from(i * i))).collect();
        (points, pixels)
    }

    #[test]
    fn repeats_stand_together_and_know_where_they_came_from() {
        let (points, pixels) = scene();
        let data = SortedCorrespondences::new(&camera(), &points, &pixels).unwrap();
        let mut lengths: Vec<usize> = data.groups.iter().map(ExactSizeIterator::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [1, 1, 1, 1, 3]);
        for i in 0..7 {
            let given = data.given_index(i);
            assert_eq!(data.pixels[i], pixels[given]);
            assert!((data.points[i] * data.unit + data.center - points[given]).norm() < 1e-12);
        }
        assert!(data.medians().is_none());
    }

    #[test]
    fn condensing_changes_a_squared_error_by_a_constant() {
        let (points, pixels) = scene();
        let camera = camera();
        let data = SortedCorrespondences::new(&camera, &points, &pixels).unwrap();
        let weights: Vec<f64> = (0..7).map(|i| f64::from(i) * 0.5).collect();
        let condensed = data.condensed(&weights);
        assert!(condensed.points.len() <= 5);
        let difference = |z: f64| {
            let pose = Pose { t_mm: Vec3::new(0.1, 0.2, z), ..Pose::identity() };
            let distances = data.distances_px(&camera, &pose);
            let all: f64 = distances.iter().zip(&weights).map(|(d, w)| w * d * d).sum();
            let few = condensed
                .iter()
                .map(|(x, p, w)| w * (camera.project(&pose.apply(x)) - p).norm_squared());
            all - few.sum::<f64>()
        };
        assert!((difference(5.0) - difference(9.0)).abs() < 1e-9);
        assert!(difference(5.0) > 1.0);
    }

    #[test]
    fn depth_reversed_poses_look_alike_from_afar() {
        let (points, pixels) = scene();
        let camera = camera();
        let data = SortedCorrespondences::new(&camera, &points, &pixels).unwrap();
        let r = *nalgebra::Rotation3::from_euler_angles(0.4, -0.8, 2.0).matrix();
        let pose = Pose { r, t_mm: Vec3::new(300.0, 200.0, 2000.0) };
        let mirrored = data.depth_reversed(&pose);
        for x in &data.points {
            let (a, b) = (camera.project(&pose.apply(x)), camera.project(&mirrored.apply(&-x)));
            assert!((a - b).norm() < 1e-3, "{a} {b}");
        }
        assert!(data.other_side(&pose).is_none());
        // Flat: the other side is a pose of the same points.
        let flat: Vec<Vec3> = points.iter().map(|x| Vec3::new(x.x, x.y, x.x + x.y)).collect();
        let data = SortedCorrespondences::new(&camera, &flat, &pixels).unwrap();
        let other = data.other_side(&pose).unwrap();
        assert!((other.r - pose.r).norm() > 0.1 && other.r.determinant() > 0.0);
        for x in &data.points {
            let (a, b) = (camera.project(&pose.apply(x)), camera.project(&other.apply(x)));
            assert!((a - b).norm() < 1e-3, "{a} {b}");
        }
    }

    #[test]
    fn medians_need_every_point_seen_thrice() {
        let (points, _) = scene();
        let thrice: Vec<Vec3> = points[1..6].iter().flat_map(|x| [*x; 3]).collect();
        let pixels: Vec<Vec2> = (0..15)
            .map(|i| Vec2::new(f64::from([1, 9, 2][i % 3]), f64::from([5, 4, 900][i % 3])))
            .collect();
        let data = SortedCorrespondences::new(&camera(), &thrice, &pixels).unwrap();
        let (points, pixels) = data.medians().unwrap();
        assert_eq!(points.len(), 5);
        assert!(pixels.iter().all(|p| *p == Vec2::new(2.0, 5.0)));
    }
}
