//! Segments of arrays.

use super::view::View;
use crate::allocation::OutOfMemory;
use crate::engine::segment::{INPUT, OPERANDS, OUTPUT, Segment};

/// Describes an input, and its output if there is one, as a segment.
///
/// The output must have the shape and the dtype of the input, be writable, and overlap no other memory of the call
/// (see `output_check`).
pub fn segment(input: &View, output: Option<&View>) -> Result<Segment, OutOfMemory> {
    let is_complex = input.dtype.complex;
    // SAFETY: the views keep their arrays alive. Outputs were checked to be writable and to overlap nothing else, or
    // are new arrays.
    unsafe {
        if input.is_run() && output.is_none_or(View::is_run) {
            let mut runs = [None; OPERANDS];
            runs[INPUT] = Some(input.run());
            runs[OUTPUT] = output.map(|view| view.run().written());
            return Ok(Segment::dense(is_complex, input.size * input.dtype.parts(), runs));
        }
        let operands = [Some(input.operand()), output.map(|view| view.operand().written()), None, None];
        Segment::new(is_complex, input.shape(), operands)
    }
}
