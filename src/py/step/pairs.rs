//! The pairs of a step: each gradient with its variable, slots and low-precision copy, read and checked.

use super::registry::Registry;
use super::request::{HyperParameters, RowGradient, StepRequest};
use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::error::Error;
use crate::operations::rules::RuleKind;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::plain::is_plain_array;
use crate::py::arrays::view::{View, format_shape};
use crate::py::objects;
use crate::scalar::Scalar;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The argument that the pairs are passed as.
const ARGUMENT: &str = "grads_and_vars";
/// The names of the gradients, for messages.
pub const GRADIENTS: ArgumentName<'static, 'static> = ArgumentName::Paired { argument: ARGUMENT, part: 0 };
/// The names of the variables, for messages.
const VARIABLES: ArgumentName<'static, 'static> = ArgumentName::Paired { argument: ARGUMENT, part: 1 };

/// One variable of a step, with all that belongs to it.
pub struct Pair<'py> {
    /// The variable, which is updated in place.
    pub variable: View<'py>,
    /// Its gradient; None if the variable stays as it is.
    pub gradient: Option<Gradient<'py>>,
    /// Its slots, if the caller holds them.
    pub slots: Vec<View<'py>>,
    /// Its low-precision copy, if it has one and a gradient.
    pub copy: Option<Box<View<'py>>>,
    /// Number of steps that the variable has been updated in, if the caller counts them.
    pub step_count: Option<Box<View<'py>>>,
    /// Index of its hyper-parameters among those that the step uses.
    pub hyper: usize,
}

/// The gradient of a variable.
pub struct Gradient<'py> {
    /// An array of the variable's shape, or the rows.
    pub values: View<'py>,
    /// The rows that `values` are for, if they are not for all.
    pub rows: Option<Box<Rows<'py>>>,
}

/// Which rows of a variable a gradient is for.
pub struct Rows<'py> {
    /// Their indices, ascending, each once.
    pub indices: Box<[usize]>,
    /// The rows as the caller passed them, of which the norm is taken: some may be repeated.
    pub given: View<'py>,
    /// Whether the rows have been clamped already.
    pub is_clamped: bool,
}

impl Gradient<'_> {
    /// The array that the norm is taken of.
    pub fn measured(&self) -> &View<'_> {
        self.rows.as_ref().map_or(&self.values, |rows| &rows.given)
    }
}

/// Returns the name of a pair's variable, for messages.
pub fn variable_name(index: usize) -> String {
    VARIABLES.entry(index)
}

/// Returns the name of the low-precision copy of a pair's variable, for messages.
pub fn copy_name(index: usize) -> String {
    format!("the low-precision copy of {}", variable_name(index))
}

/// Returns the name of a slot of a pair's variable, for messages.
pub fn slot_name(index: usize) -> String {
    format!("a slot of {}", variable_name(index))
}

/// Returns the name of the step counter of a pair's variable, for messages.
pub fn step_count_name(index: usize) -> String {
    format!("the step count of {}", variable_name(index))
}

/// Reads arrays, with a cache of dtypes for each kind: those of one kind mostly agree.
#[derive(Default)]
struct Reader<'py> {
    gradients: DTypeCache<'py>,
    variables: DTypeCache<'py>,
    slots: DTypeCache<'py>,
    copies: DTypeCache<'py>,
    step_counts: DTypeCache<'py>,
}

/// Reads and checks every array of the pairs. `registry` is what the optimizer keeps; None if the caller holds the slots.
pub fn read_pairs<'py>(
    py: Python<'py>,
    request: &StepRequest,
    registry: Option<&Registry>,
    hyper: &mut HyperParameters,
) -> PyResult<Vec<Pair<'py>>> {
    let list = request.pairs(py);
    let mut reader = Reader::default();
    let mut pairs = with_capacity(list.len())?;
    for (index, entry) in list.iter().enumerate() {
        // The list may grow while a dtype is read for the first time.
        reserve(&mut pairs, 1)?;
        let Ok(parts) = entry.cast_exact::<PyTuple>() else { return Err(no_pair(index)) };
        pairs.push(match registry {
            Some(registry) => reader.kept_pair(py, parts, index, registry, hyper)?,
            None => reader.caller_pair(parts, index, request.kind(), hyper)?,
        });
    }
    Ok(pairs)
}

/// The error of an entry that is no pair.
fn no_pair(index: usize) -> PyErr {
    Error::Type(format!("{ARGUMENT}[{index}] is no (gradient, variable) pair")).into()
}

impl<'py> Reader<'py> {
    /// Reads `(gradient, variable)`, whose slots and copy the optimizer keeps.
    fn kept_pair(
        &mut self,
        py: Python<'py>,
        parts: &Bound<'py, PyTuple>,
        index: usize,
        registry: &Registry,
        hyper: &mut HyperParameters,
    ) -> PyResult<Pair<'py>> {
        let mut parts = parts.iter_borrowed().map(pyo3::Borrowed::to_owned);
        let (Some(gradient), Some(variable)) = (parts.next(), parts.next()) else {
            return Err(no_pair(index));
        };
        let accepted = AcceptedDTypes::Variables;
        let (gradient, variable) = self.gradient_and_variable(gradient, variable, index, accepted)?;
        let mut copy = None;
        if gradient.is_some()
            && let Some(array) = registry.low_precision_copy(py, &variable)?
        {
            copy = Some(Box::new(self.copy(array, &variable, index)?));
        }
        let hyper = hyper.at_step(0, None)?;
        Ok(Pair { variable, gradient, slots: Vec::new(), copy, step_count: None, hyper })
    }

    /// Reads `(gradient, variable, slots, copy, hyper, step_count)`: a tuple of arrays, an array or None, the index of a
    /// set of hyper-parameters, and an array of one number or None.
    fn caller_pair(
        &mut self,
        parts: &Bound<'py, PyTuple>,
        index: usize,
        kind: RuleKind,
        hyper: &mut HyperParameters,
    ) -> PyResult<Pair<'py>> {
        let mut parts = parts.iter_borrowed().map(pyo3::Borrowed::to_owned);
        let mut next = || parts.next().ok_or_else(|| no_pair(index));
        let (gradient, variable) = (next()?, next()?);
        let (slots, copy, set, step_count) = (next()?, next()?, next()?, next()?);
        let (gradient, variable) =
            self.gradient_and_variable(gradient, variable, index, AcceptedDTypes::Reals)?;
        let mut views = with_capacity(kind.slots())?;
        for slot in objects::copy_to_list(&slots)?.iter() {
            reserve(&mut views, 1)?;
            views.push(self.slot(slot, &variable, index)?);
        }
        if views.len() != kind.slots() {
            let (count, name) = (views.len(), variable_name(index));
            return Err(Error::Value(format!("{name} has {count} slots; it takes {}", kind.slots())).into());
        }
        let copy = if copy.is_none() { None } else { Some(Box::new(self.copy(copy, &variable, index)?)) };
        let mut step = None;
        let step_count = if step_count.is_none() {
            None
        } else {
            let name = || step_count_name(index);
            let view = View::new(step_count, AcceptedDTypes::Ordered, &mut self.step_counts, name)?;
            check_written(&view, &[], name)?;
            step = Some(super::counters::read_number(&view) + 1.0);
            Some(Box::new(view))
        };
        let hyper = hyper.at_step(set.extract()?, step)?;
        Ok(Pair { variable, gradient, slots: views, copy, step_count, hyper })
    }

    fn gradient_and_variable(
        &mut self,
        gradient: Bound<'py, PyAny>,
        variable: Bound<'py, PyAny>,
        index: usize,
        accepted: AcceptedDTypes,
    ) -> PyResult<(Option<Gradient<'py>>, View<'py>)> {
        let py = gradient.py();
        // The arrays are read before any of them is checked: reading a dtype may run foreign code.
        let name = || GRADIENTS.entry(index);
        let mut array = |array| View::new(array, AcceptedDTypes::Reals, &mut self.gradients, name);
        let mut indices = None;
        let gradient = if gradient.is_none() {
            None
        } else if let Ok(rows) = gradient.cast_exact::<RowGradient>() {
            let rows = rows.get();
            let (values, given) = (array(rows.values.bind(py).clone())?, array(rows.given.bind(py).clone())?);
            let array = rows.indices.bind(py).clone();
            indices = Some(View::new(array, AcceptedDTypes::Ordered, &mut DTypeCache::default(), name)?);
            let rows = Rows { indices: Box::default(), given, is_clamped: rows.is_clamped };
            Some(Gradient { values, rows: Some(Box::new(rows)) })
        } else {
            Some(Gradient { values: array(gradient)?, rows: None })
        };
        let variable = View::new(variable, accepted, &mut self.variables, || variable_name(index))?;
        check_variable(&variable, || variable_name(index))?;
        let mut gradient = gradient;
        if let Some(gradient) = &mut gradient {
            check_shape(&gradient.values, &variable, indices.as_ref(), index)?;
            if let (Some(rows), Some(indices)) = (&mut gradient.rows, &indices) {
                rows.indices = row_indices(indices, &gradient.values, &variable)?;
            }
        }
        Ok((gradient, variable))
    }

    fn slot(&mut self, slot: Bound<'py, PyAny>, variable: &View, index: usize) -> Result<View<'py>, Error> {
        let name = || slot_name(index);
        let slot = View::new(slot, AcceptedDTypes::Reals, &mut self.slots, name)?;
        check_written(&slot, variable.shape(), name)?;
        if slot.dtype.scalar == Scalar::F64 && variable.dtype.scalar != Scalar::F64 {
            return Err(Error::Type(format!(
                "{} is {}; for a variable of {} it takes float32 or a narrower type",
                name(),
                slot.describe(),
                variable.dtype.name()
            )));
        }
        Ok(slot)
    }

    fn copy(&mut self, copy: Bound<'py, PyAny>, variable: &View, index: usize) -> Result<View<'py>, Error> {
        let name = || copy_name(index);
        let copy = View::new(copy, AcceptedDTypes::Reals, &mut self.copies, name)?;
        check_copy(&copy, variable, name)?;
        Ok(copy)
    }
}

/// Checks that an array can be updated in place.
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
fn check_written(view: &View, shape: &[usize], name: impl Fn() -> String) -> Result<(), Error> {
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

/// Checks that a gradient, or its rows if it has `indices`, has the shape of the variable.
fn check_shape(gradient: &View, variable: &View, indices: Option<&View>, index: usize) -> Result<(), Error> {
    let (shape, expected) = (gradient.shape(), variable.shape());
    let fits = match indices {
        None => shape == expected,
        Some(indices) => {
            !expected.is_empty()
                && shape.len() == expected.len()
                && shape[1..] == expected[1..]
                && shape[0] == indices.size
        }
    };
    if fits {
        return Ok(());
    }
    Err(Error::Value(format!(
        "{} is {} where {} is {}: {}",
        GRADIENTS.entry(index),
        gradient.describe(),
        variable_name(index),
        variable.describe(),
        if indices.is_some() {
            "rows must have the shape of the variable's"
        } else {
            "the shapes must be the same"
        }
    )))
}

/// Whether an array is one aligned run in C order.
pub fn is_run(view: &View) -> bool {
    view.size == 0 || view.is_c_order() && view.is_aligned()
}

/// Returns the indices of a gradient's rows, which `fastclip` has sorted, and of which it has summed repeated ones.
fn row_indices(indices: &View, gradient: &View, variable: &View) -> Result<Box<[usize]>, Error> {
    if indices.dtype.name() != "int64" || !is_run(indices) || !is_run(gradient) {
        return Err(Error::Value("rows must be contiguous, and their indices int64".into()));
    }
    let rows = variable.shape()[0];
    let mut next = 0;
    let mut checked = with_capacity(indices.size)?;
    for at in 0..indices.size {
        // SAFETY: a contiguous, aligned int64 array of this many elements.
        let index = unsafe { indices.pointer.cast::<i64>().add(at).read() };
        match usize::try_from(index) {
            Ok(row) if row >= next && row < rows => {
                checked.push(row);
                next = row + 1;
            }
            _ => {
                return Err(Error::Index(format!(
                    "row {index} of a variable that has {rows}, or out of order"
                )));
            }
        }
    }
    Ok(checked.into())
}

/// Returns the pairs of those whose variable has a gradient, in their order.
pub fn with_gradients<'a, 'py>(
    pairs: &'a [Pair<'py>],
) -> Result<Vec<(usize, &'a Gradient<'py>)>, OutOfMemory> {
    let mut present = with_capacity(pairs.len())?;
    let gradients = pairs.iter().map(|pair| pair.gradient.as_ref()).enumerate();
    present.extend(gradients.filter_map(|(index, gradient)| Some((index, gradient?))));
    Ok(present)
}

/// Whether all pairs are tuples of an array of native byte order, or None, and such an array.
#[pyfunction]
#[pyo3(signature = (pairs, /))]
pub fn are_plain_pairs(pairs: &Bound<'_, PyList>) -> bool {
    pairs.iter().all(|pair| {
        pair.cast_exact::<PyTuple>().is_ok_and(|pair| {
            let mut parts = pair.iter_borrowed();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(gradient), Some(array), None) => {
                    (gradient.is_none() || is_plain_array(&gradient)) && is_plain_array(&array)
                }
                _ => false,
            }
        })
    })
}
