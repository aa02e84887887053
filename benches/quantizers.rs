//! What quantizers cost: updates of the full network, float against quantized, all modules, interleaved.
//!
//! ```sh
//! cargo bench --bench quantizers -- [SIZE_PX] [BATCH] [ROUNDS] [METHOD...]
//! ```
//! Prints a JSON document: medians in seconds and over float, with the quartiles of the rounds' ratios.

use std::time::Instant;

use mqat::model::{NetworkConfig, PoseNet};
use mqat::quant::{ModuleQuantizer, WeightQuantConfig};
use mqat::train::{Sgd, SgdConfig};
use tch::{Device, Kind, Tensor};

/// A network with its optimizer and quantizers.
struct Subject {
    name: String,
    net: PoseNet,
    sgd: Sgd,
    quantizer: Option<ModuleQuantizer>,
}

impl Subject {
    fn new(name: &str) -> Self {
        let net = PoseNet::new(&NetworkConfig::widedepth(), 1, Device::Cpu, 1).unwrap();
        let parameters = net.store.parameters().into_iter().map(|v| (v.name, v.tensor)).collect();
        let mut sgd = Sgd::new(&SgdConfig::default(), parameters).unwrap();
        let config = match name {
            "float" => None,
            // half of the weights frozen: every kind of work that INQ does in an update
            "inq" => {
                Some(r#"{"method": "inq", "bits": 4, "schedule": {"0": 0.5, "1": 1}}"#.to_owned())
            }
            method => Some(format!(r#"{{"method": "{method}", "bits": 4}}"#)),
        };
        let quantizer = config.map(|json| {
            let config: WeightQuantConfig = serde_json::from_str(&json).unwrap();
            let mut quantizer =
                ModuleQuantizer::attach("*", &net.store, Some(&config), None, true, true, 1)
                    .unwrap();
            quantizer.start_epoch(0).unwrap();
            sgd.set_learnt(quantizer.learnt(), quantizer.gradient_sources()).unwrap();
            sgd.set_trainable(&quantizer.trainable_masks()).unwrap();
            quantizer
        });
        Self { name: name.to_owned(), net, sgd, quantizer }
    }

    /// Seconds of an update.
    fn update(&mut self, images: &Tensor) -> f64 {
        let since = Instant::now();
        self.sgd.zero_grad().unwrap();
        if let Some(quantizer) = &mut self.quantizer {
            quantizer.begin_step().unwrap();
        }
        let outputs = self.net.forward_t(images, true);
        let losses: Vec<Tensor> = (outputs.cls.iter().chain(&outputs.reg))
            .map(|y| y.square().mean(Kind::Float))
            .collect();
        Tensor::stack(&losses, 0).sum(Kind::Float).backward();
        if let Some(quantizer) = &mut self.quantizer {
            quantizer.end_step().unwrap();
        }
        self.sgd.clip_grad_norm(5.0).unwrap();
        self.sgd.step(1e-4);
        since.elapsed().as_secs_f64()
    }
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |i: usize, default: i64| args.get(i).map_or(default, |a| a.parse().unwrap());
    let (size, batch, rounds) = (number(0, 256), number(1, 1), number(2, 9));
    let methods: Vec<&str> = match args.get(3..) {
        Some(methods) if !methods.is_empty() => methods.iter().map(String::as_str).collect(),
        _ => vec!["inq", "lsq"],
    };
    let images = Tensor::arange(batch * 3 * size * size, (Kind::Float, Device::Cpu)).sin();
    let images = images.reshape([batch, 3, size, size]);
    let names = std::iter::once("float").chain(methods);
    let mut subjects: Vec<Subject> = names.map(Subject::new).collect();
    let mut seconds = vec![Vec::new(); subjects.len()];
    for round in 0..rounds + 1 {
        // each round in another order, the first one to warm up
        let n = subjects.len();
        for i in (0..n).map(|i| (i + round as usize) % n) {
            let time = subjects[i].update(&images);
            if round > 0 {
                seconds[i].push(time);
            }
        }
    }
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let float = seconds[0].clone();
    let results: Vec<serde_json::Value> = (subjects.iter().zip(&seconds))
        .map(|(subject, times)| {
            let ratios = sorted(times.iter().zip(&float).map(|(a, b)| a / b).collect());
            let times = sorted(times.clone());
            serde_json::json!({
                "name": subject.name,
                "median_s": quantile(&times, 0.5),
                "min_s": times[0],
                "over_float": quantile(&ratios, 0.5),
                "over_float_quartiles": [quantile(&ratios, 0.25), quantile(&ratios, 0.75)],
            })
        })
        .collect();
    let document = serde_json::json!({
        "size_px": size, "batch": batch, "rounds": rounds,
        "threads": tch::get_num_threads(), "results": results,
    });
    println!("{}", serde_json::to_string_pretty(&document).unwrap());
}
