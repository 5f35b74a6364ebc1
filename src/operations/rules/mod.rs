//! The update rules of optimizers, one a file: a gradient, a variable and its slots become a variable and slots.
//!
//! A rule says what happens to one element. It knows nothing of memory, threads, types of gradients or clipping:
//! `update.rs` carries it. A new rule is a file here and a line in the list below.
//!
//! Numbers that depend on hyper-parameters alone are taken in float64 and rounded once.

pub use crate::kernels::update::Rule;

/// Work to be done with a rule whose type is known: in float32 and in float64.
pub trait RuleVisitor {
    /// What comes of it.
    type Result;
    /// Does it.
    fn visit<A: Rule<f32, N>, B: Rule<f64, N>, const N: usize>(self, narrow: A, wide: B) -> Self::Result;
}

macro_rules! rules {
    ($($name:ident: $Rule:ident, $slots:literal slots, [$($hyper:ident),*];)*) => {
        $(mod $name;)*

        /// Which rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RuleKind {
            $(#[doc = concat!("That of `", stringify!($name), ".rs`.")] $Rule),*
        }

        impl RuleKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$Rule),*];

            /// The rule of that name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$Rule),)*
                    _ => None,
                }
            }

            /// How many slots a variable has.
            #[must_use]
            pub const fn slots(self) -> usize {
                match self {
                    $(Self::$Rule => $slots),*
                }
            }

            /// The names of its hyper-parameters, in their order.
            #[must_use]
            pub const fn hyper(self) -> &'static [&'static str] {
                match self {
                    $(Self::$Rule => &[$(stringify!($hyper)),*]),*
                }
            }

            /// Gives the rule to what carries it.
            pub fn with<C: RuleVisitor>(self, hyper: &[f64], visitor: C) -> C::Result {
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
    /// Whether a gradient of some rows changes all rows of its variable, as TensorFlow's Adam does: the moments of rows
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
}

/// The most slots that a rule has.
pub const MAX_SLOTS: usize = 3;

/// The hyper-parameters as an array. They were counted at the edge.
fn expect<const H: usize>(hyper: &[f64]) -> [f64; H] {
    std::array::from_fn(|i| hyper.get(i).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_has_more_slots_than_are_carried() {
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
    fn names_are_those_of_the_files() {
        assert_eq!(RuleKind::from_name("rms_prop"), Some(RuleKind::RmsProp));
        assert_eq!(RuleKind::from_name("RmsProp"), None);
        assert_eq!(RuleKind::Adagrad.hyper(), ["learning_rate"]);
    }
}
