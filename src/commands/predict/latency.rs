//! How long callers waited for poses, as percentiles.

use serde::Serialize;

use crate::eval::Latency;

/// What was waited for each picture, s.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    total: Vec<f32>,
    read: Vec<f32>,
    network: Vec<f32>,
    poses: Vec<f32>,
}

impl Latencies {
    pub fn add(&mut self, latency: &Latency) {
        self.total.push(latency.total_s() as f32);
        self.read.push(latency.read_s as f32);
        self.network.push(latency.network_s as f32);
        self.poses.push(latency.poses_s as f32);
    }

    /// None without values.
    pub fn report(self) -> Option<LatencyReport> {
        let [total, read, network, poses] =
            [self.total, self.read, self.network, self.poses].map(Percentiles::of);
        Some(LatencyReport { total: total?, read: read?, network: network?, poses: poses? })
    }
}

/// From the arrival of a picture (or the beginning of reading it) to its poses, and the parts of it, ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyReport {
    /// All of it.
    #[serde(flatten)]
    pub total: Percentiles,
    /// Until the network began: reading, decoding, warping, waiting for its batch.
    pub read: Percentiles,
    /// The network, for the whole batch.
    pub network: Percentiles,
    /// Until the poses were handed on: decoding, PnP, waiting for the pictures before it.
    pub poses: Percentiles,
}

impl LatencyReport {
    /// For a terminal.
    pub(super) fn text(&self, batch: usize) -> String {
        let Percentiles { p50, p95, p99, max, .. } = self.total;
        let [read, network, poses] = [self.read, self.network, self.poses].map(|part| part.p50);
        format!(
            "from arrival to poses {p50:.1} ms (p50), {p95:.1} (p95), {p99:.1} (p99), {max:.1} at most; p50 of reading \
             {read:.1}, network {network:.1}, poses {poses:.1} ms; batches of {batch}"
        )
    }
}

/// Percentiles by nearest ranks, ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the pictures took at most this.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Percentiles {
    /// None without values.
    fn of(mut values_s: Vec<f32>) -> Option<Self> {
        values_s.sort_by(f32::total_cmp);
        let last = values_s.len().checked_sub(1)?;
        let rank = |fraction: f64| (fraction * values_s.len() as f64).ceil() as usize;
        let at =
            |fraction: f64| 1e3 * f64::from(values_s[rank(fraction).saturating_sub(1).min(last)]);
        Some(Self { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        let one = Percentiles::of(vec![0.5]).unwrap();
        assert_eq!((one.p50, one.p90, one.p99, one.max), (500.0, 500.0, 500.0, 500.0));
        let many = Percentiles::of((1..=200).rev().map(|i| i as f32 * 0.001).collect()).unwrap();
        let found = [many.p50, many.p90, many.p95, many.p99, many.max];
        for (found, expected) in found.into_iter().zip([100.0, 180.0, 190.0, 198.0, 200.0]) {
            assert!((found - expected).abs() < 1e-3, "{found} for {expected}");
        }
    }

    #[test]
    fn the_parts_of_a_latency_stand_beside_the_whole() {
        let mut latencies = Latencies::default();
        assert_eq!(Latencies::default().report(), None);
        latencies.add(&Latency { read_s: 0.25, network_s: 0.5, poses_s: 0.125 });
        let report = latencies.report().unwrap();
        let json = serde_json::to_value(report).unwrap();
        assert_eq!((&json["p95"], &json["network"]["p99"]), (&875.0.into(), &500.0.into()));
        assert!(report.text(1).starts_with("from arrival to poses 875.0 ms (p50)"));
    }
}
