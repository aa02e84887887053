//! `mqat bench`: how long the program's parts take, several subjects in turns.
//!
//! Start at `rounds`, which every bench shares: a `rounds::Subject` is something to be called, `rounds::measure`
//! calls all of them in each round. `machine` says what the numbers hold for. One file for each bench; what needs
//! images takes them from `images`. `all` runs the benches one after the other.

mod all;
mod engine;
mod forward;
mod images;
mod int8;
mod loader;
mod networks;
mod pnp;
mod report;
mod rounds;
mod train_step;

pub use all::{AllBenchReport, AllBenchRequest, bench_all};
pub use engine::{EngineBenchRequest, bench_engine};
pub use forward::{ForwardBenchRequest, bench_forward};
pub use loader::{LoaderBenchRequest, bench_loader};
pub use networks::NetworkSettings;
pub use pnp::{PnpBenchRequest, bench_pnp};
pub use report::BenchReport;
pub use rounds::{BenchProgress, Rounds, SubjectReport};
pub use train_step::{TrainStepRequest, bench_train_step};
