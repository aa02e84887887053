//! `mqat`: Modular Quantization-Aware Training of 6D-pose networks.
//!
//! Data flows one way; an arrow never points up or sideways (`tests/layering.rs` checks it):
//!
//! ```text
//! cli         commands, log set-up, progress bars              uses experiment (and the types of its arguments)
//! experiment  the whole config, the run folder, the wiring     uses every room below
//! train       trainer, epoch, step, optimizer, checkpoints     uses model quant data nn io geom
//! eval        one inference pipeline, poses, scores, report    uses data nn pose io geom
//! export      packed low-bit files and graphs of a network     uses model quant nn io
//! search      curvature, bit widths and order of modules       uses quant nn seed
//! synth       renders meshes into a BOP dataset                uses data io geom
//! model       darknet53, fpn, head, targets, losses, decoding  uses nn geom
//! quant       quantizers behind the slots of nn, schedules     uses nn
//! data        BOP reader, samples, augmentation, batches       uses geom io
//! pose        PnP, RANSAC, pose errors, recalls                uses geom
//! nn          layers, keys, quantizer slots; named outputs     uses tch geom
//! geom        cameras, rigid poses, affine maps; f64           uses nalgebra
//! io          JSON, images, meshes, tensors, atomic writes     uses tch, std
//! seed        random streams as a function of their place
//! ```

pub mod cli;
pub mod data;
pub mod eval;
pub mod experiment;
pub mod export;
pub mod geom;
pub mod io;
pub mod model;
pub mod nn;
pub mod pose;
pub mod quant;
pub mod search;
pub mod seed;
pub mod synth;
pub mod train;
