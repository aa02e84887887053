//! The bit widths of least cost within a size: a multiple-choice knapsack, solved exactly.
//!
//! The integer programme of HAWQ-V3 (one choice an item, sizes that add up, one limit) needs no general solver: partial
//! choices are extended item by item, and one is dropped when another is no larger and no dearer, or when even the
//! relaxed rest of it (fractions of choices allowed) costs more than a solution that is known. Both rules keep an optimal
//! choice. Tests compare it with trying everything and with a general integer programme.

use std::fmt;

/// One way to store an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Bits a weight.
    pub bits: u32,
    /// What the choice costs; finite, 0 or more.
    pub cost: f64,
    /// Its size, in bits.
    pub size_bits: u64,
}

/// Something that is stored in one of several ways: a module or a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its name, for messages.
    pub name: String,
    /// The ways, in any order; not empty.
    pub choices: Vec<Choice>,
}

/// The choice of least summed cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// For each item which of its choices.
    pub picks: Vec<usize>,
    /// The sum of their costs.
    pub cost: f64,
    /// The sum of their sizes, in bits.
    pub size_bits: u64,
}

/// No choice is small enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Infeasible {
    /// The size allowed, in bits.
    pub budget_bits: u64,
    /// The smallest size there is, in bits.
    pub smallest_bits: u64,
    /// Each item's part of it, the largest first.
    pub parts: Vec<(String, u64)>,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bits are allowed, and the smallest choices take {}",
            self.budget_bits, self.smallest_bits
        )
    }
}

impl std::error::Error for Infeasible {}

/// Rounding of sums is forgiven to this fraction of the costs before a partial choice is dropped.
const ROUNDING: f64 = 1e-12;

/// The choice of least summed cost whose sizes add up to at most `budget_bits`; of equally cheap ones the smallest.
///
/// # Errors
/// If even the smallest choices are larger.
///
/// # Panics
/// If an item has no choice, or a cost is negative or not finite.
///
/// # Source
/// The programme: Yao et al., *HAWQ-V3*, ICML 2021, equation 10. Dropping dominated partial choices: Nemhauser and Ullmann,
/// Management Science 15 (1969); the relaxation: Sinha and Zoltners, Operations Research 27 (1979).
pub fn solve(items: &[Item], budget_bits: u64) -> Result<Allocation, Infeasible> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    let reduced: Vec<Vec<(usize, Choice)>> = items.iter().map(undominated).collect();
    let smallest_of = |i: usize| reduced[i][0].1.size_bits;
    let smallest_bits: u64 = order.iter().map(|&i| smallest_of(i)).sum();
    if smallest_bits > budget_bits {
        let mut parts: Vec<_> =
            items.iter().enumerate().map(|(i, item)| (item.name.clone(), smallest_of(i))).collect();
        parts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        return Err(Infeasible { budget_bits, smallest_bits, parts });
    }
    // Large items first: what is left over for the small ones then differs little, and few partial choices survive.
    order.sort_by_key(|&i| std::cmp::Reverse(reduced[i].last().map_or(0, |c| c.1.size_bits)));
    let classes: Vec<&[(usize, Choice)]> = order.iter().map(|&i| reduced[i].as_slice()).collect();
    let rest: Vec<Relaxed> = (0..=classes.len()).map(|k| Relaxed::new(&classes[k..])).collect();
    let known = rest[0].rounded_down(budget_bits);
    let scale: f64 = classes.iter().map(|c| c[0].1.cost).sum();
    let limit = known + ROUNDING * scale;

    // One layer of partial choices for each item, each pointing at the one it extends.
    let mut layers = vec![vec![Partial { size: 0, cost: 0.0, before: 0, pick: 0 }]];
    for (k, class) in classes.iter().enumerate() {
        let mut next = Vec::with_capacity(layers[k].len() * class.len());
        for (before, partial) in layers[k].iter().enumerate() {
            for (pick, choice) in class.iter() {
                let size = partial.size + choice.size_bits;
                let cost = partial.cost + choice.cost;
                let bound = budget_bits.checked_sub(size).and_then(|room| rest[k + 1].cost(room));
                if bound.is_some_and(|bound| cost + bound <= limit) {
                    next.push(Partial { size, cost, before, pick: *pick });
                }
            }
        }
        layers.push(without_dominated(next));
    }
    let last = layers.len() - 1;
    let best = (0..layers[last].len())
        .min_by(|&a, &b| {
            let (a, b) = (&layers[last][a], &layers[last][b]);
            a.cost.total_cmp(&b.cost).then(a.size.cmp(&b.size))
        })
        .expect("the solution that is known survives");
    let mut at = best;
    let mut picks = vec![0; items.len()];
    for k in (0..classes.len()).rev() {
        let partial = &layers[k + 1][at];
        picks[order[k]] = partial.pick;
        at = partial.before;
    }
    // Summed in the order of the items, so that the number does not depend on the solver's.
    let chosen = || items.iter().zip(&picks).map(|(item, &pick)| &item.choices[pick]);
    Ok(Allocation {
        cost: chosen().map(|c| c.cost).sum(),
        size_bits: chosen().map(|c| c.size_bits).sum(),
        picks,
    })
}

#[derive(Debug, Clone, Copy)]
struct Partial {
    size: u64,
    cost: f64,
    before: usize,
    pick: usize,
}

/// The choices that no other one beats, with their places, by growing size and falling cost.
fn undominated(item: &Item) -> Vec<(usize, Choice)> {
    assert!(!item.choices.is_empty(), "{} has no choice", item.name);
    for c in &item.choices {
        assert!(c.cost >= 0.0 && c.cost.is_finite(), "{}: a choice costs {}", item.name, c.cost);
    }
    let mut all: Vec<(usize, Choice)> = item.choices.iter().copied().enumerate().collect();
    all.sort_by(|a, b| a.1.size_bits.cmp(&b.1.size_bits).then(a.1.cost.total_cmp(&b.1.cost)));
    let mut kept: Vec<(usize, Choice)> = Vec::new();
    for choice in all {
        if kept.last().is_none_or(|last| choice.1.cost < last.1.cost) {
            kept.push(choice);
        }
    }
    kept
}

fn without_dominated(mut all: Vec<Partial>) -> Vec<Partial> {
    all.sort_by(|a, b| a.size.cmp(&b.size).then(a.cost.total_cmp(&b.cost)));
    let mut cheapest = f64::INFINITY;
    all.retain(|p| {
        let keep = p.cost < cheapest;
        cheapest = cheapest.min(p.cost);
        keep
    });
    all
}

/// The items from some one on, with fractions of choices allowed: the steps along the lower hulls of their choices, the
/// ones that save most a bit first.
struct Relaxed {
    smallest_bits: u64,
    smallest_cost: f64,
    steps: Vec<Step>,
    /// Size and saving of the first so many steps.
    sums: Vec<(u64, f64)>,
}

struct Step {
    class: usize,
    bits: u64,
    saves: f64,
}

impl Relaxed {
    fn new(classes: &[&[(usize, Choice)]]) -> Self {
        let mut steps = Vec::new();
        for (class, choices) in classes.iter().enumerate() {
            let hull = lower_hull(choices);
            steps.extend(hull.windows(2).map(|pair| Step {
                class,
                bits: pair[1].size_bits - pair[0].size_bits,
                saves: pair[0].cost - pair[1].cost,
            }));
        }
        // Stable, so that the steps of a class stay in order where they save equally.
        steps.sort_by(|a, b| (b.saves / b.bits as f64).total_cmp(&(a.saves / a.bits as f64)));
        let mut sums = vec![(0, 0.0)];
        for step in &steps {
            let (bits, saved) = sums[sums.len() - 1];
            sums.push((bits + step.bits, saved + step.saves));
        }
        Self {
            smallest_bits: classes.iter().map(|c| c[0].1.size_bits).sum(),
            smallest_cost: classes.iter().map(|c| c[0].1.cost).sum(),
            steps,
            sums,
        }
    }

    /// What the items cost at least in `room` bits; `None` if they do not fit.
    fn cost(&self, room: u64) -> Option<f64> {
        let room = room.checked_sub(self.smallest_bits)?;
        let whole = self.sums.partition_point(|(bits, _)| *bits <= room) - 1;
        let (bits, saved) = self.sums[whole];
        let part = self
            .steps
            .get(whole)
            .map_or(0.0, |step| step.saves * ((room - bits) as f64 / step.bits as f64));
        Some(self.smallest_cost - saved - part)
    }

    /// The cost of one solution that fits into `room` bits: whole steps in the order of the relaxation, as they fit.
    fn rounded_down(&self, room: u64) -> f64 {
        let mut room = room - self.smallest_bits;
        let mut cost = self.smallest_cost;
        let mut closed = std::collections::BTreeSet::new();
        for step in &self.steps {
            if step.bits <= room && !closed.contains(&step.class) {
                room -= step.bits;
                cost -= step.saves;
            } else {
                closed.insert(step.class); // its further steps build on this one
            }
        }
        cost
    }
}

/// The choices on the lower convex hull of cost over size; `choices` as [`undominated`] gives them.
fn lower_hull(choices: &[(usize, Choice)]) -> Vec<Choice> {
    let mut hull: Vec<Choice> = Vec::new();
    for &(_, choice) in choices {
        while let [.., a, b] = hull[..] {
            let slope = |from: Choice, to: Choice| {
                (from.cost - to.cost) / (to.size_bits - from.size_bits) as f64
            };
            if slope(a, b) > slope(b, choice) {
                break;
            }
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use rand::Rng;

    fn item(name: &str, weights: u64, costs: &[(u32, f64)]) -> Item {
        let choice = |&(bits, cost): &(u32, f64)| Choice {
            bits,
            cost,
            size_bits: weights * u64::from(bits),
        };
        Item { name: name.into(), choices: costs.iter().map(choice).collect() }
    }

    /// Items as networks have them: a few sizes that repeat, costs that fall with the bits over many orders.
    fn random_items(case: u64, count: usize, widths: &[u32]) -> Vec<Item> {
        let mut rng = seed::stream(case, &[count as u64]);
        let one = |i: usize| {
            let weights = [288, 1728, 36_864, 73_728, 589_824, 2_359_296][rng.random_range(0..6)]
                + if rng.random_bool(0.3) { rng.random_range(0..5000) } else { 0 };
            let level = 10f64.powf(rng.random_range(-6.0..2.0));
            let choices = widths.iter().map(|&bits| Choice {
                bits,
                cost: level * 4f64.powi(-(bits as i32)) * rng.random_range(0.5..1.5),
                size_bits: weights * u64::from(bits),
            });
            Item { name: format!("layer{i}"), choices: choices.collect() }
        };
        (0..count).map(one).collect()
    }

    fn budget(items: &[Item], bits_a_weight: f64) -> u64 {
        let weights = |i: &Item| i.choices[0].size_bits / u64::from(i.choices[0].bits);
        (items.iter().map(weights).sum::<u64>() as f64 * bits_a_weight) as u64
    }

    /// The cheapest of all choices, tried one by one.
    fn brute_force(items: &[Item], budget_bits: u64) -> Option<(f64, u64)> {
        let mut best: Option<(f64, u64)> = None;
        let total: usize = items.iter().map(|i| i.choices.len()).product();
        for mut code in 0..total {
            let (mut cost, mut size) = (0.0, 0);
            for item in items {
                let choice = &item.choices[code % item.choices.len()];
                code /= item.choices.len();
                cost += choice.cost;
                size += choice.size_bits;
            }
            if size <= budget_bits && best.is_none_or(|(c, s)| cost < c || (cost == c && size < s))
            {
                best = Some((cost, size));
            }
        }
        best
    }

    #[test]
    fn two_modules_worked_by_hand() {
        // 100 and 10 weights; 600 bits: (4, 8) costs 3 in 480 bits, (2, 8) 10.5, (8, ..) does not fit.
        let items = [
            item("backbone", 100, &[(2, 10.0), (4, 2.5), (8, 0.1)]),
            item("head", 10, &[(2, 4.0), (4, 1.0), (8, 0.5)]),
        ];
        let found = solve(&items, 600).unwrap();
        assert_eq!((found.picks.as_slice(), found.size_bits), (&[1, 2][..], 480));
        assert!((found.cost - 3.0).abs() < 1e-12);
        assert_eq!(solve(&items, 880).unwrap().picks, [2, 2]);
        assert_eq!(solve(&items, 220).unwrap().picks, [0, 0]);
    }

    #[test]
    fn a_target_out_of_reach_says_what_is_the_smallest() {
        let items = [item("backbone", 100, &[(4, 1.0), (2, 3.0)]), item("head", 10, &[(8, 1.0)])];
        let err = solve(&items, 279).unwrap_err();
        assert_eq!((err.smallest_bits, err.budget_bits), (280, 279));
        assert_eq!(err.parts, [("backbone".to_owned(), 200), ("head".to_owned(), 80)]);
        assert_eq!(solve(&items, 280).unwrap().picks, [1, 0]);
    }

    #[test]
    fn of_equally_cheap_choices_the_smallest_is_taken() {
        let flat = item("flat", 10, &[(8, 0.0), (2, 0.0), (4, 0.0)]);
        assert_eq!(solve(&[flat], 1000).unwrap().picks, [1]);
        assert_eq!(solve(&[], 0).unwrap(), Allocation { picks: vec![], cost: 0.0, size_bits: 0 });
    }

    #[test]
    fn it_finds_what_trying_everything_finds() {
        for case in 0..300 {
            let count = 1 + case as usize % 8;
            let widths: &[u32] =
                [&[2, 4, 8][..], &[1, 2, 3, 4][..], &[2, 3][..]][case as usize % 3];
            let items = random_items(case, count, widths);
            let at = seed::stream(case, &[9]).random_range(1.0..9.0);
            let budget = budget(&items, at);
            match (solve(&items, budget), brute_force(&items, budget)) {
                (Ok(found), Some((cost, size))) => {
                    assert!(found.size_bits <= budget);
                    let same = (found.cost - cost).abs() <= 1e-12 * cost;
                    assert!(
                        same && found.size_bits == size,
                        "case {case}: {found:?}, {cost} {size}"
                    );
                }
                (Err(err), None) => assert!(err.smallest_bits > budget),
                (found, expected) => panic!("case {case}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn twelve_layers_too() {
        for case in 0..12 {
            let items = random_items(1000 + case, 12, &[2, 4, 8]);
            let budget = budget(&items, 2.2 + 0.4 * case as f64);
            let found = solve(&items, budget).unwrap().cost;
            let (expected, _) = brute_force(&items, budget).unwrap();
            assert!(
                (found - expected).abs() <= 1e-12 * expected,
                "case {case}: {found} {expected}"
            );
        }
    }

    #[test]
    fn a_hundred_layers_of_eight_widths_keep_few_partial_choices() {
        let widths: Vec<u32> = (1..=8).collect();
        for case in 0..4 {
            let items = random_items(2000 + case, 100, &widths);
            let budget = budget(&items, 2.0 + case as f64);
            let found = solve(&items, budget).unwrap();
            assert!(found.size_bits <= budget);
            // No exchange of one or two choices makes it cheaper.
            let improves = |changes: &[(usize, usize)]| {
                let mut picks = found.picks.clone();
                changes.iter().for_each(|&(i, pick)| picks[i] = pick);
                let all = || items.iter().zip(&picks).map(|(item, &p)| &item.choices[p]);
                let size: u64 = all().map(|c| c.size_bits).sum();
                size <= budget && all().map(|c| c.cost).sum::<f64>() < found.cost * (1.0 - 1e-9)
            };
            for i in 0..100 {
                for j in i..100 {
                    for (a, b) in (0..8).flat_map(|a| (0..8).map(move |b| (a, b))).step_by(7) {
                        assert!(!improves(&[(i, a), (j, b)]), "case {case}");
                    }
                }
            }
        }
    }
}
