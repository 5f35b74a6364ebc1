//! Description of a step's pairs as parameter updates, which the driver in `operations::update` performs.

use super::pairs::Pair;
use super::registry::{NewSlots, Registry, Slot};
use crate::allocation::{OutOfMemory, copied, reserve, with_capacity};
use crate::engine::segment::{Operand, Run, Segment, element_count};
use crate::error::Error;
use crate::kernels::stochastic::Stream;
use crate::operations::rules::RuleKind;
use crate::operations::update::{
    COPY, GRADIENT, OPERANDS, ParameterUpdate, RowGradient, SLOTS, StochasticRounding, UpdateParameters,
    VARIABLE,
};
use crate::py::arrays::output::{OutputAllocator, c_strides};
use crate::py::arrays::view::View;
use crate::py::raise::check_memory;
use pyo3::prelude::*;

/// The updates of a step, and the memory that they need.
#[allow(clippy::struct_field_names, reason = "the updates are one of its parts")]
pub struct Updates<'py> {
    /// One update for each variable or, if its gradient is sparse and the rule updates only rows that have a gradient,
    /// one for each run of successive rows.
    pub updates: Vec<ParameterUpdate>,
    /// The registry after the step; None if the step does not change it.
    pub registry: Option<Registry>,
    /// Slots that the step allocates.
    pub new_slots: Vec<NewSlots>,
    /// Owners of memory that is needed only during the step: sparse gradients expanded to all rows.
    pub owners: Vec<View<'py>>,
}

/// Finds or allocates the slots, and returns the updates of the pairs that have a gradient. `registry` is that of the
/// optimizer; None if the caller owns the slots. Slots of the optimizer are rounded as `rounding` says.
pub fn describe_updates<'py>(
    py: Python<'py>,
    kind: RuleKind,
    registry: Option<&Registry>,
    rounding: Option<SeedOfStep>,
    pairs: &[Pair<'py>],
) -> PyResult<Updates<'py>> {
    let mut updates = Updates {
        updates: with_capacity(pairs.len())?,
        registry: None,
        new_slots: Vec::new(),
        owners: Vec::new(),
    };
    let mut places = Vec::new();
    if let Some(registry) = registry {
        places = positions(registry, pairs)?;
        let is_changed = pairs
            .iter()
            .zip(&places)
            .any(|(pair, place)| place.is_none() || lacks_slots(kind, registry, pair, *place));
        if is_changed {
            let after = register(py, kind, registry, pairs, &mut places, &mut updates.new_slots)?;
            updates.registry = Some(after);
        }
    }
    let registry = updates.registry.as_ref().or(registry);
    let mut gradient = 0;
    let mut described = std::mem::take(&mut updates.updates);
    for (index, pair) in pairs.iter().enumerate() {
        if pair.gradient.is_none() {
            continue;
        }
        let place = places.get(index).copied().flatten();
        let entry = registry.and_then(|registry| Some(&registry.entries[place?]));
        let kept_slots = entry.map_or(&[][..], |entry| &entry.slots);
        // The number of a variable is its place in the registry, which a saved state keeps.
        let stream = rounding.zip(place).map(|(seed, place)| seed.stream(place));
        let arrays = UpdateArrays { pair, kept_slots, gradient, stream: stream.or(pair.rounding) };
        let owner = arrays.describe(py, kind, &mut described)?;
        if let Some(owner) = owner {
            reserve(&mut updates.owners, 1)?;
            updates.owners.push(owner);
        }
        gradient += 1;
    }
    updates.updates = described;
    check_memory(py)?;
    Ok(updates)
}

/// Returns the index of each variable's entry in the registry.
fn positions(registry: &Registry, pairs: &[Pair]) -> Result<Vec<Option<usize>>, Error> {
    let mut places = with_capacity(pairs.len())?;
    for (index, pair) in pairs.iter().enumerate() {
        places.push(registry.position(&pair.variable, index)?);
    }
    Ok(places)
}

/// Whether a variable has a gradient, but not yet the slots of the rule.
fn lacks_slots(kind: RuleKind, registry: &Registry, pair: &Pair, place: Option<usize>) -> bool {
    let count = place.map_or(0, |place| registry.entries[place].slots.len());
    pair.gradient.is_some() && count < kind.slots()
}

/// Returns the registry after a step that adds variables or slots. Writes the index of every variable's entry to
/// `places`, and appends the allocated slots to `new_slots`.
fn register(
    py: Python<'_>,
    kind: RuleKind,
    registry: &Registry,
    pairs: &[Pair],
    places: &mut [Option<usize>],
    new_slots: &mut Vec<NewSlots>,
) -> PyResult<Registry> {
    let mut after = registry.copy(py, pairs.len())?;
    let mut variables: Vec<&View> = with_capacity(pairs.len())?;
    let lacking =
        pairs.iter().zip(&*places).filter(|(pair, place)| lacks_slots(kind, registry, pair, **place));
    variables.extend(lacking.map(|(pair, _)| &pair.variable));
    reserve(new_slots, variables.len())?;
    let mut allocated = registry.allocate_slots(py, kind, &variables)?.into_iter();
    for (pair, place) in pairs.iter().zip(places) {
        let is_new = lacks_slots(kind, registry, pair, *place);
        let slots = if is_new { allocated.next().unwrap_or_default() } else { Vec::new() };
        let at = if let Some(at) = *place {
            if is_new {
                after.entries[at].slots = slots.into();
            }
            at
        } else {
            after.add_variable(registry.variable(&pair.variable)?, slots);
            after.entries.len() - 1
        };
        if is_new {
            let slots = std::sync::Arc::clone(&after.entries[at].slots);
            new_slots.push(NewSlots { len: pair.variable.size, slots });
        }
        *place = Some(at);
        check_memory(py)?;
    }
    Ok(after)
}

/// The arrays of one pair that has a gradient.
struct UpdateArrays<'a, 'py> {
    pair: &'a Pair<'py>,
    /// The slots, if the optimizer owns them; else empty.
    kept_slots: &'a [Slot],
    /// Index of the gradient among the gradients of the step.
    gradient: usize,
    /// The random bits by which arrays of bfloat16 are rounded; None to round them to the nearest.
    stream: Option<Stream>,
}

/// The seed of stochastic rounding, and the number of the step that it is mixed with.
#[derive(Clone, Copy, Debug)]
pub struct SeedOfStep {
    pub seed: u64,
    pub step: u64,
}

impl SeedOfStep {
    /// Returns the stream of the variable at a place in the registry.
    fn stream(self, place: usize) -> Stream {
        Stream::new(self.seed, self.step, place as u64)
    }
}

impl<'py> UpdateArrays<'_, 'py> {
    /// Appends the updates of the pair. Returns the expanded gradient, if a sparse gradient was expanded to the
    /// variable's shape.
    fn describe(
        &self,
        py: Python<'py>,
        kind: RuleKind,
        updates: &mut Vec<ParameterUpdate>,
    ) -> PyResult<Option<View<'py>>> {
        reserve(updates, 1)?;
        let Some(gradient) = &self.pair.gradient else { return Ok(None) };
        let Some(rows) = &gradient.rows else {
            updates.push(self.update_of_all_rows(&gradient.values)?);
            return Ok(None);
        };
        if !kind.changes_all_rows() {
            self.push_runs_of_rows(&gradient.values, &rows.indices, updates)?;
            return Ok(None);
        }
        if self.is_dense(&gradient.values) {
            updates.push(self.update_by_rows(&gradient.values, &rows.indices)?);
            return Ok(None);
        }
        let expanded = expand_rows(py, &gradient.values, &self.pair.variable, &rows.indices)?;
        updates.push(self.update_of_all_rows(&expanded)?);
        Ok(Some(expanded))
    }

    /// Whether all arrays are contiguous in C order, and aligned.
    fn is_dense(&self, gradient: &View) -> bool {
        // Slots that the optimizer owns have the memory order of their variable, without gaps.
        self.pair.variable.is_run()
            && gradient.is_run()
            && self.pair.slots().iter().all(View::is_run)
            && self.pair.copy().is_none_or(View::is_run)
    }

    fn update(&self, segment: Segment<OPERANDS>, rows: Option<Box<RowGradient>>) -> ParameterUpdate {
        self.update_from(0, segment, rows)
    }

    /// Returns the update of a part of the variable, which begins with the real at index `first`.
    fn update_from(
        &self,
        first: usize,
        segment: Segment<OPERANDS>,
        rows: Option<Box<RowGradient>>,
    ) -> ParameterUpdate {
        let rounding = self.stream.map(|stream| StochasticRounding { stream, first: first as u64 });
        let parameters = UpdateParameters { gradient: self.gradient, hyper: self.pair.hyper, rows, rounding };
        ParameterUpdate { segment, parameters }
    }

    /// Returns the operands: variable, gradient, slots and copy.
    fn operands<'b>(&'b self, gradient: &'b View) -> [Option<Operand<'b>>; OPERANDS] {
        let mut operands = [None; OPERANDS];
        operands[VARIABLE] = Some(self.pair.variable.operand().written());
        operands[GRADIENT] = Some(gradient.operand());
        for (k, slot) in self.kept_slots.iter().enumerate() {
            let (pointer, strides, scalar) = (slot.pointer(), &*slot.strides, slot.scalar());
            operands[SLOTS + k] = Some(Operand { pointer, strides, scalar, is_written: true });
        }
        for (k, slot) in self.pair.slots().iter().enumerate() {
            operands[SLOTS + k] = Some(slot.operand().written());
        }
        operands[COPY] = self.pair.copy().map(|copy| copy.operand().written());
        operands
    }

    /// Returns the operands as runs. All arrays must be contiguous.
    #[inline]
    fn runs(&self, gradient: &View) -> [Option<Run>; OPERANDS] {
        let mut runs = [None; OPERANDS];
        runs[VARIABLE] = Some(self.pair.variable.run().written());
        runs[GRADIENT] = Some(gradient.run());
        for (k, slot) in self.kept_slots.iter().enumerate() {
            runs[SLOTS + k] = Some(Run { pointer: slot.pointer(), scalar: slot.scalar(), is_written: true });
        }
        for (k, slot) in self.pair.slots().iter().enumerate() {
            runs[SLOTS + k] = Some(slot.run().written());
        }
        runs[COPY] = self.pair.copy().map(|copy| copy.run().written());
        runs
    }

    /// Returns the segment of contiguous operands, of `len` reals each.
    #[inline]
    fn dense_runs(len: usize, runs: [Option<Run>; OPERANDS]) -> Segment<OPERANDS> {
        // SAFETY: every operand is an aligned run of at least `len` reals, see `is_dense`; views and slots keep them
        // alive; and `check_overlap` has checked that no array overlaps one that is written.
        unsafe { Segment::dense(false, len, runs) }
    }

    /// Returns the segment of strided operands of this shape.
    fn strided(
        shape: &[usize],
        operands: [Option<Operand>; OPERANDS],
    ) -> Result<Segment<OPERANDS>, OutOfMemory> {
        // SAFETY: the operands are arrays of this shape, or rows of arrays whose rows have this shape; otherwise as in
        // `dense_runs`.
        unsafe { Segment::new(false, shape, operands) }
    }

    /// Returns the update of all rows of the variable by a gradient of the same shape.
    fn update_of_all_rows(&self, gradient: &View) -> Result<ParameterUpdate, OutOfMemory> {
        let variable = &self.pair.variable;
        let segment = if self.is_dense(gradient) {
            Self::dense_runs(variable.size, self.runs(gradient))
        } else {
            Self::strided(variable.shape(), self.operands(gradient))?
        };
        Ok(self.update(segment, None))
    }

    /// Returns the update of all rows of the variable by a sparse gradient. All arrays must be contiguous.
    fn update_by_rows(&self, gradient: &View, indices: &[usize]) -> Result<ParameterUpdate, OutOfMemory> {
        let mut runs = self.runs(gradient);
        runs[GRADIENT] = None;
        let rows = RowGradient {
            indices: copied(indices)?,
            row_len: element_count(&self.pair.variable.shape()[1..]).max(1),
            // SAFETY: the rows are an aligned run, which the view keeps alive.
            values: unsafe { Segment::dense(false, gradient.size, [Some(gradient.run())]) },
        };
        Ok(self.update(Self::dense_runs(self.pair.variable.size, runs), Some(Box::new(rows))))
    }

    /// Appends updates of the rows that have a gradient: one for each row or, if all arrays are contiguous, one for
    /// each run of successive rows.
    fn push_runs_of_rows(
        &self,
        gradient: &View,
        indices: &[usize],
        updates: &mut Vec<ParameterUpdate>,
    ) -> Result<(), OutOfMemory> {
        let row_shape = &self.pair.variable.shape()[1..];
        if self.is_dense(gradient) {
            return self.push_runs_of_dense_rows(gradient, indices, element_count(row_shape), updates);
        }
        let whole = self.operands(gradient);
        for (at, index) in indices.iter().enumerate() {
            let mut operands = whole;
            for (k, operand) in operands.iter_mut().enumerate() {
                let Some(operand) = operand else { continue };
                let [stride, strides @ ..] = operand.strides else { continue };
                let row = if k == GRADIENT { at } else { *index };
                operand.pointer = operand.pointer.wrapping_offset(row as isize * stride);
                operand.strides = strides;
            }
            reserve(updates, 1)?;
            let first = index * element_count(row_shape);
            updates.push(self.update_from(first, Self::strided(row_shape, operands)?, None));
        }
        Ok(())
    }

    /// As [`UpdateArrays::push_runs_of_rows`], if everything is dense.
    fn push_runs_of_dense_rows(
        &self,
        gradient: &View,
        indices: &[usize],
        row_len: usize,
        updates: &mut Vec<ParameterUpdate>,
    ) -> Result<(), OutOfMemory> {
        let whole = self.runs(gradient);
        let mut at = 0;
        while at < indices.len() {
            let mut count = 1;
            while at + count < indices.len() && indices[at + count] == indices[at] + count {
                count += 1;
            }
            let mut runs = whole;
            for (k, run) in runs.iter_mut().enumerate() {
                let Some(run) = run else { continue };
                let row = if k == GRADIENT { at } else { indices[at] };
                run.pointer = run.pointer.wrapping_add(row * row_len * run.scalar.size());
            }
            reserve(updates, 1)?;
            let segment = Self::dense_runs(count * row_len, runs);
            updates.push(self.update_from(indices[at] * row_len, segment, None));
            at += count;
        }
        Ok(())
    }
}

/// Expands a sparse gradient to the shape of its variable, in new memory. Its rows must be contiguous.
fn expand_rows<'py>(
    py: Python<'py>,
    gradient: &View<'py>,
    variable: &View<'py>,
    indices: &[usize],
) -> PyResult<View<'py>> {
    let shape = variable.shape();
    let size = gradient.dtype.size();
    let bytes = variable.size.checked_mul(size).ok_or(OutOfMemory { bytes: usize::MAX })?;
    let (pointer, buffer) = OutputAllocator::new(py, std::iter::empty()).allocate(bytes)?;
    let row = element_count(&shape[1..]) * size;
    if gradient.size * size != indices.len() * row || indices.iter().any(|index| *index >= shape[0]) {
        return Err(Error::Value("rows do not fit their variable".into()).into());
    }
    // SAFETY: `pointer` is new memory of `bytes` bytes, and the checks above ensure that every row lies inside of both
    // arrays.
    unsafe {
        pointer.write_bytes(0, bytes);
        for (at, index) in indices.iter().enumerate() {
            let from = gradient.pointer.cast_const().wrapping_add(at * row);
            std::ptr::copy_nonoverlapping(from, pointer.wrapping_add(index * row), row);
        }
    }
    let strides = c_strides(shape, size)?;
    // SAFETY: zeros and rows of this dtype, in C order, which the buffer keeps alive.
    Ok(unsafe { View::over(buffer.into_any(), pointer, gradient.numpy_dtype(), shape, &strides)? })
}
