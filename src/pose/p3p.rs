//! Pose from three points: the minimal solver behind RANSAC.

use nalgebra::{Matrix3, Vector3};

use crate::geom::{Pose, Vec3};

/// How far the polished distances may miss the triangle's squared sides, relative to the largest.
const SIDE_TOLERANCE: f64 = 1e-8;

/// The poses (up to four) that put three points onto three rays, all in front of the camera.
///
/// `rays` are unit directions in the camera frame, `points` the object's (any unit; the translation comes out in
/// it). Degenerate input gives fewer or no poses, never a number that is not finite.
///
/// With depths `l_i` along the rays, the law of cosines `l_i^2 + l_j^2 - 2 l_i l_j (y_i . y_j) = |x_i - x_j|^2` gives
/// two homogeneous conics in `(l_1, l_2, l_3)`. A singular member of their pencil is a pair of lines, and each
/// line meets a conic in up to two points.
///
/// # Source
/// The formulation by the pencil's singular conic: Persson, Nordberg, *Lambda Twist: An Accurate Fast Robust
/// Perspective Three Point (P3P) Solver*, ECCV 2018; the split of a singular conic into lines: Richter-Gebert,
/// *Perspectives on Projective Geometry*, 2011, section 11.1.
pub(super) fn p3p(points: &[Vec3; 3], rays: &[Vec3; 3]) -> Vec<Pose> {
    let mut poses = Vec::with_capacity(4);
    // Pairs (0,1), (0,2), (1,2): squared sides, relative to the largest, and cosines.
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let sides = pairs.map(|(i, j)| (points[i] - points[j]).norm_squared());
    let largest = sides.iter().copied().fold(0.0, f64::max);
    if !(largest > 0.0 && largest.is_finite()) {
        return poses;
    }
    let sides = sides.map(|s| s / largest);
    let cosines = pairs.map(|(i, j)| rays[i].dot(&rays[j]));
    let forms: [Matrix3<f64>; 3] = std::array::from_fn(|p| {
        let (i, j) = pairs[p];
        let mut form = Matrix3::zeros();
        form[(i, i)] = 1.0;
        form[(j, j)] = 1.0;
        form[(i, j)] = -cosines[p];
        form[(j, i)] = -cosines[p];
        form
    });
    let first = forms[0] * sides[2] - forms[2] * sides[0];
    let second = forms[1] * sides[2] - forms[2] * sides[1];
    let Some((singular, other)) = singular_member(&first, &second) else { return poses };
    let Some(lines) = split_into_lines(&singular) else { return poses };
    let total_form = forms[0] + forms[1] + forms[2];
    let total_side: f64 = sides.iter().sum();
    for line in lines {
        for direction in line_on_conic(&line, &other).into_iter().flatten() {
            let norm = direction.dot(&(total_form * direction));
            let mut depths = direction * ((total_side / norm).sqrt() * direction.sum().signum());
            polish(&mut depths, &sides, &cosines);
            let close = pairs.iter().enumerate().all(|(p, &(i, j))| {
                let (a, b) = (depths[i], depths[j]);
                (a * a + b * b - 2.0 * a * b * cosines[p] - sides[p]).abs() < SIDE_TOLERANCE
            });
            if close && depths.iter().all(|&d| d > 0.0) {
                let depths = depths * largest.sqrt();
                let found = std::array::from_fn(|i| rays[i] * depths[i]);
                poses.extend(align_triangles(points, &found).filter(Pose::is_finite));
            }
        }
    }
    poses
}

/// A member of the pencil of two conics with determinant zero, and a member far from it.
fn singular_member(
    first: &Matrix3<f64>,
    second: &Matrix3<f64>,
) -> Option<(Matrix3<f64>, Matrix3<f64>)> {
    let (norm_1, norm_2) = (first.norm(), second.norm());
    if !(norm_1 > 0.0 && norm_2 > 0.0) {
        return None;
    }
    let (mut a, mut b) = (first / norm_1, second / norm_2);
    // det(a + g b) = det a + g tr(adj(a) b) + g^2 tr(adj(b) a) + g^3 det b, with the larger cubic coefficient.
    if a.determinant().abs() > b.determinant().abs() {
        std::mem::swap(&mut a, &mut b);
    }
    let cubic = b.determinant();
    let (adj_a, adj_b) = (adjugate(&a), adjugate(&b));
    let g = if cubic == 0.0 {
        0.0 // both are singular already
    } else {
        real_cubic_root(
            (adj_b * a).trace() / cubic,
            (adj_a * b).trace() / cubic,
            a.determinant() / cubic,
        )
    };
    g.is_finite().then(|| {
        let singular = a + b * g;
        if g.abs() > 1.0 { (singular, a) } else { (singular, b) }
    })
}

/// A real root of `x^3 + p x^2 + q x + r`: the one that lies farthest from the roots' mean.
fn real_cubic_root(p: f64, q: f64, r: f64) -> f64 {
    let shift = p / 3.0;
    // y^3 + m y + n with x = y - shift
    let m = q - p * shift;
    let n = 2.0 * shift.powi(3) - q * shift + r;
    let discriminant = (n / 2.0).powi(2) + (m / 3.0).powi(3);
    let y = if discriminant >= 0.0 {
        let root = discriminant.sqrt();
        let c = if n > 0.0 { (-n / 2.0 - root).cbrt() } else { (-n / 2.0 + root).cbrt() };
        if c == 0.0 { 0.0 } else { c - m / (3.0 * c) }
    } else {
        let radius = (-m / 3.0).sqrt();
        let cosine = (n.abs() / (2.0 * radius.powi(3))).clamp(-1.0, 1.0);
        -n.signum() * 2.0 * radius * (cosine.acos() / 3.0).cos()
    };
    let mut x = y - shift;
    for _ in 0..3 {
        let slope = (3.0 * x + 2.0 * p) * x + q;
        let step = (((x + p) * x + q) * x + r) / slope;
        if step.is_finite() {
            x -= step;
        }
    }
    x
}

/// The two lines of a singular conic; none when they are not real.
fn split_into_lines(conic: &Matrix3<f64>) -> Option<[Vec3; 2]> {
    let b = -adjugate(conic);
    let i = (0..3).max_by(|&i, &j| b[(i, i)].total_cmp(&b[(j, j)]))?;
    if b[(i, i)] < 0.0 {
        return None;
    }
    // The lines' intersection, scaled so that adding its cross-product matrix leaves rank one.
    let beta = b[(i, i)].sqrt();
    let meet: Vec3 = if beta > 0.0 { b.column(i) / beta } else { Vec3::zeros() };
    let rank_one = conic + meet.cross_matrix();
    let (row, column) = rank_one.abs().iamax_full();
    Some([rank_one.row(row).transpose(), rank_one.column(column).into_owned()])
}

/// The up to two directions that are orthogonal to `line` and on `conic`.
fn line_on_conic(line: &Vec3, conic: &Matrix3<f64>) -> [Option<Vec3>; 2] {
    let Some(normal) = line.try_normalize(0.0) else { return [None; 2] };
    let mut axis = Vector3::zeros();
    axis[normal.iamin()] = 1.0;
    let u = normal.cross(&axis).normalize();
    let v = normal.cross(&u);
    // a s^2 + 2 b s t + c t^2 = 0 over s u + t v
    let (cu, cv) = (conic * u, conic * v);
    let (a, b, c) = (u.dot(&cu), u.dot(&cv), v.dot(&cv));
    let discriminant = b * b - a * c;
    if discriminant < -1e-12 * (b * b + (a * c).abs()) {
        return [None; 2];
    }
    let root = discriminant.max(0.0).sqrt();
    // Of each root the form without cancellation.
    let w = if b > 0.0 { -b - root } else { -b + root };
    [u * w + v * a, u * c + v * w]
        .map(|d| d.try_normalize(1e-150).filter(|d| d.iter().all(|x| x.is_finite())))
}

/// Newton steps on the depths along the rays for the squared sides.
fn polish(depths: &mut Vec3, sides: &[f64; 3], cosines: &[f64; 3]) {
    for _ in 0..4 {
        let [x, y, z] = [depths.x, depths.y, depths.z];
        let [c01, c02, c12] = *cosines;
        let residual = Vec3::new(
            x * x + y * y - 2.0 * x * y * c01 - sides[0],
            x * x + z * z - 2.0 * x * z * c02 - sides[1],
            y * y + z * z - 2.0 * y * z * c12 - sides[2],
        );
        let jacobian = Matrix3::new(
            x - y * c01,
            y - x * c01,
            0.0, //
            x - z * c02,
            0.0,
            z - x * c02, //
            0.0,
            y - z * c12,
            z - y * c12,
        ) * 2.0;
        let Some(inverse) = jacobian.try_inverse() else { return };
        let next = *depths - inverse * residual;
        if !next.iter().all(|v| v.is_finite()) {
            return;
        }
        *depths = next;
    }
}

/// The rigid motion of one triangle onto an equal one.
fn align_triangles(from: &[Vec3; 3], to: &[Vec3; 3]) -> Option<Pose> {
    let frame = |p: &[Vec3; 3]| -> Option<Matrix3<f64>> {
        let x = (p[1] - p[0]).try_normalize(0.0)?;
        let z = x.cross(&(p[2] - p[0])).try_normalize(0.0)?;
        Some(Matrix3::from_columns(&[x, z.cross(&x), z]))
    };
    let r = frame(to)? * frame(from)?.transpose();
    let middle = |p: &[Vec3; 3]| (p[0] + p[1] + p[2]) / 3.0;
    Some(Pose { r, t_mm: middle(to) - r * middle(from) })
}

fn adjugate(m: &Matrix3<f64>) -> Matrix3<f64> {
    let [c0, c1, c2]: [Vec3; 3] = std::array::from_fn(|i| m.column(i).into_owned());
    Matrix3::from_rows(&[
        c1.cross(&c2).transpose(),
        c2.cross(&c0).transpose(),
        c0.cross(&c1).transpose(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use nalgebra::Rotation3;
    use rand::Rng;

    #[test]
    fn one_of_the_poses_is_the_one_that_made_the_rays() {
        let mut rng = seed::stream(3, &[]);
        let mut num_missed = 0;
        for _ in 0..2000 {
            let mut draw = |range: f64| Vec3::from_fn(|_, _| rng.random_range(-range..range));
            let points = [draw(1.0), draw(1.0), draw(1.0)];
            let r = *Rotation3::from_scaled_axis(draw(3.0)).matrix();
            let truth = Pose { r, t_mm: draw(1.0) + Vec3::new(0.0, 0.0, 6.0) };
            let rays = points.map(|x| truth.apply(&x).normalize());
            let poses = p3p(&points, &rays);
            assert!(poses.len() <= 4);
            for pose in &poses {
                for (x, ray) in points.iter().zip(&rays) {
                    assert!((pose.apply(x).normalize() - ray).norm() < 1e-6);
                }
                assert!((pose.r * pose.r.transpose() - Matrix3::identity()).norm() < 1e-9);
                assert!(pose.r.determinant() > 0.0);
            }
            let found = poses.iter().any(|p| (p.r - truth.r).norm() < 1e-5);
            num_missed += usize::from(!found);
        }
        // A nearly collinear triangle or a double root loses all digits now and then.
        assert!(num_missed <= 4, "{num_missed} of 2000 missed");
    }

    #[test]
    fn degenerate_triangles_give_no_pose_that_is_not_finite() {
        let (a, b) = (Vec3::new(1.0, 0.0, 0.0), Vec3::new(0.0, 1.0, 0.0));
        let rays =
            [Vec3::z(), Vec3::new(0.1, 0.0, 1.0).normalize(), Vec3::new(0.0, 0.1, 1.0).normalize()];
        for points in [[a, a, a], [a, a, b], [a, a * 2.0, a * 3.0], [a, b, a * f64::NAN]] {
            for rays in [rays, [rays[0]; 3], [rays[0], rays[1], rays[1]], [rays[0] * f64::NAN; 3]] {
                assert!(p3p(&points, &rays).iter().all(Pose::is_finite));
            }
        }
    }

    #[test]
    fn cubic_roots_are_roots() {
        for (p, q, r) in [
            (0.0, 0.0, 0.0),
            (-6.0, 11.0, -6.0),
            (1.0, 1.0, 1.0),
            (3.0, 3.0, 1.0),
            (0.0, -1.0, 0.0),
        ] {
            let x = real_cubic_root(p, q, r);
            assert!((((x + p) * x + q) * x + r).abs() < 1e-12, "{p} {q} {r}: {x}");
        }
    }
}
