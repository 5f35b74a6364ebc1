//! The parts of a step: each variable with its gradient, slots and copy, described to the driver.

use super::slots::{Key, Slot, Slots};
use super::step_arrays::{Arrays, is_run};
use super::view::{Known, Takes, View};
use crate::kernels::scale::Factor;
use crate::scalar::DType;
use crate::segment::{Segment, Strided};
use crate::update::{COPY, GRADIENT, Incoming, Item, OPERANDS, Rows, SLOTS, VARIABLE};
use pyo3::prelude::*;
use std::ptr::null_mut;

/// Slots that did not exist before this step.
pub struct Fresh {
    /// The position of the variable.
    pub position: usize,
    /// Its type.
    pub dtype: DType,
    /// How many elements it has.
    pub len: usize,
    /// Where the variable is among those that were met, if it was.
    pub place: Option<usize>,
    /// The slots.
    pub slots: Vec<Slot>,
}

/// What a step works on.
pub struct Prepared<'py> {
    /// The parts of the step, each with the number of its gradient among those that are there.
    pub items: Vec<(usize, Item)>,
    /// Slots that did not exist.
    pub fresh: Vec<Fresh>,
    /// The positions of variables that were never seen, and arrays of our own over their memory.
    pub new: Vec<(usize, Key, Py<PyAny>)>,
    /// Gradients that were made for this step.
    pub kept: Vec<View<'py>>,
}

/// Finds or makes the slots, and describes everything to the driver.
pub fn prepare<'py>(
    py: Python<'py>,
    slots: &Slots,
    found: &Arrays<'py>,
    whole: bool,
) -> PyResult<Prepared<'py>> {
    let count = found.gradients.len();
    let variables = || found.written[..count].iter().flatten().enumerate();
    let places: Vec<Option<usize>> =
        variables().map(|(position, variable)| slots.position(variable, position)).collect();
    let mut new = Vec::new();
    for ((position, variable), place) in variables().zip(&places) {
        if place.is_none() {
            new.push((position, Key::of(variable), variable.object.call_method0("view")?.unbind()));
        }
    }
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
            place: places[*position],
            slots,
        })
        .collect();

    let (mut items, mut kept) = (Vec::with_capacity(count), Vec::new());
    let (mut next, mut owner) = (fresh.iter().peekable(), 0);
    for (position, variable) in variables() {
        let Some(gradient) = &found.gradients[position] else { continue };
        let own = match next.next_if(|fresh| fresh.position == position) {
            Some(fresh) => &fresh.slots[..],
            None => places[position].map_or(&[][..], |place| &slots.entries[place].slots[..]),
        };
        let copy = found.written.get(count + position).and_then(Option::as_ref);
        let parts = Parts { variable, gradient, slots: own, copy };
        match found.indices.get(position).and_then(Option::as_ref) {
            None => items.push((owner, parts.item())),
            Some(rows) if !whole => parts.items_by_row(rows, |item| items.push((owner, item))),
            Some(rows) if parts.is_dense() => items.push((owner, parts.item_of_rows(rows))),
            Some(rows) => {
                let gradient = made_dense(gradient, variable, rows)?;
                items.push((owner, Parts { gradient: &gradient, ..parts }.item()));
                kept.push(gradient);
            }
        }
        owner += 1;
    }
    Ok(Prepared { items, fresh, new, kept })
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
    fn walked(&self, skip: usize, base: [*mut u8; OPERANDS]) -> Item {
        let mut sizes = [self.variable.dtype.size(); OPERANDS];
        sizes[GRADIENT] = self.gradient.dtype.size();
        sizes[COPY] = self.copy.map_or(1, |copy| copy.dtype.size());
        let operands = std::array::from_fn(|k| {
            let strides = self.strides(k).get(skip..)?;
            (!base[k].is_null()).then_some(Strided { pointer: base[k], strides })
        });
        // SAFETY: the operands are arrays of this shape, or rows of one, which the views and slots keep alive.
        let segment =
            unsafe { Segment::mixed(self.variable.dtype, &self.variable.shape()[skip..], operands, sizes) };
        self.wrap(segment)
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
    fn item(&self) -> Item {
        if self.is_dense() {
            self.dense(self.variable.size, self.base())
        } else {
            self.walked(0, self.base())
        }
    }

    /// The whole variable, whose gradient is 0 but in some rows. Everything is dense.
    fn item_of_rows(&self, rows: &[usize]) -> Item {
        let len = self.variable.shape()[1..].iter().product::<usize>().max(1);
        let rows = Rows { indices: rows.into(), len };
        Item { rows: Some(rows), ..self.dense(self.variable.size, self.base()) }
    }

    /// The rows that have a gradient. Rows that follow each other are one part, where memory allows.
    fn items_by_row(&self, rows: &[usize], mut push: impl FnMut(Item)) {
        let dense = self.is_dense();
        let len = self.variable.shape()[1..].iter().product::<usize>();
        let mut at = 0;
        while at < rows.len() {
            let mut count = 1;
            while dense && at + count < rows.len() && rows[at + count] == rows[at] + count {
                count += 1;
            }
            let mut base = self.base();
            for (k, pointer) in base.iter_mut().enumerate() {
                if let Some(stride) = self.strides(k).first() {
                    let row = if k == GRADIENT { at } else { rows[at] };
                    *pointer = pointer.wrapping_offset(row as isize * stride);
                }
            }
            push(if dense { self.dense(count * len, base) } else { self.walked(1, base) });
            at += count;
        }
    }
}

/// A gradient of rows as one of the variable's shape.
fn made_dense<'py>(gradient: &View<'py>, variable: &View<'py>, rows: &[usize]) -> PyResult<View<'py>> {
    let array = &gradient.object;
    let numpy = array.py().import("numpy")?;
    let dense = numpy.call_method1("zeros", (variable.shape().to_vec(), array.getattr("dtype")?))?;
    dense.set_item(numpy.call_method1("array", (rows.to_vec(), "intp"))?, array)?;
    Ok(View::new(dense, Takes::Reals, &mut Known::default(), String::new)?)
}
