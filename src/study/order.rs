//! The order of modules: the paper's rule, and the tree of all orders.

/// A module as the rule of order sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModuleGain {
    /// Learnt numbers of the module.
    pub num_parameters: usize,
    /// By how much the network with this module alone at few bits beats the full-precision one; `None` if that was not
    /// tried, or is within the margin.
    pub gain: Option<f64>,
}

/// The flow: the module that gains most from few bits goes first, if one gains at all; all others follow in ascending
/// number of parameters. Also says which module gained.
///
/// Equal gains and equal counts keep the order given.
///
/// # Source
/// Javed et al., *Modular Quantization-Aware Training for 6D Object Pose Estimation*, TMLR 2024, algorithm 1.
pub fn flow_order(modules: &[ModuleGain]) -> (Vec<usize>, Option<usize>) {
    let mut order: Vec<usize> = (0..modules.len()).collect();
    order.sort_by_key(|&i| modules[i].num_parameters);
    let gain = |i: &usize| modules[*i].gain.filter(|g| *g > 0.0);
    let first = (0..modules.len())
        .filter(|i| gain(i).is_some())
        .reduce(|best, i| if gain(&i) > gain(&best) { i } else { best });
    if let Some(first) = first {
        order.retain(|&i| i != first);
        order.insert(0, first);
    }
    (order, first)
}

/// All orders of `count` things, in lexical order.
pub fn orders(count: usize) -> Vec<Vec<usize>> {
    prefixes(count).into_iter().filter(|p| p.len() == count).collect()
}

/// Everything that an order of `count` things may begin with, whole orders included and each once; shorter ones first.
///
/// Training each of them from the one it extends runs every order, in `sum K! / (K - j)!` stages: 15 for 3.
pub fn prefixes(count: usize) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = Vec::new();
    let mut shorter: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..count {
        let mut longer = Vec::new();
        for prefix in &shorter {
            for next in (0..count).filter(|i| !prefix.contains(i)) {
                longer.push([prefix.as_slice(), &[next]].concat());
            }
        }
        all.extend(longer.iter().cloned());
        shorter = longer;
    }
    all
}

/// Stages that the orders of `count` things take when none shares its beginning: 18 for 3.
pub fn num_separate_stages(count: usize) -> usize {
    orders(count).len() * count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(num_parameters: usize, gain: f64) -> ModuleGain {
        ModuleGain { num_parameters, gain: Some(gain) }
    }

    #[test]
    fn the_module_that_gains_most_goes_first() {
        // backbone, fpn, head of the published network: F -> H -> B.
        let modules = [module(40_584_928, -3.0), module(5_179_392, 5.0), module(4_763_926, 1.0)];
        assert_eq!(flow_order(&modules), (vec![1, 2, 0], Some(1)));
    }

    #[test]
    fn if_none_gains_the_smallest_goes_first() {
        let modules = [module(30, -3.0), module(20, 0.0), module(10, -1.0)];
        assert_eq!(flow_order(&modules), (vec![2, 1, 0], None));
        let untried = modules.map(|m| ModuleGain { gain: None, ..m });
        assert_eq!(flow_order(&untried), (vec![2, 1, 0], None));
        let odd = [module(30, f64::NAN), module(20, 0.5)];
        assert_eq!(flow_order(&odd), (vec![1, 0], Some(1)));
    }

    #[test]
    fn three_modules_take_fifteen_stages_instead_of_eighteen() {
        let all = prefixes(3);
        assert_eq!(all.len(), 15);
        assert_eq!(num_separate_stages(3), 18);
        assert_eq!(orders(3).len(), 6);
        assert_eq!(orders(3)[0], [0, 1, 2]);
        for prefix in &all {
            let before = &prefix[..prefix.len() - 1];
            assert!(before.is_empty() || all.iter().any(|p| p == before), "{prefix:?}");
        }
        assert_eq!(prefixes(1), [[0]]);
        assert_eq!((prefixes(4).len(), num_separate_stages(4)), (64, 96));
    }
}
