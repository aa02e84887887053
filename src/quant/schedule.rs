//! The fraction of frozen weights, epoch by epoch.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An epoch that was set for a stage of `from` epochs, in a stage of `to` epochs.
pub fn moved(epoch: u32, from: u32, to: u32) -> u32 {
    let moved = u64::from(epoch) * u64::from(to) / u64::from(from.max(1));
    u32::try_from(moved).unwrap_or(u32::MAX)
}

/// From an epoch of the stage on, which fraction of a layer's weights is frozen.
///
/// In JSON an object with the epochs as keys, `{"0": 0.2, "5": 0.4, "9": 1}`. A fraction holds until the
/// next entry; before the first entry it is 0 (the layer is float).
#[derive(Debug, Clone, PartialEq)]
pub struct FractionSchedule(BTreeMap<u32, f64>);

impl Default for FractionSchedule {
    /// The published schedule for 30 epochs.
    fn default() -> Self {
        let epochs = [0, 5, 9, 13, 17, 21, 25, 29];
        let fractions = [0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.9875, 1.0];
        Self::new(epochs.into_iter().zip(fractions))
    }
}

impl FractionSchedule {
    /// A schedule of `(epoch, fraction)` entries; see [`FractionSchedule::check`].
    pub fn new(entries: impl IntoIterator<Item = (u32, f64)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// The entries, by epoch.
    pub fn entries(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        self.0.iter().map(|(&epoch, &fraction)| (epoch, fraction))
    }

    /// The same fractions for a stage of `to` epochs in place of `from`. Of entries that fall on one epoch the last stays.
    pub fn stretched(&self, from: u32, to: u32) -> Self {
        Self::new(self.entries().map(|(at, fraction)| (moved(at, from, to), fraction)))
    }

    /// The fraction that holds in an epoch.
    pub fn fraction_at(&self, epoch: u32) -> f64 {
        self.0.range(..=epoch).next_back().map_or(0.0, |(_, &fraction)| fraction)
    }

    /// Whether the schedule has an entry for that epoch.
    pub fn steps_at(&self, epoch: u32) -> bool {
        self.0.contains_key(&epoch)
    }

    /// Adds a line for everything that is wrong with the entries.
    ///
    /// A falling fraction is refused: frozen weights stay frozen.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        let Some((last_epoch, last)) = self.entries().last() else {
            problems.push(format!("{at}: is empty, expected epochs and fractions that end at 1"));
            return;
        };
        for (epoch, fraction) in self.entries() {
            if !(0.0..=1.0).contains(&fraction) {
                problems.push(format!("{at}.{epoch}: {fraction} is outside 0..=1"));
            }
        }
        for ((_, before), (epoch, fraction)) in self.entries().zip(self.entries().skip(1)) {
            if fraction < before {
                problems.push(format!(
                    "{at}.{epoch}: {fraction} is below the {before} before it; frozen weights cannot \
                     thaw"
                ));
            }
        }
        if last != 1.0 {
            problems.push(format!(
                "{at}.{last_epoch}: the last fraction is {last}, expected 1: the module would never \
                 be fully quantized"
            ));
        }
    }

    /// Adds a line if the last entry is not reached within a stage of `epochs` epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if let Some((epoch, fraction)) = self.entries().find(|&(epoch, _)| epoch >= epochs) {
            problems.push(format!(
                "{at}.{epoch}: fraction {fraction} is never reached, the stage has only epochs \
                 0..{epochs}: move the entry or lengthen the stage"
            ));
        }
    }
}

impl Serialize for FractionSchedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(epoch, fraction)| (epoch.to_string(), fraction)))
    }
}

impl<'de> Deserialize<'de> for FractionSchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = FractionSchedule;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of epochs and fractions such as {\"0\": 0.5, \"4\": 1}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let epoch: u32 = key.parse().map_err(|_| {
                        A::Error::custom(format!(
                            "{key:?} is not an epoch: expected a whole number"
                        ))
                    })?;
                    if entries.insert(epoch, map.next_value()?).is_some() {
                        return Err(A::Error::custom(format!("epoch {epoch} is given twice")));
                    }
                }
                Ok(FractionSchedule(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(entries: &[(u32, f64)]) -> Vec<String> {
        let mut problems = Vec::new();
        FractionSchedule::new(entries.iter().copied()).check("fpn.schedule", &mut problems);
        problems
    }

    #[test]
    fn a_fraction_holds_until_the_next_entry() {
        let schedule = FractionSchedule::new([(2, 0.5), (4, 1.0)]);
        let fractions: Vec<f64> = (0..6).map(|epoch| schedule.fraction_at(epoch)).collect();
        assert_eq!(fractions, [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]);
        let steps: Vec<u32> = (0..6).filter(|&epoch| schedule.steps_at(epoch)).collect();
        assert_eq!(steps, [2, 4]);
    }

    #[test]
    fn the_published_schedule_is_the_default_and_survives_json() {
        let json = r#"{"0":0.2,"5":0.4,"9":0.6,"13":0.8,"17":0.9,"21":0.95,"25":0.9875,"29":1}"#;
        let parsed: FractionSchedule = serde_json::from_str(json).unwrap();
        assert_eq!(parsed, FractionSchedule::default());
        let again = serde_json::to_string(&parsed).unwrap();
        assert_eq!(serde_json::from_str::<FractionSchedule>(&again).unwrap(), parsed);
        let mut problems = Vec::new();
        parsed.check("s", &mut problems);
        parsed.check_epochs(30, "s", &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn epochs_are_ordered_as_numbers_whatever_their_order_in_the_file() {
        let parsed: FractionSchedule =
            serde_json::from_str(r#"{"10": 1, "9": 0.6, "0": 0.2}"#).unwrap();
        assert_eq!(parsed.entries().collect::<Vec<_>>(), [(0, 0.2), (9, 0.6), (10, 1.0)]);
    }

    #[test]
    fn keys_that_are_no_epochs_and_repeated_epochs_are_refused() {
        let error = |json| serde_json::from_str::<FractionSchedule>(json).unwrap_err().to_string();
        assert!(error(r#"{"first": 1}"#).contains("\"first\" is not an epoch"));
        assert!(error(r#"{"-1": 1}"#).contains("is not an epoch"));
        assert!(error(r#"{"3": 0.5, "03": 1}"#).contains("epoch 3 is given twice"));
        assert!(error("[0.5, 1]").contains("an object of epochs"));
    }

    #[test]
    fn wrong_fractions_are_all_named() {
        assert_eq!(problems(&[(0, 0.0), (1, 0.5), (2, 0.5), (3, 1.0)]), Vec::<String>::new());
        let found = problems(&[(0, 0.6), (1, 0.4), (2, 1.5)]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("fpn.schedule.2: 1.5 is outside"));
        assert!(found[1].starts_with("fpn.schedule.1: 0.4 is below the 0.6"));
        assert!(found[2].starts_with("fpn.schedule.2: the last fraction is 1.5"));
        assert!(problems(&[(0, f64::NAN)])[0].contains("NaN is outside"));
        assert!(problems(&[])[0].contains("is empty"));
    }

    #[test]
    fn a_stage_that_is_too_short_is_refused() {
        let check = |epochs| {
            let mut problems = Vec::new();
            FractionSchedule::default().check_epochs(epochs, "s", &mut problems);
            problems
        };
        assert!(check(30).is_empty());
        assert!(check(29)[0].starts_with("s.29: fraction 1 is never reached"));
        assert!(check(3)[0].starts_with("s.5: fraction 0.4"));
    }
}
