//! Commands: one file each, from a request to a report. `mqat search` and `mqat bench` are rooms of their own, below.
//!
//! Start at [`train()`] and [`test()`]. Nothing here parses arguments or draws bars: `cli` does, and hands over a request
//! and a closure for the progress.

mod audit;
mod batch_norm;
mod config;
mod dataset;
mod export;
mod import;
mod init;
mod inspect;
mod plan;
mod predict;
mod preview;
mod recalibrate;
mod report;
mod score;
mod shared;
mod test;
mod train;
mod verify;

pub use audit::{AuditReport, AuditRequest, TensorAudit, audit_file};
pub use batch_norm::BatchNormAudit;
pub use config::{config_schema, config_tables, renew_config_tables, resolve_config};
pub use dataset::{ConvertReport, DatasetReport, check_dataset, convert_dataset};
pub use export::onnx::{CheckReport, Difference, OnnxOptions, OnnxReport, Runtime};
pub use export::{
    ExportFormat, ExportReport, ExportRequest, ExportTarget, ExportWeights, PackReport, export,
};
pub use import::{ImportReport, import};
pub use init::{InitReport, InitRequest, init};
pub use inspect::{
    AgainstInitReport, AgainstInitRequest, FileReport, NetworkReport, inspect_against_init,
    inspect_file, inspect_network,
};
pub use plan::{PlanReport, PlanRequest, PlannedEpoch, PlannedStage, plan};
pub use predict::{
    Calibration, CameraReport, LatencyReport, Overlays, Percentiles, PredictProgress,
    PredictReport, PredictRequest, predict,
};
pub use preview::{PreviewReport, PreviewRequest, preview};
pub use recalibrate::{
    RecalibrateReport, RecalibrateRequest, RecalibratedLayer, Shift, recalibrate,
};
pub use report::{
    ClassSpread, Column, Group, PairedReport, PairedRow, PairedRun, Point, QuantizationKind,
    ReportRequest, ReportSummary, TableFormat, WorseControl, report,
};
pub use score::{FileScore, ScoreReport, ScoreRequest, score};
pub use test::{CheckpointReport, TestReport, TestRequest, test};
pub use train::{Ended, TrainReport, TrainRequest, train};
pub use verify::{
    ArtefactReport, Detections, Limits, PoseDeviation, Quantiles, Rule, VerifyReport,
    VerifyRequest, verify,
};
