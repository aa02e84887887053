//! EPnP: a pose from many points without a start, in linear time.

use nalgebra::{Matrix3, SMatrix, SVector, SymmetricEigen, Vector4};

use crate::geom::{Camera, Pose, Vec2, Vec3, nearest_rotation};

/// A point set is flat (or straight) when its spread in a direction is below this fraction of the largest.
const FLATNESS: f64 = 1e-4;

/// Gauss-Newton steps on the kernel's coefficients.
const NUM_STEPS: usize = 8;

/// The pose of `points` (object frame, mm) seen at `pixels`, by EPnP: points are weighted sums of four control
/// points (three when all points lie in a plane), whose camera coordinates are a combination of the kernel of a
/// linear system; its coefficients come from the control points' known distances.
///
/// The result is that of the paper: close to, and without noise equal to, the least-squares pose; refine it with
/// [`crate::geom::refine_pose`]. With four or five points the kernel is larger than the coefficients searched here:
/// then it may fail or be far off.
///
/// Returns `None` for different counts, fewer than 4 points, a number that is not finite, points on a line, or when no
/// candidate has all points in front of the camera.
///
/// # Source
/// Lepetit, Moreno-Noguer, Fua, *EPnP: An Accurate O(n) Solution to the PnP Problem*, IJCV 2009: sections 3.1 to
/// 3.4 (kernel of dimension 1 to 3 and the linearisation with 4, then Gauss-Newton).
pub fn epnp(camera: &Camera, points: &[Vec3], pixels: &[Vec2]) -> Option<Pose> {
    let finite = points.iter().all(|x| x.iter().all(|v| v.is_finite()))
        && pixels.iter().all(|p| p.iter().all(|v| v.is_finite()));
    if points.len() != pixels.len() || points.len() < 4 || !finite {
        return None;
    }
    let frame = ControlFrame::of(points)?;
    let kernel = Kernel::of(camera, pixels, &frame)?;
    let mut best: Option<(f64, Pose)> = None;
    for start in kernel.starts() {
        let betas = kernel.descend(start);
        let Some(pose) = kernel.pose(&betas, points, &frame) else { continue };
        let Some(cost) = cost_px2(camera, points, pixels, &pose) else { continue };
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, pose));
        }
    }
    best.map(|(_, pose)| pose)
}

/// Sum of squared reprojection distances, px^2; none with a point at or behind the camera.
fn cost_px2(camera: &Camera, points: &[Vec3], pixels: &[Vec2], pose: &Pose) -> Option<f64> {
    let mut sum = 0.0;
    for (x, pixel) in points.iter().zip(pixels) {
        let x_cam = pose.apply(x);
        if x_cam.z <= 0.0 {
            return None;
        }
        sum += (camera.project(&x_cam) - pixel).norm_squared();
    }
    sum.is_finite().then_some(sum)
}

/// Control points (the first is the centre) and each point as their weighted sum.
struct ControlFrame {
    controls: Vec<Vec3>,
    weights: Vec<[f64; 4]>,
}

impl ControlFrame {
    /// The frame along the principal axes; three control points for a flat set, none for a straight one.
    fn of(points: &[Vec3]) -> Option<Self> {
        let n = points.len() as f64;
        let center = points.iter().sum::<Vec3>() / n;
        let mut covariance = Matrix3::zeros();
        for x in points {
            let d = x - center;
            covariance += d * d.transpose() / n;
        }
        let eigen = SymmetricEigen::try_new(covariance, f64::EPSILON, 100)?;
        let mut order = [0, 1, 2];
        order.sort_by(|&i, &j| eigen.eigenvalues[j].total_cmp(&eigen.eigenvalues[i]));
        let spreads = order.map(|i| eigen.eigenvalues[i].max(0.0).sqrt());
        let num_axes = spreads.iter().filter(|&&s| s > FLATNESS * spreads[0]).count();
        if num_axes < 2 {
            return None;
        }
        let mut controls = vec![center];
        let mut duals = Vec::new(); // of the axes: weight = dual . (x - center)
        for a in 0..num_axes {
            let axis: Vec3 = eigen.eigenvectors.column(order[a]).into_owned();
            controls.push(center + axis * spreads[a]);
            duals.push(axis / spreads[a]);
        }
        let weights = points.iter().map(|x| {
            let mut w = [0.0; 4];
            for (a, dual) in duals.iter().enumerate() {
                w[a + 1] = dual.dot(&(x - center));
            }
            w[0] = 1.0 - w[1] - w[2] - w[3];
            w
        });
        let weights = weights.collect();
        Some(Self { controls, weights })
    }
}

/// The null directions of the projection equations, smallest first, and the distances they must reproduce.
struct Kernel {
    /// `[direction][control]`: camera coordinates.
    vectors: Vec<[Vec3; 4]>,
    num_controls: usize,
    /// For each pair of control points: the directions' differences and the squared distance.
    pairs: Vec<([Vec3; 4], f64)>,
}

impl Kernel {
    fn of(camera: &Camera, pixels: &[Vec2], frame: &ControlFrame) -> Option<Self> {
        let num_controls = frame.controls.len();
        let (fx, fy) = camera.focal_px();
        let mut normal = SMatrix::<f64, 12, 12>::zeros();
        for (w, pixel) in frame.weights.iter().zip(pixels) {
            let ray = camera.ray(pixel);
            // Rows f w_j (1, 0, -x) and f w_j (0, 1, -y) over the control points: residuals in px times depth.
            let block = Matrix3::new(
                fx * fx,
                0.0,
                -fx * fx * ray.x, //
                0.0,
                fy * fy,
                -fy * fy * ray.y, //
                -fx * fx * ray.x,
                -fy * fy * ray.y,
                fx * fx * ray.x * ray.x + fy * fy * ray.y * ray.y,
            );
            for i in 0..num_controls {
                for j in i..num_controls {
                    let mut view = normal.fixed_view_mut::<3, 3>(3 * i, 3 * j);
                    view += block * (w[i] * w[j]);
                }
            }
        }
        for i in 0..12 {
            for j in 0..i {
                normal[(i, j)] = normal[(j, i)];
            }
        }
        let most = normal.diagonal().max();
        for i in 3 * num_controls..12 {
            normal[(i, i)] = 1e3 * most; // an unused control point is not part of the kernel
        }
        if !(most > 0.0 && most.is_finite()) {
            return None;
        }
        let eigen = SymmetricEigen::try_new(normal / most, f64::EPSILON, 500)?;
        let mut order: Vec<usize> = (0..12).collect();
        order.sort_by(|&i, &j| eigen.eigenvalues[i].total_cmp(&eigen.eigenvalues[j]));
        let vectors: Vec<[Vec3; 4]> = order[..num_controls]
            .iter()
            .map(|&k| {
                let column: SVector<f64, 12> = eigen.eigenvectors.column(k).into_owned();
                std::array::from_fn(|c| column.fixed_rows::<3>(3 * c).into_owned())
            })
            .collect();
        let mut pairs = Vec::new();
        for i in 0..num_controls {
            for j in i + 1..num_controls {
                let differences =
                    std::array::from_fn(|a| vectors.get(a).map_or(Vec3::zeros(), |v| v[i] - v[j]));
                let distance = (frame.controls[i] - frame.controls[j]).norm_squared();
                pairs.push((differences, distance));
            }
        }
        Some(Self { vectors, num_controls, pairs })
    }

    /// First guesses of the coefficients for kernels of different dimension.
    fn starts(&self) -> Vec<Vector4<f64>> {
        let mut starts = Vec::with_capacity(4);
        // One direction: the scale that fits the distances.
        let (mut dot, mut norm) = (0.0, 0.0);
        for (d, squared) in &self.pairs {
            dot += d[0].norm() * squared.sqrt();
            norm += d[0].norm_squared();
        }
        starts.push(Vector4::new(dot / norm, 0.0, 0.0, 0.0));
        if let Some(b) = self.products([(0, 0), (0, 1), (1, 1)]) {
            let (b1, b2) = two_coefficients(b[0], b[1], b[2]);
            starts.push(Vector4::new(b1, b2, 0.0, 0.0));
        }
        if self.num_controls == 4 {
            if let Some(b) = self.products([(0, 0), (0, 1), (1, 1), (0, 2), (1, 2)]) {
                let (b1, b2) = two_coefficients(b[0], b[1], b[2]);
                starts.push(Vector4::new(b1, b2, b[3] / b1, 0.0));
            }
            if let Some(b) = self.products([(0, 0), (0, 1), (0, 2), (0, 3)]) {
                let b1 = b[0].abs().sqrt();
                let sign = b[0].signum();
                starts.push(Vector4::new(b1, sign * b[1] / b1, sign * b[2] / b1, sign * b[3] / b1));
            }
        }
        starts.retain(|s| s.iter().all(|v| v.is_finite()));
        starts
    }

    /// Least squares for products of coefficients `b_i b_j`, each an unknown of its own; by the normal equations, since
    /// what comes out is a start.
    fn products<const N: usize>(&self, unknowns: [(usize, usize); N]) -> Option<SVector<f64, N>> {
        let mut normal = SMatrix::<f64, N, N>::zeros();
        let mut right = SVector::<f64, N>::zeros();
        for (d, squared) in &self.pairs {
            let row = SVector::<f64, N>::from_fn(|column, _| {
                let (i, j) = unknowns[column];
                d[i].dot(&d[j]) * if i == j { 1.0 } else { 2.0 }
            });
            normal += row * row.transpose();
            right += row * *squared;
        }
        Some(normal.cholesky()?.solve(&right))
    }

    /// Gauss-Newton, slightly damped, on the squared distances of the control points.
    fn descend(&self, start: Vector4<f64>) -> Vector4<f64> {
        let mut betas = start;
        for _ in 0..NUM_STEPS {
            let mut jtj = SMatrix::<f64, 4, 4>::zeros();
            let mut jtr = Vector4::zeros();
            for (d, squared) in &self.pairs {
                let sum: Vec3 = (0..4).map(|a| d[a] * betas[a]).sum();
                let gradient = Vector4::from_fn(|a, _| 2.0 * d[a].dot(&sum));
                jtj += gradient * gradient.transpose();
                jtr += gradient * (sum.norm_squared() - squared);
            }
            let damping = 1e-12 * jtj.trace();
            for a in 0..4 {
                jtj[(a, a)] += damping;
            }
            let Some(factor) = jtj.cholesky() else { break };
            let next = betas - factor.solve(&jtr);
            if !next.iter().all(|v| v.is_finite()) {
                break;
            }
            betas = next;
        }
        betas
    }

    /// The rigid pose nearest to the camera coordinates that the coefficients give.
    fn pose(&self, betas: &Vector4<f64>, points: &[Vec3], frame: &ControlFrame) -> Option<Pose> {
        let mut controls = [Vec3::zeros(); 4];
        for (vector, beta) in self.vectors.iter().zip(betas.iter()) {
            for (control, v) in controls.iter_mut().zip(vector) {
                *control += v * *beta;
            }
        }
        let n = points.len() as f64;
        let mut found: Vec<Vec3> =
            frame.weights.iter().map(|w| (0..4).map(|c| controls[c] * w[c]).sum()).collect();
        if found.iter().map(|p| p.z).sum::<f64>() < 0.0 {
            found.iter_mut().for_each(|p| *p = -*p);
        }
        let from = frame.controls[0];
        let to = found.iter().sum::<Vec3>() / n;
        let mut correlation = Matrix3::zeros();
        for (p, x) in found.iter().zip(points) {
            correlation += (p - to) * (x - from).transpose();
        }
        if !correlation.iter().all(|v| v.is_finite()) {
            return None;
        }
        let r = nearest_rotation(&correlation)?;
        let pose = Pose { r, t_mm: to - r * from };
        pose.is_finite().then_some(pose)
    }
}

/// Two coefficients from their products `b1 b1`, `b1 b2`, `b2 b2`.
fn two_coefficients(b11: f64, b12: f64, b22: f64) -> (f64, f64) {
    let sign = b11.signum();
    let (b1, b2) = (b11.abs().sqrt(), (sign * b22).max(0.0).sqrt());
    if sign * b12 < 0.0 { (-b1, b2) } else { (b1, b2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::box_corners;
    use crate::seed;
    use nalgebra::Rotation3;
    use rand::Rng;

    fn camera() -> Camera {
        Camera::from_row_major(&[607.0, 1.5, 512.0, 0.0, 590.0, 500.0, 0.0, 0.0, 1.0]).unwrap()
    }

    #[test]
    fn without_noise_the_pose_comes_back() {
        let corners = box_corners(&[[-50.0, -60.0, -40.0], [50.0, 40.0, 70.0]]);
        let shapes: [Vec<Vec3>; 3] = [
            corners.to_vec(),
            corners[..4].to_vec(), // a face: flat
            (0..30)
                .map(|i| Vec3::new(f64::from(i), f64::from(i * i % 17), f64::from(i % 5)))
                .collect(),
        ];
        let mut rng = seed::stream(1, &[]);
        for case in 0..300 {
            let points = &shapes[case % 3];
            let turn = Vec3::from_fn(|_, _| rng.random_range(-3.0..3.0));
            let t_mm = Vec3::new(
                rng.random_range(-90.0..90.0),
                rng.random_range(-90.0..90.0),
                rng.random_range(300.0..2000.0),
            );
            let truth = Pose { r: *Rotation3::from_scaled_axis(turn).matrix(), t_mm };
            let pixels = truth.project(&camera(), points);
            let found = epnp(&camera(), points, &pixels).unwrap();
            assert!((found.r - truth.r).norm() < 1e-6, "case {case}: {found:?} {truth:?}");
            assert!((found.t_mm - truth.t_mm).norm() < 1e-6 * t_mm.z, "case {case}");
        }
    }

    #[test]
    fn what_determines_no_pose_is_refused() {
        let camera = camera();
        let points = box_corners(&[[-50.0; 3], [50.0; 3]]).to_vec();
        let truth = Pose { t_mm: Vec3::new(0.0, 10.0, 900.0), ..Pose::identity() };
        let pixels = truth.project(&camera, &points);
        assert!(epnp(&camera, &points, &pixels).is_some());
        assert!(epnp(&camera, &points[..3], &pixels[..3]).is_none());
        assert!(epnp(&camera, &points, &pixels[..7]).is_none());
        assert!(epnp(&camera, &[points[0]; 8], &pixels).is_none());
        let line: Vec<Vec3> = (0..8).map(|i| points[1] * f64::from(i)).collect();
        assert!(epnp(&camera, &line, &pixels).is_none());
        let mut broken = pixels.clone();
        broken[3].x = f64::NAN;
        assert!(epnp(&camera, &points, &broken).is_none());
        let mut broken = points.clone();
        broken[3].z = f64::INFINITY;
        assert!(epnp(&camera, &broken, &pixels).is_none());
    }
}
