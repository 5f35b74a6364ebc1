//! The check of output arrays that a caller passes.

use super::argument_name::ArgumentName;
use super::overlap;
use super::view::View;
use crate::error::Error;
use pyo3::prelude::*;

/// Refuses outputs that are not like their inputs, or whose memory is not free to be written.
pub fn check_given(
    py: Python<'_>,
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    input_label: ArgumentName<'_, '_>,
    output_label: ArgumentName<'_, '_>,
) -> PyResult<()> {
    if inputs.len() != outputs.len() {
        return Err(Error::Value(format!(
            "{} has {} entries and {} has {}: they must be as many",
            output_label.argument(),
            outputs.len(),
            input_label.argument(),
            inputs.len()
        ))
        .into());
    }
    for (index, (input, output)) in inputs.iter().zip(outputs).enumerate() {
        let (name, of) = (|| output_label.of(index), || input_label.of(index));
        match (input, output) {
            (None, None) => {}
            (Some(input), Some(output)) => {
                if output.dtype != input.dtype || output.shape() != input.shape() {
                    return Err(Error::Value(format!(
                        "{} is {} where {} is {}: dtype and shape must be the same",
                        name(),
                        output.describe(),
                        of(),
                        input.describe()
                    ))
                    .into());
                }
                if !output.is_writable() {
                    return Err(Error::Value(format!(
                        "{} ({}) is read-only: a writable array is needed to put the result in",
                        name(),
                        output.describe()
                    ))
                    .into());
                }
            }
            (Some(_), None) => {
                return Err(Error::Value(format!("{} is None where {} is an array", name(), of())).into());
            }
            (None, Some(_)) => {
                return Err(Error::Value(format!("{} is an array where {} is None", name(), of())).into());
            }
        }
    }
    overlap::check(py, inputs, outputs, true, input_label, output_label)
}
