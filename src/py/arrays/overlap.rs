//! The check that the memory a call writes overlaps no other memory of the call.
//!
//! Address ranges are sorted once. Only arrays whose ranges overlap are compared further: first by arithmetic, which
//! decides for arrays of equal strides (columns or blocks of one matrix), then by NumPy's `shares_memory`. That function
//! runs Python code, so it gets arrays owned by fastclip over the memory of the snapshots.

use super::argument_name::ArgumentName;
use super::view::View;
use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::error::Error;
use crate::py::raise::check_memory;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::ops::ControlFlow;

/// Upper bound on NumPy's work for one pair of arrays. Beyond it the arrays count as sharing memory.
const MAX_WORK: usize = 100_000;

/// The part that an array has in a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// An array that is only read.
    Input,
    /// An array that results are written to; in an optimizer's step, a variable.
    Output,
    /// The low-precision copy of a variable.
    Copy,
    /// A slot of a variable.
    Slot,
    /// A step counter.
    Counter,
}

impl Part {
    /// Whether the call writes the array.
    pub fn is_written(self) -> bool {
        self != Self::Input
    }
}

/// The range of addresses that an array covers.
#[derive(Clone, Copy)]
pub struct Span<'a, 'py> {
    /// Address of the first byte.
    low: usize,
    /// Address after the last byte.
    high: usize,
    view: &'a View<'py>,
    /// The array's index among the arrays of its part. A list of more arrays than fit is larger than memory.
    index: u32,
    /// The array's part in the call.
    part: Part,
    /// Whether the array is written and two of its elements may share memory.
    overlaps_itself: bool,
}

// Calls sort thousands of spans.
const _: () = assert!(size_of::<Span>() <= 32);

/// The arrays of one overlap check, see [`sweep`].
pub struct Spans<'a, 'py> {
    spans: Vec<Span<'a, 'py>>,
    /// Whether one of the spans overlaps itself.
    any_overlaps_itself: bool,
}

impl<'a, 'py> Spans<'a, 'py> {
    /// Allocates room for `capacity` arrays.
    pub fn with_capacity(capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Self { spans: with_capacity(capacity)?, any_overlaps_itself: false })
    }

    /// Adds an array. An array without elements is skipped: it overlaps nothing.
    #[inline]
    pub fn push(&mut self, view: &'a View<'py>, part: Part, index: usize) -> Result<(), OutOfMemory> {
        let Some((low, high)) = view.extent() else { return Ok(()) };
        let overlaps_itself = part.is_written() && view.may_overlap_itself()?;
        self.any_overlaps_itself |= overlaps_itself;
        reserve(&mut self.spans, 1)?;
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.spans.push(Span { low, high, view, index, part, overlaps_itself });
        Ok(())
    }

    /// Adds an output and its input. With `in_place`, an input that is exactly the output is not added, so that the two
    /// may overlap.
    #[inline]
    pub fn push_pair(
        &mut self,
        input: Option<&'a View<'py>>,
        output: Option<&'a View<'py>>,
        index: usize,
        in_place: bool,
    ) -> Result<(), OutOfMemory> {
        if let Some(output) = output {
            self.push(output, Part::Output, index)?;
        }
        match input {
            Some(input) if !(in_place && output.is_some_and(|output| output.is_same_memory(input))) => {
                self.push(input, Part::Input, index)
            }
            _ => Ok(()),
        }
    }
}

/// Overlap that does not allow a call to write. Arrays are named by part and index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clash {
    /// Elements of this written array share memory with each other.
    Within(Part, usize),
    /// The first array, which is written, shares memory with the second.
    Between((Part, usize), (Part, usize)),
}

/// Raises if an output overlaps itself, another output or an input. With `in_place`, an output may be exactly the
/// input of the same index.
pub fn check(
    py: Python<'_>,
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    input_name: ArgumentName<'_>,
    output_name: ArgumentName<'_>,
) -> PyResult<()> {
    let mut spans = Spans::with_capacity(inputs.len() + outputs.len())?;
    for index in 0..inputs.len().max(outputs.len()) {
        let input = inputs.get(index).and_then(Option::as_ref);
        let output = outputs.get(index).and_then(Option::as_ref);
        spans.push_pair(input, output, index, in_place)?;
    }
    check_spans(py, spans, input_name, output_name)
}

/// Raises if an output overlaps itself, another output or an input.
pub fn check_spans(
    py: Python<'_>,
    spans: Spans<'_, '_>,
    input_name: ArgumentName<'_>,
    output_name: ArgumentName<'_>,
) -> PyResult<()> {
    match sweep(py, spans, ControlFlow::Break)? {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(Clash::Within(_, index)) => Err(Error::Value(format!(
            "{} overlaps itself: elements of it share memory",
            output_name.entry(index)
        ))
        .into()),
        ControlFlow::Break(Clash::Between(first, second)) => {
            let name = |(part, index): (Part, usize)| {
                if part.is_written() { output_name.entry(index) } else { input_name.entry(index) }
            };
            Err(Error::Value(format!(
                "{} shares memory with {}: an output may be exactly its own input, and else must \
                 overlap neither an input nor another output",
                name(first),
                name(second)
            ))
            .into())
        }
    }
}

/// Calls `visit` for each written array that overlaps itself, in the order of `spans`, and then for each pair of arrays
/// that overlap and of which one is written, by ascending addresses; until `visit` breaks.
///
/// # Errors
///
/// Whatever NumPy raises during its check, such as an interrupt.
pub fn sweep<B>(
    py: Python<'_>,
    spans: Spans<'_, '_>,
    mut visit: impl FnMut(Clash) -> ControlFlow<B>,
) -> PyResult<ControlFlow<B>> {
    let Spans { mut spans, any_overlaps_itself } = spans;
    if any_overlaps_itself {
        for span in spans.iter().filter(|span| span.overlaps_itself) {
            if let ControlFlow::Break(value) = visit(Clash::Within(span.part, span.index as usize)) {
                return Ok(ControlFlow::Break(value));
            }
        }
    }
    if !spans.is_sorted_by_key(|span| span.low) {
        spans.sort_unstable_by_key(|span| span.low);
    }
    if spans.windows(2).all(|pair| pair[0].high <= pair[1].low) {
        return Ok(ControlFlow::Continue(()));
    }
    // Spans are compared within groups: maximal sequences in which each span begins before an earlier one ends.
    // `open` has those spans of a group that end after the current one begins.
    let mut open: Vec<Span> = Vec::new();
    let mut start = 0;
    while start < spans.len() {
        let mut end = start + 1;
        let mut high = spans[start].high;
        while end < spans.len() && spans[end].low < high {
            high = high.max(spans[end].high);
            end += 1;
        }
        let group = &spans[start..end];
        start = end;
        if group.len() < 2 || !group.iter().any(|span| span.part.is_written()) || are_interleaved(group)? {
            continue;
        }
        open.clear();
        for span in group {
            open.retain(|other| other.high > span.low);
            for other in &open {
                if (span.part.is_written() || other.part.is_written())
                    && share_memory(py, other.view, span.view)?
                {
                    let (first, second) = if other.part.is_written() { (other, span) } else { (span, other) };
                    let clash = Clash::Between(
                        (first.part, first.index as usize),
                        (second.part, second.index as usize),
                    );
                    if let ControlFlow::Break(value) = visit(clash) {
                        return Ok(ControlFlow::Break(value));
                    }
                }
            }
            reserve(&mut open, 1)?;
            open.push(*span);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// An array's memory as runs of bytes that begin at multiples of a distance from each other.
struct PeriodicRuns {
    /// Address of the array's first byte.
    low: usize,
    /// Length of a run, in bytes.
    run: usize,
    /// A common divisor of all distances between runs, in bytes; 0 if there is one run.
    period: usize,
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl PeriodicRuns {
    fn new(view: &View) -> Result<Self, OutOfMemory> {
        let low = view.extent().map_or(view.pointer.addr(), |(low, _)| low);
        if view.is_c_order() || view.is_fortran_order() {
            return Ok(Self { low, run: view.size * view.dtype.size(), period: 0 });
        }
        let (mut run, mut period) = (view.dtype.size(), 0);
        for (stride, len) in steps(view)?.into_iter().rev() {
            if stride == run && period == 0 {
                run *= len;
            } else {
                period = greatest_common_divisor(period, stride);
            }
        }
        Ok(Self { low, run, period })
    }
}

/// Returns absolute stride, in bytes, and length of each axis that has more than one element and a stride other than 0,
/// by descending stride.
fn steps(view: &View) -> Result<Vec<(usize, usize)>, OutOfMemory> {
    let mut steps = with_capacity(view.shape().len())?;
    let axes = view.strides().iter().map(|stride| stride.unsigned_abs()).zip(view.shape().iter().copied());
    steps.extend(axes.filter(|(stride, len)| *len > 1 && *stride > 0));
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Whether the runs of each array of a group lie between those of the others, as with columns of one matrix. Where it
/// returns false, the arrays may still be disjoint.
fn are_interleaved(group: &[Span]) -> Result<bool, OutOfMemory> {
    let mut arrays = with_capacity(group.len())?;
    for span in group {
        arrays.push(PeriodicRuns::new(span.view)?);
    }
    Ok(are_disjoint(&mut arrays))
}

/// Whether the runs of the arrays are disjoint modulo a common divisor of all periods. Where it returns false, the
/// arrays may still be disjoint.
fn are_disjoint(arrays: &mut [PeriodicRuns]) -> bool {
    let period = arrays.iter().fold(0, |period, array| greatest_common_divisor(period, array.period));
    if period == 0 || arrays.iter().any(|array| array.run > period) {
        return false;
    }
    arrays.sort_unstable_by_key(|array| array.low % period);
    let ends_before = |array: &PeriodicRuns, next: usize| array.low % period + array.run <= next;
    let (Some(first), Some(last)) = (arrays.first(), arrays.last()) else { return true };
    ends_before(last, first.low % period + period)
        && arrays.windows(2).all(|pair| ends_before(&pair[0], pair[1].low % period))
}

/// Whether two arrays whose address ranges overlap have an element in common. Arrays for which the check would take too
/// long count as sharing memory.
fn share_memory(py: Python<'_>, a: &View, b: &View) -> PyResult<bool> {
    let is_run = |v: &View| v.is_c_order() || v.is_fortran_order();
    if is_run(a) && is_run(b) {
        return Ok(true);
    }
    if are_disjoint(&mut [PeriodicRuns::new(a)?, PeriodicRuns::new(b)?]) {
        return Ok(false);
    }
    match share_memory_at_equal_strides(a, b)? {
        Some(answer) => Ok(answer),
        None => numpy_shares_memory(py, a, b),
    }
}

/// Whether two arrays with the same strides share an element, by a search over the index differences of their
/// elements; `None` if the strides differ, or there are too many differences.
fn share_memory_at_equal_strides(a: &View, b: &View) -> Result<Option<bool>, OutOfMemory> {
    if a.strides() != b.strides() {
        return Ok(None);
    }
    let mut axes = with_capacity(a.shape().len())?;
    for ((stride, a_len), b_len) in a.strides().iter().zip(a.shape()).zip(b.shape()) {
        if *stride != 0 && (*a_len > 1 || *b_len > 1) {
            axes.push(Difference {
                stride: stride.unsigned_abs() as i128,
                most_behind: *a_len as i128 - 1,
                most_ahead: *b_len as i128 - 1,
            });
        }
    }
    axes.sort_unstable_by_key(|axis| std::cmp::Reverse(axis.stride));
    let low = |view: &View| view.extent().map_or(0, |(low, _)| low as i128);
    let sizes = [a.dtype.size() as i128, b.dtype.size() as i128];
    let mut tries = 10_000;
    Ok(can_coincide(&axes, low(b) - low(a), sizes, &mut tries))
}

/// Range of the difference, along one axis, between the index of an element of the second array and that of an element
/// of the first.
struct Difference {
    /// Absolute stride of the axis, in bytes.
    stride: i128,
    /// Most steps that the second index can be less than the first.
    most_behind: i128,
    /// Most steps that the second index can be greater than the first.
    most_ahead: i128,
}

/// Whether elements of the given sizes whose addresses differ by `distance` bytes, plus some difference along each axis,
/// share a byte; `None` if `tries` is used up.
fn can_coincide(
    axes: &[Difference],
    distance: i128,
    [first, second]: [i128; 2],
    tries: &mut u32,
) -> Option<bool> {
    let Some((axis, inner)) = axes.split_first() else {
        return Some(-second < distance && distance < first);
    };
    // The most that the inner axes can add to the distance, and subtract from it.
    let ahead: i128 = inner.iter().map(|axis| axis.most_ahead * axis.stride).sum();
    let behind: i128 = inner.iter().map(|axis| axis.most_behind * axis.stride).sum();
    let least = (1 - second - ahead - distance).div_euclid(axis.stride);
    let most = (first - 1 + behind - distance).div_euclid(axis.stride);
    let mut steps = least.max(-axis.most_behind);
    while steps <= most.min(axis.most_ahead) {
        *tries = tries.checked_sub(1)?;
        if can_coincide(inner, distance + steps * axis.stride, [first, second], tries)? {
            return Some(true);
        }
        steps += 1;
    }
    Some(false)
}

/// NumPy's `shares_memory`, and the exception that it raises where its work exceeds the bound.
static SHARES_MEMORY: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// Imports NumPy and caches its `shares_memory`. Called when the module is initialised.
pub fn load_numpy(py: Python<'_>) -> PyResult<()> {
    let numpy = py.import("numpy")?;
    // The exceptions have a module of their own since NumPy 1.25.
    let exceptions = py.import("numpy.exceptions").unwrap_or_else(|_| numpy.clone());
    let functions = (numpy.getattr("shares_memory")?.unbind(), exceptions.getattr("TooHardError")?.unbind());
    let _ = SHARES_MEMORY.set(py, functions);
    Ok(())
}

/// Calls NumPy's `shares_memory`.
fn numpy_shares_memory(py: Python<'_>, a: &View, b: &View) -> PyResult<bool> {
    let Some((shares_memory, too_hard)) = SHARES_MEMORY.get(py) else { return Ok(true) };
    match shares_memory.bind(py).call1((a.array()?, b.array()?, MAX_WORK)) {
        Ok(answer) => {
            check_memory(py)?;
            answer.is_truthy()
        }
        Err(error) if error.matches(py, too_hard.bind(py))? => Ok(true),
        Err(error) => Err(error),
    }
}
