//! What processes do with each other, seen on threads that are processes to c10d.

use std::rc::Rc;

use super::*;
use crate::quant::{Combine, Recorded};
use crate::train::together::{combine, ensure_equal, sum_gradients};
use crate::world::testing::together;

#[test]
fn a_process_with_other_weights_is_named_with_the_tensor() {
    let errors = together(3, |world| {
        let folder = tempfile::tempdir().unwrap();
        let world = Rc::new(world);
        let trainer = trainer(&three_stages(), folder.path()).with_world(world.clone(), 1);
        ensure_equal(&world, &trainer.checkpoint()).unwrap();
        let parameters = trainer.net().store().parameters();
        let changed = parameters.iter().find(|var| var.name.starts_with("fpn.")).unwrap();
        if world.rank() == 2 {
            tch::no_grad(|| drop(changed.tensor.get(0).g_add_scalar_(1e-4)));
        }
        let error = ensure_equal(&world, &trainer.checkpoint()).unwrap_err();
        (changed.name.clone(), error.to_string())
    });
    for (name, error) in errors {
        let expected = format!("process 2 has other bits in {name} than process 0");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn records_of_activations_become_one() {
    let records = together(2, |world| {
        let rank = world.rank() as f32;
        let record = |values: &[f32], how| Recorded { tensor: Tensor::from_slice(values), how };
        let sample: Vec<f32> = (0..100).map(|i| if i < 90 { rank } else { f32::NAN }).collect();
        let all = [
            record(&[rank], Combine::Largest),
            record(&[-rank], Combine::Smallest),
            record(&[rank * 3.0], Combine::Mean),
            record(&sample, Combine::Draw(7)),
        ];
        combine(&world, &all).unwrap();
        all.map(|record| Vec::<f32>::try_from(&record.tensor).unwrap())
    });
    let [largest, smallest, mean, drawn] = &records[0];
    assert_eq!((largest[0], smallest[0], mean[0]), (1.0, -1.0, 1.5));
    let of_second = drawn.iter().filter(|value| **value == 1.0).count();
    let of_first = drawn.iter().filter(|value| **value == 0.0).count();
    assert!(of_second > 25 && of_first > 25 && of_first + of_second == 90, "{drawn:?}");
    assert!(drawn[90..].iter().all(|value| value.is_nan()));
    let bits = |all: &[Vec<f32>; 4]| all.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(&records[0]), bits(&records[1]));
}

#[test]
fn gradients_are_summed_and_one_that_others_lack_is_named() {
    let found = together(2, |world| {
        let leaf = |value: f32| Tensor::from_slice(&[value, 2.0]).set_requires_grad(true);
        let (a, b) = (leaf(1.0), leaf(3.0));
        let named = vec![("a".to_owned(), a.shallow_clone()), ("b".to_owned(), b.shallow_clone())];
        let sgd = Sgd::new(&SgdConfig::default(), named).unwrap();
        (&a * (world.rank() as f64 + 1.0)).sum(Kind::Float).backward();
        sum_gradients(&world, &sgd).unwrap();
        let sum = Vec::<f32>::try_from(a.grad()).unwrap();
        if world.is_first() {
            b.sum(Kind::Float).backward();
        }
        (sum, sum_gradients(&world, &sgd).unwrap_err().to_string())
    });
    for (sum, error) in found {
        assert_eq!(sum, [3.0, 3.0]);
        assert_eq!(error, "1 of 2 processes have a gradient of b");
    }
}
