//! Values of `--set` that something else rules over: an error that names it, instead of a run with other values than those
//! that were asked for.

use anyhow::{Result, bail};

use super::config::Config;

/// An option of a command that rules over keys of the config.
pub(crate) struct Ruler<'a> {
    /// The option, if it was given.
    pub option: Option<&'a str>,
    /// Whether a dotted key is one of those it rules over.
    pub rules: fn(&str) -> bool,
}

const BATCH_SIZE: &str = "--batch-size";

impl<'a> Ruler<'a> {
    /// An option that may have been given, and what it rules over.
    pub(crate) fn new(is_given: bool, option: &'a str, rules: fn(&str) -> bool) -> Self {
        Self { option: is_given.then_some(option), rules }
    }

    /// `--batch-size`, which gives every stage its batch size.
    pub(crate) fn of_batch_size(is_given: bool) -> Self {
        Self::new(is_given, BATCH_SIZE, |key| {
            key == "data.bs_train" || key.ends_with(".batch_size")
        })
    }

    /// `--epochs`, which gives every stage its epochs.
    pub(crate) fn of_epochs(is_given: bool) -> Self {
        Self::new(is_given, "--epochs", |key| key.ends_with(".epochs") && !key.contains(".decay."))
    }
}

/// Refuses assignments that do nothing, because an option or another key of `config` (with all of them applied) rules.
///
/// # Errors
/// If there is one: names the key and what rules.
pub(crate) fn ensure_none(set: &[String], rulers: &[Ruler], config: &Config) -> Result<()> {
    for (i, assignment) in set.iter().enumerate() {
        let key = assignment.split_once('=').map_or(assignment.as_str(), |(key, _)| key);
        // Of several assignments of one key the last one counts.
        if set[i + 1..].iter().any(|later| later.split_once('=').is_some_and(|(k, _)| k == key)) {
            continue;
        }
        for ruler in rulers {
            if let Some(option) = ruler.option.filter(|_| (ruler.rules)(key)) {
                bail!("--set {assignment} is overruled by {option}: leave one of them out");
            }
        }
        if key == "data.bs_train" && !rulers.iter().any(|r| r.option == Some(BATCH_SIZE)) {
            check_batch_size(assignment, config)?;
        }
        if key == "experiment.url" && !config.experiment.pretrained {
            bail!(
                "--set {assignment} is overruled by experiment.pretrained, which is false: add --set \
                 experiment.pretrained=true to start from that file"
            );
        }
    }
    Ok(())
}

/// `data.bs_train` holds for stages that name no batch size of their own.
fn check_batch_size(assignment: &str, config: &Config) -> Result<()> {
    let full = config.training.full_precision.iter();
    let full = full.map(|stage| ("training.full_precision.batch_size".to_owned(), stage));
    let flow = config.quantize.flow.iter().enumerate();
    let flow = flow.map(|(i, stage)| (format!("quantize.flow.{i}.batch_size"), stage));
    let stages: Vec<_> = full.chain(flow).collect();
    let ruling: Vec<String> = stages
        .iter()
        .filter_map(|(key, stage)| Some((key, stage.batch_size?)))
        .filter(|(_, own)| *own != config.data.bs_train)
        .map(|(key, own)| format!("{key} ({own})"))
        .collect();
    if ruling.is_empty() {
        return Ok(());
    }
    let advice = "set these, or all stages at once with --batch-size";
    if ruling.len() == stages.len() {
        bail!("--set {assignment} is overruled by {}: {advice}", ruling.join(", "));
    }
    tracing::warn!(
        "--set {assignment} is overruled in some of the stages by {}: {advice}",
        ruling.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::StageConfig;

    fn config(own: [Option<usize>; 2]) -> Config {
        let mut config = Config::default();
        config.data.bs_train = 3;
        config.training.full_precision =
            Some(StageConfig { batch_size: own[0], ..StageConfig::full_precision() });
        config.quantize.flow = vec![StageConfig { batch_size: own[1], ..StageConfig::default() }];
        config
    }

    fn error(set: &str, rulers: &[Ruler], config: &Config) -> Option<String> {
        ensure_none(&[set.to_owned()], rulers, config).err().map(|e| e.to_string())
    }

    #[test]
    fn a_batch_size_that_no_stage_takes_names_those_that_rule() {
        let error = |own| error("data.bs_train=3", &[], &config(own));
        let all = error([Some(8), Some(16)]).unwrap();
        for part in [
            "--set data.bs_train=3 is overruled",
            "training.full_precision.batch_size (8)",
            "quantize.flow.0.batch_size (16)",
            "--batch-size",
        ] {
            assert!(all.contains(part), "{all}");
        }
        for own in [[None, None], [Some(8), None], [Some(3), Some(3)]] {
            assert_eq!(error(own), None, "{own:?}");
        }
    }

    #[test]
    fn options_and_switches_rule_too() {
        let seed = [Ruler { option: Some("--seed"), rules: |key| key == "experiment.seed" }];
        let ruled = error("experiment.seed=4", &seed, &config([None; 2])).unwrap();
        assert_eq!(ruled, "--set experiment.seed=4 is overruled by --seed: leave one of them out");
        let mut on = config([None; 2]);
        on.experiment.pretrained = true;
        assert_eq!(error("experiment.url=a.pth", &seed, &on), None);
        on.experiment.pretrained = false;
        assert!(
            error("experiment.url=a.pth", &seed, &on)
                .unwrap()
                .contains("experiment.pretrained=true")
        );
        let absent = [Ruler { option: None, rules: |_| true }];
        assert_eq!(error("experiment.seed=4", &absent, &config([None; 2])), None);
    }
}
