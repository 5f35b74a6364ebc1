//! What a call does about NaN and infinity.

use crate::error::Error;
use crate::operations::clip::Action;

/// What to do about NaN and infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Propagate,
    Raise,
    Zero,
}

impl Policy {
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

    pub fn action(self) -> Action {
        if self == Self::Zero { Action::FillZero } else { Action::FillNan }
    }
}
