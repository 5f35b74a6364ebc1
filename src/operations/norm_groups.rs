//! Clipping in an optimizer's step by PyTorch's rule, in groups of gradients that have a norm and a bound of their own.

use crate::allocation::{OutOfMemory, collect, filled, with_capacity};
use crate::operations::gradient_clipping::{NonFinitePolicy, Verdict};
use crate::operations::magnitude::{Magnitude, Order, combine};
use crate::operations::torch_factor::TorchFactor;
use crate::operations::update::GradientTransform;

/// The gradients of a step in groups, with the conditions of the step.
#[derive(Debug)]
pub struct NormGroups {
    /// The bound of the norm of each group; None for a group that is not clipped.
    pub bounds: Vec<Option<f64>>,
    /// The group of each gradient.
    pub group_of: Vec<usize>,
    /// The policy for NaN and infinity.
    pub policy: NonFinitePolicy,
    /// The norm of all gradients above which a step is skipped, if the norm is finite.
    pub skip_above: Option<f64>,
    /// The number that gradients are divided by.
    pub loss_scale: f64,
}

/// What a step reports of its groups.
#[derive(Debug)]
pub struct GroupNorms {
    /// The norm of each group, after the division by the loss scale; None if it was not measured.
    pub norms: Vec<Option<f64>>,
    /// The factor that clipped the gradients of each group, at most 1, or NaN.
    pub scales: Vec<f64>,
}

impl NormGroups {
    /// Whether the norm of the gradient at `index` is needed.
    #[must_use]
    pub fn is_measured(&self, index: usize) -> bool {
        self.needs_all() || self.bounds[self.group_of[index]].is_some()
    }

    /// Whether the norms of all gradients are needed.
    fn needs_all(&self) -> bool {
        self.policy != NonFinitePolicy::Propagate || self.skip_above.is_some()
    }

    /// Decides whether the step is taken, and computes the transform of each gradient. `magnitudes` are those of the
    /// gradients before the division by the loss scale; those of gradients that are not measured are not used.
    ///
    /// # Errors
    ///
    /// If memory runs out.
    pub fn decide(&self, magnitudes: &[Magnitude]) -> Result<(Verdict, GroupNorms), OutOfMemory> {
        let mut totals = with_capacity(self.bounds.len())?;
        let mut members = with_capacity(magnitudes.len())?;
        for (group, bound) in self.bounds.iter().enumerate() {
            if !self.needs_all() && bound.is_none() {
                totals.push(None);
                continue;
            }
            members.clear();
            let all = magnitudes.iter().zip(&self.group_of);
            members.extend(all.filter(|(_, of)| **of == group).map(|(magnitude, _)| *magnitude));
            totals.push(Some(combine(&members, Order::Two)));
        }
        let norm =
            |total: &Option<Magnitude>| total.map(|total| total.norm_divided(Order::Two, self.loss_scale));
        let norms = collect(totals.iter().map(norm))?;
        let factor = |(total, bound): (&Option<Magnitude>, &Option<f64>)| {
            let clipped = total.zip(*bound);
            clipped
                .and_then(|(total, bound)| TorchFactor::new(total, Order::Two, bound, self.loss_scale))
                .unwrap_or_else(|| TorchFactor::unclipped(self.loss_scale))
        };
        let factors: Vec<_> = collect(totals.iter().zip(&self.bounds).map(factor))?;
        let scales = collect(factors.iter().map(|factor| factor.of_divided))?;
        let report = GroupNorms { norms, scales };
        if self.needs_all() {
            let total = combine(magnitudes, Order::Two);
            if !total.is_finite() && self.policy != NonFinitePolicy::Propagate {
                let is_raised = self.policy == NonFinitePolicy::Raise;
                return Ok((if is_raised { Verdict::Raise } else { Verdict::Skip }, report));
            }
            let is_above = |limit| total.norm_divided(Order::Two, self.loss_scale) > limit;
            if total.is_finite() && self.skip_above.is_some_and(is_above) {
                return Ok((Verdict::Skip, report));
            }
        }
        let mut transforms = filled(GradientTransform::IDENTITY, self.group_of.len())?;
        for (transform, group) in transforms.iter_mut().zip(&self.group_of) {
            transform.factor = factors[*group].of_undivided;
        }
        Ok((Verdict::Take { transforms, scale: None }, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(bounds: Vec<Option<f64>>, group_of: Vec<usize>) -> NormGroups {
        NormGroups { bounds, group_of, policy: NonFinitePolicy::Propagate, skip_above: None, loss_scale: 1.0 }
    }

    fn squares(values: &[f64]) -> Vec<Magnitude> {
        values.iter().map(|value| Magnitude { value: *value, exponent: 0 }).collect()
    }

    fn factors(groups: &NormGroups, magnitudes: &[Magnitude]) -> Vec<f64> {
        let Verdict::Take { transforms, .. } = groups.decide(magnitudes).unwrap().0 else {
            panic!("not taken")
        };
        transforms.iter().map(|transform| transform.factor.wide * transform.factor.lift).collect()
    }

    #[test]
    fn each_group_is_clipped_by_its_own_norm() {
        let groups = groups(vec![Some(1.0), None, Some(100.0)], vec![0, 1, 0, 2]);
        let magnitudes = squares(&[9.0, 1e300, 16.0, 4.0]);
        assert_eq!(factors(&groups, &magnitudes), [1.0 / 5.000_001, 1.0, 1.0 / 5.000_001, 1.0]);
        let report = groups.decide(&magnitudes).unwrap().1;
        assert_eq!(report.norms, [Some(5.0), None, Some(2.0)]);
        assert_eq!(report.scales, [1.0 / 5.000_001, 1.0, 1.0]);
        assert!((0..4).map(|index| groups.is_measured(index)).eq([true, false, true, true]));
    }

    #[test]
    fn steps_are_skipped_above_a_norm_of_all_groups_and_raise_for_any_group() {
        let mut groups = groups(vec![Some(1.0), None], vec![0, 1]);
        groups.skip_above = Some(4.9);
        assert!(matches!(groups.decide(&squares(&[9.0, 16.0])).unwrap().0, Verdict::Skip));
        groups.skip_above = Some(5.0);
        assert!(matches!(groups.decide(&squares(&[9.0, 16.0])).unwrap().0, Verdict::Take { .. }));
        groups.policy = NonFinitePolicy::Raise;
        assert!(matches!(groups.decide(&squares(&[9.0, f64::NAN])).unwrap().0, Verdict::Raise));
    }
}
