//! Experiments: the whole config, the run folder, seeds, the wiring of the rooms below.
//!
//! Start at [`train()`] and [`test()`]. A [`Select`] names a config; `config.rs` reads, changes and checks it
//! (`published.rs` translates the published code's form). `open.rs` turns a [`Request`] into device, dataset and network;
//! `folder.rs` is `LOGS/PROBLEM/TOPOLOGY/expNNN`; `record.rs` writes what happens there.

mod audit;
mod bench;
mod config;
mod contents;
mod data_print;
mod device;
mod engine;
mod export;
mod flow;
mod folder;
mod home;
mod import;
mod inspect;
mod keys;
mod layers;
mod onnx;
mod open;
mod overruled;
mod packed;
mod plan;
mod predict;
mod published;
mod record;
mod report;
mod score;
mod search;
mod starts;
mod stretch;
mod test;
mod train;
mod verify;
mod weights;

pub use audit::{AuditReport, AuditRequest, TensorAudit, audit_file};
pub use bench::{
    BenchProgress, BenchReport, EngineBenchRequest, ForwardBenchRequest, LoaderBenchRequest,
    NetworkSettings, PnpBenchRequest, Rounds, TrainStepRequest, bench_engine, bench_forward,
    bench_loader, bench_pnp, bench_train_step,
};
pub use config::{
    Config, ExperimentConfig, NetworkClass, NetworkSection, QuantizeSection, RuntimeConfig, Select,
    TrainingSection,
};
pub use contents::{FileReport, inspect_file};
pub use device::DeviceChoice;
pub use engine::{EngineChoice, OnnxEngine, OnnxMeta, is_onnx};
pub use export::{ExportFormat, ExportReport, ExportRequest, ExportWeights, export};
pub use flow::{
    Baseline, Bits, FlowPlan, FlowSource, MadeBy, PlanRow, TextStage, Width, parse_weight_method,
};
pub use folder::{Folder, Pick, Provenance, Start, folder_name};
pub use home::Home;
pub use import::{ImportReport, import};
pub use inspect::{NetworkReport, inspect_network};
pub use layers::{LayerReport, QuantizedTo};
pub use onnx::{CheckReport, Difference, OnnxOptions, OnnxReport, Target as Runtime};
pub use open::Request;
pub use packed::PackReport;
pub use plan::{PlanReport, PlanRequest, PlannedEpoch, PlannedStage, plan};
pub use predict::{
    CameraReport, Latency, Overlays, PredictProgress, PredictReport, PredictRequest, predict,
};
pub use report::{Family, Group, Point, ReportRequest, ReportSummary, report};
pub use score::{FileScore, ScoreReport, ScoreRequest, score};
pub use search::{
    Budget, First, GainReport, LayerRow, ListedTrial, ModuleRow, OrderReport, OrdersReport,
    SearchEnd, SearchReport, SearchRequest, SizeKind, SizeReport, Target, TraceRequest,
    TrialReport, Walk, search,
};
pub use test::{CheckpointReport, TestReport, TestRequest, test};
pub use train::{Ended, TrainReport, TrainRequest, train};
pub use verify::{
    ArtefactReport, Detections, Limits, PoseDeviation, Spread, VerifyReport, VerifyRequest, verify,
};
pub use weights::{
    Conversion, FileKind, GridReport, InqLayerReport, LoadReport, LoadedNetwork, OtherMember,
    Strictness, Unmatched, assembled_weight, kind_of, load, load_state_dict, meta_of,
    recognise_grid,
};

/// The libtorch that the program is built for.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// The JSON schema of configs.
pub fn config_schema() -> serde_json::Value {
    config::schema()
}

/// Reads and checks the config that `select` names, with its changes.
///
/// # Errors
/// If there is none, it cannot be read, or values are outside their range.
pub fn resolve_config(select: &Select) -> anyhow::Result<Config> {
    select.resolve(&Home::find(None, None)?)
}
