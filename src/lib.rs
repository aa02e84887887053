//! `mqat`: Modular Quantization-Aware Training of 6D-pose networks.
//!
//! Data flows one way; an arrow never points up or sideways (`tests/layering.rs` checks it):
//!
//! ```text
//! cli         arguments, log set-up, progress bars, printing   uses commands study bench (and the types of requests)
//! commands    one file a command: train test predict audit ... uses every room below, but not study and bench
//! study       the search: trials, curvature, bits, orders      uses artifact run train model quant data pose nn io seed
//! bench       how long parts take, measured in turns           uses artifact run train eval export synth and below
//! artifact    any file: config, network or engine, quantizers  uses run train eval export model quant nn io
//! run         config, flow, folders, records, device, request  uses train eval model quant data io
//! train       trainer, epoch, step, optimizer, checkpoints     uses model quant data nn io geom
//! eval        inference over a split, poses, scores, report    uses model data pose io geom
//! export      packed low-bit files and graphs of a network     uses model quant nn io
//! synth       renders meshes into a BOP dataset                uses data io geom
//! model       darknet53, fpn, head, anchors, targets, losses   uses nn geom
//! quant       quantizers behind the slots of nn, schedules     uses nn
//! data        BOP reader, samples, augmentation, batches       uses geom io
//! pose        PnP, RANSAC, pose errors, recalls                uses geom
//! nn          layers, their keys and quantizer slots           uses tch
//! geom        cameras, rigid poses, affine maps; f64           uses nalgebra
//! io          JSON, images, meshes, tensors, atomic writes     uses schema tch std
//! schema      ranges, plain messages and tables of JSON types  uses serde, schemars (every room may use it)
//! seed        random streams as a function of their place
//! ```

pub mod artifact;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod data;
pub mod eval;
pub mod export;
pub mod geom;
pub mod io;
pub mod model;
pub mod nn;
pub mod pose;
pub mod quant;
pub mod run;
pub mod schema;
pub mod seed;
pub mod study;
pub mod synth;
pub mod train;
