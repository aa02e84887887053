//! Student's distribution.

/// The normal distribution's 97.5 % quantile.
const NORMAL_975: f64 = 1.959_964;
/// Student's with one degree of freedom.
const STUDENT_975_OF_ONE: f64 = 12.706_205;

/// The 97.5 % quantile of Student's distribution of `freedom` degrees of freedom (1 or more, not only whole numbers);
/// infinite below 1.
///
/// # Source
/// The expansion of Cornish and Fisher (Abramowitz, Stegun 26.7.5), with a last term that makes it exact at one degree of
/// freedom; it is off by less than 0.2 %.
pub fn quantile_975(freedom: f64) -> f64 {
    if freedom < 1.0 {
        return f64::INFINITY;
    }
    let missing = STUDENT_975_OF_ONE - cornish_fisher(1.0);
    cornish_fisher(freedom) + missing * (freedom.powi(-5) + freedom.powi(-6)) / 2.0
}

/// The quantile of Student's distribution that is as far out as `z` is in the normal one: odd, about `z` near 0, and
/// [`quantile_975`] at the normal 97.5 % quantile.
///
/// # Source
/// Wallace, *Bounds on normal approximations to Student's and the chi-square distributions*, Annals of Mathematical
/// Statistics 1959, solved for t and scaled to be right at 97.5 %.
pub(super) fn of_normal(z: f64, freedom: f64) -> f64 {
    if freedom.is_infinite() {
        return z;
    }
    let factor = (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0);
    let wallace = |z: f64| (freedom * ((z * factor).powi(2) / freedom).exp_m1()).sqrt();
    z.signum() * wallace(z) * quantile_975(freedom) / wallace(NORMAL_975)
}

fn cornish_fisher(n: f64) -> f64 {
    let z = NORMAL_975;
    let g1 = (z.powi(3) + z) / 4.0;
    let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let g4 =
        79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z;
    z + g1 / n + g2 / n.powi(2) + g3 / n.powi(3) + g4 / 92160.0 / n.powi(4)
}

/// Degrees of freedom of a sum of independent variance estimates `(variance, degrees of freedom)`; infinite where all are 0.
///
/// # Source
/// Satterthwaite, *An approximate distribution of estimates of variance components*, Biometrics Bulletin 1946.
pub(super) fn satterthwaite(parts: &[(f64, f64)]) -> f64 {
    let sum: f64 = parts.iter().map(|(variance, _)| variance).sum();
    let squares: f64 = parts.iter().map(|(variance, freedom)| variance * variance / freedom).sum();
    if squares > 0.0 { sum * sum / squares } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // scipy.stats.t.ppf(0.975, freedom)
        for (freedom, expected) in [
            (1.0, 12.7062),
            (1.2, 8.6488),
            (1.5, 6.0167),
            (2.0, 4.3027),
            (2.5, 3.5747),
            (3.0, 3.1824),
            (5.0, 2.5706),
            (10.0, 2.2281),
            (149.0, 1.9760),
            (f64::INFINITY, 1.9600),
        ] {
            let found = quantile_975(freedom);
            assert!((found / expected - 1.0).abs() < 0.002, "{found} for {expected}");
        }
        assert_eq!(quantile_975(0.0), f64::INFINITY);
    }

    #[test]
    fn quantiles_of_the_normal_become_those_of_student() {
        // scipy.stats: t.ppf(norm.cdf(z), freedom); 2.8070 is the normal 99.75 % quantile
        for (z, freedom, expected) in [
            (1.0, 4.0, 1.1416),
            (1.959_964, 2.0, 4.3027),
            (2.8070, 4.0, 5.5976),
            (2.8070, 10.0, 3.5814),
            (2.8070, 149.0, 2.8494),
            (2.8070, f64::INFINITY, 2.8070),
        ] {
            let found = of_normal(z, freedom);
            assert!((found / expected - 1.0).abs() < 0.02, "{z} {freedom}: {found}");
            assert_eq!(of_normal(-z, freedom), -found);
        }
        assert_eq!(of_normal(0.0, 3.0), 0.0);
        assert!(of_normal(2.8070, 1.5) > 28.3); // errs to the wide side
    }

    #[test]
    fn freedom_of_equal_parts_adds_up_and_the_larger_part_decides() {
        assert!((satterthwaite(&[(2.0, 4.0), (2.0, 4.0)]) - 8.0).abs() < 1e-12);
        assert!((satterthwaite(&[(1e-9, 149.0), (1.0, 2.0)]) - 2.0).abs() < 1e-6);
        assert_eq!(satterthwaite(&[(0.0, 2.0)]), f64::INFINITY);
    }
}
