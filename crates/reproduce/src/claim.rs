//! A claim is a list of named inequalities.

use serde::{Serialize, Serializer};

use crate::stats::{self, Estimate};

/// What a number is claimed to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// So much or more.
    AtLeast(f64),
    /// More than that.
    Above(f64),
    /// So much or less.
    AtMost(f64),
}

/// One inequality of a claim, with what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Inequality {
    /// What is compared, as a reader would say it.
    pub what: String,
    /// What was found.
    pub found: Estimate,
    /// What was claimed.
    pub claimed: Limit,
    /// Whether the claim stands and falls with it.
    pub essential: bool,
    /// Whether what was found is as claimed.
    pub holds: bool,
}

impl Limit {
    /// Whether `found` is as claimed; what is not a number never is.
    pub fn admits(self, found: f64) -> bool {
        match self {
            Limit::AtLeast(limit) => found >= limit,
            Limit::Above(limit) => found > limit,
            Limit::AtMost(limit) => found <= limit,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::AtLeast(limit) => write!(f, "at least {limit}"),
            Limit::Above(limit) => write!(f, "above {limit}"),
            Limit::AtMost(limit) => write!(f, "at most {limit}"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Inequality {
    /// An inequality that the claim stands and falls with. The mean decides; its error tells how
    /// sure that is.
    pub fn new(what: impl Into<String>, found: Estimate, claimed: Limit) -> Self {
        let holds = claimed.admits(found.mean);
        Inequality { what: what.into(), found, claimed, essential: true, holds }
    }

    /// That `of − minus` is as claimed, pair by pair.
    pub fn paired(what: impl Into<String>, of: &[f64], minus: &[f64], claimed: Limit) -> Self {
        Inequality::new(what, Estimate::difference(of, minus), claimed)
    }

    /// That the deviation over seeds of `of` less that of `minus` is as claimed.
    pub fn spreads(what: impl Into<String>, of: &[f64], minus: &[f64], claimed: Limit) -> Self {
        let found = Estimate::spread(of).minus(Estimate::spread(minus));
        Inequality::new(what, found, claimed)
    }

    /// The same as a side remark, which decides nothing.
    pub fn aside(self) -> Self {
        Inequality { essential: false, ..self }
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let mark = if self.holds { "yes" } else { "no" };
        let aside = if self.essential { "" } else { " (aside)" };
        format!("{mark:<4} {}: {}, claimed {}{aside}", self.what, self.found, self.claimed)
    }
}

/// Whether a claim holds: it has essential inequalities, and all of them hold.
pub fn all_hold(inequalities: &[Inequality]) -> bool {
    let mut essential = inequalities.iter().filter(|i| i.essential).peekable();
    essential.peek().is_some() && essential.all(|i| i.holds)
}

/// The share of values at which something happened, as a number over seeds.
pub fn share(happened: &[bool]) -> f64 {
    stats::mean(&happened.iter().map(|h| f64::from(u8::from(*h))).collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(mean: f64) -> Estimate {
        Estimate { mean, standard_error: Some(0.01) }
    }

    #[test]
    fn limits_and_what_is_not_a_number() {
        assert!(Limit::AtLeast(0.5).admits(0.5) && !Limit::Above(0.5).admits(0.5));
        assert!(Limit::AtMost(0.5).admits(0.5) && !Limit::AtMost(0.5).admits(0.51));
        for limit in [Limit::AtLeast(0.0), Limit::Above(0.0), Limit::AtMost(0.0)] {
            assert!(!limit.admits(f64::NAN));
        }
    }

    #[test]
    fn a_claim_holds_when_all_that_is_essential_does() {
        let yes = Inequality::new("a", number(1.0), Limit::AtLeast(1.0));
        let no = Inequality::new("b", number(0.9), Limit::AtLeast(1.0));
        assert!(all_hold(&[yes.clone(), no.clone().aside()]));
        assert!(!all_hold(&[yes.clone(), no.clone()]));
        assert!(!all_hold(&[yes.clone().aside()]) && !all_hold(&[]));
        assert_eq!(no.line(), "no   b: 0.900 ± 0.010, claimed at least 1");
        assert_eq!(yes.aside().line(), "yes  a: 1.00 ± 0.01, claimed at least 1 (aside)");
    }

    #[test]
    fn spreads_are_compared_as_deviations() {
        let (wide, narrow) = ([0.0, 1.0, 2.0], [5.0, 5.1, 5.2]);
        let found = Inequality::spreads("sd", &wide, &narrow, Limit::Above(0.0));
        assert!(found.holds && (found.found.mean - 0.9).abs() < 1e-12, "{found:?}");
        assert_eq!(share(&[true, false, false, true]), 0.5);
    }
}
