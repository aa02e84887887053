//! Right and wrong of every object of a list, short enough for a line of a log.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::paired::{Difference, Discordant, Paired, bootstrap};
use super::sequences::Sequences;

/// Of each sequence its objects in the list's order: `1` is right, `0` wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<String, String>);

/// Two networks on the objects of one list.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OutcomeGain {
    /// The difference, by a bootstrap over sequences.
    pub difference: Difference,
    /// Objects that one has right and the other wrong.
    #[serde(flatten)]
    pub discordant: Discordant,
}

impl Outcomes {
    /// From each object's sequence and whether its pose is right, in the list's order.
    pub fn new<'a>(objects: impl IntoIterator<Item = (&'a str, bool)>) -> Self {
        let mut all = Self::default();
        for (sequence, is_right) in objects {
            all.0.entry(sequence.to_owned()).or_default().push(if is_right { '1' } else { '0' });
        }
        all
    }

    /// As text, for a log.
    pub fn into_text(self) -> BTreeMap<String, String> {
        self.0
    }

    /// Whether nothing was measured, or not kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Objects that are right, and all of them.
    pub fn counts(&self) -> (usize, usize) {
        let all = || self.0.values().flat_map(|right| right.bytes());
        (all().filter(|c| *c == b'1').count(), all().count())
    }

    /// What a bootstrap draws: the sequences; the objects where all are of one.
    pub fn num_units(&self) -> usize {
        if self.0.len() > 1 { self.0.len() } else { self.counts().1 }
    }

    /// Those of the objects that `list` has, where `list` is the begin of this one's list.
    ///
    /// # Errors
    /// If `list` has objects that this one has not.
    pub fn on(&self, list: &Self) -> Result<Self> {
        let of_sequence = |(sequence, right): (&String, &String)| {
            let own = self.0.get(sequence).and_then(|own| own.get(..right.len()));
            let own = own.with_context(|| {
                format!(
                    "sequence {sequence} has {} objects in one and {} in the other",
                    right.len(),
                    self.0.get(sequence).map_or(0, String::len)
                )
            })?;
            Ok((sequence.clone(), own.to_owned()))
        };
        Ok(Self(list.0.iter().map(of_sequence).collect::<Result<_>>()?))
    }

    /// This network minus `base`, on the same objects.
    ///
    /// # Errors
    /// If the objects are not the same, or there are none.
    pub fn gain_over(&self, base: &Self, seed: u64) -> Result<OutcomeGain> {
        let sizes =
            |all: &Self| all.0.iter().map(|(s, r)| (s.clone(), r.len())).collect::<Vec<_>>();
        ensure!(
            sizes(self) == sizes(base),
            "{} objects in {} sequences against {} in {}, expected the same ones",
            self.counts().1,
            self.0.len(),
            base.counts().1,
            base.0.len()
        );
        let flat = |all: &Self| -> Vec<bool> {
            all.0.values().flat_map(|right| right.bytes().map(|c| c == b'1')).collect()
        };
        let (row, base) = (flat(self), flat(base));
        let of_object = self.0.iter().flat_map(|(s, right)| right.bytes().map(move |_| s.as_str()));
        let names: Vec<&str> = of_object.collect();
        // Where all are of one sequence, each object counts by itself.
        let numbers: Vec<String> = (0..names.len()).map(|i| i.to_string()).collect();
        let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let paired = Paired { row: &[&row], base: &[&base], same_seeds: false };
        Ok(OutcomeGain {
            difference: bootstrap(paired, &Sequences::new(&names, &numbers), seed)?,
            discordant: Discordant::count(&row, &base)?,
        })
    }
}

impl From<BTreeMap<String, String>> for Outcomes {
    fn from(text: BTreeMap<String, String>) -> Self {
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(text: &[(&str, &str)]) -> Outcomes {
        let objects =
            text.iter().flat_map(|(s, right)| right.bytes().map(move |c| (*s, c == b'1')));
        Outcomes::new(objects)
    }

    #[test]
    fn outcomes_are_short_and_come_back() {
        let all = Outcomes::new([("b", true), ("a", false), ("b", false), ("b", true)]);
        let text = all.clone().into_text();
        assert_eq!((text["a"].as_str(), text["b"].as_str()), ("0", "101"));
        assert_eq!(Outcomes::from(text), all);
        assert_eq!((all.counts(), all.is_empty()), ((2, 4), false));
        assert!(Outcomes::default().is_empty());
    }

    #[test]
    fn gains_are_paired_by_object_and_drawn_by_sequence() {
        let (row, base) =
            (outcomes(&[("a", "11"), ("b", "10")]), outcomes(&[("a", "00"), ("b", "10")]));
        let gain = row.gain_over(&base, 1).unwrap();
        assert_eq!(gain.discordant, Discordant { better: 2, worse: 0 });
        // Two sequences with +2 and 0 of 2: the draws are 0, 50, 100, moved out for one degree of freedom (paired.rs).
        assert_eq!(gain.difference.percent, 50.0);
        assert!((gain.difference.interval_95.0 + 60.8).abs() < 3.0, "{gain:?}");
        assert!((gain.difference.std_error - 35.355).abs() < 1.0);
        let one = outcomes(&[("a", "1100")]);
        assert_eq!((row.num_units(), one.num_units()), (2, 4));
        let gain = one.gain_over(&outcomes(&[("a", "0000")]), 1).unwrap();
        // 50 % of four single objects: sd 25.
        assert!((gain.difference.std_error - 25.0).abs() < 1.0, "{gain:?}");
    }

    #[test]
    fn a_longer_list_is_cut_to_the_begin_it_shares() {
        let long = outcomes(&[("a", "110"), ("b", "01"), ("c", "1")]);
        let short = outcomes(&[("a", "000"), ("b", "1")]);
        assert_eq!(long.on(&short).unwrap(), outcomes(&[("a", "110"), ("b", "0")]));
        let text = short.on(&long).unwrap_err().to_string();
        assert!(text.contains("sequence b has 2 objects in one and 1 in the other"), "{text}");
        let text = short.gain_over(&long, 1).unwrap_err().to_string();
        assert!(text.contains("4 objects in 2 sequences against 6 in 3"), "{text}");
        assert!(Outcomes::default().gain_over(&Outcomes::default(), 1).is_err());
    }
}
