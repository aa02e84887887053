//! An update of a parameter in one pass over memory.
//!
//! By libtorch's operators an update goes over all weights about ten times; on the CPU that costs more than the
//! arithmetic. Here every number is read and written once, with the operations and roundings of those operators one
//! after the other: the result has the same bits.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::nn::{are_disjoint, flags, floats, floats_mut, is_dense, same_layout};

/// Numbers of one task.
const ROW: usize = 1 << 15;
/// Numbers whose squares are added up in f32 before they go to f64.
const BLOCK: usize = 256;
/// Independent sums of a block.
const LANES: usize = 16;

/// How a parameter is updated, see [`super::SgdConfig`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub lr: f64,
    /// Above 0.
    pub momentum: f64,
    pub nesterov: bool,
    pub weight_decay: f64,
    /// What gradients are multiplied by first, because their norm is too large.
    pub scale: f64,
}

/// The same in f32, as libtorch rounds numbers that meet f32 tensors.
#[derive(Clone, Copy)]
struct Rounded {
    lr: f32,
    momentum: f32,
    weight_decay: f32,
    scale: f32,
}

/// Updates parameter and momentum; where `frozen` the gradient counts as 0, and so does the decay, so that a parameter
/// whose momentum is 0 keeps its bits. Without a momentum yet, the gradient becomes it. False, and nothing is done, for
/// tensors that are not dense f32 of the CPU in one layout, each with memory of its own.
pub(super) fn update(
    param: &mut Tensor,
    grad: &Tensor,
    momentum: &mut Option<Tensor>,
    frozen: Option<&Tensor>,
    rule: Rule,
) -> bool {
    let fits = |x: &Tensor| is_dense(x, Kind::Float) && same_layout(param, x);
    let flags_fit = |x: &Tensor| is_dense(x, Kind::Bool) && same_layout(param, x);
    if !(fits(param)
        && fits(grad)
        && momentum.as_ref().is_none_or(fits)
        && frozen.is_none_or(flags_fit))
    {
        return false;
    }
    let shared = [Some(grad), momentum.as_ref(), frozen];
    let all: Vec<&Tensor> = shared.into_iter().flatten().chain([&*param]).collect();
    if !are_disjoint(&all) {
        return false;
    }
    let rounded = Rounded {
        lr: rule.lr as f32,
        momentum: rule.momentum as f32,
        weight_decay: rule.weight_decay as f32,
        scale: rule.scale as f32,
    };
    let first = momentum.is_none();
    let momentum = momentum.get_or_insert_with(|| param.zeros_like());
    let decays = rule.weight_decay != 0.0;
    let go = match (first, rule.nesterov, decays) {
        (false, false, false) => over_rows::<false, false, false>,
        (false, false, true) => over_rows::<false, false, true>,
        (false, true, false) => over_rows::<false, true, false>,
        (false, true, true) => over_rows::<false, true, true>,
        (true, false, false) => over_rows::<true, false, false>,
        (true, false, true) => over_rows::<true, false, true>,
        (true, true, false) => over_rows::<true, true, false>,
        (true, true, true) => over_rows::<true, true, true>,
    };
    // SAFETY: no two of the tensors share memory, a momentum that was just made shares none; `go` does arithmetic on the
    // slices, calls no operator, and has dropped them when it returns.
    unsafe {
        let frozen = frozen.map(|frozen| flags(frozen));
        go(floats_mut(param), floats(grad), floats_mut(momentum), frozen, rounded);
    }
    true
}

/// The norm of gradients that count as 0 where `frozen`; none for tensors as in [`update`].
///
/// Squares are added up in f32 over 256 numbers, then in f64, in the order of the memory: the result does not depend on
/// threads.
pub(super) fn norm_of_others(grad: &Tensor, frozen: &Tensor) -> Option<f64> {
    if !(is_dense(grad, Kind::Float)
        && is_dense(frozen, Kind::Bool)
        && same_layout(grad, frozen)
        && are_disjoint(&[grad, frozen]))
    {
        return None;
    }
    // SAFETY: nothing writes to either until the end of this function.
    let (grad, frozen) = unsafe { (floats(grad), flags(frozen)) };
    let of_row = |(grad, frozen): (&[f32], &[u8])| -> f64 {
        let blocks = grad.chunks(BLOCK).zip(frozen.chunks(BLOCK));
        blocks.map(|(grad, frozen)| f64::from(sum_of_squares(grad, frozen))).sum()
    };
    let rows = grad.par_chunks(ROW).zip(frozen.par_chunks(ROW));
    let sums: Vec<f64> = match grad.len() <= ROW {
        true => vec![of_row((grad, frozen))],
        false => rows.map(of_row).collect(),
    };
    Some(sums.into_iter().sum::<f64>().sqrt())
}

/// Of the numbers that are not flagged, in lanes that compilers make vector instructions of.
fn sum_of_squares(values: &[f32], flags: &[u8]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (values, flags) = (values.chunks(LANES), flags.chunks(LANES));
    for (values, flags) in values.zip(flags) {
        for ((lane, &v), &flag) in lanes.iter_mut().zip(values).zip(flags) {
            let v = unless(flag, v);
            *lane += v * v;
        }
    }
    lanes.into_iter().sum()
}

/// The value, or +0 where the flag is 1: without a branch, so that compilers make vector instructions of it.
#[inline(always)]
fn unless(flag: u8, value: f32) -> f32 {
    f32::from_bits(value.to_bits() & u32::from(flag).wrapping_sub(1))
}

fn over_rows<const FIRST: bool, const NESTEROV: bool, const DECAYS: bool>(
    param: &mut [f32],
    grad: &[f32],
    momentum: &mut [f32],
    frozen: Option<&[u8]>,
    rule: Rounded,
) {
    if param.len() <= ROW {
        return row::<FIRST, NESTEROV, DECAYS>(param, grad, momentum, frozen, rule);
    }
    let rows = param.par_chunks_mut(ROW).zip(grad.par_chunks(ROW));
    let rows = rows.zip(momentum.par_chunks_mut(ROW)).enumerate();
    rows.for_each(|(i, ((param, grad), momentum))| {
        let frozen = frozen.map(|all| &all[i * ROW..i * ROW + param.len()]);
        row::<FIRST, NESTEROV, DECAYS>(param, grad, momentum, frozen, rule);
    });
}

fn row<const FIRST: bool, const NESTEROV: bool, const DECAYS: bool>(
    param: &mut [f32],
    grad: &[f32],
    momentum: &mut [f32],
    frozen: Option<&[u8]>,
    rule: Rounded,
) {
    let change = |p: f32, g: f32| -> f32 {
        let d = g * rule.scale;
        if DECAYS { d + p * rule.weight_decay } else { d }
    };
    let one = |p: &mut f32, d: f32, m: &mut f32| {
        *m = if FIRST { d } else { *m * rule.momentum + d };
        let direction = if NESTEROV { d + *m * rule.momentum } else { *m };
        *p -= direction * rule.lr;
    };
    let all = param.iter_mut().zip(grad).zip(momentum);
    match frozen {
        None => {
            for ((p, &g), m) in all {
                one(p, change(*p, g), m);
            }
        }
        Some(frozen) => {
            for (((p, &g), m), &frozen) in all.zip(frozen) {
                one(p, unless(frozen, change(*p, g)), m);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, no_grad};

    use super::*;

    /// Numbers of all magnitudes with zeros of both signs among them.
    fn values(shape: &[i64], phase: f64) -> Tensor {
        let n = shape.iter().product::<i64>();
        let x = Tensor::arange(n, (Kind::Double, Device::Cpu)) + phase;
        let spread = (&x * 0.37).sin() * ((&x * 0.11).sin() * 12.0).exp();
        let zeros = x.fmod(7.0).lt(0.5);
        let signed_zeros = (&spread * 0.0).to_kind(Kind::Float);
        signed_zeros.where_self(&zeros, &spread.to_kind(Kind::Float)).reshape(shape)
    }

    fn bits(x: &Tensor) -> Vec<u32> {
        let flat = Vec::<f32>::try_from(x.contiguous().reshape([-1])).unwrap();
        flat.into_iter().map(f32::to_bits).collect()
    }

    /// By libtorch's operators, one after the other.
    fn by_operators(
        p: &mut Tensor,
        g: &Tensor,
        m: &mut Option<Tensor>,
        frozen: Option<&Tensor>,
        rule: Rule,
    ) {
        let mut d = g.copy().g_mul_scalar_(rule.scale);
        if rule.weight_decay != 0.0 {
            d += &*p * rule.weight_decay;
        }
        if let Some(frozen) = frozen {
            let _ = d.masked_fill_(frozen, 0.0);
        }
        let gathered = match m {
            Some(m) => m.g_mul_scalar_(rule.momentum).g_add_(&d),
            None => m.insert(d.copy()).shallow_clone(),
        };
        let direction = if rule.nesterov { d + gathered * rule.momentum } else { gathered };
        let _ = p.g_sub_(&(direction * rule.lr));
    }

    #[test]
    fn an_update_has_the_bits_of_the_operators() {
        let shapes: [&[i64]; 4] = [&[3], &[5, 3, 3, 3], &[40, 100, 3, 3], &[0]];
        for (case, shape) in shapes.into_iter().cycle().take(64).enumerate() {
            let has = |bit: usize| case >> (bit + 2) & 1 == 1;
            let rule = Rule {
                lr: 0.0123,
                momentum: 0.9,
                nesterov: has(0),
                weight_decay: if has(1) { 1e-4 } else { 0.0 },
                scale: if has(2) { 0.731 } else { 1.0 },
            };
            let lay_out = |x: Tensor| match (has(3), x.dim()) {
                (true, 4) => x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
                _ => x,
            };
            no_grad(|| {
                let frozen = lay_out(values(shape, 0.5).gt(0.3));
                let frozen = (case % 3 > 0).then_some(&frozen);
                let mut ours = (lay_out(values(shape, 1.0)), None);
                let mut theirs = (ours.0.copy(), None);
                for step in 0..3 {
                    let grad = lay_out(values(shape, 2.0 + f64::from(step)));
                    assert!(update(&mut ours.0, &grad, &mut ours.1, frozen, rule));
                    by_operators(&mut theirs.0, &grad, &mut theirs.1, frozen, rule);
                    assert_eq!(bits(&ours.0), bits(&theirs.0), "{case} {rule:?}");
                    assert_eq!(bits(ours.1.as_ref().unwrap()), bits(theirs.1.as_ref().unwrap()));
                }
            });
        }
    }

    #[test]
    fn frozen_gradients_count_as_zero_in_the_norm_and_stay() {
        for shape in [[2, 3, 3, 3], [50, 90, 3, 3]] {
            let (mut grad, frozen) = (values(&shape, 1.0), values(&shape, 3.0).gt(0.0));
            // What is frozen does not count even where it is no number.
            let _ = grad.masked_fill_(&frozen, f64::NAN);
            let before = bits(&grad);
            let expected = grad.masked_fill(&frozen, 0.0).to_kind(Kind::Double).norm();
            let norm = norm_of_others(&grad, &frozen).unwrap();
            assert!((norm / expected.double_value(&[]) - 1.0).abs() < 1e-6, "{norm}");
            assert_eq!(bits(&grad), before);
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let (grad, frozen) = (grad.shallow_clone(), frozen.shallow_clone());
            let alone = one.install(move || norm_of_others(&grad, &frozen)).unwrap();
            assert_eq!(alone, norm);
        }
        let grad = values(&[40, 100, 3, 3], 1.0);
        let none = grad.isnan();
        let _ = grad.get(3).get(1).fill_(f64::NAN);
        assert!(norm_of_others(&grad, &none).unwrap().is_nan(), "it must be seen");
    }

    #[test]
    fn other_kinds_and_layouts_are_left_to_libtorch() {
        let rule = Rule { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0, scale: 1.0 };
        let refused = |mut p: Tensor, g: Tensor| {
            let before = p.copy();
            let mut momentum = None;
            assert!(!update(&mut p, &g, &mut momentum, None, rule));
            assert!(p.equal(&before) && momentum.is_none());
        };
        let x = values(&[4, 4, 2, 2], 0.0);
        refused(x.to_kind(Kind::Double), x.to_kind(Kind::Double));
        refused(x.copy(), x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]));
        refused(x.slice(1, 0, 4, 2), x.slice(1, 0, 4, 2));
        refused(x.copy(), values(&[16], 0.0));
        assert!(norm_of_others(&x.to_kind(Kind::Double), &x.gt(0.0)).is_none());
    }
}
