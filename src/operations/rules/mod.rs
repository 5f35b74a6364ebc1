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
    fn names_are_those_of_the_files() {
        assert_eq!(RuleKind::from_name("rms_prop"), Some(RuleKind::RmsProp));
        assert_eq!(RuleKind::from_name("RmsProp"), None);
        assert_eq!(RuleKind::Adagrad.hyper(), ["learning_rate"]);
    }
}
