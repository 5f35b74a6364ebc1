//! The check of output arrays that a caller passes.

use super::argument_name::ArgumentName;
use super::overlap;
use super::view::View;
use crate::error::Error;
use pyo3::prelude::*;

/// Raises if the outputs do not have the dtypes and shapes of their inputs, are read-only, or overlap themselves, each
/// other or an input. An output may be exactly its own input.
pub fn check_outputs(
    py: Python<'_>,
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    input_name: ArgumentName<'_>,
    output_name: ArgumentName<'_>,
) -> PyResult<()> {
    if inputs.len() != outputs.len() {
        return Err(Error::Value(format!(
            "{} has {} entries and {} has {}: they must be as many",
            output_name.argument(),
            outputs.len(),
            input_name.argument(),
            inputs.len()
        ))
        .into());
    }
    for (index, (input, output)) in inputs.iter().zip(outputs).enumerate() {
        let (input_name, output_name) = (|| input_name.entry(index), || output_name.entry(index));
        check_properties(input.as_ref(), output.as_ref(), input_name, output_name)?;
    }
    overlap::check(py, inputs, outputs, true, input_name, output_name)
}

/// Checks dtype, shape and writability of one output.
fn check_properties(
    input: Option<&View>,
    output: Option<&View>,
    input_name: impl Fn() -> String,
    output_name: impl Fn() -> String,
) -> Result<(), Error> {
    let (input, output) = match (input, output) {
        (None, None) => return Ok(()),
        (Some(input), Some(output)) => (input, output),
        (Some(_), None) => {
            return Err(Error::Value(format!(
                "{} is None where {} is an array",
                output_name(),
                input_name()
            )));
        }
        (None, Some(_)) => {
            return Err(Error::Value(format!(
                "{} is an array where {} is None",
                output_name(),
                input_name()
            )));
        }
    };
    if output.dtype != input.dtype || output.shape() != input.shape() {
        return Err(Error::Value(format!(
            "{} is {} where {} is {}: dtype and shape must be the same",
            output_name(),
            output.describe(),
            input_name(),
            input.describe()
        )));
    }
    if !output.is_writable() {
        return Err(Error::Value(format!(
            "{} ({}) is read-only: a writable array is needed to put the result in",
            output_name(),
            output.describe()
        )));
    }
    Ok(())
}
