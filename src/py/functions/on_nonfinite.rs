//! The choice `on_nonfinite`.

use crate::error::Error;

/// The effect of NaN and infinity in the inputs of a clip by the global norm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnNonFinite {
    /// Every output becomes NaN.
    Propagate,
    /// The call raises, and writes nothing.
    Raise,
    /// Every output becomes 0.
    Zero,
}

impl OnNonFinite {
    /// Returns the choice of that name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "propagate" => Ok(Self::Propagate),
            "raise" => Ok(Self::Raise),
            "zero" => Ok(Self::Zero),
            _ => Err(Error::Value(format!(
                "on_nonfinite is {name:?}; it takes \"propagate\", \"raise\" or \"zero\""
            ))),
        }
    }
}
