//! Circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

/// What each node leads to.
pub type Graph<T> = BTreeMap<T, BTreeSet<T>>;

/// The sets of nodes that lead to each other, each sorted; single nodes are none.
pub fn circles<T: Ord + Clone>(graph: &Graph<T>) -> Vec<Vec<T>> {
    let reached: BTreeMap<&T, BTreeSet<&T>> =
        graph.keys().map(|node| (node, reachable(graph, node))).collect();
    let leads = |a: &T, b: &T| reached.get(a).is_some_and(|all| all.contains(b));
    let mut seen = BTreeSet::new();
    let mut found = vec![];
    for node in graph.keys() {
        if !seen.insert(node) {
            continue;
        }
        let others = graph.keys().filter(|other| leads(node, other) && leads(other, node));
        let circle: Vec<T> = others.cloned().collect();
        seen.extend(graph.keys().filter(|other| circle.contains(other)));
        if circle.len() > 1 {
            found.push(circle);
        }
    }
    found
}

fn reachable<'a, T: Ord>(graph: &'a Graph<T>, from: &T) -> BTreeSet<&'a T> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&T> = graph.get(from).into_iter().flatten().collect();
    while let Some(node) = open.pop() {
        if found.insert(node) {
            open.extend(graph.get(node).into_iter().flatten());
        }
    }
    found
}

#[test]
fn circles_are_found_and_chains_are_none() {
    let graph = |arrows: &[(u8, u8)]| {
        let mut graph: Graph<u8> = Graph::new();
        for &(from, to) in arrows {
            graph.entry(from).or_default().insert(to);
            graph.entry(to).or_default();
        }
        graph
    };
    assert!(circles(&graph(&[(1, 2), (2, 3), (1, 3), (4, 4)])).is_empty());
    assert_eq!(circles(&graph(&[(1, 2), (2, 3), (3, 1), (3, 4)])), [[1, 2, 3]]);
    assert_eq!(circles(&graph(&[(1, 2), (2, 1), (2, 5), (5, 6), (6, 5)])), [[1, 2], [5, 6]]);
}
