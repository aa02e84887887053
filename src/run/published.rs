//! The published code's config.json, translated to ours.
//!
//! What it says is taken over; what it says and the published code itself never uses is named in a note, so that
//! nothing is silently ignored.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::schema;
use crate::train::StageConfig;

/// A translated config and what a user should know about the translation.
pub struct Translated {
    /// The document in our form.
    pub document: Value,
    /// One line each.
    pub notes: Vec<String>,
}

/// True when `document` has the published form.
pub fn is_published(document: &Value) -> bool {
    document.pointer("/experiment/n_folds").is_some()
        || document.pointer("/network/quantize/routine").is_some()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    experiment: PublishedExperiment,
    #[serde(rename = "RUNTIME")]
    runtime: Value,
    data: Value,
    #[serde(rename = "INPUT")]
    input: Value,
    network: PublishedNetwork,
    training: Training,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedExperiment {
    n_folds: u32,
    n_epochs: u32,
    pretrained: bool,
    task: String,
    url: String,
    metrics: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedNetwork {
    class: String,
    params: NetworkParams,
    quantize: NetworkQuantize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkParams {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkQuantize {
    first_layer: bool,
    last_layer: bool,
    routine: String,
    #[serde(rename = "STE")]
    ste: Option<Ste>,
    #[serde(rename = "INQB")]
    backbone: Option<Inq>,
    #[serde(rename = "INQF")]
    fpn: Option<Inq>,
    #[serde(rename = "INQH")]
    head: Option<Inq>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ste {
    n_levels: u32,
    quant_start_epoch: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inq {
    n_levels: u32,
    quant_init_method: Value,
    quant_strategy: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Training {
    #[serde(rename = "LOSS_WEIGHT_CLS")]
    loss_weight_cls: f64,
    #[serde(rename = "LOSS_WEIGHT_REG")]
    loss_weight_reg: f64,
    #[serde(rename = "POSITIVE_LAMBDA")]
    positive_lambda: f64,
    loss_function: Option<ClassAndParams>,
    optimizer: Optimizer,
    lr_scheduler: LrScheduler,
    quantize: TrainingQuantize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassAndParams {
    class: String,
    #[serde(rename = "params")]
    _params: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Optimizer {
    class: String,
    params: OptimizerParams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerParams {
    lr: f64,
    #[serde(default)]
    momentum: f64,
    #[serde(default)]
    weight_decay: f64,
    #[serde(default)]
    nesterov: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LrScheduler {
    class: String,
    params: HandParams,
    step_metric: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HandParams {
    schedule: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrainingQuantize {
    routine: String,
    #[serde(rename = "STE")]
    ste: Option<SteTraining>,
    #[serde(rename = "INQ")]
    inq: InqTraining,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SteTraining {
    clear_optim_state_on_step: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InqTraining {
    schedule: BTreeMap<String, f64>,
    clear_optim_state_on_step: bool,
}

/// Translates the published form.
///
/// The published code quantizes whichever modules its author left uncommented, the FPN as shipped: so does the
/// translation, with the FPN's own entry (`INQF`) and the activations' (`STE`).
///
/// # Errors
/// If a key is unknown, or a value asks for something this program does not do (folds, another optimizer).
pub fn translate(document: &Value) -> Result<Translated> {
    let p: Published = schema::from_value(document.clone())
        .context("reading it as a config of the published code")?;
    refuse_what_we_do_not_do(&p)?;
    let fpn = p.network.quantize.fpn.as_ref().context(
        "network.quantize.INQF is missing: the published form quantizes the fpn; use our form for other modules",
    )?;
    let mut notes = notes(&p);
    let epochs = p.experiment.n_epochs;
    let factors =
        within(&p.training.lr_scheduler.params.schedule, epochs, &mut notes, "the learning rate")?;
    let fractions =
        within(&p.training.quantize.inq.schedule, epochs, &mut notes, "the INQ fraction")?;
    let o = &p.training.optimizer.params;
    // The published code's method without a name is powers of two.
    let init = match &fpn.quant_init_method {
        Value::Null => json!("power-of-two"),
        named => named.clone(),
    };
    let activations = p.network.quantize.ste.as_ref().map(|ste| {
        json!({
            "method": "ste",
            "n_levels": ste.n_levels,
            "quant_start_epoch": ste.quant_start_epoch,
        })
    });
    let full_precision = (!p.experiment.pretrained).then(StageConfig::full_precision);
    let document = json!({
        "experiment": {
            "pretrained": p.experiment.pretrained,
            "url": p.experiment.url,
        },
        "RUNTIME": p.runtime,
        "data": p.data,
        "INPUT": p.input,
        "network": { "class": p.network.class },
        "training": {
            "loss": {
                "weight_cls": p.training.loss_weight_cls,
                "weight_reg": p.training.loss_weight_reg,
            },
            "targets": { "positive_lambda": p.training.positive_lambda },
            // The published fine-tuning starts from full-precision weights; without them it has to make them.
            "full_precision": full_precision,
        },
        "quantize": {
            "flow": [{
                "first_layer": p.network.quantize.first_layer,
                "last_layer": p.network.quantize.last_layer,
                "name": "fpn",
                "module": "fpn",
                "epochs": epochs,
                "weights": {
                    "method": "inq",
                    "n_levels": fpn.n_levels,
                    "quant_init_method": init,
                    "quant_strategy": fpn.quant_strategy,
                    "schedule": fractions,
                    "clear_optim_state_on_step": p.training.quantize.inq.clear_optim_state_on_step,
                },
                "activations": activations,
                "lr": { "base": o.lr, "decay": { "epochs": factors } },
                "optimizer": {
                    "momentum": o.momentum,
                    "weight_decay": o.weight_decay,
                    "nesterov": o.nesterov,
                },
            }],
        },
    });
    Ok(Translated { document, notes })
}

fn refuse_what_we_do_not_do(p: &Published) -> Result<()> {
    ensure!(
        p.experiment.n_folds == 1,
        "experiment.n_folds is {}, expected 1: cross validation is not supported",
        p.experiment.n_folds
    );
    ensure!(
        p.experiment.task == "6D",
        "experiment.task is {:?}, expected \"6D\"",
        p.experiment.task
    );
    ensure!(
        p.network.class == "Widedepth",
        "network.class is {:?}, expected \"Widedepth\"",
        p.network.class
    );
    for (at, routine, expected) in [
        ("network.quantize.routine", &p.network.quantize.routine, "layers_ste_inq"),
        (
            "training.quantize.routine",
            &p.training.quantize.routine,
            "layers_ste_inq_get_controllers",
        ),
    ] {
        ensure!(routine == expected, "{at} is {routine:?}, expected {expected:?}");
    }
    let optimizer = &p.training.optimizer.class;
    ensure!(optimizer == "SGD", "training.optimizer.class is {optimizer:?}, expected \"SGD\"");
    let scheduler = &p.training.lr_scheduler.class;
    ensure!(
        scheduler == "HandScheduler",
        "training.lr_scheduler.class is {scheduler:?}, expected \"HandScheduler\""
    );
    if p.training.quantize.ste.as_ref().is_some_and(|s| s.clear_optim_state_on_step) {
        bail!(
            "training.quantize.STE.clear_optim_state_on_step is true: activation steps never clear the optimizer here; \
             set it to false"
        );
    }
    Ok(())
}

fn notes(p: &Published) -> Vec<String> {
    let mut notes = vec![format!(
        "network.params.name ({}) names a file of the published code; the same network is built in",
        p.network.params.name
    )];
    for (key, module, entry) in [
        ("INQB", "backbone", &p.network.quantize.backbone),
        ("INQH", "head", &p.network.quantize.head),
    ] {
        if let Some(inq) = entry {
            notes.push(format!(
                "network.quantize.{key} ({} levels) is for the {module}, which the published code leaves float as \
                 shipped; to quantize it add a stage to quantize.flow",
                inq.n_levels
            ));
        }
    }
    if p.network.quantize.ste.is_some() {
        notes.push(
            "network.quantize.STE is applied to the fpn's activations here; the published code reads it and never applies it"
                .to_owned(),
        );
    }
    if let Some(loss) = &p.training.loss_function {
        notes.push(format!(
            "training.loss_function ({}) is not used by the published code either; the loss is WDR's",
            loss.class
        ));
    }
    let mut metrics: Vec<&str> = p.experiment.metrics.values().map(String::as_str).collect();
    metrics.extend(p.training.lr_scheduler.step_metric.as_deref());
    notes.push(format!(
        "metrics named in it ({}) are not used: the best checkpoint of a stage is the one of the highest validation ADI-0.1d",
        metrics.join(", ")
    ));
    notes
}

/// The entries of a schedule that are reached within `epochs`; a later one gets a note.
fn within(
    schedule: &BTreeMap<String, f64>,
    epochs: u32,
    notes: &mut Vec<String>,
    what: &str,
) -> Result<BTreeMap<String, f64>> {
    let mut reached = BTreeMap::new();
    for (epoch, value) in schedule {
        let number: u32 = epoch
            .parse()
            .with_context(|| format!("a schedule has the key {epoch:?}, expected an epoch"))?;
        if number < epochs {
            reached.insert(epoch.clone(), *value);
        } else {
            notes.push(format!(
                "the schedule of {what} has epoch {epoch}, which {epochs} epochs never reach"
            ));
        }
    }
    Ok(reached)
}
