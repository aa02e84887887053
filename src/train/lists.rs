//! Updates of many parameters in few operators, for devices where each operator costs a launch.

use tch::Tensor;

use crate::libtorch::{self, SgdRule};

/// Parameters that are updated by one rule.
struct UpdateList {
    rule: SgdRule,
    /// Nothing goes below it.
    least: Option<f64>,
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    momenta: Vec<Tensor>,
}

/// The parameters of a step, by their rules.
#[derive(Default)]
pub(super) struct UpdateLists(Vec<UpdateList>);

impl UpdateLists {
    /// Adds a parameter, its gradient and its momentum, all of one kind and layout.
    pub fn add(&mut self, rule: SgdRule, least: Option<f64>, tensors: [&Tensor; 3]) {
        let known = self.0.iter().position(|list| list.rule == rule && list.least == least);
        let index = known.unwrap_or_else(|| {
            let (params, grads, momenta) = (Vec::new(), Vec::new(), Vec::new());
            self.0.push(UpdateList { rule, least, params, grads, momenta });
            self.0.len() - 1
        });
        let list = &mut self.0[index];
        let [param, grad, momentum] = tensors.map(Tensor::shallow_clone);
        list.params.push(param);
        list.grads.push(grad);
        list.momenta.push(momentum);
    }

    /// Updates all of them, with gradients multiplied by `scale` first, where it is below 1.
    ///
    /// # Panics
    /// On errors of libtorch, as the operators of tch do.
    pub fn update(self, scale: f64) {
        for UpdateList { rule, least, params, grads, momenta } in self.0 {
            if scale < 1.0 {
                libtorch::scale(&grads, scale).unwrap();
            }
            libtorch::sgd(&params, &grads, &momenta, rule).unwrap();
            if let Some(least) = least {
                libtorch::clamp_min(&params, least).unwrap();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    #[test]
    fn each_parameter_goes_by_its_own_rule() {
        let rule = |lr| SgdRule { lr, momentum: 0.5, weight_decay: 0.0, nesterov: false };
        let params = [tensor(&[1.0, 2.0]), tensor(&[3.0]), tensor(&[0.3])];
        let grads = [tensor(&[1.0, -1.0]), tensor(&[2.0]), tensor(&[4.0])];
        let momenta = params.each_ref().map(Tensor::zeros_like);
        let mut lists = UpdateLists::default();
        for (i, (lr, least)) in
            [(0.1, None), (0.1, None), (0.5, Some(0.05))].into_iter().enumerate()
        {
            lists.add(rule(lr), least, [&params[i], &grads[i], &momenta[i]]);
        }
        assert_eq!(lists.0.len(), 2);
        lists.update(0.5);
        let expected = [tensor(&[0.95, 2.05]), tensor(&[2.9]), tensor(&[0.05])];
        for (found, expected) in params.iter().zip(&expected) {
            assert!(found.allclose(expected, 1e-12, 0.0, false), "{found:?} {expected:?}");
        }
        assert!(momenta[1].equal(&Tensor::ones([1], (Kind::Double, Device::Cpu))));
    }
}
