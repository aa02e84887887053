//! `mqat`: Modular Quantization-Aware Training of 6D-pose networks.
//!
//! Data flows one way; an arrow never points up or sideways. `tests/layering` reads this table and checks every path of
//! the sources against it:
//!
//! ```text
//! cli         commands, log set-up, progress bars              uses experiment
//!             and for its arguments                            export synth eval train data quant search io
//! experiment  the whole config, the run folder, the wiring     uses every room below
//! train       trainer, epoch, step, optimizer, checkpoints     uses model quant data nn io geom seed
//! eval        inference over a split, poses, scores, report    uses model data pose io geom seed
//! export      packed low-bit files and graphs of a network     uses model quant nn io seed
//! search      curvature, bit widths and order of modules       uses quant nn seed
//! synth       renders meshes into a BOP dataset                uses data io geom seed
//! model       darknet53, fpn, head, anchors, targets, losses   uses nn geom seed
//! quant       quantizers behind the slots of nn, schedules     uses nn seed
//! data        BOP reader, samples, augmentation, batches       uses geom io seed
//! pose        PnP, RANSAC, pose errors, recalls                uses geom seed
//! nn          layers, their keys and quantizer slots           uses tch seed
//! geom        cameras, rigid poses, affine maps; f64           uses nalgebra
//! io          JSON, images, meshes, tensors, atomic writes     uses tch std
//! seed        random streams as a function of their place, one stable hash
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
