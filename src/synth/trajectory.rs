//! Where the satellite, the Sun and the Earth are in every frame.

use std::f64::consts::{PI, TAU};

use nalgebra::{Matrix3, Unit, UnitQuaternion, Vector3};
use rand::Rng;

use super::lights::Lights;
use super::mesh::DIAMETER_MM;
use super::options::{Attitude, SynthOptions};
use super::render::Scene;
use crate::geom::{Camera, Pose, Vec3};
use crate::seed;

/// Purposes of the random streams of this room.
pub(super) const STREAM_SEQUENCE: u64 = 0x5351;
pub(super) const STREAM_FRAME: u64 = 0x4652;

/// Focal length and side of SwissCube's camera, px.
const FOCAL_PX: f64 = 607.573_032_239_703_8;
const SIDE_PX: f64 = 1024.0;

/// Fastest tumbling, degrees a frame.
const MAX_RATE_DEG: f64 = 5.0;
/// Smallest fraction of the silhouette inside the image, as estimated on a grid; the promise is 0.7.
const MIN_INSIDE: f64 = 0.75;
/// How far from the image centre the satellite's centre goes, as a fraction of the side.
const MAX_OFFSET: f64 = 0.45;

/// The camera of images `size_px` wide: SwissCube's, scaled.
pub(super) fn camera(size_px: u32) -> Camera {
    let scale = f64::from(size_px) / SIDE_PX;
    let centre = f64::from(size_px) / 2.0;
    Camera::new(FOCAL_PX * scale, FOCAL_PX * scale, centre, centre)
        .expect("a positive size gives a camera")
}

/// The attitude that [`Attitude::WithinDeg`] is centred on: the camera sees the +x, +y and +z faces,
/// +z up.
pub(super) fn nominal_attitude() -> Matrix3<f64> {
    let forward = -Vec3::new(1.0, 0.85, 0.75).normalize();
    let up = Vec3::z();
    let down = (forward * up.dot(&forward) - up).normalize();
    let right = down.cross(&forward);
    Matrix3::from_rows(&[right.transpose(), down.transpose(), forward.transpose()])
}

/// One frame.
#[derive(Debug, Clone)]
pub(super) struct FramePlan {
    pub pose: Pose,
    /// Factor from radiance (1: a white surface facing the Sun) to sensor (1: white).
    pub exposure: f64,
    /// Standard deviation of the read noise, sensor units.
    pub read_noise: f64,
    /// Electrons at sensor value 1.
    pub full_well: f64,
    /// Place of the sensor noise's stream.
    pub noise: [u64; 3],
}

/// One sequence.
#[derive(Debug, Clone)]
pub(super) struct SequencePlan {
    pub number: usize,
    pub lights: Lights,
    pub frames: Vec<FramePlan>,
}

/// Frames of each sequence of a split: 5 for small splits, so that they too vary, up to 100 for large ones;
/// evenly filled.
pub(super) fn sequence_lengths(num_images: usize) -> Vec<usize> {
    let wanted = (num_images / 150).clamp(5, 100);
    let count = num_images.div_ceil(wanted);
    (0..count).map(|i| num_images / count + usize::from(i < num_images % count)).collect()
}

/// Plans sequence `number` (counted over all splits) with `num_frames` frames.
pub(super) fn plan(
    options: &SynthOptions,
    scene: &Scene,
    number: usize,
    num_frames: usize,
) -> SequencePlan {
    let mut rng = seed::stream(options.seed, &[STREAM_SEQUENCE, number as u64]);
    let lights = lights(&mut rng);
    let attitudes = attitudes(&mut rng, options.attitude, num_frames);
    let camera = camera(options.size_px);
    let depths = depths_mm(&mut rng, options, number, num_frames);
    let square = |rng: &mut rand_chacha::ChaCha8Rng| {
        [rng.random_range(-1.0..=1.0), rng.random_range(-1.0..=1.0)]
    };
    let (from, to): ([f64; 2], [f64; 2]) = (square(&mut rng), square(&mut rng));
    let side = f64::from(options.size_px);
    let frames = attitudes
        .into_iter()
        .zip(depths)
        .enumerate()
        .map(|(i, (r, z))| {
            let along = if num_frames > 1 { i as f64 / (num_frames - 1) as f64 } else { 0.5 };
            let offset = [0, 1].map(|a| (from[a] + (to[a] - from[a]) * along) * MAX_OFFSET * side);
            let pose = inside_the_frame(scene, &camera, options.size_px, &r, z, offset);
            frame(options, number, i, pose)
        })
        .collect();
    SequencePlan { number, lights, frames }
}

fn frame(options: &SynthOptions, number: usize, index: usize, pose: Pose) -> FramePlan {
    let (n, i) = (number as u64, index as u64);
    let mut rng = seed::stream(options.seed, &[STREAM_FRAME, n, i, 0]);
    FramePlan {
        pose,
        // 4 stops, the brightest of which clips sunlit white surfaces by more than a stop.
        exposure: 2.0_f64.powf(rng.random_range(-2.1..1.9)),
        read_noise: 10.0_f64.powf(rng.random_range(-3.7..-3.0)),
        full_well: 10.0_f64.powf(rng.random_range(3.9..4.5)),
        noise: [n, i, 1],
    }
}

/// A direction uniform on the sphere.
fn direction(rng: &mut impl Rng) -> Vec3 {
    let z: f64 = rng.random_range(-1.0..=1.0);
    let (s, c) = rng.random_range(0.0..TAU).sin_cos();
    let r = (1.0 - z * z).max(0.0).sqrt();
    Vec3::new(r * c, r * s, z)
}

/// A direction whose angle to the optical axis lies in `range_deg`, uniform on that part of the sphere.
fn direction_at(rng: &mut impl Rng, range_deg: (f64, f64)) -> Vec3 {
    let z = rng.random_range(range_deg.1.to_radians().cos()..=range_deg.0.to_radians().cos());
    let (s, c) = rng.random_range(0.0..TAU).sin_cos();
    let r = (1.0 - z * z).max(0.0).sqrt();
    Vec3::new(r * c, r * s, z)
}

/// Angles are measured from the optical axis: below 90 degrees is behind the satellite. The Earth's
/// half angle from 720 km is 64 degrees, the image's corner is at 50.
fn lights(rng: &mut impl Rng) -> Lights {
    // In one sequence of 14 the Sun stands behind the satellite, which then is mostly in its own shadow.
    let backlit = rng.random_bool(0.07);
    let sun = direction_at(rng, if backlit { (60.0, 85.0) } else { (105.0, 180.0) });
    let earth = loop {
        let kind: f64 = rng.random();
        let range = match () {
            _ if backlit => (118.0, 175.0),   // lights the dark side
            _ if kind < 0.24 => (30.0, 95.0), // limb in the frame
            _ if kind < 0.28 => (0.0, 15.0),  // fills the frame
            _ => (116.0, 180.0),
        };
        let earth = direction_at(rng, range);
        // The satellite is in sunlight: the Sun is not behind the Earth.
        if sun.dot(&earth) < 70.0_f64.to_radians().cos() {
            break earth;
        }
    };
    let turn = UnitQuaternion::from_axis_angle(
        &Unit::new_normalize(direction(rng)),
        rng.random_range(0.0..PI),
    );
    Lights { sun, earth, earth_turn: turn.to_rotation_matrix(), stars: rng.random() }
}

/// A rotation uniform within `limit` radians of the identity.
pub(super) fn rotation_within(rng: &mut impl Rng, limit: f64) -> UnitQuaternion<f64> {
    // The angle's density goes as sin^2(angle / 2): draw from angle^2, accept by the ratio of the two.
    let angle = loop {
        let angle = limit * rng.random::<f64>().cbrt();
        let half = angle / 2.0;
        let ratio = if half > 1e-9 { (half.sin() / half).powi(2) } else { 1.0 };
        if rng.random::<f64>() < ratio {
            break angle;
        }
    };
    UnitQuaternion::from_axis_angle(&Unit::new_normalize(direction(rng)), angle)
}

/// A tumbling motion: constant rate and axis, except that a new axis is drawn where the old one would leave
/// the allowed attitudes.
fn attitudes(rng: &mut impl Rng, attitude: Attitude, num_frames: usize) -> Vec<Matrix3<f64>> {
    let (centre, limit) = match attitude {
        Attitude::Full => (UnitQuaternion::identity(), PI),
        Attitude::WithinDeg(deg) => (
            UnitQuaternion::from_matrix(&nominal_attitude()),
            // A hair less, so that rounding never leaves the limit.
            (deg.to_radians() * (1.0 - 1e-9) - 1e-9).max(0.0),
        ),
    };
    let rate = rng.random_range(0.0..=MAX_RATE_DEG.to_radians().min(limit));
    let mut axis = direction(rng);
    let mut turn = rotation_within(rng, limit);
    (0..num_frames)
        .map(|_| {
            let now = turn;
            // Draw a new axis where needed; in a tiny ball, stay.
            for _ in 0..100 {
                let step = UnitQuaternion::from_axis_angle(&Unit::new_normalize(axis), rate);
                let next = step * turn;
                if attitude == Attitude::Full || next.angle() <= limit {
                    turn = UnitQuaternion::new_normalize(next.into_inner());
                    break;
                }
                axis = direction(rng);
            }
            *(now * centre).to_rotation_matrix().matrix()
        })
        .collect()
}

/// Depths of a pass, mm: the satellite comes nearer at a constant speed, or recedes after it was
/// nearest. In each frame the depth is uniform over the range.
fn depths_mm(
    rng: &mut impl Rng,
    options: &SynthOptions,
    number: usize,
    num_frames: usize,
) -> Vec<f64> {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    // Starts spread evenly over the sequences (a Weyl sequence), each in [0, 2) of a triangle wave.
    let shift = seed::stream(options.seed, &[STREAM_SEQUENCE, u64::MAX]).random::<f64>();
    let start = 2.0 * (shift + GOLDEN * number as f64).fract();
    let span = rng.random_range(0.2..0.7);
    let (near, far) = (options.depth_d.0 * DIAMETER_MM, options.depth_d.1 * DIAMETER_MM);
    (0..num_frames)
        .map(|i| {
            let phase = (start + span * i as f64 / num_frames as f64) % 2.0;
            let fraction = if phase < 1.0 { 1.0 - phase } else { phase - 1.0 };
            near + (far - near) * fraction
        })
        .collect()
}

/// The pose at depth `z` whose centre projects at `offset` px from the image centre, drawn towards the centre
/// until enough of the silhouette is in the image.
fn inside_the_frame(
    scene: &Scene,
    camera: &Camera,
    size_px: u32,
    r: &Matrix3<f64>,
    z: f64,
    mut offset: [f64; 2],
) -> Pose {
    let focal = camera.focal_px().0;
    for _ in 0..24 {
        let t_mm = Vector3::new(offset[0] * z / focal, offset[1] * z / focal, z);
        let pose = Pose { r: *r, t_mm };
        if scene.fraction_inside(camera, size_px, &pose) >= MIN_INSIDE {
            return pose;
        }
        offset = offset.map(|o| o * 0.85);
    }
    Pose { r: *r, t_mm: Vector3::new(0.0, 0.0, z) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The angle between two rotations, degrees.
    fn angle_deg(a: &Matrix3<f64>, b: &Matrix3<f64>) -> f64 {
        UnitQuaternion::from_matrix(a).angle_to(&UnitQuaternion::from_matrix(b)).to_degrees()
    }

    #[test]
    fn the_nominal_attitude_is_a_rotation_that_shows_three_faces() {
        let r = nominal_attitude();
        assert!((r * r.transpose() - Matrix3::identity()).norm() < 1e-12);
        assert!((r.determinant() - 1.0).abs() < 1e-12);
        for axis in [Vec3::x(), Vec3::y(), Vec3::z()] {
            assert!((r * axis).z < -0.4, "the face of {axis:?} is turned away");
        }
        // +z is up, that is towards smaller image rows.
        assert!((r * Vec3::z()).y < -0.5);
    }

    #[test]
    fn sequences_hold_all_frames_in_even_parts() {
        for n in [0, 1, 9, 10, 11, 105, 2000, 30_000] {
            let lengths = sequence_lengths(n);
            assert_eq!(lengths.iter().sum::<usize>(), n);
            assert!(lengths.iter().all(|&l| (1..=100).contains(&l)));
        }
        assert_eq!(sequence_lengths(30_000), vec![100; 300]);
        assert_eq!(sequence_lengths(40), vec![5; 8]);
        assert_eq!(sequence_lengths(11), [4, 4, 3]);
    }

    #[test]
    fn attitudes_fill_the_ball_and_stay_in_it() {
        let mut rng = seed::stream(5, &[1]);
        let nominal = nominal_attitude();
        let limit = 60.0;
        let angles: Vec<f64> = (0..400)
            .flat_map(|_| attitudes(&mut rng, Attitude::WithinDeg(limit), 15))
            .map(|r| angle_deg(&r, &nominal))
            .collect();
        assert!(angles.iter().all(|&a| a <= limit));
        // Uniform: the fraction within an angle goes as angle - sin(angle).
        let mass = |deg: f64| deg.to_radians() - deg.to_radians().sin();
        for part in [30.0, 45.0, 55.0] {
            let fraction =
                angles.iter().filter(|&&a| a <= part).count() as f64 / angles.len() as f64;
            let expected = mass(part) / mass(limit);
            // 400 starts: a standard error below 0.025.
            assert!(
                (fraction - expected).abs() < 0.08,
                "within {part}: {fraction}, not {expected}"
            );
        }
    }

    #[test]
    fn a_limit_of_zero_is_the_nominal_attitude() {
        let mut rng = seed::stream(5, &[2]);
        for r in attitudes(&mut rng, Attitude::WithinDeg(0.0), 5) {
            assert!((r - nominal_attitude()).norm() < 1e-6);
        }
    }

    #[test]
    fn tumbling_is_at_most_five_degrees_a_frame() {
        let mut rng = seed::stream(5, &[3]);
        for attitude in [Attitude::Full, Attitude::WithinDeg(20.0)] {
            for _ in 0..20 {
                let turns = attitudes(&mut rng, attitude, 20);
                for pair in turns.windows(2) {
                    assert!(angle_deg(&pair[0], &pair[1]) <= MAX_RATE_DEG + 1e-6);
                }
            }
        }
    }

    #[test]
    fn depths_are_uniform_over_the_range() {
        let options = SynthOptions { depth_d: (2.0, 6.0), ..SynthOptions::default() };
        let mut rng = seed::stream(5, &[4]);
        let depths: Vec<f64> =
            (0..100).flat_map(|i| depths_mm(&mut rng, &options, i, 12)).collect();
        let (near, far) = (2.0 * DIAMETER_MM, 6.0 * DIAMETER_MM);
        assert!(depths.iter().all(|z| (near..=far).contains(z)));
        for tenth in 1..10 {
            let bound = near + (far - near) * f64::from(tenth) / 10.0;
            let fraction =
                depths.iter().filter(|&&z| z < bound).count() as f64 / depths.len() as f64;
            assert!((fraction - f64::from(tenth) / 10.0).abs() < 0.05, "{tenth}: {fraction}");
        }
    }

    #[test]
    fn the_camera_is_swisscubes_at_1024_and_half_of_it_at_512() {
        assert_eq!(camera(1024).focal_px(), (FOCAL_PX, FOCAL_PX));
        assert_eq!(camera(512).focal_px().0, 303.786_516_119_851_9);
        assert_eq!(camera(512).center_px(), crate::geom::Vec2::new(256.0, 256.0));
    }
}
