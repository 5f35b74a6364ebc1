//! Whether the memory that a call writes is its own.

use super::view::{Label, View};
use crate::error::Error;
use pyo3::prelude::*;

/// An array's addresses, for sorting.
#[derive(Clone, Copy)]
struct Span {
    low: usize,
    high: usize,
    index: usize,
    is_output: bool,
}

/// Refuses outputs that overlap each other or an input. With `in_place`, an output may be exactly the
/// input of its own position.
pub fn check(
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    input_label: Label<'_, '_>,
    output_label: Label<'_, '_>,
) -> Result<(), Error> {
    let mut spans = Vec::with_capacity(outputs.len());
    for (index, (input, output)) in inputs.iter().zip(outputs).enumerate() {
        let mut add = |view: &View, is_output| {
            let extent = view.extent();
            spans.extend(extent.map(|(low, high)| Span { low, high, index, is_output }));
        };
        if let Some(output) = output {
            if output.may_overlap_itself() {
                return Err(Error::Value(format!(
                    "{} overlaps itself: elements of it share memory",
                    output_label.of(index)
                )));
            }
            add(output, true);
        }
        if let Some(input) = input
            && !(in_place && output.as_ref().is_some_and(|output| output.is_same_memory(input)))
        {
            add(input, false);
        }
    }
    if !spans.is_sorted_by_key(|span| span.low) {
        spans.sort_unstable_by_key(|span| span.low);
    }
    if spans.windows(2).all(|pair| pair[0].high <= pair[1].low) {
        return Ok(());
    }
    // Spans that are still open as the addresses grow.
    let mut open: Vec<Span> = Vec::new();
    for span in spans {
        open.retain(|other| other.high > span.low);
        for other in &open {
            if (span.is_output || other.is_output) && share_memory(*other, span, inputs, outputs) {
                let name = |s: &Span| {
                    if s.is_output { output_label.of(s.index) } else { input_label.of(s.index) }
                };
                let (first, second) = if other.is_output { (other, &span) } else { (&span, other) };
                return Err(Error::Value(format!(
                    "{} shares memory with {}: an output may be exactly its own input, and else must \
                     overlap neither an input nor another output",
                    name(first),
                    name(second)
                )));
            }
        }
        open.push(span);
    }
    Ok(())
}

/// Whether two arrays whose address ranges meet have an element in common. NumPy decides; where it
/// would take too long, they count as sharing.
fn share_memory(a: Span, b: Span, inputs: &[Option<View>], outputs: &[Option<View>]) -> bool {
    let view = |s: Span| {
        if s.is_output { &outputs[s.index] } else { &inputs[s.index] }
    };
    let (Some(a), Some(b)) = (view(a), view(b)) else {
        return false;
    };
    let py = a.object.py();
    let whole = |v: &View| v.is_c_order() || v.is_fortran_order();
    if whole(a) && whole(b) {
        return true;
    }
    let answer = py
        .import("numpy")
        .and_then(|numpy| numpy.call_method1("shares_memory", (&a.object, &b.object, 100_000)))
        .and_then(|answer| answer.extract::<bool>());
    answer.unwrap_or(true)
}
