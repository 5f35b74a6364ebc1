//! The sets of hyper-parameters that the updates of a step use.

use crate::allocation::reserve;
use crate::error::Error;
use crate::operations::rules::RuleKind;
use pyo3::prelude::*;

/// The sets of hyper-parameters of a step.
pub struct HyperParameters {
    kind: RuleKind,
    /// The sets that were passed, one after the other.
    sets: Vec<f64>,
    /// The sets that updates refer to, one after the other: those that were passed, adapted to step counts.
    used: Vec<f64>,
    /// For each used set, the index of the passed set and the step count.
    origins: Vec<(usize, Option<f64>)>,
}

impl HyperParameters {
    /// Checks sets of the rule's hyper-parameters.
    pub fn new(kind: RuleKind, passed: &[Vec<f64>]) -> PyResult<Self> {
        let mut sets = Vec::new();
        for set in passed {
            if set.len() != kind.hyper().len() {
                return Err(Error::Value(format!("this rule takes {:?}", kind.hyper())).into());
            }
            reserve(&mut sets, set.len())?;
            sets.extend_from_slice(set);
        }
        Ok(Self { kind, sets, used: Vec::new(), origins: Vec::new() })
    }

    /// Adds the passed set number `index`, with the numbers that depend on the step count computed for `step`, to the
    /// sets that the updates use, and returns its index among these. If `step` is None, all numbers are as they were
    /// passed.
    pub fn at_step(&mut self, index: usize, step: Option<f64>) -> PyResult<usize> {
        // Successive variables mostly have the same set and step count.
        if self.origins.last() == Some(&(index, step)) {
            return Ok(self.origins.len() - 1);
        }
        let count = self.kind.hyper().len();
        let Some(set) = self.sets.chunks_exact(count).nth(index) else {
            return Err(Error::Value(format!(
                "there are {} sets of hyper-parameters, and no number {index}",
                self.sets.len() / count
            ))
            .into());
        };
        reserve(&mut self.used, count)?;
        reserve(&mut self.origins, 1)?;
        let first = self.used.len();
        self.used.extend_from_slice(set);
        if let Some(step) = step {
            self.kind.set_step(&mut self.used[first..], step);
        }
        self.origins.push((index, step));
        Ok(self.origins.len() - 1)
    }

    /// The sets that the updates use.
    pub fn used(&self) -> &[f64] {
        &self.used
    }
}
