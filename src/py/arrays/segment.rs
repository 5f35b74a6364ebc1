//! Segments of arrays.

use super::view::View;
use crate::allocation::OutOfMemory;
use crate::engine::segment::{Layout, Segment};
use std::ptr::null_mut;

/// Describes an input, and its output if there is one, as a segment.
///
/// The output must have the shape and the dtype of the input, be writable, and overlap no other memory of the call
/// (see `output_check`).
pub fn segment(input: &View, output: Option<&View>) -> Result<Segment, OutOfMemory> {
    match dense_segment(input, output) {
        Some(segment) => Ok(segment),
        None => strided_segment(input, output),
    }
}

/// As [`segment`], at the end of a list that has room for it. There the fields of a dense segment are stored one by one;
/// if a segment was copied there, the processor would wait for these stores.
#[inline(always)]
pub fn append_segment(
    segments: &mut Vec<Segment>,
    input: &View,
    output: Option<&View>,
) -> Result<(), OutOfMemory> {
    match dense_segment(input, output) {
        Some(segment) => segments.push(segment),
        None => segments.push(strided_segment(input, output)?),
    }
    Ok(())
}

/// Returns the segment of arrays that are one run of memory each; None for others.
#[inline(always)]
fn dense_segment(input: &View, output: Option<&View>) -> Option<Segment> {
    if !input.is_run() || !output.is_none_or(View::is_run) {
        return None;
    }
    let base = [input.pointer, output.map_or(null_mut(), |output| output.pointer), null_mut(), null_mut()];
    let is_written = [false, output.is_some(), false, false];
    let len = input.size * input.dtype.parts();
    // SAFETY: as in `strided_segment`; and the elements of runs are contiguous and aligned.
    Some(unsafe { Segment::with_layout(input.dtype, len, base, is_written, Layout::Dense) })
}

fn strided_segment(input: &View, output: Option<&View>) -> Result<Segment, OutOfMemory> {
    let operands = [Some(input.operand()), output.map(|view| view.operand().written()), None, None];
    // SAFETY: the views keep their arrays alive. Outputs were checked to be writable and to overlap nothing else, or
    // are new arrays.
    unsafe { Segment::new(input.dtype.complex, input.shape(), operands) }
}
