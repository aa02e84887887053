//! `mqat bench pnp`: poses from simulated correspondences.

use std::f64::consts::TAU;

use anyhow::{Context, Result, bail, ensure};
use nalgebra::{Quaternion, UnitQuaternion};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::Device;

use super::report::{BenchReport, object};
use super::rounds::{Progress, Quartiles, Rounds, Subject, measure, timed};
use crate::geom::{Camera, Pose, Vec2, Vec3, box_corners};
use crate::pose::errors::{re_deg, te_mm};
use crate::pose::{RansacConfig, solve_pnp_ransac};
use crate::run::Machine;
use crate::run::config::{Config, Names, Select};
use crate::run::folder::Start;
use crate::run::home::Home;
use crate::seed;

/// Place of the problems' random streams.
const STREAM_PNP: u64 = u64::from_le_bytes(*b"benchpnp");
/// Depths of the simulated object, in diameters: those of SwissCube.
const DEPTHS_D: std::ops::Range<f64> = 1.0..10.0;

/// What `mqat bench pnp` is asked.
#[derive(Debug, Clone)]
pub struct PnpBenchRequest {
    /// The config: internal camera, `evaluation.ransac`, diameter of the object, seed.
    pub select: Select,
    /// How often.
    pub rounds: Rounds,
    /// Problems a call, 1 or more.
    pub problems: usize,
    /// Numbers of correspondences, each 4 or more.
    pub points: Vec<usize>,
    /// Standard deviations of the noise, px.
    pub noise_px: Vec<f64>,
    /// Fractions of correspondences that are anywhere in the image, 0 to 1.
    pub outliers: Vec<f64>,
}

/// Measures the solver on one thread, and says how far from the truth its answers are. Correspondences are cells that
/// each see the 8 corners of the object's box, as the network gives them.
///
/// # Errors
/// If the config cannot be used or settings are out of range.
pub fn bench_pnp(request: &PnpBenchRequest, progress: &mut Progress<'_>) -> Result<BenchReport> {
    check(request)?;
    request.select.ensure_names_act(Names::Config)?;
    let config = request.select.resolve(&Home::find(None, None)?)?;
    let machine = Machine::here(Device::Cpu);
    let simulation = Simulation::new(&config)?;
    let ransac = &config.evaluation.ransac;
    let mut subjects = Vec::new();
    for &points in &request.points {
        for &noise_px in &request.noise_px {
            for &outliers in &request.outliers {
                let kind = Kind { points, noise_px, outliers };
                let problems = simulation.problems(kind, request.problems);
                subjects.push(subject(kind, problems, &simulation, ransac));
            }
        }
    }
    Ok(BenchReport {
        bench: "pnp",
        notes: machine.busy().into_iter().collect(),
        machine,
        command: Start::now(None).command,
        rounds: request.rounds,
        settings: object([
            ("problems", json!(request.problems)),
            ("threads", json!(1)),
            ("inlier_px", json!(ransac.inlier_px)),
            ("max_iterations", json!(ransac.max_iterations)),
            ("diameter_mm", json!(simulation.diameter_mm)),
        ]),
        item: "problem",
        subjects: measure(subjects, request.rounds, progress)?,
    })
}

fn check(request: &PnpBenchRequest) -> Result<()> {
    ensure!(request.problems > 0, "--problems: 0 is below 1");
    if let Some(n) = request.points.iter().find(|n| !(4..=1_000_000).contains(*n)) {
        bail!("--points: {n} is outside 4..=1000000");
    }
    if let Some(px) = request.noise_px.iter().find(|px| !(px.is_finite() && **px >= 0.0)) {
        bail!("--noise: {px} is not a number of at least 0");
    }
    if let Some(fraction) =
        request.outliers.iter().find(|fraction| !(0.0..=1.0).contains(*fraction))
    {
        bail!("--outliers: {fraction} is outside 0..=1");
    }
    Ok(())
}

/// What problems of a subject have in common.
#[derive(Clone, Copy)]
struct Kind {
    points: usize,
    noise_px: f64,
    outliers: f64,
}

struct Problem {
    points: Vec<Vec3>,
    pixels: Vec<Vec2>,
    truth: Pose,
    seed: u64,
}

/// An object before a camera.
struct Simulation {
    camera: Camera,
    size: Vec2,
    corners: [Vec3; 8],
    diameter_mm: f64,
    seed: u64,
}

impl Simulation {
    /// The first object of a config: a cube of its diameter before the internal camera.
    fn new(config: &Config) -> Result<Self> {
        let diameter_mm = *config.data.mesh_diameters_mm.first().context("no object class")?;
        let half = diameter_mm / 12f64.sqrt(); // the diagonal of a cube is its edge times the root of 3
        Ok(Self {
            camera: config.input.camera()?,
            size: Vec2::new(config.input.width as f64, config.input.height as f64),
            corners: box_corners(&[[-half; 3], [half; 3]]),
            diameter_mm,
            seed: config.experiment.seed,
        })
    }

    fn problems(&self, kind: Kind, num: usize) -> Vec<Problem> {
        let place = [kind.points as u64, kind.noise_px.to_bits(), kind.outliers.to_bits()];
        let of = |i: usize| {
            let mut rng =
                seed::stream(self.seed, &[STREAM_PNP, place[0], place[1], place[2], i as u64]);
            self.problem(kind, i as u64, &mut rng)
        };
        (0..num).map(of).collect()
    }

    fn problem(&self, kind: Kind, seed: u64, rng: &mut ChaCha8Rng) -> Problem {
        let truth = self.pose(rng);
        let points: Vec<Vec3> = self.corners.iter().copied().cycle().take(kind.points).collect();
        let mut pixels = truth.project(&self.camera, &points);
        for pixel in &mut pixels {
            if rng.random_bool(kind.outliers) {
                *pixel = Vec2::new(
                    rng.random_range(0.0..self.size.x),
                    rng.random_range(0.0..self.size.y),
                );
            } else {
                *pixel += normal_pair(rng) * kind.noise_px;
            }
        }
        Problem { points, pixels, truth, seed }
    }

    /// Any attitude, the centre in the middle half of the image.
    fn pose(&self, rng: &mut ChaCha8Rng) -> Pose {
        let (a, b) = (normal_pair(rng), normal_pair(rng));
        let turn = UnitQuaternion::from_quaternion(Quaternion::new(a.x, a.y, b.x, b.y));
        let depth_mm = rng.random_range(DEPTHS_D) * self.diameter_mm;
        let center = self.size.map(|side| side * rng.random_range(0.25..0.75));
        let t_mm = self.camera.ray(&center) * depth_mm;
        Pose { r: *turn.to_rotation_matrix().matrix(), t_mm }
    }
}

/// Two numbers of the standard normal distribution (Box, Muller 1958).
fn normal_pair(rng: &mut ChaCha8Rng) -> Vec2 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let angle = TAU * rng.random::<f64>();
    Vec2::new(radius * angle.cos(), radius * angle.sin())
}

fn subject<'a>(
    kind: Kind,
    problems: Vec<Problem>,
    simulation: &'a Simulation,
    ransac: &'a RansacConfig,
) -> Subject<'a> {
    let solve = move |p: &Problem| {
        let found = solve_pnp_ransac(&simulation.camera, &p.points, &p.pixels, ransac, p.seed)?;
        Some(found.pose)
    };
    let Kind { points, noise_px, outliers } = kind;
    let errors: Vec<[f64; 2]> = problems
        .iter()
        .filter_map(|p| solve(p).map(|pose| (pose, p)))
        .map(|(pose, p)| [re_deg(&pose, &p.truth), te_mm(&pose, &p.truth) / p.truth.t_mm.norm()])
        .collect();
    let median = |which: usize| -> Value {
        json!(Quartiles::of(errors.iter().map(|e| e[which]).collect()).map(|spread| spread.median))
    };
    Subject {
        name: format!("{points} points, {noise_px} px, {:.0} % outliers", 100.0 * outliers),
        details: object([
            ("points", json!(points)),
            ("noise_px", json!(noise_px)),
            ("outliers", json!(outliers)),
            ("solved_fraction", json!(errors.len() as f64 / problems.len() as f64)),
            ("median_rotation_error_deg", median(0)),
            ("median_translation_error_relative", median(1)),
        ]),
        per_call: problems.len(),
        call: Box::new(move || {
            timed(Device::Cpu, || Ok(problems.iter().filter_map(solve).collect::<Vec<_>>()))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PnpBenchRequest {
        PnpBenchRequest {
            select: Select::default(),
            rounds: Rounds { rounds: 2, warm_up: 0 },
            problems: 20,
            points: vec![80],
            noise_px: vec![0.0],
            outliers: vec![0.0, 0.3],
        }
    }

    #[test]
    fn what_is_simulated_can_be_solved() {
        let report = bench_pnp(&request(), &mut |_| ()).unwrap();
        assert_eq!(report.subjects.len(), 2);
        for subject in &report.subjects {
            assert_eq!(subject.details["solved_fraction"], 1.0, "{}", subject.name);
            let error = subject.details["median_rotation_error_deg"].as_f64().unwrap();
            assert!(error < 1e-4, "{}: {error}", subject.name);
            assert_eq!((subject.samples_s.len(), subject.items_per_call), (2, 20));
        }
    }

    #[test]
    fn problems_are_a_function_of_seed_and_kind() {
        let simulation = Simulation::new(&Config::default()).unwrap();
        let kind = Kind { points: 16, noise_px: 1.0, outliers: 0.2 };
        let (a, b) = (simulation.problems(kind, 3), simulation.problems(kind, 4));
        assert!(a.iter().zip(&b).all(|(a, b)| a.pixels == b.pixels && a.truth == b.truth));
        assert_ne!(a[0].pixels, a[1].pixels);
        let other = simulation.problems(Kind { points: 24, ..kind }, 1);
        assert_ne!(a[0].pixels[..], other[0].pixels[..16]);
        // the object is in front of the camera and its box has the diameter
        let widest = (simulation.corners[0] - simulation.corners[7]).norm();
        assert!((widest - simulation.diameter_mm).abs() < 1e-9);
        assert!(b.iter().all(|p| p.truth.t_mm.z >= simulation.diameter_mm));
    }

    #[test]
    fn each_setting_out_of_range_is_named() {
        let refused = |change: &dyn Fn(&mut PnpBenchRequest)| {
            let mut request = request();
            change(&mut request);
            bench_pnp(&request, &mut |_| ()).unwrap_err().to_string()
        };
        assert!(refused(&|r| r.problems = 0).contains("--problems"));
        assert!(refused(&|r| r.points = vec![8, 3]).contains("--points: 3"));
        assert!(refused(&|r| r.noise_px = vec![-1.0]).contains("--noise: -1"));
        assert!(refused(&|r| r.outliers = vec![1.5]).contains("--outliers: 1.5"));
        assert!(refused(&|r| r.rounds.rounds = 0).contains("0 rounds"));
    }
}
