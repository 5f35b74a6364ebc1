//! Whether the memory that a call writes is its own.

use super::view::{Label, View};
use crate::error::Error;
use pyo3::prelude::*;
use std::ops::ControlFlow;

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
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    input_label: Label<'_, '_>,
    output_label: Label<'_, '_>,
) -> Result<(), Error> {
    match find(inputs, outputs, in_place) {
        None => Ok(()),
        Some(Clash::Within(index)) => Err(Error::Value(format!(
            "{} overlaps itself: elements of it share memory",
            output_label.of(index)
        ))),
        Some(Clash::Between(first, second)) => {
            let name = |s: &Span| {
                if s.is_output { output_label.of(s.index) } else { input_label.of(s.index) }
            };
            Err(Error::Value(format!(
                "{} shares memory with {}: an output may be exactly its own input, and else must \
                 overlap neither an input nor another output",
                name(&first),
                name(&second)
            )))
        }
    }
}

/// An output that overlaps itself, another or an input, as far as there is one.
fn find(inputs: &[Option<View<'_>>], outputs: &[Option<View<'_>>], in_place: bool) -> Option<Clash> {
    match sweep(inputs, outputs, in_place, ControlFlow::Break) {
        ControlFlow::Break(clash) => Some(clash),
        ControlFlow::Continue(()) => None,
    }
}

/// Calls `visit` for each output that overlaps itself, another or an input, until it breaks off.
pub fn sweep<B>(
    inputs: &[Option<View<'_>>],
    outputs: &[Option<View<'_>>],
    in_place: bool,
    mut visit: impl FnMut(Clash) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let mut spans = Vec::with_capacity(inputs.len() + outputs.len());
    for index in 0..inputs.len().max(outputs.len()) {
        let (input, output) =
            (inputs.get(index).and_then(Option::as_ref), outputs.get(index).and_then(Option::as_ref));
        let mut add = |view: &View, is_output| {
            let extent = view.extent();
            spans.extend(extent.map(|(low, high)| Span { low, high, index, is_output }));
        };
        if let Some(output) = output {
            if output.may_overlap_itself() {
                visit(Clash::Within(index))?;
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
        return ControlFlow::Continue(());
    }
    // Spans that are still open as the addresses grow.
    let mut open: Vec<Span> = Vec::new();
    for span in spans {
        open.retain(|other| other.high > span.low);
        for other in &open {
            if (span.is_output || other.is_output) && share_memory(*other, span, inputs, outputs) {
                visit(if other.is_output {
                    Clash::Between(*other, span)
                } else {
                    Clash::Between(span, *other)
                })?;
            }
        }
        open.push(span);
    }
    ControlFlow::Continue(())
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
