//! The parts of a step: each variable with its gradient, slots and copy, described to the driver.

use super::arrays::{Arrays, is_run};
use super::slots::{Entry, Slot, Slots, State};
use crate::allocation::{OutOfMemory, copied, reserve, with_capacity};
use crate::engine::segment::{Segment, Strided, count};
use crate::error::Error;
use crate::kernels::scale::Factor;
use crate::operations::rules::RuleKind;
use crate::operations::update::{
    COPY, GRADIENT, GradientTransform, OPERANDS, ParameterUpdate, Rows, SLOTS, VARIABLE,
};
use crate::py::arrays::output::{Outputs, c_strides};
use crate::py::arrays::view::View;
use crate::py::raise::check_memory;
use crate::scalar::DType;
use pyo3::prelude::*;
use std::ptr::null_mut;

/// What a step works on.
pub struct Prepared<'py> {
    /// The parts of the step.
    pub items: Vec<ParameterUpdate>,
    /// For each part the number of its gradient among those that are there.
    pub owners: Vec<usize>,
    /// What the optimizer keeps from the step on, if it is taken and that is something else than before.
    pub after: Option<State>,
    /// Slots that did not exist before: the types and lengths of their variables, and where these are in `after`.
    pub fresh: Vec<(DType, usize, usize)>,
    /// Gradients that were made for this step.
    pub kept: Vec<View<'py>>,
}

/// Finds or makes the slots, and describes everything to the driver.
pub fn prepare<'py>(
    py: Python<'py>,
    kind: RuleKind,
    state: &State,
    found: &Arrays<'py>,
    whole: bool,
) -> PyResult<Prepared<'py>> {
    let count = found.gradients.len();
    let variables = || found.written[..count].iter().flatten().enumerate();
    let mut places: Vec<Option<usize>> = with_capacity(count)?;
    for (position, variable) in variables() {
        places.push(state.position(variable, position)?);
    }
    let mut fresh = Vec::new();
    let changes = places.iter().any(Option::is_none)
        || (0..count).any(|at| lacks_slots(kind, state, found, at, places[at]));
    let after = if changes { Some(with_new(py, kind, state, found, &mut places, &mut fresh)?) } else { None };
    let now = after.as_ref().unwrap_or(state);

    let (mut items, mut owners, mut kept) = (with_capacity(count)?, with_capacity(count)?, Vec::new());
    let mut owner = 0;
    for (position, variable) in variables() {
        let Some(gradient) = &found.gradients[position] else { continue };
        let own = places[position].map_or(&[][..], |place| &now.entries[place].slots[..]);
        let copy = found.written.get(count + position).and_then(Option::as_ref);
        let parts = Parts { variable, gradient, slots: own, copy };
        let mut push = |item| {
            reserve(&mut items, 1)?;
            reserve(&mut owners, 1)?;
            items.push(item);
            owners.push(owner);
            Ok::<_, OutOfMemory>(())
        };
        match found.indices.get(position).and_then(Option::as_ref) {
            None => push(parts.item()?)?,
            Some(rows) if !whole => parts.items_by_row(rows, push)?,
            Some(rows) if parts.is_dense() => push(parts.item_of_rows(rows)?)?,
            Some(rows) => {
                let gradient = made_dense(py, gradient, variable, rows)?;
                push(Parts { gradient: &gradient, ..parts }.item()?)?;
                reserve(&mut kept, 1)?;
                kept.push(gradient);
            }
        }
        owner += 1;
    }
    check_memory(py)?;
    Ok(Prepared { items, owners, after, fresh, kept })
}

/// Whether a variable, of which `place` tells where it is kept, has a gradient and not yet the slots that it takes.
fn lacks_slots(kind: RuleKind, state: &State, found: &Arrays, position: usize, place: Option<usize>) -> bool {
    let kept = place.map_or(0, |place| state.entries[place].slots.len());
    found.gradients[position].is_some() && kept < kind.slots()
}

/// What the optimizer keeps after a step that meets variables or makes slots. `places` then tells for every variable
/// where it is, and `fresh` which slots are to be given first values.
fn with_new(
    py: Python<'_>,
    kind: RuleKind,
    state: &State,
    found: &Arrays,
    places: &mut [Option<usize>],
    fresh: &mut Vec<(DType, usize, usize)>,
) -> PyResult<State> {
    let count = places.len();
    let mut after = state.copy(py, count)?;
    let variables = || found.written[..count].iter().flatten().enumerate();
    let mut without: Vec<&View> = with_capacity(count)?;
    without.extend(
        variables().filter(|(at, _)| lacks_slots(kind, state, found, *at, places[*at])).map(|(_, view)| view),
    );
    reserve(fresh, without.len())?;
    let mut made = Slots::allocate(py, kind, &without)?.into_iter();
    for (position, variable) in variables() {
        let is_fresh = lacks_slots(kind, state, found, position, places[position]);
        let slots = if is_fresh { made.next().unwrap_or_default() } else { Vec::new() };
        let place = if let Some(place) = places[position] {
            if is_fresh {
                after.entries[place].slots = slots.into();
            }
            place
        } else {
            after.add(Entry::new(variable, slots)?);
            after.entries.len() - 1
        };
        if is_fresh {
            fresh.push((variable.dtype, variable.size, place));
        }
        places[position] = Some(place);
        check_memory(py)?;
    }
    Ok(after)
}

/// The arrays of one variable.
struct Parts<'a, 'py> {
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

    fn wrap(&self, segment: Segment<OPERANDS>) -> ParameterUpdate {
        ParameterUpdate {
            segment,
            gradient: self.gradient.dtype.scalar,
            copy: self.copy.map(|copy| copy.dtype.scalar),
            rows: None,
            incoming: GradientTransform { factor: Factor::ONE, clamp: None },
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

    fn dense(&self, len: usize, base: [*mut u8; OPERANDS]) -> ParameterUpdate {
        // SAFETY: every operand is one aligned run at least as long; the views and slots keep them alive.
        self.wrap(unsafe { Segment::dense(self.variable.dtype, len, base) })
    }

    /// A part of it all that has this shape: `skip` leading axes are left out, where each operand is at `base`.
    fn walked(&self, skip: usize, base: [*mut u8; OPERANDS]) -> Result<ParameterUpdate, OutOfMemory> {
        let mut sizes = [self.variable.dtype.size(); OPERANDS];
        sizes[GRADIENT] = self.gradient.dtype.size();
        sizes[COPY] = self.copy.map_or(1, |copy| copy.dtype.size());
        let operands = std::array::from_fn(|k| {
            let strides = self.strides(k).get(skip..)?;
            (!base[k].is_null()).then_some(Strided { pointer: base[k], strides })
        });
        // SAFETY: the operands are arrays of this shape, or rows of one, which the views and slots keep alive.
        let segment =
            unsafe { Segment::mixed(self.variable.dtype, &self.variable.shape()[skip..], operands, sizes)? };
        Ok(self.wrap(segment))
    }

    /// The strides of an operand; none for one that is not there.
    fn strides(&self, operand: usize) -> &[isize] {
        match operand {
            VARIABLE => self.variable.strides(),
            GRADIENT => self.gradient.strides(),
            COPY => self.copy.map_or(&[], View::strides),
            slot => self.slots.get(slot - SLOTS).map_or(&[], |slot| &slot.strides),
        }
    }

    /// The whole variable.
    fn item(&self) -> Result<ParameterUpdate, OutOfMemory> {
        if self.is_dense() {
            Ok(self.dense(self.variable.size, self.base()))
        } else {
            self.walked(0, self.base())
        }
    }

    /// The whole variable, whose gradient is 0 but in some rows. Everything is dense.
    fn item_of_rows(&self, rows: &[usize]) -> Result<ParameterUpdate, OutOfMemory> {
        let len = count(&self.variable.shape()[1..]).max(1);
        let rows = Rows { indices: copied(rows)?, len };
        Ok(ParameterUpdate { rows: Some(rows), ..self.dense(self.variable.size, self.base()) })
    }

    /// The rows that have a gradient. Rows that follow each other are one part, where memory allows.
    fn items_by_row(
        &self,
        rows: &[usize],
        mut push: impl FnMut(ParameterUpdate) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let dense = self.is_dense();
        let len = count(&self.variable.shape()[1..]);
        let mut at = 0;
        while at < rows.len() {
            let mut together = 1;
            while dense && at + together < rows.len() && rows[at + together] == rows[at] + together {
                together += 1;
            }
            let mut base = self.base();
            for (k, pointer) in base.iter_mut().enumerate() {
                if let Some(stride) = self.strides(k).first() {
                    let row = if k == GRADIENT { at } else { rows[at] };
                    *pointer = pointer.wrapping_offset(row as isize * stride);
                }
            }
            push(if dense { self.dense(together * len, base) } else { self.walked(1, base)? })?;
            at += together;
        }
        Ok(())
    }
}

/// A gradient of rows as one of the variable's shape, in memory of our own. The rows are one run, see `row_indices`.
fn made_dense<'py>(
    py: Python<'py>,
    gradient: &View<'py>,
    variable: &View<'py>,
    rows: &[usize],
) -> PyResult<View<'py>> {
    let shape = variable.shape();
    let size = gradient.dtype.size();
    let bytes = variable.size.checked_mul(size).ok_or(OutOfMemory { bytes: usize::MAX })?;
    let (pointer, buffer) = Outputs::new(py, std::iter::empty()).memory(bytes)?;
    let row = count(&shape[1..]) * size;
    if gradient.size * size != rows.len() * row || rows.iter().any(|index| *index >= shape[0]) {
        return Err(Error::Value("rows do not fit their variable".into()).into());
    }
    // SAFETY: new memory of this many bytes; the rows lie inside of both, checked above.
    unsafe {
        pointer.write_bytes(0, bytes);
        for (at, index) in rows.iter().enumerate() {
            let from = gradient.pointer.cast_const().wrapping_add(at * row);
            std::ptr::copy_nonoverlapping(from, pointer.wrapping_add(index * row), row);
        }
    }
    let strides = c_strides(shape, size)?;
    // SAFETY: zeros and rows of this type, in C order, which the buffer keeps alive.
    Ok(unsafe { View::over(buffer.into_any(), pointer, gradient.number(), shape, &strides)? })
}
