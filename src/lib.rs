//! `mqat`: Modular Quantization-Aware Training of 6D-pose networks.
//!
//! Data flows one way; an arrow never points up or sideways. `tests/layering` reads this table and checks every path of
//! the sources against it:
//!
//! ```text
//! cli         arguments, log set-up, progress bars, printing   uses commands study bench
//!             and for its arguments                            artifact run train eval export synth data quant io
//!                                                              world
//! commands    one file a command: train test predict audit ... uses artifact run train eval export topology quant
//!                                                              data pose nn geom io seed schema world
//! study       the search: trials, curvature, bits, orders      uses artifact run train topology quant data pose nn io
//!                                                              seed
//! bench       how long parts take, measured in turns           uses artifact run train eval export synth quant data
//!                                                              pose nn geom seed
//! artifact    any file: config, network or engine, quantizers  uses run train eval export topology quant nn io
//! run         config, flow, folders, records, device, request  uses train eval topology quant data nn geom io schema
//!                                                              world libtorch
//! train       trainer, epoch, step, optimizer, checkpoints     uses topology quant data nn io geom seed schema world
//!                                                              libtorch
//! eval        one inference pipeline, poses, scores, report    uses data nn pose io geom seed schema
//! export      packed low-bit files and graphs of a network     uses topology quant nn io seed schema
//! synth       renders meshes into a BOP dataset                uses data io geom seed schema
//! topology    a folder a network: layers, targets, losses, ... uses nn data geom seed schema libtorch
//! quant       quantizers behind the slots of nn, schedules     uses nn seed schema libtorch
//! data        BOP reader, samples, augmentation, batches       uses geom io seed schema
//! pose        PnP, RANSAC, pose errors, recalls                uses geom seed schema
//! nn          layers, traces, quantizer slots; named outputs   uses tch geom seed libtorch
//! geom        cameras, rigid poses, affine maps; f64           uses nalgebra
//! io          JSON, images, meshes, tensors, atomic writes     uses tch std schema
//! world       processes that work together, by libtorch's c10d uses tch
//! libtorch    what libtorch has and tch lacks, by C++          uses tch
//! seed        random streams as a function of their place, one stable hash
//! schema      ranges, plain messages and tables of JSON types  uses serde schemars
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
mod libtorch;
pub mod nn;
pub mod pose;
pub mod quant;
pub mod run;
pub mod schema;
pub mod seed;
pub mod study;
pub mod synth;
pub mod topology;
pub mod train;
pub mod world;
