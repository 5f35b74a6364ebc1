//! A step of an optimizer: everything is looked at and checked, then measured, then updated.

use super::batch::views;
use super::overlap::{self, Clash};
use super::raise::{check_signals, detached, refuse_nonfinite};
use super::slots::{Entry, Slot, Slots, check_copy, check_variable};
use super::view::{Known, Label, Takes, View};
use crate::error::Error;
use crate::exec::Context;
use crate::kernels::scale::Factor;
use crate::magnitude::{Magnitude, Order, combine};
use crate::norms::measure;
use crate::plan::Plan;
use crate::scalar::{DType, Scalar};
use crate::segment::{Segment, Strided};
use crate::update::{COPY, GRADIENT, Incoming, Item, OPERANDS, Rows, SLOTS, VARIABLE, step};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::ptr::null_mut;

/// Reals in a chunk of an update: with the slots, some hundred KiB, which stay in the second-level cache.
const CHUNK: usize = 1 << 14;

/// How gradients are clipped.
#[derive(Clone, Copy, PartialEq)]
enum Clip {
    None,
    Value(f64),
    Norm(f64),
    GlobalNorm(f64),
}

/// What to do about NaN and infinity.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Propagate,
    Raise,
    Skip,
}

/// How gradients become what the rule sees.
#[derive(FromPyObject)]
pub struct Handling {
    /// `none`, `value`, `norm` or `global_norm`,
    #[pyo3(item(0))]
    clip: String,
    /// and the bound of that.
    #[pyo3(item(1))]
    bound: f64,
    /// What gradients are divided by first.
    #[pyo3(item(2))]
    loss_scale: f64,
    /// "propagate", "raise" or "skip".
    #[pyo3(item(3))]
    on_nonfinite: String,
}

/// Gradients of rows, one entry for each pair. Repeated rows have been summed in what is applied.
#[derive(FromPyObject)]
pub struct Sliced<'py> {
    /// The rows, ascending; None where the gradient is as large as its variable.
    #[pyo3(item(0))]
    indices: Bound<'py, PyAny>,
    /// The gradients as they were given: their norms count.
    #[pyo3(item(1))]
    given: Bound<'py, PyAny>,
    /// Which gradients were of rows: these have been clamped before they were summed, if that is asked for.
    #[pyo3(item(2))]
    of_rows: Vec<bool>,
}

impl Handling {
    fn clip(&self) -> Clip {
        match self.clip.as_str() {
            "value" => Clip::Value(self.bound),
            "norm" => Clip::Norm(self.bound),
            "global_norm" => Clip::GlobalNorm(self.bound),
            _ => Clip::None,
        }
    }

    fn policy(&self) -> Policy {
        match self.on_nonfinite.as_str() {
            "raise" => Policy::Raise,
            "skip" => Policy::Skip,
            _ => Policy::Propagate,
        }
    }

    /// Whether norms are needed to know what to do.
    fn measures(&self) -> bool {
        self.policy() != Policy::Propagate || matches!(self.clip(), Clip::Norm(_) | Clip::GlobalNorm(_))
    }

    /// What happens to each gradient; None if the step is not to be taken.
    fn decide(&self, found: &[Magnitude], count: usize) -> (Option<Vec<Incoming>>, Option<Magnitude>) {
        let scale = self.loss_scale;
        let unclipped = if scale == 1.0 { Factor::ONE } else { Factor::new(1.0, scale, 0) };
        let whole = Incoming { factor: unclipped, clamp: None };
        if !self.measures() {
            let clamp = if let Clip::Value(bound) = self.clip() { Some(bound) } else { None };
            return (Some(vec![Incoming { clamp, ..whole }; count]), None);
        }
        let total = combine(found, Order::Two);
        if !total.is_finite() && self.policy() != Policy::Propagate {
            return (None, Some(total));
        }
        // Divided by the loss scale, the norm is compared with the bound; undivided, with as much more. What is
        // multiplied is undivided as well.
        let by = |magnitude: &Magnitude, bound: f64| {
            let (root, exponent) = magnitude.root(Order::Two);
            let factor = if !magnitude.is_finite() {
                Factor::NAN
            } else if magnitude.factor(Order::Two, 1.0, bound * scale).is_some() {
                Factor::new(bound, root, exponent)
            } else {
                unclipped
            };
            Incoming { factor, clamp: None }
        };
        let incoming = match self.clip() {
            Clip::None => vec![whole; count],
            Clip::Value(bound) => vec![Incoming { clamp: Some(bound), ..whole }; count],
            Clip::Norm(bound) => found.iter().map(|magnitude| by(magnitude, bound)).collect(),
            Clip::GlobalNorm(bound) => vec![by(&total, bound); count],
        };
        (Some(incoming), Some(total))
    }
}

const ARGUMENT: &str = "grads_and_vars";

/// What the arrays of a step are called in messages.
#[derive(Clone, Copy)]
struct Labels {
    gradients: Label<'static, 'static>,
    variables: Label<'static, 'static>,
}

impl Labels {
    fn new(count: usize) -> Self {
        let label = |part| Label::Paired { argument: ARGUMENT, part, count };
        Self { gradients: label(0), variables: label(1) }
    }
}

/// The arrays of a step, looked at and checked.
struct Arrays<'py> {
    gradients: Vec<Option<View<'py>>>,
    /// Ascending row indices, for gradients that are rows of their variable.
    indices: Vec<Option<Box<[usize]>>>,
    /// The variables, and after as many the copies of those that have one.
    written: Vec<Option<View<'py>>>,
}

/// Takes a step: updates the arrays by their gradients.
///
/// `gradients` and `arrays` have one entry for each pair. `whole` tells that rows are of a rule that changes all of a
/// variable.
/// Returns whether the step was taken, and if it was measured, the norm, and whether that is to be a float64.
#[pyfunction]
#[pyo3(signature = (slots, gradients, rows, arrays, hyper, initial, handling, whole, /))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "from one caller in `fastclip`")]
pub fn take_step<'py>(
    py: Python<'py>,
    slots: &Bound<'py, Slots>,
    gradients: &Bound<'py, PyAny>,
    rows: Option<Sliced<'py>>,
    arrays: &Bound<'py, PyAny>,
    hyper: Vec<f64>,
    initial: Vec<f64>,
    handling: Handling,
    whole: bool,
) -> PyResult<(bool, Option<f64>, bool)> {
    let mut slots = slots.try_borrow_mut()?;
    let kind = slots.kind;
    if hyper.len() != kind.hyper().len() || initial.len() != kind.slots() {
        return Err(
            Error::Value(format!("this rule takes {:?} and {} slots", kind.hyper(), kind.slots())).into()
        );
    }
    let found = look(&slots, gradients, rows.as_ref(), arrays)?;
    let labels = Labels::new(found.gradients.len());
    let wide = found.gradients.iter().flatten().any(|view| view.dtype.scalar == Scalar::F64);

    let as_given = match &rows {
        Some(rows) => views(&rows.given, Takes::Floats, labels.gradients)?,
        None => Vec::new(),
    };
    let norms_of = if rows.is_some() { &as_given } else { &found.gradients };
    let segments: Vec<Segment<1>> =
        if handling.measures() { norms_of.iter().flatten().map(read_segment).collect() } else { Vec::new() };
    let plan = Plan::new(&segments);

    let prepared = prepare(py, &slots, &found, whole)?;
    let Prepared { mut items, fresh, new } = prepared;
    let present: Vec<usize> = found
        .gradients
        .iter()
        .enumerate()
        .filter(|(_, view)| view.is_some())
        .map(|(position, _)| position)
        .collect();
    let clamped: Vec<bool> = present
        .iter()
        .map(|at| rows.as_ref().is_some_and(|rows| rows.of_rows.get(*at) == Some(&true)))
        .collect();
    let context = Context::current();
    let (taken, total, magnitudes) = detached(py, || {
        let magnitudes = measure(context, &segments, &plan, Order::Two);
        check_signals(plan.bytes)?;
        let (incoming, total) = handling.decide(&magnitudes, present.len());
        let Some(incoming) = incoming else { return Ok((false, total, magnitudes)) };
        for (owner, item) in &mut items {
            item.incoming = incoming[*owner];
            if clamped[*owner] {
                item.incoming.clamp = None;
            }
        }
        Slots::initialise(context, fresh.iter().map(|f| (f.dtype, f.len, &f.slots[..])), &initial);
        let items: Vec<Item> = items.into_iter().map(|(_, item)| item).collect();
        let plan = Plan::cut(items.iter().map(|item| (item.segment.len, moved(item, kind.slots()))), CHUNK);
        // SAFETY: `look` has checked that what is written overlaps nothing, and that indices are rows.
        unsafe { step(context, kind, &hyper, &items, &plan) };
        Ok((true, total, magnitudes))
    })?;
    let norm = total.map(|total| total.norm(Order::Two) / handling.loss_scale);
    if taken {
        keep(&mut slots, &found, fresh, new);
    } else if handling.policy() == Policy::Raise {
        let bad =
            present.iter().zip(&magnitudes).filter(|(_, m)| !m.is_finite()).map(|(position, _)| *position);
        return Err(refuse_nonfinite(bad, labels.gradients, norm.unwrap_or(f64::NAN)).into());
    }
    Ok((taken, norm, wide))
}

/// Bytes that are moved for each real of a variable.
fn moved(item: &Item, slots: usize) -> usize {
    item.segment.scalar.size() * (1 + slots) + item.gradient.size()
}

/// A gradient, to be read.
fn read_segment(view: &View) -> Segment<1> {
    // SAFETY: the view keeps its array alive; nothing is written.
    unsafe {
        if view.is_c_order() && view.is_aligned() {
            Segment::dense(view.dtype, view.size, [view.pointer])
        } else {
            Segment::new(view.dtype, view.shape(), [Some(view.strided())])
        }
    }
}

/// Looks at every array and refuses what does not fit.
fn look<'py>(
    slots: &Slots,
    gradients: &Bound<'py, PyAny>,
    sliced: Option<&Sliced<'py>>,
    arrays: &Bound<'py, PyAny>,
) -> PyResult<Arrays<'py>> {
    let py = arrays.py();
    let labels = Labels::new(arrays.len()?);
    let mut gradients = views(gradients, Takes::Floats, labels.gradients)?;
    let mut written = views(arrays, Takes::Any, labels.variables)?;
    let rows = sliced.map(|sliced| views(&sliced.indices, Takes::Ordered, labels.gradients)).transpose()?;
    if gradients.len() != written.len() || rows.as_ref().is_some_and(|rows| rows.len() != written.len()) {
        return Err(Error::Value("gradients, indices and arrays must be as many".into()).into());
    }
    let mut indices = Vec::new();
    let mut copies: Vec<Option<View>> = Vec::new();
    for (index, (gradient, variable)) in gradients.iter().zip(&written).enumerate() {
        let Some(variable) = variable else {
            return Err(
                Error::Type(format!("{} is None; it takes a variable", labels.variables.of(index))).into()
            );
        };
        check_variable(variable, || labels.variables.of(index))?;
        if let Some(gradient) = gradient {
            let of_rows = rows.as_ref().and_then(|rows| rows[index].as_ref());
            check_gradient(gradient, variable, of_rows, index, labels)?;
            if let Some(rows) = of_rows {
                indices.resize_with(index, || None);
                indices.push(Some(row_indices(rows, gradient, variable)?));
            }
        }
        let copy = slots.position(variable, index).and_then(|at| slots.entries[at].copy.as_ref());
        if let (Some(copy), Some(_)) = (copy, gradient) {
            let name = || format!("the low-precision copy of {}", labels.variables.of(index));
            let copy = View::new(copy.bind(py).clone(), Takes::Floats, &mut Known::default(), name)?;
            check_copy(&copy, variable, name)?;
            copies.resize_with(index, || None);
            copies.push(Some(copy));
        }
    }
    written.extend(copies);
    apart(&mut gradients, &written, labels)?;
    Ok(Arrays { gradients, indices, written })
}

/// Refuses a gradient that is not its variable's.
fn check_gradient(
    gradient: &View,
    variable: &View,
    rows: Option<&View>,
    index: usize,
    labels: Labels,
) -> Result<(), Error> {
    let name = || labels.gradients.of(index);
    if gradient.dtype.complex {
        return Err(Error::Type(format!(
            "{} is {}; it takes float16, bfloat16, float32 and float64",
            name(),
            gradient.describe()
        )));
    }
    let (shape, of) = (gradient.shape(), variable.shape());
    let fits = match rows {
        None => shape == of,
        Some(rows) => {
            !of.is_empty() && shape.len() == of.len() && shape[1..] == of[1..] && shape[0] == rows.size
        }
    };
    if !fits {
        return Err(Error::Value(format!(
            "{} is {} where {} is {}: {}",
            name(),
            gradient.describe(),
            labels.variables.of(index),
            variable.describe(),
            if rows.is_some() {
                "rows must have the shape of the variable's"
            } else {
                "the shapes must be the same"
            }
        )));
    }
    Ok(())
}

/// Whether an array is one aligned run in C order.
fn is_run(view: &View) -> bool {
    view.size == 0 || view.is_c_order() && view.is_aligned()
}

/// Indices of rows. `fastclip` has sorted them and summed repeated rows.
fn row_indices(indices: &View, gradient: &View, variable: &View) -> Result<Box<[usize]>, Error> {
    if indices.dtype.name() != "int64" || !is_run(indices) || !is_run(gradient) {
        return Err(Error::Value("rows must be contiguous, and their indices int64".into()));
    }
    let rows = variable.shape()[0];
    let mut next = 0;
    let mut found = Vec::with_capacity(indices.size);
    for at in 0..indices.size {
        // SAFETY: a contiguous, aligned int64 array of this many elements.
        let index = unsafe { indices.pointer.cast::<i64>().add(at).read() };
        match usize::try_from(index) {
            Ok(row) if row >= next && row < rows => {
                found.push(row);
                next = row + 1;
            }
            _ => {
                return Err(Error::Index(format!(
                    "row {index} of a variable that has {rows}, or out of order"
                )));
            }
        }
    }
    Ok(found.into())
}

/// Refuses variables that overlap each other.
#[pyfunction]
#[pyo3(signature = (arrays, argument, /))]
pub fn check_variables(arrays: &Bound<'_, PyAny>, argument: &str) -> PyResult<()> {
    let py = arrays.py();
    let names = PyTuple::new(py, [argument.into_pyobject(py)?.into_any(), py.None().into_bound(py)])?;
    let label = Label::Listed { names: &names, first: 0 };
    let arrays = views(arrays, Takes::Any, label)?;
    for (index, view) in arrays.iter().enumerate() {
        match view {
            Some(view) => check_variable(view, || label.of(index))?,
            None => {
                return Err(Error::Type(format!("{} is None; it takes a variable", label.of(index))).into());
            }
        }
    }
    match overlap::find(&[], &arrays, false) {
        Some(clash) => Err(refuse_clash(&clash, label).into()),
        None => Ok(()),
    }
}

/// The error of variables that overlap.
fn refuse_clash(clash: &Clash, variables: Label<'_, '_>) -> Error {
    Error::Value(match clash {
        Clash::Within(index) => {
            format!("{} overlaps itself: elements of it share memory", variables.of(*index))
        }
        Clash::Between(first, second) => format!(
            "{} shares memory with {}: each variable may be there once",
            variables.of(second.index.max(first.index)),
            variables.of(second.index.min(first.index))
        ),
    })
}

/// Refuses variables and copies that overlap each other. A gradient that overlaps one of them is read from a copy
/// of it, as NumPy would.
fn apart<'py>(
    gradients: &mut [Option<View<'py>>],
    written: &[Option<View<'py>>],
    labels: Labels,
) -> PyResult<()> {
    while let Some(clash) = overlap::find(gradients, written, false) {
        match clash {
            Clash::Between(_, gradient) if !gradient.is_output => {
                let index = gradient.index;
                if let Some(view) = &gradients[index] {
                    let copied = view.object.call_method0("copy")?;
                    let name = || labels.gradients.of(index);
                    gradients[index] = Some(View::new(copied, Takes::Floats, &mut Known::default(), name)?);
                }
            }
            clash => return Err(refuse_clash(&clash, labels.variables).into()),
        }
    }
    Ok(())
}

/// Slots that did not exist before this step.
struct Fresh {
    /// The position of the variable.
    position: usize,
    dtype: DType,
    len: usize,
    slots: Vec<Slot>,
}

/// What a step works on.
struct Prepared {
    /// The parts of the step, each with the number of its gradient among those that are there.
    items: Vec<(usize, Item)>,
    fresh: Vec<Fresh>,
    /// The positions of variables that were never seen.
    new: Vec<usize>,
}

/// Finds or makes the slots, and describes everything to the driver.
fn prepare<'py>(py: Python<'py>, slots: &Slots, found: &Arrays<'py>, whole: bool) -> PyResult<Prepared> {
    let count = found.gradients.len();
    let variables = || found.written[..count].iter().flatten().enumerate();
    let places: Vec<Option<usize>> =
        variables().map(|(position, variable)| slots.position(variable, position)).collect();
    let new = places.iter().enumerate().filter(|(_, place)| place.is_none()).map(|(p, _)| p).collect();
    let needs_slots = |position: usize| {
        let kept = places[position].map_or(0, |place| slots.entries[place].slots.len());
        found.gradients[position].is_some() && kept < slots.kind.slots()
    };
    let without: Vec<(usize, &View)> = variables().filter(|(position, _)| needs_slots(*position)).collect();
    let views: Vec<&View> = without.iter().map(|(_, view)| *view).collect();
    let made = Slots::allocate(py, slots.kind, &views)?;
    let fresh: Vec<Fresh> = without
        .iter()
        .zip(made)
        .map(|((position, view), slots)| Fresh {
            position: *position,
            dtype: view.dtype,
            len: view.size,
            slots,
        })
        .collect();

    let mut items = Vec::with_capacity(count);
    let (mut next, mut owner) = (fresh.iter().peekable(), 0);
    for (position, variable) in variables() {
        let Some(gradient) = &found.gradients[position] else { continue };
        let own = match next.next_if(|fresh| fresh.position == position) {
            Some(fresh) => &fresh.slots[..],
            None => places[position].map_or(&[][..], |place| &slots.entries[place].slots[..]),
        };
        let copy = found.written.get(count + position).and_then(Option::as_ref);
        let parts = Parts { py, variable, gradient, slots: own, copy };
        match found.indices.get(position).and_then(Option::as_ref) {
            None => items.push((owner, parts.item()?)),
            Some(rows) if whole => items.push((owner, parts.item_of_rows(rows)?)),
            Some(rows) => parts.items_by_row(rows, |item| items.push((owner, item)))?,
        }
        owner += 1;
    }
    Ok(Prepared { items, fresh, new })
}

/// The arrays of one variable.
struct Parts<'a, 'py> {
    py: Python<'py>,
    variable: &'a View<'py>,
    gradient: &'a View<'py>,
    slots: &'a [Slot],
    copy: Option<&'a View<'py>>,
}

impl Parts<'_, '_> {
    /// Whether variable, gradient and copy each are one run in the same order: the slots then are as well.
    fn is_dense(&self) -> bool {
        is_run(self.variable) && is_run(self.gradient) && self.copy.is_none_or(is_run)
    }

    fn wrap(&self, segment: Segment<OPERANDS>) -> Item {
        Item {
            segment,
            gradient: self.gradient.dtype.scalar,
            copy: self.copy.map(|copy| copy.dtype.scalar),
            rows: None,
            incoming: Incoming { factor: Factor::ONE, clamp: None },
        }
    }

    /// Where each operand begins.
    fn base(&self) -> [*mut u8; OPERANDS] {
        let mut base = [null_mut(); OPERANDS];
        base[VARIABLE] = self.variable.pointer;
        base[GRADIENT] = self.gradient.pointer;
        for (k, slot) in self.slots.iter().enumerate() {
            base[SLOTS + k] = slot.pointer();
        }
        base[COPY] = self.copy.map_or(null_mut(), |copy| copy.pointer);
        base
    }

    fn dense(&self, len: usize, base: [*mut u8; OPERANDS]) -> Item {
        // SAFETY: every operand is one aligned run at least as long; the views and slots keep them alive.
        self.wrap(unsafe { Segment::dense(self.variable.dtype, len, base) })
    }

    /// A part of it all that has this shape: `skip` leading axes are left out, where each operand is at `base`.
    fn walked(&self, skip: usize, base: [*mut u8; OPERANDS]) -> PyResult<Item> {
        let strides = self.strides()?;
        let mut sizes = [self.variable.dtype.size(); OPERANDS];
        sizes[GRADIENT] = self.gradient.dtype.size();
        sizes[COPY] = self.copy.map_or(1, |copy| copy.dtype.size());
        let operands = std::array::from_fn(|k| {
            let strides = strides[k].get(skip..)?;
            (!base[k].is_null()).then_some(Strided { pointer: base[k], strides })
        });
        // SAFETY: the operands are arrays of this shape, or rows of one, which the views and slots keep alive.
        let segment =
            unsafe { Segment::mixed(self.variable.dtype, &self.variable.shape()[skip..], operands, sizes) };
        Ok(self.wrap(segment))
    }

    /// The strides of each operand; none for one that is not there.
    fn strides(&self) -> PyResult<[Vec<isize>; OPERANDS]> {
        let mut strides: [Vec<isize>; OPERANDS] = Default::default();
        strides[VARIABLE] = self.variable.strides().to_vec();
        strides[GRADIENT] = self.gradient.strides().to_vec();
        for (k, slot) in self.slots.iter().enumerate() {
            let view =
                View::new(slot.array.bind(self.py).clone(), Takes::Any, &mut Known::default(), String::new)?;
            strides[SLOTS + k] = view.strides().to_vec();
        }
        strides[COPY] = self.copy.map_or(Vec::new(), |copy| copy.strides().to_vec());
        Ok(strides)
    }

    /// The whole variable.
    fn item(&self) -> PyResult<Item> {
        if self.is_dense() {
            Ok(self.dense(self.variable.size, self.base()))
        } else {
            self.walked(0, self.base())
        }
    }

    /// The whole variable, whose gradient is 0 but in some rows.
    fn item_of_rows(&self, rows: &[usize]) -> PyResult<Item> {
        if !self.is_dense() {
            return Err(Error::Value(
                "rows of a rule that changes all of them need contiguous arrays".into(),
            )
            .into());
        }
        let len = self.variable.shape()[1..].iter().product::<usize>().max(1);
        let rows = Rows { indices: rows.into(), len };
        Ok(Item { rows: Some(rows), ..self.dense(self.variable.size, self.base()) })
    }

    /// The rows that have a gradient. Rows that follow each other are one part, where memory allows.
    fn items_by_row(&self, rows: &[usize], mut push: impl FnMut(Item)) -> PyResult<()> {
        let dense = self.is_dense();
        let strides = self.strides()?;
        let len = self.variable.shape()[1..].iter().product::<usize>();
        let mut at = 0;
        while at < rows.len() {
            let mut count = 1;
            while dense && at + count < rows.len() && rows[at + count] == rows[at] + count {
                count += 1;
            }
            let mut base = self.base();
            for (k, pointer) in base.iter_mut().enumerate() {
                if let Some(stride) = strides[k].first() {
                    let row = if k == GRADIENT { at } else { rows[at] };
                    *pointer = pointer.wrapping_offset(row as isize * stride);
                }
            }
            push(if dense { self.dense(count * len, base) } else { self.walked(1, base)? });
            at += count;
        }
        Ok(())
    }
}

/// Remembers the variables of a step that was taken, and their slots.
fn keep(slots: &mut Slots, found: &Arrays, fresh: Vec<Fresh>, new: Vec<usize>) {
    let mut fresh = fresh.into_iter().peekable();
    let mut new = new.into_iter().peekable();
    for (position, variable) in found.written[..found.gradients.len()].iter().flatten().enumerate() {
        let made = fresh.next_if(|fresh| fresh.position == position).map(|fresh| fresh.slots);
        if new.next_if_eq(&position).is_some() {
            let entry: Entry = Slots::entry(variable, made.unwrap_or_default(), None);
            slots.add(entry);
        } else if let (Some(made), Some(place)) = (made, slots.position(variable, position)) {
            slots.entries[place].slots = made;
        }
    }
}

/// The gradients and arrays of pairs, if all of them are plain: an array of native byte order or None, and an array.
#[pyfunction]
#[pyo3(signature = (pairs, /))]
pub fn split_pairs<'py>(
    pairs: &Bound<'py, PyList>,
) -> PyResult<Option<(Bound<'py, PyList>, Bound<'py, PyList>)>> {
    let py = pairs.py();
    let (mut gradients, mut arrays) = (Vec::with_capacity(pairs.len()), Vec::with_capacity(pairs.len()));
    for pair in pairs {
        let Ok(pair) = pair.cast_exact::<PyTuple>() else { return Ok(None) };
        if pair.len() != 2 {
            return Ok(None);
        }
        let (gradient, array) = (pair.get_item(0)?, pair.get_item(1)?);
        if !(gradient.is_none() || super::view::is_plain_array(&gradient))
            || !super::view::is_plain_array(&array)
        {
            return Ok(None);
        }
        gradients.push(gradient);
        arrays.push(array);
    }
    Ok(Some((PyList::new(py, gradients)?, PyList::new(py, arrays)?)))
}
