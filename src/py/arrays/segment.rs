//! Segments of arrays.

use super::view::View;
use crate::allocation::OutOfMemory;
use crate::engine::segment::{INPUT, OPERANDS, OUTPUT, Segment};

/// Describes an input, and its output if there is one, as a segment.
///
/// The output must have the shape and the dtype of the input, be writable, and overlap no other memory of the call
/// (see `output_check`).
pub fn segment(input: &View, output: Option<&View>) -> Result<Segment, OutOfMemory> {
    let is_run = |view: &View| view.is_aligned() && view.is_c_order();
    // SAFETY: the views keep their arrays alive. Outputs were checked to be writable and to overlap nothing else, or
    // are new arrays.
    unsafe {
        if is_run(input) && output.is_none_or(is_run) {
            let mut base = [std::ptr::null_mut(); OPERANDS];
            base[INPUT] = input.pointer;
            base[OUTPUT] = output.map_or(std::ptr::null_mut(), |view| view.pointer);
            return Ok(Segment::dense(input.dtype, input.size * input.dtype.parts(), base));
        }
        let operands = [Some(input.strided()), output.map(View::strided), None, None];
        Segment::new(input.dtype, input.shape(), operands)
    }
}
