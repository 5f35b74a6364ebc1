//! Checks of single arrays that an optimizer updates.

use crate::error::Error;
use crate::py::arrays::view::{View, format_shape};

/// Checks that a variable can be updated in place.
pub fn check_variable(view: &View, name: impl Fn() -> String) -> Result<(), Error> {
    if view.is_writable() {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{} ({}) is read-only: a variable is updated in place",
        name(),
        view.describe()
    )))
}

/// Checks that an array is writable and has this shape.
pub fn check_written(view: &View, shape: &[usize], name: impl Fn() -> String) -> Result<(), Error> {
    if view.shape() == shape && view.is_writable() {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{} is {}{}; it takes a writable array of the shape {}",
        name(),
        view.describe(),
        if view.is_writable() { "" } else { ", read-only" },
        format_shape(shape)
    )))
}

/// Checks that an array can be the low-precision copy of a variable.
pub fn check_copy(copy: &View, variable: &View, name: impl Fn() -> String) -> Result<(), Error> {
    if copy.dtype.size() >= variable.dtype.size() {
        return Err(Error::Type(format!(
            "{} is {}; it takes a float type narrower than the variable's {}",
            name(),
            copy.describe(),
            variable.dtype.name()
        )));
    }
    if copy.shape() != variable.shape() || !copy.is_writable() {
        return Err(Error::Value(format!(
            "{} is {}{}; it takes a writable array of the variable's shape {}",
            name(),
            copy.describe(),
            if copy.is_writable() { "" } else { ", read-only" },
            format_shape(variable.shape())
        )));
    }
    Ok(())
}
