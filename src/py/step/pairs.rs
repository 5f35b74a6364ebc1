//! The pairs of a step: each gradient with its variable, slots and low-precision copy, read and checked.

use super::checks::{check_copy, check_variable, check_written};
use super::counters::read_number;
use super::hyper_parameters::HyperParameters;
use super::registry::Registry;
use super::request::{RowGradient, StepRequest};
use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::error::Error;
use crate::kernels::stochastic::Stream;
use crate::operations::rules::RuleKind;
use crate::py::arrays::argument_name::ArgumentName;
use crate::py::arrays::dtypes::{AcceptedDTypes, DTypeCache};
use crate::py::arrays::ndarray_type::is_array;
use crate::py::arrays::plain::is_plain_array;
use crate::py::arrays::view::View;
use crate::py::objects;
use crate::py::tensors::door::{Access, Prepared, is_on_device, open_both, open_written};
use crate::py::tensors::opened::{Opened, Written};
use crate::scalar::Scalar;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The name of the argument that contains the pairs, for messages.
const ARGUMENT: &str = "grads_and_vars";
/// The names of the gradients, for messages.
pub const GRADIENTS: ArgumentName<'static> = ArgumentName::Paired { argument: ARGUMENT, part: 0 };
/// The names of the variables, for messages.
pub const VARIABLES: ArgumentName<'static> = ArgumentName::Paired { argument: ARGUMENT, part: 1 };

/// One variable of a step, with its gradient and its other arrays.
pub struct Pair<'py> {
    /// The variable, which is updated in place.
    pub variable: View<'py>,
    /// Its gradient; None if the variable is not updated.
    pub gradient: Option<Gradient<'py>>,
    /// Its low-precision copy, if it has one and a gradient. It is boxed to keep the record small, because steps read
    /// thousands of pairs.
    copy: Option<Box<View<'py>>>,
    /// Its slots and step count, if the caller owns the slots.
    caller_arrays: Option<Box<CallerArrays<'py>>>,
    /// Index of its hyper-parameters among the sets that the step uses, see [`HyperParameters::at_step`].
    pub hyper: usize,
    /// The random bits by which its bfloat16 arrays are rounded; None to round them to the nearest.
    pub rounding: Option<Stream>,
}

/// The arrays of a pair whose slots the caller owns.
struct CallerArrays<'py> {
    slots: Vec<View<'py>>,
    /// Number of steps that the variable has been updated in, if the caller counts them.
    step_count: Option<View<'py>>,
}

impl<'py> Pair<'py> {
    /// Returns the pair of a variable and a dense gradient, without other arrays.
    pub fn new(variable: View<'py>, gradient: View<'py>) -> Self {
        let gradient = Some(Gradient { values: gradient, rows: None });
        Self { variable, gradient, copy: None, caller_arrays: None, hyper: 0, rounding: None }
    }

    /// Adds the low-precision copy, which has been checked.
    pub fn set_copy(&mut self, copy: View<'py>) {
        self.copy = Some(Box::new(copy));
    }

    /// Adds the slots and the step count of a caller that owns the slots. They have been checked.
    pub fn set_caller_arrays(&mut self, slots: Vec<View<'py>>, step_count: Option<View<'py>>) {
        self.caller_arrays = Some(Box::new(CallerArrays { slots, step_count }));
    }

    /// The slots, if the caller owns them.
    pub fn slots(&self) -> &[View<'py>] {
        self.caller_arrays.as_ref().map_or(&[], |arrays| &arrays.slots)
    }

    /// The low-precision copy, if the variable has one and a gradient.
    pub fn copy(&self) -> Option<&View<'py>> {
        self.copy.as_deref()
    }

    /// Number of steps that the variable has been updated in, if the caller counts them.
    pub fn step_count(&self) -> Option<&View<'py>> {
        self.caller_arrays.as_ref()?.step_count.as_ref()
    }
}

/// The gradient of a variable.
pub struct Gradient<'py> {
    /// An array of the variable's shape or, if the gradient is sparse, the values of its rows.
    pub values: View<'py>,
    /// The rows of a sparse gradient; None if the gradient is dense.
    pub rows: Option<Box<Rows<'py>>>,
}

/// The rows of a sparse gradient.
pub struct Rows<'py> {
    /// The array of indices; None after it has been checked and copied to `indices`.
    array: Option<View<'py>>,
    /// The indices of the rows, in ascending order, without duplicates.
    pub indices: Box<[usize]>,
    /// The values of the rows as the caller passed them, with repeated rows. The norm is computed from these.
    pub original: View<'py>,
    /// Whether the values have been clamped already.
    pub is_clamped: bool,
}

impl Gradient<'_> {
    /// The array that the norm is computed from.
    pub fn measured(&self) -> &View<'_> {
        self.rows.as_ref().map_or(&self.values, |rows| &rows.original)
    }
}

/// Returns the name of the low-precision copy of a pair's variable, for messages.
pub fn copy_name(variables: ArgumentName<'_>, index: usize) -> String {
    format!("the low-precision copy of {}", variables.entry(index))
}

/// Returns the name of a slot of a pair's variable, for messages.
pub fn slot_name(variables: ArgumentName<'_>, index: usize) -> String {
    format!("a slot of {}", variables.entry(index))
}

/// Returns the name of the step counter of a pair's variable, for messages.
pub fn step_count_name(variables: ArgumentName<'_>, index: usize) -> String {
    format!("the step count of {}", variables.entry(index))
}

/// Reads arrays, with a cache of dtypes for each kind of array, because arrays of one kind mostly have the same dtype.
#[derive(Default)]
struct Reader<'py> {
    /// The gradients and variables that are no arrays; None if all are arrays.
    foreign: Option<(Opened<'py>, Opened<'py>)>,
    /// The tensors of other libraries that the step writes.
    written: Written<'py>,
    has_foreign_copies: bool,
    gradients: DTypeCache<'py>,
    variables: DTypeCache<'py>,
    slots: DTypeCache<'py>,
    copies: DTypeCache<'py>,
    step_counts: DTypeCache<'py>,
}

/// The pairs of a step, and the tensors of other libraries that it writes.
pub struct ReadPairs<'py> {
    pub pairs: Vec<Pair<'py>>,
    pub written: Written<'py>,
    /// Whether a low-precision copy, a slot or a step count is no array: reading it may have run foreign code.
    pub has_foreign_copies: bool,
}

/// Reads and checks every array of the pairs. `registry` is that of the optimizer; None if the caller owns the slots.
pub fn read_pairs<'py>(
    py: Python<'py>,
    request: &StepRequest,
    registry: Option<&Registry>,
    hyper: &mut HyperParameters,
) -> PyResult<ReadPairs<'py>> {
    let list = request.pairs(py);
    let mut reader = Reader { foreign: foreign_pairs(list)?, ..Reader::default() };
    if let Some((gradients, variables)) = &reader.foreign {
        reader.written.lent.append(gradients.lent()?)?;
        reader.written.lent.append(variables.lent()?)?;
    }
    let mut pairs = with_capacity(list.len())?;
    let accepted = if registry.is_some() { AcceptedDTypes::Variables } else { AcceptedDTypes::Reals };
    for (index, entry) in list.iter().enumerate() {
        // Reading a dtype for the first time may run foreign code, which may append to the list.
        reserve(&mut pairs, 1)?;
        let items = entry.cast_exact::<PyTuple>().map(|tuple| {
            let mut items = tuple.iter_borrowed();
            (items.next(), items.next(), items)
        });
        let Ok((Some(gradient), Some(variable), mut others)) = items else {
            return Err(Error::Type(format!("{ARGUMENT}[{index}] is no (gradient, variable) pair")).into());
        };
        // The pair is built in place, because moving it costs as much as reading it.
        pairs.push(Pair {
            gradient: reader.gradient(&gradient, index)?,
            variable: reader.variable(&variable, index, accepted, !gradient.is_none())?,
            copy: None,
            caller_arrays: None,
            hyper: 0,
            rounding: None,
        });
        let Some(pair) = pairs.last_mut() else { continue };
        check_variable(&pair.variable, || VARIABLES.entry(index))?;
        if let Some(gradient) = &mut pair.gradient {
            check_gradient(gradient, &pair.variable, index)?;
        }
        if let Some(registry) = registry {
            if pair.gradient.is_some()
                && let Some(copy) = registry.low_precision_copy(py, &pair.variable)?
            {
                pair.copy = Some(Box::new(reader.copy(copy, &pair.variable, index)?));
            }
            pair.hyper = hyper.at_step(0, None)?;
        } else {
            let mut next = || others.next().map(pyo3::Borrowed::to_owned);
            let (Some(slots), Some(copy), Some(set), Some(step_count)) = (next(), next(), next(), next())
            else {
                return Err(Error::Type(format!("fastclip._core: pair {index} has not 6 parts")).into());
            };
            reader.caller_arrays(pair, index, request.kind(), &slots, (copy, step_count))?;
            let step = pair.step_count().map(|view| read_number(view) + 1.0);
            pair.hyper = hyper.at_step(set.extract()?, step)?;
        }
    }
    let Reader { written, has_foreign_copies, .. } = reader;
    Ok(ReadPairs { pairs, written, has_foreign_copies })
}

/// Opens the gradients and variables that are no arrays. Returns None if all are arrays.
fn foreign_pairs<'py>(pairs: &Bound<'py, PyList>) -> PyResult<Option<(Opened<'py>, Opened<'py>)>> {
    let is_foreign = |object: &Bound<'_, PyAny>| {
        !object.is_none() && !is_array(object) && !object.is_exact_instance_of::<RowGradient>()
    };
    let part = |pair: &Bound<'py, PyAny>, part: usize| {
        let item = pair.cast_exact::<PyTuple>().ok().and_then(|pair| pair.get_item(part).ok());
        item.filter(is_foreign)
    };
    if !pairs.iter().any(|pair| part(&pair, 0).is_some() || part(&pair, 1).is_some()) {
        return Ok(None);
    }
    let py = pairs.py();
    // Other entries are None here: they are read with the pairs.
    let column = |at: usize| {
        let items = pairs.iter().map(|pair| Ok(part(&pair, at).unwrap_or_else(|| py.None().into_bound(py))));
        objects::list(py, pairs.len(), items)
    };
    let (gradients, variables) = (column(0)?, column(1)?);
    let reads = Access { needs_signs: true, ..Access::default() };
    let writes = Access { writes: true, ..reads };
    let opened = open_both(
        Prepared::new(&gradients, AcceptedDTypes::Reals, reads, GRADIENTS)?,
        Prepared::new(&variables, AcceptedDTypes::Reals, writes, VARIABLES)?,
    )?;
    Ok(Some(opened))
}

impl<'py> Reader<'py> {
    /// Reads a gradient: an array, [`RowGradient`] or None.
    #[inline(always)]
    fn gradient(&mut self, gradient: &Bound<'py, PyAny>, index: usize) -> PyResult<Option<Gradient<'py>>> {
        if gradient.is_none() {
            return Ok(None);
        }
        let name = || GRADIENTS.entry(index);
        let rows = if is_array(gradient) { None } else { gradient.cast_exact::<RowGradient>().ok() };
        if let Some(rows) = rows {
            return Ok(Some(self.row_gradient(rows, index)?));
        }
        if let Some((gradients, _)) = &mut self.foreign
            && let Some((values, _)) = gradients.take(index)?
        {
            return Ok(Some(Gradient { values, rows: None }));
        }
        let values = View::new(gradient.clone(), AcceptedDTypes::Reals, &mut self.gradients, name)?;
        Ok(Some(Gradient { values, rows: None }))
    }

    /// Reads a variable. `is_written` says whether the step writes it.
    #[inline(always)]
    fn variable(
        &mut self,
        variable: &Bound<'py, PyAny>,
        index: usize,
        accepted: AcceptedDTypes,
        is_written: bool,
    ) -> PyResult<View<'py>> {
        let name = || VARIABLES.entry(index);
        if let Some((_, variables)) = &mut self.foreign
            && let Some((view, tensor)) = variables.take(index)?
        {
            if !accepted.contains(view.dtype) {
                let what = view.describe();
                return Err(
                    Error::Type(format!("{} is {what}; it takes {}", name(), accepted.names())).into()
                );
            }
            if let Some(tensor) = tensor.filter(|_| is_written) {
                self.written.push(&tensor)?;
            }
            return Ok(view);
        }
        Ok(View::new(variable.clone(), accepted, &mut self.variables, name)?)
    }

    #[cold]
    fn row_gradient(
        &mut self,
        gradient: &Bound<'py, RowGradient>,
        index: usize,
    ) -> Result<Gradient<'py>, Error> {
        let (py, rows) = (gradient.py(), gradient.get());
        let name = || GRADIENTS.entry(index);
        let mut read = |array: &Py<PyAny>| {
            let array = array.bind(py).clone();
            View::new(array, AcceptedDTypes::Reals, &mut self.gradients, name)
        };
        let (values, original) = (read(&rows.values)?, read(&rows.original)?);
        let indices = rows.indices.bind(py).clone();
        let indices = View::new(indices, AcceptedDTypes::Ordered, &mut DTypeCache::default(), name)?;
        let rows =
            Rows { array: Some(indices), indices: Box::default(), original, is_clamped: rows.is_clamped };
        Ok(Gradient { values, rows: Some(Box::new(rows)) })
    }

    /// Reads the other arrays of a pair whose slots the caller owns: a sequence of slots, the low-precision copy or
    /// None, and the step count, an array of one number, or None.
    fn caller_arrays(
        &mut self,
        pair: &mut Pair<'py>,
        index: usize,
        kind: RuleKind,
        slots: &Bound<'py, PyAny>,
        (copy, step_count): (Bound<'py, PyAny>, Bound<'py, PyAny>),
    ) -> PyResult<()> {
        if !slots.is_instance_of::<PyTuple>() && !slots.is_instance_of::<PyList>() {
            let name = VARIABLES.entry(index);
            return Err(
                Error::Type(format!("the slots of {name} are not a tuple or a list of arrays")).into()
            );
        }
        let mut views = with_capacity(kind.slots())?;
        for slot in objects::copy_to_list(slots)?.iter() {
            reserve(&mut views, 1)?;
            views.push(self.slot(slot, &pair.variable, index)?);
        }
        if views.len() != kind.slots() {
            let (count, name) = (views.len(), VARIABLES.entry(index));
            return Err(Error::Value(format!("{name} has {count} slots; it takes {}", kind.slots())).into());
        }
        if !copy.is_none() {
            pair.copy = Some(Box::new(self.copy(copy, &pair.variable, index)?));
        }
        let mut counted = None;
        if !step_count.is_none() {
            let name = || step_count_name(VARIABLES, index);
            let view =
                self.written_view(step_count, AcceptedDTypes::Ordered, |s| &mut s.step_counts, name)?;
            check_step_count(&view, VARIABLES, index)?;
            counted = Some(view);
        }
        pair.set_caller_arrays(views, counted);
        Ok(())
    }

    /// Reads an array that the step writes beside its variable.
    fn written_view(
        &mut self,
        object: Bound<'py, PyAny>,
        accepted: AcceptedDTypes,
        cache: impl Fn(&mut Self) -> &mut DTypeCache<'py>,
        name: impl Fn() -> String,
    ) -> PyResult<View<'py>> {
        if is_array(&object) {
            return Ok(View::new(object, accepted, cache(self), name)?);
        }
        self.has_foreign_copies = true;
        open_written(&object, accepted, ArgumentName::Single(&name()), &mut self.written)
    }

    fn slot(&mut self, slot: Bound<'py, PyAny>, variable: &View, index: usize) -> PyResult<View<'py>> {
        let name = || slot_name(VARIABLES, index);
        let slot = self.written_view(slot, AcceptedDTypes::Reals, |s| &mut s.slots, name)?;
        check_slot(&slot, variable, VARIABLES, index)?;
        Ok(slot)
    }

    fn copy(&mut self, copy: Bound<'py, PyAny>, variable: &View, index: usize) -> PyResult<View<'py>> {
        let name = || copy_name(VARIABLES, index);
        let copy = self.written_view(copy, AcceptedDTypes::Reals, |s| &mut s.copies, name)?;
        check_copy(&copy, variable, name)?;
        Ok(copy)
    }
}

/// Checks that an array can be a slot of a variable.
pub fn check_slot(
    slot: &View,
    variable: &View,
    variables: ArgumentName<'_>,
    index: usize,
) -> Result<(), Error> {
    let name = || slot_name(variables, index);
    check_written(slot, variable.shape(), name)?;
    if slot.dtype.scalar == Scalar::F64 && variable.dtype.scalar != Scalar::F64 {
        return Err(Error::Type(format!(
            "{} is {}; for a variable of {} it takes float32 or a narrower type",
            name(),
            slot.describe(),
            variable.dtype.name()
        )));
    }
    Ok(())
}

/// Checks that an array can count the steps of a variable.
pub fn check_step_count(view: &View, variables: ArgumentName<'_>, index: usize) -> Result<(), Error> {
    let name = || step_count_name(variables, index);
    check_written(view, &[], name)?;
    if view.dtype.size() < size_of::<f32>() {
        // bfloat16 has no number between 256 and 258, so that the count would stay at 256; int8 wraps around.
        return Err(Error::Type(format!(
            "{} is {}; it takes float32, float64 or an integer type of 32 or 64 bits",
            name(),
            view.describe()
        )));
    }
    Ok(())
}

/// Checks that a gradient has the shape of its variable, or its rows that of the variable's rows, and reads the indices
/// of the rows.
#[inline]
fn check_gradient(gradient: &mut Gradient, variable: &View, index: usize) -> Result<(), Error> {
    let Gradient { values, rows } = gradient;
    let Some(rows) = rows else {
        let fits = values.shape() == variable.shape();
        return if fits {
            Ok(())
        } else {
            Err(shape_error(values, variable, index, "the shapes must be the same"))
        };
    };
    let Some(indices) = rows.array.take() else { return Ok(()) };
    let (shape, expected) = (values.shape(), variable.shape());
    let fits = !expected.is_empty()
        && shape.len() == expected.len()
        && shape[1..] == expected[1..]
        && shape[0] == indices.size;
    if !fits {
        return Err(shape_error(values, variable, index, "rows must have the shape of the variable's"));
    }
    rows.indices = row_indices(&indices, values, variable)?;
    Ok(())
}

/// The error of a gradient whose shape does not fit its variable.
#[cold]
fn shape_error(values: &View, variable: &View, index: usize, reason: &str) -> Error {
    Error::Value(format!(
        "{} is {} where {} is {}: {reason}",
        GRADIENTS.entry(index),
        values.describe(),
        VARIABLES.entry(index),
        variable.describe(),
    ))
}

/// Returns the indices of a sparse gradient's rows, after checking that they are in ascending order, without
/// duplicates, and inside of the variable. The Python code of `fastclip` has sorted them and summed repeated rows.
fn row_indices(indices: &View, gradient: &View, variable: &View) -> Result<Box<[usize]>, Error> {
    if indices.dtype.name() != "int64" || !indices.is_run() || !gradient.is_run() {
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

/// Returns the gradients, each with the index of its pair. Pairs without a gradient are left out.
pub fn with_gradients<'a, 'py>(
    pairs: &'a [Pair<'py>],
) -> Result<Vec<(usize, &'a Gradient<'py>)>, OutOfMemory> {
    let mut present = with_capacity(pairs.len())?;
    let gradients = pairs.iter().map(|pair| pair.gradient.as_ref()).enumerate();
    present.extend(gradients.filter_map(|(index, gradient)| Some((index, gradient?))));
    Ok(present)
}

/// Whether all pairs are tuples of a gradient and a variable that need no conversion: all are plain arrays of native byte
/// order, or all are arrays on a device, or the gradient is None.
#[pyfunction]
#[pyo3(signature = (pairs, /))]
pub fn are_plain_pairs(pairs: &Bound<'_, PyList>) -> bool {
    are_pairs_of(pairs, is_plain_array) || are_pairs_of(pairs, is_on_device)
}

/// Whether all pairs are tuples of a gradient, or None, and a variable for which `is_kind` is true.
fn are_pairs_of(pairs: &Bound<'_, PyList>, is_kind: impl Fn(&Bound<'_, PyAny>) -> bool) -> bool {
    pairs.iter().all(|pair| {
        pair.cast_exact::<PyTuple>().is_ok_and(|pair| {
            let mut items = pair.iter_borrowed();
            match (items.next(), items.next(), items.next()) {
                (Some(gradient), Some(variable), None) => {
                    (gradient.is_none() || is_kind(&gradient)) && is_kind(&variable)
                }
                _ => false,
            }
        })
    })
}
