//! The share of frozen weights, epoch by epoch.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// From an epoch of the stage on, which share of a layer's weights is frozen.
///
/// In JSON an object with the epochs as keys, `{"0": 0.2, "5": 0.4, "9": 1}`. A share holds until the
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

    /// The share that holds in an epoch.
    pub fn fraction_at(&self, epoch: u32) -> f64 {
        self.0.range(..=epoch).next_back().map_or(0.0, |(_, &fraction)| fraction)
    }

    /// Whether the schedule has an entry for that epoch.
    pub fn steps_at(&self, epoch: u32) -> bool {
        self.0.contains_key(&epoch)
    }

    /// Adds a line for everything that is wrong with the entries.
    ///
    /// A falling share is refused: frozen weights stay frozen.
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
                        A::Error::custom(format!("{key:?} is no epoch: expected a whole number"))
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
