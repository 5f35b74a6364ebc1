//! Update rules of optimizers, one a file: each computes a variable and its slots from a gradient, the variable and
//! the slots.
//!
//! A rule is the formula for one element. It knows nothing of memory, threads, dtypes of gradients or clipping;
//! `update.rs` in the parent folder applies it to arrays. A new rule is a file in this folder and a line in the list
//! below.
//!
//! Coefficients that depend on hyper-parameters alone are computed in float64 and rounded once.

#[cfg(feature = "gpu")]
pub mod on_devices;
mod weight_decay;

pub use crate::kernels::update::Rule;

/// Visitor of a rule: code that is generic over the type of the rule, for float32 and for float64 arithmetic.
pub trait RuleVisitor {
    /// Result of the visit.
    type Result;
    /// Visits the rule in float32 arithmetic, for float32 and narrower variables, and in float64 arithmetic.
    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(
        self,
        rule_f32: A,
        rule_f64: B,
    ) -> Self::Result;
}

macro_rules! rules {
    ($($name:ident: $Rule:ident, $slots:literal slots, [$($hyper:ident),*];)*) => {
        $(mod $name;)*

        /// The update rules.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RuleKind {
            $(#[doc = concat!("The rule in `", stringify!($name), ".rs`.")] $Rule),*
        }

        impl RuleKind {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$Rule),*];

            /// Returns the rule of this name: that of its file without the extension.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$Rule),)*
                    _ => None,
                }
            }

            /// Returns the number of slots per variable.
            #[must_use]
            pub const fn slots(self) -> usize {
                match self {
                    $(Self::$Rule => $slots),*
                }
            }

            /// Returns the names of the hyper-parameters, in their order.
            #[must_use]
            pub const fn hyper(self) -> &'static [&'static str] {
                match self {
                    $(Self::$Rule => &[$(stringify!($hyper)),*]),*
                }
            }

            /// Calls the visitor with the rule for these hyper-parameters, given in the order of [`RuleKind::hyper`].
            pub fn with<V: RuleVisitor>(self, hyper: &[f64], visitor: V) -> V::Result {
                match self {
                    $(Self::$Rule => visitor.visit::<_, _, $slots>(
                        <$name::$Rule<f32> as Rule<f32, $slots>>::new(hyper),
                        <$name::$Rule<f64> as Rule<f64, $slots>>::new(hyper),
                    )),*
                }
            }
        }
    };
}

impl RuleKind {
    /// Whether a sparse gradient updates all rows of its variable, as TensorFlow's Adam does: the moments of rows
    /// without a gradient decay.
    #[must_use]
    pub const fn changes_all_rows(self) -> bool {
        matches!(self, Self::Adam | Self::AdamW)
    }

    /// Sets those of the hyper-parameters that depend on the number of the step, which is 1 at first: `step`, and the
    /// powers of the betas.
    pub fn set_step(self, hyper: &mut [f64], step: f64) {
        let position = |name: &str| self.hyper().iter().position(|other| *other == name);
        for (power, base) in [("beta1_power", "beta1"), ("beta2_power", "beta2")] {
            if let (Some(power), Some(base)) = (position(power), position(base)) {
                hyper[power] = hyper[base].powf(step);
            }
        }
        if let Some(at) = position("step") {
            hyper[at] = step;
        }
    }
}

rules! {
    gradient_descent: GradientDescent, 0 slots, [learning_rate];
    momentum: Momentum, 1 slots, [learning_rate, momentum, use_nesterov];
    adam: Adam, 2 slots, [learning_rate, beta1, beta2, epsilon, beta1_power, beta2_power];
    adamw: AdamW, 2 slots, [learning_rate, beta1, beta2, epsilon, beta1_power, beta2_power, weight_decay];
    adagrad: Adagrad, 1 slots, [learning_rate];
    adagrad_da: AdagradDA, 2 slots, [learning_rate, l1, l2, step];
    rms_prop: RmsProp, 2 slots, [learning_rate, decay, momentum, epsilon];
    centered_rms_prop: CenteredRmsProp, 3 slots, [learning_rate, decay, momentum, epsilon];
    adadelta: Adadelta, 2 slots, [learning_rate, rho, epsilon];
    ftrl: Ftrl, 2 slots, [learning_rate, learning_rate_power, l1, l2, l2_shrinkage, beta];
    proximal_gradient_descent: ProximalGradientDescent, 0 slots, [learning_rate, l1, l2];
    proximal_adagrad: ProximalAdagrad, 1 slots, [learning_rate, l1, l2];
    lion: Lion, 1 slots, [learning_rate, beta1, beta2, weight_decay, maximize];
    torch_adam: TorchAdam, 2 slots,
        [learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, maximize, beta1_power, beta2_power];
    torch_ams_grad: TorchAmsGrad, 3 slots,
        [learning_rate, beta1, beta2, epsilon, weight_decay, decoupled, maximize, beta1_power, beta2_power];
    torch_sgd: TorchSgd, 1 slots, [learning_rate, momentum, dampening, weight_decay, nesterov, maximize];
    torch_plain_sgd: TorchPlainSgd, 0 slots, [learning_rate, weight_decay, maximize];
    torch_adagrad: TorchAdagrad, 1 slots, [learning_rate, lr_decay, weight_decay, epsilon, maximize, step];
}

/// Largest number of slots of a rule.
pub const MAX_SLOTS: usize = 3;

/// Returns the hyper-parameters as an array. The bindings have checked their number; a missing one is NaN.
fn hyper_parameters<const H: usize>(hyper: &[f64]) -> [f64; H] {
    std::array::from_fn(|i| hyper.get(i).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_slots_is_the_largest_number_of_slots() {
        assert_eq!(RuleKind::ALL.iter().map(|kind| kind.slots()).max(), Some(MAX_SLOTS));
    }

    #[test]
    fn the_number_of_the_step_sets_counters_and_powers_alone() {
        let mut hyper = [0.1, 0.9, 0.99, 1e-8, 7.0, 7.0];
        RuleKind::Adam.set_step(&mut hyper, 3.0);
        assert_eq!(hyper, [0.1, 0.9, 0.99, 1e-8, 0.9_f64.powf(3.0), 0.99_f64.powf(3.0)]);
        let mut hyper = [0.1, 0.0, 0.0, 7.0];
        RuleKind::AdagradDA.set_step(&mut hyper, 3.0);
        assert_eq!(hyper, [0.1, 0.0, 0.0, 3.0]);
        // The exponent of Ftrl is named as a power, and is none.
        let mut hyper = [0.1, -0.5, 0.0, 0.0, 0.0, 0.0];
        RuleKind::Ftrl.set_step(&mut hyper, 3.0);
        assert_eq!(hyper, [0.1, -0.5, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn rules_are_named_after_their_files() {
        assert_eq!(RuleKind::from_name("rms_prop"), Some(RuleKind::RmsProp));
        assert_eq!(RuleKind::from_name("RmsProp"), None);
        assert_eq!(RuleKind::Adagrad.hyper(), ["learning_rate"]);
    }
}
