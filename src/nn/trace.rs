//! A network as a list of what it does, with shapes: read off its own forward function, without computing.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Arguments;
use std::rc::Rc;

use super::{Function, Layer, LayerInfo, Ops, Store};

/// A node by its number; its value is the result.
pub type NodeId = usize;

/// What a network does for images of one size.
#[derive(Debug, Clone)]
pub struct Trace {
    /// In the order in which they run; each reads earlier ones only. The first are the inputs.
    pub nodes: Vec<Node>,
    /// The outputs' names and nodes, in the network's order.
    pub outputs: Vec<(String, NodeId)>,
}

/// An operation and the shape of its result.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its unique name: the layer's key and the place where it runs, or the name that the network gives a function.
    pub name: String,
    /// What it does.
    pub op: TraceOp,
    /// The nodes it reads.
    pub inputs: Vec<NodeId>,
    /// Shape of the result without the batch: channels, height and width, or numbers alone behind a flatten.
    pub shape: Vec<i64>,
}

/// What a node does.
#[derive(Debug, Clone)]
pub enum TraceOp {
    /// The images.
    Input,
    /// A layer of the store.
    Layer(Rc<LayerInfo>),
    /// A function.
    Function(Function),
}

impl Node {
    /// The layer that runs here.
    pub fn layer(&self) -> Option<&LayerInfo> {
        match &self.op {
            TraceOp::Layer(layer) => Some(layer),
            _ => None,
        }
    }

    /// The quantizable layer that runs here.
    fn site(&self) -> Option<&str> {
        self.layer().filter(|l| l.kind.site().is_some()).map(|l| l.name.as_str())
    }
}

/// What a layer costs, for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSummary {
    /// What the layer is.
    pub layer: Rc<LayerInfo>,
    /// Channels, height and width of the output; of the first use where a layer runs several times.
    pub output: [i64; 3],
    /// How often the layer runs; 0 when it is in the state but unused.
    pub uses: usize,
    /// Multiply-accumulates over all uses; norms, biases and scales count none.
    pub macs: u64,
}

impl Trace {
    /// By node, the nodes that read its value; an output counts as none.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![vec![]; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&x| readers[x].push(i));
        }
        readers
    }

    /// The quantizable layers that read the images, without another one in between.
    pub fn first_layers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        // Whether a node's value reaches back to the images past no quantizable layer.
        let mut raw = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            let from_images =
                matches!(node.op, TraceOp::Input) || node.inputs.iter().any(|&x| raw[x]);
            match node.site() {
                Some(name) if from_images => drop(found.insert(name.to_owned())),
                Some(_) => {}
                None => raw[i] = from_images,
            }
        }
        found
    }

    /// The quantizable layers whose results reach an output without another one in between.
    pub fn last_layers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut reaches = vec![false; self.nodes.len()];
        self.outputs.iter().for_each(|&(_, node)| reaches[node] = true);
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if !reaches[i] {
                continue;
            }
            match node.site() {
                Some(name) => drop(found.insert(name.to_owned())),
                None => node.inputs.iter().for_each(|&x| reaches[x] = true),
            }
        }
        found
    }

    /// The layers that run, by name.
    pub fn layers(&self) -> BTreeSet<&str> {
        self.nodes.iter().filter_map(Node::layer).map(|layer| layer.name.as_str()).collect()
    }

    /// One line for each layer of the store, in the order of the state, with its costs.
    pub fn summary(&self, store: &Store) -> Vec<LayerSummary> {
        let blank = |layer: Rc<LayerInfo>| LayerSummary {
            output: [layer.kind.channels(), 1, 1],
            layer,
            uses: 0,
            macs: 0,
        };
        let mut lines: Vec<LayerSummary> = store.layers().into_iter().map(blank).collect();
        let place: HashMap<String, usize> =
            lines.iter().enumerate().map(|(i, line)| (line.layer.name.clone(), i)).collect();
        for node in &self.nodes {
            let Some(&at) = node.layer().and_then(|layer| place.get(&layer.name)) else { continue };
            let line = &mut lines[at];
            let cells = |shape: &[i64]| [shape[0], dim(shape, 1), dim(shape, 2)];
            if line.uses == 0 {
                line.output = cells(&node.shape);
            }
            line.uses += 1;
            let [_, h, w] = cells(&self.nodes[node.inputs[0]].shape);
            let [_, out_h, out_w] = cells(&node.shape);
            line.macs += line.layer.kind.macs(h * w, out_h * out_w);
        }
        lines
    }
}

fn dim(shape: &[i64], i: usize) -> i64 {
    shape.get(i).copied().unwrap_or(1)
}

/// Writes a network down.
#[derive(Debug, Default)]
pub struct Tracer {
    nodes: Vec<Node>,
    place: Option<String>,
}

impl Tracer {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The network's input of that shape (without the batch).
    pub fn input(&mut self, name: &str, shape: &[i64]) -> NodeId {
        self.add(name.to_owned(), TraceOp::Input, vec![], shape.to_vec())
    }

    /// The trace of a network with these outputs.
    pub fn finish(self, outputs: Vec<(String, NodeId)>) -> Trace {
        Trace { nodes: self.nodes, outputs }
    }

    fn add(&mut self, name: String, op: TraceOp, inputs: Vec<NodeId>, shape: Vec<i64>) -> NodeId {
        debug_assert!(self.nodes.iter().all(|n| n.name != name), "two nodes are named {name}");
        self.nodes.push(Node { name, op, inputs, shape });
        self.nodes.len() - 1
    }

    fn placed(&self, name: String) -> String {
        match &self.place {
            Some(place) => format!("{name}.{place}"),
            None => name,
        }
    }
}

impl Ops for Tracer {
    type Value = NodeId;

    fn share(&self, x: &NodeId) -> NodeId {
        *x
    }

    fn size(&self, x: &NodeId) -> [i64; 2] {
        let shape = &self.nodes[*x].shape;
        [shape[1], shape[2]]
    }

    fn at(&mut self, place: Option<Arguments>) {
        self.place = place.map(|place| place.to_string());
    }

    fn layer(&mut self, layer: &dyn Layer, x: &NodeId) -> NodeId {
        let info = layer.info();
        let shape = info.kind.shape(&info.name, &self.nodes[*x].shape);
        let name = self.placed(info.node_name());
        self.add(name, TraceOp::Layer(info.clone()), vec![*x], shape)
    }

    fn function(&mut self, name: Arguments, function: Function, x: &[&NodeId]) -> NodeId {
        let shapes: Vec<&[i64]> = x.iter().map(|&&x| self.nodes[x].shape.as_slice()).collect();
        let shape = function.shape(&shapes);
        let name = self.placed(name.to_string());
        self.add(name, TraceOp::Function(function), x.iter().map(|x| **x).collect(), shape)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::{Conv2d, ConvShape, Fill, Linear, Scale};

    /// conv a, relu, conv b, flatten, linear c, scale; linear d is never used.
    fn trace() -> (Store, Trace) {
        let store = Store::new(Device::Cpu);
        let root = store.root();
        let fill = || Fill::Constant(0.0);
        let a = Conv2d::new(&(&root / "m" / "a"), ConvShape::new(3, 4, 3).stride(2), fill(), None);
        let b = Conv2d::new(&(&root / "m" / "b"), ConvShape::new(4, 2, 1), fill(), Some(0.0));
        let c = Linear::new(&(&root / "n" / "c"), 2 * 3 * 4, 5);
        let _ = Linear::new(&(&root / "n" / "d"), 2, 2);
        let s = Scale::new(&(&root / "n" / "s"));
        let mut t = Tracer::new();
        let x = t.input("images", &[3, 5, 8]);
        let y = t.layer(&a, &x);
        let y = t.relu(format_args!("m.relu"), &y);
        let y = t.layer(&b, &y);
        let aux = y;
        let y = t.flatten(format_args!("n.flat"), &y);
        let y = t.layer(&c, &y);
        let y = t.layer(&s, &y);
        (store, t.finish(vec![("y".to_owned(), y), ("aux".to_owned(), aux)]))
    }

    #[test]
    fn first_and_last_layers_follow_from_who_reads_whom() {
        let (_, trace) = trace();
        assert_eq!(trace.first_layers(), BTreeSet::from(["m.a".to_owned()]));
        let last = ["m.b", "n.c"].map(str::to_owned);
        assert_eq!(trace.last_layers(), BTreeSet::from(last));
    }

    #[test]
    fn costs_are_summed_and_unused_layers_told() {
        let (store, trace) = trace();
        let lines = trace.summary(&store);
        let names: Vec<&str> = lines.iter().map(|l| l.layer.name.as_str()).collect();
        assert_eq!(names, ["m.a", "m.b", "n.c", "n.d", "n.s"]);
        let costs: Vec<(usize, u64)> = lines.iter().map(|l| (l.uses, l.macs)).collect();
        let a = 3 * 9 * 4 * 12;
        assert_eq!(costs, [(1, a), (1, 4 * 2 * 12), (1, 24 * 5), (0, 0), (1, 0)]);
        assert_eq!(lines[0].output, [4, 3, 4]);
        store.keep_sites(&trace);
        let sites: Vec<String> = store.sites().iter().map(|s| s.name.clone()).collect();
        assert_eq!(sites, ["m.a", "m.b", "n.c"]);
        assert_eq!(store.modules(), ["m", "n"]);
    }
}
