//! Whether the memory that a call writes is its own.
//!
//! Address ranges are sorted once, and only ranges that meet are looked at further: first by arithmetic, which decides
//! for arrays of the same strides (columns of one matrix, blocks of one), then by NumPy's `shares_memory`, which works
//! on arrays of our own: it runs Python code.

use super::view::{ArgumentName, View};
use crate::allocation::{OutOfMemory, reserve, with_capacity};
use crate::error::Error;
use crate::py::raise::check_memory;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::ops::ControlFlow;

/// How much work NumPy may do for a pair of arrays before they count as sharing memory.
const MOST_WORK: usize = 100_000;

/// An array's addresses, for sorting.
#[derive(Clone, Copy)]
pub struct Span {
    low: usize,
    high: usize,
    /// Its position among the inputs or the outputs.
    pub index: usize,
    /// Which of the two.
    pub is_output: bool,
}

/// Why outputs cannot be written.
pub enum Clash {
    /// Elements of this output share memory with each other.
    Within(usize),
    /// The first, an output, shares memory with the second.
    Between(Span, Span),
}

/// Refuses outputs that overlap each other or an input. With `in_place`, an output may be exactly the
/// input of its own position.
pub fn check(
    py: Python<'_>,
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    input_label: ArgumentName<'_, '_>,
    output_label: ArgumentName<'_, '_>,
) -> PyResult<()> {
    match sweep(py, inputs, outputs, in_place, ControlFlow::Break)? {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(Clash::Within(index)) => Err(Error::Value(format!(
            "{} overlaps itself: elements of it share memory",
            output_label.of(index)
        ))
        .into()),
        ControlFlow::Break(Clash::Between(first, second)) => {
            let name = |s: &Span| {
                if s.is_output { output_label.of(s.index) } else { input_label.of(s.index) }
            };
            Err(Error::Value(format!(
                "{} shares memory with {}: an output may be exactly its own input, and else must \
                 overlap neither an input nor another output",
                name(&first),
                name(&second)
            ))
            .into())
        }
    }
}

/// Calls `visit` for each output that overlaps itself, another or an input, until it breaks off.
///
/// # Errors
///
/// Whatever NumPy raises while it decides, such as an interrupt.
pub fn sweep<B>(
    py: Python<'_>,
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    mut visit: impl FnMut(Clash) -> ControlFlow<B>,
) -> PyResult<ControlFlow<B>> {
    let mut spans = with_capacity(inputs.len() + outputs.len())?;
    for index in 0..inputs.len().max(outputs.len()) {
        let (input, output) =
            (inputs.get(index).and_then(Option::as_ref), outputs.get(index).and_then(Option::as_ref));
        let mut add = |view: &View, is_output| {
            let extent = view.extent();
            spans.extend(extent.map(|(low, high)| Span { low, high, index, is_output }));
        };
        if let Some(output) = output {
            if output.may_overlap_itself()?
                && let ControlFlow::Break(found) = visit(Clash::Within(index))
            {
                return Ok(ControlFlow::Break(found));
            }
            add(output, true);
        }
        if let Some(input) = input
            && !(in_place && output.is_some_and(|output| output.is_same_memory(input)))
        {
            add(input, false);
        }
    }
    if !spans.is_sorted_by_key(|span| span.low) {
        spans.sort_unstable_by_key(|span| span.low);
    }
    if spans.windows(2).all(|pair| pair[0].high <= pair[1].low) {
        return Ok(ControlFlow::Continue(()));
    }
    let view = |s: &Span| if s.is_output { outputs[s.index].as_ref() } else { inputs[s.index].as_ref() };
    // Groups of spans that hang together, and in a group the spans that are still open as the addresses grow.
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
        if group.len() < 2 || !group.iter().any(|span| span.is_output) || are_interleaved(group, &view)? {
            continue;
        }
        open.clear();
        for span in group {
            open.retain(|other| other.high > span.low);
            for other in &open {
                if !(span.is_output || other.is_output) {
                    continue;
                }
                let (Some(a), Some(b)) = (view(other), view(span)) else { continue };
                if share_memory(py, a, b)? {
                    let clash = if other.is_output {
                        Clash::Between(*other, *span)
                    } else {
                        Clash::Between(*span, *other)
                    };
                    if let ControlFlow::Break(found) = visit(clash) {
                        return Ok(ControlFlow::Break(found));
                    }
                }
            }
            reserve(&mut open, 1)?;
            open.push(*span);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// An array as runs of bytes that begin at multiples of a distance from each other.
struct Comb {
    /// The address of its first byte.
    low: usize,
    /// The length of a run.
    run: usize,
    /// A divisor of all distances between runs; 0 if there is one run.
    pitch: usize,
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Comb {
    fn of(view: &View) -> Result<Self, OutOfMemory> {
        let low = view.extent().map_or(view.pointer.addr(), |(low, _)| low);
        if view.is_c_order() || view.is_fortran_order() {
            return Ok(Self { low, run: view.size * view.dtype.size(), pitch: 0 });
        }
        let (mut run, mut pitch) = (view.dtype.size(), 0);
        for (stride, len) in steps(view)?.into_iter().rev() {
            if stride == run && pitch == 0 {
                run *= len;
            } else {
                pitch = greatest_common_divisor(pitch, stride);
            }
        }
        Ok(Self { low, run, pitch })
    }
}

/// The axes along which an array moves, as bytes and number of steps, the longest first.
fn steps(view: &View) -> Result<Vec<(usize, usize)>, OutOfMemory> {
    let mut steps = with_capacity(view.shape().len())?;
    let axes = view.strides().iter().map(|stride| stride.unsigned_abs()).zip(view.shape().iter().copied());
    steps.extend(axes.filter(|(stride, len)| *len > 1 && *stride > 0));
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Whether all arrays of a group are combs whose runs lie between each other, as columns of one matrix do. False says
/// nothing.
fn are_interleaved<'a, 'py: 'a>(
    group: &[Span],
    view: &impl Fn(&Span) -> Option<&'a View<'py>>,
) -> Result<bool, OutOfMemory> {
    let mut combs = with_capacity(group.len())?;
    for span in group {
        if let Some(view) = view(span) {
            combs.push(Comb::of(view)?);
        }
    }
    Ok(are_apart(&mut combs))
}

/// Whether combs lie between each other: whether their runs do, modulo a distance that divides those of all.
fn are_apart(combs: &mut [Comb]) -> bool {
    let pitch = combs.iter().fold(0, |pitch, comb| greatest_common_divisor(pitch, comb.pitch));
    if pitch == 0 || combs.iter().any(|comb| comb.run > pitch) {
        return false;
    }
    combs.sort_unstable_by_key(|comb| comb.low % pitch);
    let ends_before = |a: &Comb, next: usize| a.low % pitch + a.run <= next;
    let (Some(first), Some(last)) = (combs.first(), combs.last()) else { return true };
    ends_before(last, first.low % pitch + pitch)
        && combs.windows(2).all(|pair| ends_before(&pair[0], pair[1].low % pitch))
}

/// Whether two arrays whose address ranges meet have an element in common. Where deciding would take too long, they
/// count as sharing.
fn share_memory(py: Python<'_>, a: &View, b: &View) -> PyResult<bool> {
    let is_run = |v: &View| v.is_c_order() || v.is_fortran_order();
    if is_run(a) && is_run(b) {
        return Ok(true);
    }
    if are_apart(&mut [Comb::of(a)?, Comb::of(b)?]) {
        return Ok(false);
    }
    match of_same_strides(a, b)? {
        Some(answer) => Ok(answer),
        None => numpy_decides(py, a, b),
    }
}

/// Whether two arrays with the same strides share an element, by trying how many steps they may be apart; `None` if
/// the strides differ, or there are too many ways.
fn of_same_strides(a: &View, b: &View) -> Result<Option<bool>, OutOfMemory> {
    if a.strides() != b.strides() {
        return Ok(None);
    }
    let mut axes = with_capacity(a.shape().len())?;
    for ((stride, of_a), of_b) in a.strides().iter().zip(a.shape()).zip(b.shape()) {
        if *stride != 0 && (*of_a > 1 || *of_b > 1) {
            axes.push(Shift {
                stride: stride.unsigned_abs() as i128,
                back: *of_a as i128 - 1,
                forth: *of_b as i128 - 1,
            });
        }
    }
    axes.sort_unstable_by_key(|axis| std::cmp::Reverse(axis.stride));
    let low = |view: &View| view.extent().map_or(0, |(low, _)| low as i128);
    let sizes = [a.dtype.size() as i128, b.dtype.size() as i128];
    let mut tries = 10_000;
    Ok(meet(&axes, low(b) - low(a), sizes, &mut tries))
}

/// By how many steps along an axis an element of the second array may be ahead of one of the first.
struct Shift {
    stride: i128,
    /// At most so many steps behind,
    back: i128,
    /// and so many ahead.
    forth: i128,
}

/// Whether some shifts bring elements of these sizes, that are `distance` apart, onto each other.
fn meet(axes: &[Shift], distance: i128, [first, second]: [i128; 2], tries: &mut u32) -> Option<bool> {
    let Some((axis, inner)) = axes.split_first() else {
        return Some(-second < distance && distance < first);
    };
    // What the inner axes can still add or take away.
    let forth: i128 = inner.iter().map(|axis| axis.forth * axis.stride).sum();
    let back: i128 = inner.iter().map(|axis| axis.back * axis.stride).sum();
    let least = (1 - second - forth - distance).div_euclid(axis.stride);
    let most = (first - 1 + back - distance).div_euclid(axis.stride);
    let mut shift = least.max(-axis.back);
    while shift <= most.min(axis.forth) {
        *tries = tries.checked_sub(1)?;
        if meet(inner, distance + shift * axis.stride, [first, second], tries)? {
            return Some(true);
        }
        shift += 1;
    }
    Some(false)
}

/// NumPy's function, and the exception that says that it gave up.
static SHARES_MEMORY: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// Looks NumPy's functions up, when the module is made.
pub fn load_numpy(py: Python<'_>) -> PyResult<()> {
    let numpy = py.import("numpy")?;
    // Where exceptions are since NumPy 1.25.
    let exceptions = py.import("numpy.exceptions").unwrap_or_else(|_| numpy.clone());
    let found = (numpy.getattr("shares_memory")?.unbind(), exceptions.getattr("TooHardError")?.unbind());
    let _ = SHARES_MEMORY.set(py, found);
    Ok(())
}

fn numpy_decides(py: Python<'_>, a: &View, b: &View) -> PyResult<bool> {
    let Some((shares_memory, too_hard)) = SHARES_MEMORY.get(py) else { return Ok(true) };
    match shares_memory.bind(py).call1((a.array()?, b.array()?, MOST_WORK)) {
        Ok(answer) => {
            check_memory(py)?;
            answer.is_truthy()
        }
        Err(error) if error.matches(py, too_hard.bind(py))? => Ok(true),
        Err(error) => Err(error),
    }
}
