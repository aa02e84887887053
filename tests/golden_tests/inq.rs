//! `05_inq`: scales, levels, masks and assembled weights of the original INQ; the fractions of
//! `11_schedules`.
//!
//! The original divides the stored weight by s and uses levels in [-1, 1]; here the levels carry s.
//! So its numbers times s are ours, and with a scale of 1 on its rescaled weights they are equal.

use std::collections::BTreeMap;

use mqat::nn::{Site, SiteKind, Store};
use mqat::quant::inq::InqWeights;
use mqat::quant::scale::{Magnitudes, Norm};
use mqat::quant::{
    Claim, FractionSchedule, Grid, ModuleQuantizer, QuantInit, QuantStrategy, Rescale, Spacing,
    WeightQuantConfig, WeightSettings, inq,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{Array, arrays, formula_value, json, number, numbers};

/// README of the reference data, 05: absolute, times the largest level.
const Q_TOLERANCE: f64 = 1.5e-7;
/// README of the reference data, 05: this near the middle between two levels either is right.
const MIDDLE_TOLERANCE: f64 = 1e-6;

fn u32_of(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

fn init_of(method: &str) -> QuantInit {
    serde_json::from_value(Value::from(method)).unwrap()
}

fn norm_of(method: &str) -> Norm {
    match method {
        "uniform-l1-opt" => Norm::L1,
        "uniform-l2-opt" => Norm::L2,
        "uniform-linf-opt" => Norm::Linf,
        _ => panic!("{method} has no norm"),
    }
}

fn uniform(num_levels: u32, scale: f32) -> Grid {
    Grid::new(Spacing::Uniform { num_levels }, vec![scale]).unwrap()
}

/// The grid of a case: on the rescaled weight (scale 1) where the original rescales.
fn grid_of(case: &Value) -> anyhow::Result<Grid> {
    let scale = number(&case["s_param"]) as f32;
    if case["method"] == "none" {
        let range =
            case["exponent_high"].as_i64().unwrap() - case["exponent_low"].as_i64().unwrap();
        let num_exponents = u32::try_from(range + 1).unwrap();
        return Grid::new(Spacing::PowerOfTwo { num_exponents }, vec![scale]);
    }
    Grid::new(Spacing::Uniform { num_levels: u32_of(&case["n_levels"]) }, vec![scale])
}

/// Compares quantized values; where they differ, `x` must be next to the middle of the two.
fn assert_quantized(at: &str, x: &[f32], ours: &[f32], theirs: &[f64], max: f64, tolerance: f64) {
    assert!(x.len() == ours.len() && x.len() == theirs.len(), "{at}: lengths differ");
    let mut num_other_side = 0;
    for ((&x, &ours), &theirs) in x.iter().zip(ours).zip(theirs) {
        let (x, ours) = (f64::from(x), f64::from(ours));
        if (ours - theirs).abs() <= tolerance * max {
            continue;
        }
        let from_middle = (x - (ours + theirs) / 2.0).abs();
        assert!(
            from_middle <= MIDDLE_TOLERANCE * max,
            "{at}: {x} became {ours}, expected {theirs}"
        );
        num_other_side += 1;
    }
    assert!(num_other_side * 100 <= x.len(), "{at}: {num_other_side} values on the other side");
}

fn f32s(x: &Tensor) -> Vec<f32> {
    Vec::try_from(&x.detach().contiguous().reshape([-1])).unwrap()
}

/// A network of one convolution, `m.conv`, with its INQ quantizer; epoch k is the k-th fraction.
struct Layer {
    store: Store,
    quantizer: ModuleQuantizer,
}

impl Layer {
    fn new(weight: &Tensor, config: &WeightQuantConfig) -> Self {
        let store = Store::new(Device::Cpu);
        let path = store.root() / "m" / "conv";
        let weight = path.parameter("weight", weight.shallow_clone());
        path.site(Site::new("m.conv".to_owned(), SiteKind::Conv, &weight));
        let quantizer =
            ModuleQuantizer::attach(&Claim::of("m").with_weights(config), &store).unwrap();
        Self { store, quantizer }
    }

    fn weight(&self) -> Tensor {
        self.store.get("m.conv.weight").unwrap()
    }

    /// Fixes the scale, which otherwise is searched at the first step.
    fn set_scale(&mut self, scale: f32) {
        let mut state = self.quantizer.state();
        for (name, tensor) in &mut state {
            if name.ends_with(".weight_scale") {
                *tensor = Tensor::from_slice(&[scale]);
            }
        }
        self.quantizer.load_state(&state).unwrap();
    }

    fn range(&self) -> Vec<f32> {
        let state = self.quantizer.state();
        let (_, range) = state.iter().find(|(name, _)| name.ends_with(".weight_scale")).unwrap();
        f32s(range)
    }

    fn step(&mut self, k: usize) {
        assert!(self.quantizer.start_epoch(k as u32).unwrap().stepped);
    }

    fn trainable(&self) -> Tensor {
        self.quantizer.trainable_masks()[0].1.shallow_clone()
    }

    fn frozen_flags(&self) -> Vec<bool> {
        f32s(&self.trainable()).into_iter().map(|v| v == 0.0).collect()
    }
}

fn config(method: &str, strategy: &str, n_levels: u32, fractions: &[f64]) -> WeightQuantConfig {
    let settings = InqWeights {
        quant_init_method: init_of(method),
        quant_strategy: serde_json::from_value::<QuantStrategy>(Value::from(strategy)).unwrap(),
        schedule: FractionSchedule::new((0..).zip(fractions.iter().copied())),
        ..Default::default()
    };
    WeightQuantConfig { settings: settings.into(), n_levels: Some(n_levels), ..Default::default() }
}

fn array<'a>(all: &'a BTreeMap<String, Array>, name: &str) -> &'a Array {
    all.get(name).unwrap_or_else(|| panic!("{name} is missing"))
}

#[test]
fn weights_round_to_the_levels_of_the_original() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    for case in meta["cases"].as_array().unwrap() {
        let (weight, method) = (case["weight"].as_str().unwrap(), case["method"].as_str().unwrap());
        let n = u32_of(&case["n_levels"]);
        let at = format!("{weight}.{method}.{n}");
        let expected = array(&all, &format!("q.{at}")).f64();
        let grid = match grid_of(case) {
            Ok(grid) => grid,
            Err(err) => {
                // the original's 3 "levels" are only {0}
                let text = err.to_string();
                assert!(text.contains("1 levels") && expected.iter().all(|&q| q == 0.0), "{text}");
                continue;
            }
        };
        let w = array(&all, &format!("w.{weight}")).tensor();
        let max = f64::from(*grid.levels(0).last().unwrap());
        if !case["rescaled"].as_bool().unwrap() {
            let q = f32s(&grid.nearest(&w).unwrap());
            assert_quantized(&at, &f32s(&w), &q, &expected, max, Q_TOLERANCE);
            continue;
        }
        let rescaled = array(&all, &format!("w_rescaled.{at}")).tensor();
        let q = f32s(&grid.nearest(&rescaled).unwrap());
        assert_quantized(&at, &f32s(&rescaled), &q, &expected, max, Q_TOLERANCE);
        // the stored form is the weight over s, rounded once
        let inverse = number(&case["inv_s_f32"]);
        let diff = (&w * inverse - &rescaled).abs().max().double_value(&[]);
        let largest = rescaled.abs().max().double_value(&[]);
        assert!(diff <= Q_TOLERANCE * largest, "{at}: w / s is off by {diff:e}");
        // ours: the weight stays, the levels carry s; s and the level round once more in f32 each
        let s = (1.0 / inverse) as f32;
        let q = f32s(&uniform(n, s).nearest(&w).unwrap());
        let expected: Vec<f64> = expected.iter().map(|q| q / inverse).collect();
        assert_quantized(&at, &f32s(&w), &q, &expected, f64::from(s), 2.0 * Q_TOLERANCE);
    }
}

#[test]
fn the_published_rescaling_gives_the_stored_weights_of_the_original() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let is_compared = |case: &&Value| {
        // with many levels and outliers the search may find a better scale than the original's, and so another unit
        case["method"] == "uniform-l2-opt"
            && case["weight"] != "outliers3x3"
            && [3, 4, 15].contains(&u32_of(&case["n_levels"]))
    };
    let mut num_compared = 0;
    for case in meta["cases"].as_array().unwrap().iter().filter(is_compared) {
        let (weight, method) = (case["weight"].as_str().unwrap(), case["method"].as_str().unwrap());
        let n = u32_of(&case["n_levels"]);
        let at = format!("{weight}.{method}.{n}");
        let w = array(&all, &format!("w.{weight}")).tensor();
        let mut config = config(method, "magnitude", n, &[0.0, 1.0]);
        let WeightSettings::Inq(settings) = &mut config.settings else { unreachable!() };
        settings.inq.rescale = Rescale::Published;
        let mut layer = Layer::new(&w, &config);
        layer.step(0);
        assert_eq!(layer.range(), [1.0]);
        let theirs = array(&all, &format!("w_rescaled.{at}")).tensor();
        let largest = theirs.abs().max().double_value(&[]);
        let diff = (layer.weight() - &theirs).abs().max().double_value(&[]);
        assert!(diff <= 2e-3 * largest, "{at}: stored weights are off by {diff:e}");
        let (before, expected) = (f32s(&layer.weight()), array(&all, &format!("q.{at}")).f64());
        layer.step(1);
        let off = f32s(&layer.weight())
            .iter()
            .zip(&expected)
            .filter(|(ours, theirs)| (f64::from(**ours) - **theirs).abs() > Q_TOLERANCE)
            .count();
        assert!(off * 100 <= before.len(), "{at}: {off} weights on another level");
        num_compared += 1;
    }
    assert_eq!(num_compared, 9);
}

#[test]
fn the_scale_search_is_at_least_as_good_as_the_original() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    for case in meta["cases"].as_array().unwrap().iter().filter(|c| c.get("search").is_some()) {
        let magnitudes =
            Magnitudes::new(array(&all, &format!("w.{}", case["weight"].as_str().unwrap())).f32());
        assert_fit(&magnitudes, case["method"].as_str().unwrap(), case);
    }
}

fn assert_fit(magnitudes: &Magnitudes, method: &str, case: &Value) {
    let (search, n) = (&case["search"], u32_of(&case["n_levels"]));
    let norm = norm_of(method);
    let fit = magnitudes.fit(norm, n).unwrap();
    let (s, loss, max) =
        (number(&search["s"]), number(&search["loss"]), number(&search["grid_max"]));
    let at = format!("{method}, {n} levels, their s {s} loss {loss}, ours {fit:?}");
    assert!(fit.loss <= loss * (1.0 + 1e-3), "{at}");
    // the same formula at their scale gives their loss (f32 sums there)
    assert!((magnitudes.loss(norm, n, s) - loss).abs() <= 1e-3 * loss, "{at}");
    // another minimum is right only where it is a lower one
    let near = (fit.max_level - s).abs() <= 1e-3 * max;
    assert!(near || norm == Norm::Linf || fit.loss < loss, "{at}");
}

#[test]
fn weights_freeze_in_the_order_of_the_original() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let fractions = numbers(&meta["fractions"]);
    let methods = ["uniform-l2-opt", "uniform", "none"];
    for name in meta["weights"].as_object().unwrap().keys() {
        for strategy in meta["strategies"].as_array().unwrap() {
            let strategy = strategy.as_str().unwrap();
            let steps = array(&all, &format!("step.{name}.{strategy}")).i64();
            let w = array(&all, &format!("w.{name}")).tensor();
            for method in methods {
                let mut layer = Layer::new(&w, &config(method, strategy, 15, &fractions));
                assert_eq!(f32s(&layer.weight()), f32s(&w), "float before the first step");
                for k in 0..fractions.len() {
                    layer.step(k);
                    let expected: Vec<bool> = steps.iter().map(|&s| s <= k as i64).collect();
                    assert_eq!(
                        layer.frozen_flags(),
                        expected,
                        "{name} {strategy} {method} step {k}"
                    );
                    let spacing = match method {
                        "none" => Spacing::PowerOfTwo { num_exponents: 7 },
                        _ => Spacing::Uniform { num_levels: 15 },
                    };
                    let q = f32s(&Grid::new(spacing, layer.range()).unwrap().nearest(&w).unwrap());
                    let floats = f32s(&w);
                    for (i, &value) in f32s(&layer.weight()).iter().enumerate() {
                        let expected = if expected[i] { q[i] } else { floats[i] };
                        assert_eq!(value.to_bits(), expected.to_bits(), "{name} {k} {i}");
                    }
                }
                layer.quantizer.assert_on_grid().unwrap();
            }
        }
    }
}

#[test]
fn the_number_of_frozen_weights_is_truncated_in_f64() {
    let meta = json("05_inq/inq.json");
    for c in meta["counts"].as_array().unwrap() {
        let n = c["n"].as_u64().unwrap() as usize;
        let count = inq::num_frozen_at(number(&c["fraction"]), n);
        assert_eq!(count as u64, c["count"].as_u64().unwrap(), "{c}");
    }
}

#[test]
fn the_example_gives_the_outputs_and_gradients_of_the_original_times_the_scale() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let (example, fractions) = (&meta["example"], numbers(&meta["fractions"]));
    let name = example["weight"].as_str().unwrap();
    let (method, n) = (example["method"].as_str().unwrap(), u32_of(&example["n_levels"]));
    let case = meta["cases"].as_array().unwrap().iter().find(|c| {
        c["weight"] == example["weight"] && c["method"] == example["method"] && c["n_levels"] == n
    });
    let s = 1.0 / number(&case.unwrap()["inv_s_f32"]);
    let strategy = example["strategy"].as_str().unwrap();
    let w = array(&all, &format!("w.{name}")).tensor();
    let mut layer = Layer::new(&w, &config(method, strategy, n, &fractions));
    layer.set_scale(s as f32);
    let grad_out = array(&all, "example.grad_out").tensor();
    for k in 0..fractions.len() {
        layer.step(k);
        let x = array(&all, "example.input").tensor().set_requires_grad(true);
        let weight = layer.weight();
        let y = x.conv2d::<Tensor>(&weight, None, [1, 1], [0, 0], [1, 1], 1);
        let grads = Tensor::run_backward(
            &[(&y * &grad_out).sum(Kind::Float)],
            &[&x, &weight],
            false,
            false,
        );
        let masked = &grads[1] * layer.trainable();
        let frozen = array(&all, &format!("example.frozen_with_nan.{k}"));
        let still_float: Vec<bool> = frozen.f32().iter().map(|v| v.is_nan()).collect();
        let flags: Vec<bool> = layer.frozen_flags().iter().map(|f| !f).collect();
        assert_eq!(flags, still_float, "step {k}");
        let checks = [
            ("output", y.shallow_clone(), s),
            ("grad_input", grads[0].shallow_clone(), s),
            ("grad_weight", masked, 1.0),
        ];
        for (what, ours, factor) in checks {
            let theirs = array(&all, &format!("example.{what}.{k}")).tensor() * factor;
            let largest = theirs.abs().max().double_value(&[]);
            let diff = (&ours - &theirs).abs().max().double_value(&[]);
            // sums of up to 40 products in f32
            assert!(diff <= 2e-6 * largest, "{what}.{k} is off by {diff:e} of {largest}");
        }
    }
}

#[test]
fn moving_weights_freeze_at_their_current_values_and_stay() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let (moving, fractions) = (&meta["moving"], numbers(&meta["fractions"]));
    let (method, n) = (moving["method"].as_str().unwrap(), u32_of(&moving["n_levels"]));
    let before = |k: usize| array(&all, &format!("moving.w_before.{k}")).tensor();
    // in the original's own units: its weights are over s, the levels in [-1, 1]
    let strategy = moving["strategy"].as_str().unwrap();
    let mut layer = Layer::new(&before(0), &config(method, strategy, n, &fractions));
    layer.set_scale(number(&moving["s_param"]) as f32);
    for k in 0..fractions.len() {
        let mut weight = layer.weight();
        let moved = before(k).where_self(&layer.trainable().ne(0.0), &weight.detach());
        tch::no_grad(|| weight.copy_(&moved));
        let earlier = layer.frozen_flags();
        layer.step(k);
        let (now, flags) = (f32s(&layer.weight()), layer.frozen_flags());
        let frozen = array(&all, &format!("moving.frozen_with_nan.{k}")).f32();
        for (i, &value) in f32s(&moved).iter().enumerate() {
            assert_eq!(flags[i], !frozen[i].is_nan(), "step {k}, weight {i}");
            assert!(!earlier[i] || (flags[i] && now[i].to_bits() == value.to_bits()), "{k} {i}");
        }
        let assembled = array(&all, &format!("moving.assembled.{k}")).f64();
        assert_quantized(&format!("step {k}"), &f32s(&moved), &now, &assembled, 1.0, Q_TOLERANCE);
        layer.quantizer.end_epoch(k as u32).unwrap();
    }
    layer.quantizer.assert_on_grid().unwrap();
}

#[test]
fn weights_of_the_size_of_the_fpn_give_the_counts_of_the_original() {
    for case in json("05_inq/inq.json")["formula_sized"].as_array().unwrap() {
        let (name, a, n) =
            (case["name"].as_str().unwrap(), number(&case["a"]), u32_of(&case["n_levels"]));
        let shape: Vec<i64> = numbers(&case["shape"]).iter().map(|&d| d as i64).collect();
        let count = shape.iter().product::<i64>() as u64;
        let values: Vec<f32> = (0..count).map(|i| formula_value(name, i, a, 0.0)).collect();
        assert_fit(&Magnitudes::new(&values), "uniform-l2-opt", case);

        let rescaled = Tensor::from_slice(&values).reshape(&shape) * number(&case["inv_s_f32"]);
        let grid = uniform(n, 1.0);
        let q = grid.nearest(&rescaled).unwrap();
        let levels = grid.levels(0);
        for (ours, theirs) in levels.iter().zip(numbers(&case["level_values"])) {
            assert!((f64::from(*ours) - theirs).abs() <= Q_TOLERANCE, "{name} {n}");
        }
        // weights that near a middle may count for either level
        let half_step = 1.0 / f64::from(n - 1);
        let near = ((&rescaled - &q).abs() - half_step).abs().le(MIDDLE_TOLERANCE);
        let num_near = near.sum(Kind::Int64).int64_value(&[]);
        let index = grid.index(&rescaled).unwrap().reshape([-1]);
        let counts: Vec<i64> =
            Vec::try_from(&index.bincount::<Tensor>(None, i64::from(n))).unwrap();
        for (ours, theirs) in counts.iter().zip(numbers(&case["level_counts"])) {
            assert!((*ours as f64 - theirs).abs() <= num_near as f64, "{name} {n}: {counts:?}");
        }
        let sum = q.sum(Kind::Double).double_value(&[]);
        let sum_tolerance = Q_TOLERANCE * count as f64 + num_near as f64 * 2.0 * half_step;
        assert!((sum - number(&case["sum_quantized"])).abs() <= sum_tolerance, "{name} {n}: {sum}");
        let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
        let error = norm(&(&rescaled - &q)) / norm(&rescaled);
        let expected = number(&case["relative_l2_error"]);
        assert!((error / expected - 1.0).abs() <= 1e-5, "{name} {n}: {error}, expected {expected}");

        let mut layer = Layer::new(
            &Tensor::from_slice(&values).reshape(&shape),
            &config("uniform-l2-opt", "magnitude", n, &[0.2]),
        );
        layer.step(0);
        let frozen = layer.frozen_flags().iter().filter(|&&f| f).count();
        assert_eq!(frozen as f64, number(&case["frozen_at_0.2"]), "{name} {n}");
    }
}

#[test]
fn ties_go_to_the_earlier_level() {
    for (key, case) in json("05_inq/inq.json")["ties"].as_object().unwrap() {
        let num_levels = case["levels_in_order"].as_array().unwrap().len() as u32;
        let spacing = match key.starts_with("none") {
            true => Spacing::PowerOfTwo { num_exponents: (num_levels - 1) / 2 },
            false => Spacing::Uniform { num_levels },
        };
        let grid = Grid::new(spacing, vec![1.0]).unwrap();
        let mut levels = numbers(&case["levels_in_order"]);
        levels.sort_by(f64::total_cmp);
        assert_eq!(grid.levels(0).iter().map(|&l| f64::from(l)).collect::<Vec<_>>(), levels);
        let x: Vec<f32> = numbers(&case["x"]).iter().map(|&v| v as f32).collect();
        let q = f32s(&grid.nearest(&Tensor::from_slice(&x)).unwrap());
        let expected: Vec<f32> = numbers(&case["q"]).iter().map(|&v| v as f32).collect();
        assert_eq!(q, expected, "{key}");
    }
}

#[test]
fn levels_are_those_of_linspace_with_an_exact_middle() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let mut num_lists = 0;
    for (name, list) in &all {
        let Some((kind, n)) = name.strip_prefix("linspace.").and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let s = if kind == "unit" { 1.0 } else { number(&meta["linspace_any_s"]) };
        let n: u32 = n.parse().unwrap();
        let levels = uniform(n, s as f32).levels(0);
        assert_eq!(levels.len(), list.f32().len(), "{name}");
        for (ours, theirs) in levels.iter().zip(list.f64()) {
            assert!(
                (f64::from(*ours) - theirs).abs() <= Q_TOLERANCE * s,
                "{name}: {ours} {theirs}"
            );
        }
        assert!(
            n.is_multiple_of(2) || levels[n as usize / 2].to_bits() == 0,
            "{name}: the middle is not 0"
        );
        num_lists += 1;
    }
    assert!(num_lists > 0);
}

#[test]
fn odd_situations_come_out_as_in_the_original_or_better() {
    let (meta, all) = (json("05_inq/inq.json"), arrays("05_inq/inq.safetensors"));
    let odd = &meta["odd"];
    let all_at_once = config("uniform-l2-opt", "magnitude", 15, &[1.0]);

    // zeros stay exactly zero (the original: its inexact middle level)
    let zeros = numbers(&odd["zeros"]["result"]["weight"]).len() as i64;
    let mut layer =
        Layer::new(&Tensor::zeros([zeros, 1, 1, 1], (Kind::Float, Device::Cpu)), &all_at_once);
    layer.step(0);
    assert!(f32s(&layer.weight()).iter().all(|v| v.to_bits() == 0));
    assert_eq!(
        f64::from(layer.quantizer.report()[0].max_level[0]),
        number(&odd["zeros"]["result"]["s"])
    );

    // fraction 0 freezes nothing, and here changes nothing
    let w = array(&all, "w.conv3x3").tensor();
    let mut layer = Layer::new(&w, &config("uniform-l2-opt", "magnitude", 15, &[0.0, 1.0]));
    layer.step(0);
    assert_eq!(odd["first_zero"]["result"]["frozen"], 0);
    assert!(layer.frozen_flags().iter().all(|&f| !f) && layer.weight().equal(&w));

    // the same fraction again changes nothing
    let mut layer = Layer::new(&w, &config("uniform-l2-opt", "magnitude", 15, &[0.4, 0.4]));
    layer.step(0);
    let (weight, flags) = (f32s(&layer.weight()), layer.frozen_flags());
    layer.step(1);
    assert_eq!((weight, flags), (f32s(&layer.weight()), layer.frozen_flags()));

    // a channels-last weight is quantized as any other (the original skips the rescaling)
    let store = Store::new(Device::Cpu);
    let path = store.root() / "conv";
    let last = w.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let weight = path.parameter("weight", last);
    assert!(!weight.is_contiguous());
    path.site(Site::new("conv".to_owned(), SiteKind::Conv, &weight));
    let mut last =
        ModuleQuantizer::attach(&Claim::of("conv").with_weights(&all_at_once), &store).unwrap();
    last.start_epoch(0).unwrap();
    let mut plain = Layer::new(&w, &all_at_once);
    plain.step(0);
    assert_eq!(f32s(&weight), f32s(&plain.weight()));
    assert!(!weight.is_contiguous());
    last.assert_on_grid().unwrap();

    // one weight freezes only at fraction 1
    let one = &odd["one"]["result"];
    let mut layer = Layer::new(
        &Tensor::from_slice(&[0.7f32]).reshape([1, 1, 1, 1]),
        &config("uniform-l2-opt", "magnitude", 15, &[0.9875, 1.0]),
    );
    for (k, key) in ["frozen_at_0.9875", "frozen_at_1"].into_iter().enumerate() {
        layer.step(k);
        let frozen = layer.frozen_flags().iter().filter(|&&f| f).count();
        assert_eq!(frozen as f64, number(&one[key]), "{key}");
    }

    // a falling fraction, which freezes more in the original, is refused
    let mut problems = Vec::new();
    FractionSchedule::new([(0, 0.6), (1, 0.4), (2, 1.0)]).check("inq.schedule", &mut problems);
    assert!(problems.len() == 1 && problems[0].starts_with("inq.schedule.1: 0.4"), "{problems:?}");
}

#[test]
fn fractions_steps_and_clearing_follow_the_published_schedule() {
    for case in json("11_schedules/schedules.json")["hand_scheduler"].as_array().unwrap() {
        let schedule: FractionSchedule =
            serde_json::from_value(case["inq_schedule"].clone()).unwrap();
        let settings = InqWeights {
            schedule: schedule.clone(),
            clear_optim_state_on_step: case["clear_optim_state_on_step"].as_bool().unwrap(),
            ..Default::default()
        };
        let weight_config = WeightQuantConfig {
            settings: settings.into(),
            n_levels: Some(15),
            ..Default::default()
        };
        let values: Vec<f32> = (0..64).map(|i| formula_value("schedule", i, 1.0, 0.0)).collect();
        let mut layer =
            Layer::new(&Tensor::from_slice(&values).reshape([8, 8, 1, 1]), &weight_config);
        for epoch in case["epochs"].as_array().unwrap() {
            let number_of_epoch = u32_of(&epoch["epoch"]);
            assert_eq!(schedule.fraction_at(number_of_epoch), number(&epoch["inq_fraction"]));
            let start = layer.quantizer.start_epoch(number_of_epoch).unwrap();
            assert_eq!(start.fraction, Some(number(&epoch["inq_fraction"])), "{epoch}");
            assert_eq!(start.stepped, epoch["modules_stepped"].as_bool().unwrap(), "{epoch}");
            assert_eq!(start.clear_optimizer, epoch["optimizer_state_cleared"].as_bool().unwrap());
        }
    }
}
