use tch::no_grad;

use super::*;
use crate::export::packed;
use crate::io::tensors;
use crate::quant::inq::InqWeights;
use crate::quant::{Claim, FractionSchedule, QuantInit, WeightQuantConfig};
use crate::topology::wdr::{NetworkConfig, PoseNet};

fn tiny(seed: u64) -> PoseNet {
    let config = NetworkConfig { with_output_layer: true, ..NetworkConfig::widedepth_tiny() };
    let net = PoseNet::new(&config, 1, Device::Cpu, seed).unwrap();
    // statistics and affine parameters as after some training
    let values = |i: usize, like: &Tensor, base: f64| {
        let numbers = Tensor::arange(like.numel() as i64, (Kind::Float, Device::Cpu));
        ((numbers + i as i64) * 1.7).sin() * 0.3 + base
    };
    for (i, var) in net.store.vars().into_iter().enumerate() {
        let Some((_, part)) = var.name.rsplit_once('.') else { continue };
        let new = match part {
            "running_mean" => values(i, &var.tensor, 0.0),
            "running_var" => values(i, &var.tensor, 1.2),
            "weight" if var.tensor.dim() == 1 => values(i, &var.tensor, 0.9),
            "bias" => values(i, &var.tensor, 0.0),
            _ => continue,
        };
        no_grad(|| var.tensor.shallow_clone().copy_(&new));
    }
    net
}

fn weights(bits: u32, init: QuantInit) -> WeightQuantConfig {
    weights_over(bits, init, &[(0, 1.0)])
}

fn weights_over(bits: u32, init: QuantInit, schedule: &[(u32, f64)]) -> WeightQuantConfig {
    let settings = InqWeights {
        quant_init_method: init,
        schedule: FractionSchedule::new(schedule.iter().copied()),
        ..Default::default()
    };
    WeightQuantConfig { bits: Some(bits), settings: settings.into(), ..Default::default() }
}

fn quantize(net: &PoseNet, module: &str, config: &WeightQuantConfig) -> ModuleQuantizer {
    let mut quantizer = ModuleQuantizer::attach(
        &Claim { seed: 1, ..Claim::of(module).with_weights(config) },
        &net.store,
    )
    .unwrap();
    quantizer.start_epoch(0).unwrap();
    quantizer
}

fn blank() -> PoseNet {
    let config = NetworkConfig { with_output_layer: true, ..NetworkConfig::widedepth_tiny() };
    PoseNet::blank(&config, 1, Device::Cpu).unwrap()
}

/// Packs, writes, reads and unpacks; returns the packed network and the one that was loaded.
fn round_trip(
    net: &PoseNet,
    quantizers: &[ModuleQuantizer],
    options: PackOptions,
) -> (Packed, PoseNet, u64) {
    let packed = pack(net, quantizers, &[], Map::new(), options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.mqat");
    let size = packed::write(&path, &packed.file).unwrap();
    let loaded = blank();
    let unpacked = unpack(packed::read(&path).unwrap(), |_| false).unwrap();
    let report = tensors::load_into(&loaded.state(), &unpacked.state);
    assert_eq!((report.surplus.len(), report.mismatched.len()), (0, 0), "{report:?}");
    assert_eq!(report.missing, ["backbone.output.weight", "backbone.output.bias"]);
    (packed, loaded, size)
}

fn bits(tensor: &Tensor) -> Tensor {
    let flat = tensor.detach().contiguous();
    if flat.kind() == Kind::Float { flat.view_dtype(Kind::Int) } else { flat }
}

fn same_outputs(a: &PoseNet, b: &PoseNet) -> bool {
    let x = (Tensor::arange(2 * 3 * 64 * 64, (Kind::Float, Device::Cpu)) * 0.37).sin();
    let x = x.reshape([2, 3, 64, 64]);
    let run = |net: &PoseNet| no_grad(|| net.forward_t(&x, false));
    let (a, b) = (run(a), run(b));
    a.cls.iter().chain(&a.reg).zip(b.cls.iter().chain(&b.reg)).all(|(a, b)| bits(a).equal(&bits(b)))
}

#[test]
fn a_quantized_network_comes_back_bit_for_bit() {
    let net = tiny(3);
    let quantizers = [
        quantize(&net, "backbone", &weights(8, QuantInit::Uniform)),
        quantize(&net, "fpn", &weights(2, QuantInit::Uniform)),
        quantize(&net, "head.cls_tower", &weights(4, QuantInit::PowerOfTwo)),
        quantize(&net, "head.pose_tower", &weights(3, QuantInit::UniformL2OptPerChannel)),
    ];
    let (packed, loaded, size) = round_trip(&net, &quantizers, PackOptions::default());
    for (name, tensor) in net.state() {
        let other = loaded.store.get(&name).unwrap();
        let left_out = name.starts_with("backbone.output.");
        assert_eq!(bits(&tensor).equal(&bits(&other)), !left_out, "{name}");
        assert_eq!(packed.file.tensors.iter().any(|t| t.name == name), !left_out, "{name}");
    }
    assert!(same_outputs(&net, &loaded));
    let by_coding = |wanted: Coding| {
        let of = |t: &&PackedTensor| matches!(&t.content, Content::Codes { coding, .. } if *coding == wanted);
        packed.file.tensors.iter().filter(of).count()
    };
    let [backbone, fpn, _] = &net.modules()[..] else { panic!() };
    assert_eq!(by_coding(Coding::Bits(8)), backbone.num_convs);
    assert_eq!(by_coding(Coding::Base3), fpn.num_convs);
    let convs = net.config().head_convs as usize;
    assert_eq!((by_coding(Coding::Bits(4)), by_coding(Coding::Bits(3))), (convs, convs));
    assert!(size < packed.sizes.float_bytes / 3);
}

#[test]
fn sizes_are_counted_as_the_paper_and_as_the_file_does() {
    let net = tiny(3);
    let quantizers = [
        quantize(&net, "backbone", &weights(8, QuantInit::Uniform)),
        quantize(&net, "fpn", &weights(2, QuantInit::Uniform)),
    ];
    let two_bit = PackOptions { ternary: Ternary::TwoBit, fold_bn: false };
    let (packed, _, size) = round_trip(&net, &quantizers, two_bit);
    let weights: Vec<u64> = net.modules().iter().map(|m| m.num_conv_weights as u64).collect();
    let [b, f, h] = weights[..] else { panic!() };
    let sizes = packed.sizes;
    let paper = 32.0 * (b + f + h) as f64 / (8 * b + 2 * f + 32 * h) as f64;
    assert_eq!(sizes.paper_compression, paper);
    let bytes = packed.bytes;
    assert_eq!(bytes.float_weights, 4 * h);
    let is_coded = |t: &&PackedTensor| matches!(t.content, Content::Codes { .. });
    let num_coded = packed.file.tensors.iter().filter(is_coded).count() as u64;
    assert_eq!(bytes.scales, 4 * num_coded);
    assert!(bytes.codes >= b + f / 4 && bytes.codes < b + f / 4 + num_coded);
    assert_eq!(sizes.file_bytes, bytes.sum() - bytes.counters);
    assert_eq!(bytes.counters, 8 * net.modules()[0].num_convs as u64);
    let head = packed::read_head(&write(&packed.file).1).unwrap();
    assert_eq!(size - head.header_bytes, bytes.sum());
    let (base3, ..) = round_trip(&net, &quantizers, PackOptions::default());
    assert!(base3.bytes.codes < bytes.codes);
    assert_eq!(base3.sizes, sizes);
}

fn write(file: &PackedFile) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.mqat");
    packed::write(&path, file).unwrap();
    (dir, path)
}

#[test]
fn folded_batch_norms_give_the_same_bits_on_the_cpu() {
    let net = tiny(5);
    let quantizers = [quantize(&net, "backbone", &weights(8, QuantInit::Uniform))];
    let fold = PackOptions { fold_bn: true, ..PackOptions::default() };
    let (folded, loaded, size) = round_trip(&net, &quantizers, fold);
    let (plain, _, plain_size) = round_trip(&net, &quantizers, PackOptions::default());
    assert_eq!((folded.num_folded, folded.num_not_folded), (net.modules()[0].num_convs, 0));
    assert_eq!(plain.num_folded, 0);
    assert!(same_outputs(&net, &loaded));
    assert!(size < plain_size && folded.bytes.other < plain.bytes.other);
    let name = "backbone.features.init_block.bn.running_mean";
    assert_eq!(loaded.store.get(name).unwrap().abs().max().double_value(&[]), 0.0);
}

#[test]
fn extra_tensors_and_meta_come_back() {
    let net = tiny(1);
    let extra = vec![
        ("quant.fpn.act_max".to_owned(), Tensor::from(1.5_f32)),
        ("quant.fpn.act_mode".to_owned(), Tensor::from(3_i64)),
    ];
    let meta = serde_json::json!({"config": {"x": 1}}).as_object().unwrap().clone();
    let packed = pack(&net, &[], &extra, meta, PackOptions::default()).unwrap();
    assert_eq!(packed.file.meta["config"]["x"], 1);
    let back = unpack(packed.file, |name| name.starts_with("quant.")).unwrap();
    assert_eq!((back.extra.len(), &back.meta["config"]["x"]), (2, &Value::from(1)));
    for ((name, tensor), (expected, value)) in back.extra.iter().zip(&extra) {
        assert!(name == expected && tensor.equal(value) && tensor.size() == value.size());
    }
}

#[test]
fn what_is_not_exactly_on_its_levels_or_does_not_fit_is_refused() {
    let net = tiny(3);
    let config = weights_over(2, QuantInit::Uniform, &[(0, 0.5), (1, 1.0)]);
    let partly = [quantize(&net, "fpn", &config)];
    let text =
        format!("{:#}", pack(&net, &partly, &[], Map::new(), PackOptions::default()).unwrap_err());
    assert!(text.contains("module fpn is only partly quantized"), "{text}");

    let net = tiny(3);
    let quantizers = [quantize(&net, "fpn", &weights(2, QuantInit::Uniform))];
    let weight = net.store.get("fpn.out_convs.2.weight").unwrap();
    no_grad(|| drop(weight.get(0).get(0).get(2).get(1).g_add_scalar_(1e-3)));
    let refused = pack(&net, &quantizers, &[], Map::new(), PackOptions::default()).unwrap_err();
    assert!(format!("{refused:#}").contains("fpn.out_convs.2.weight"), "{refused:#}");

    let net = tiny(3);
    let fold = PackOptions { fold_bn: true, ..PackOptions::default() };
    let mut file = pack(&net, &[], &[], Map::new(), fold).unwrap().file;
    file.tensors.retain(|t| !t.name.ends_with("init_block.bn.offset"));
    let text = unpack(file, |_| false).unwrap_err().to_string();
    assert!(text.contains("init_block.bn.offset is missing"), "{text}");
}
