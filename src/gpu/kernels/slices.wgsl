// Slices of an array along some of its axes: where their elements lie.
//
// `axes` has three lists of pairs (length, stride in elements), innermost axis
// first, after their lengths: the axes that a slice has, the axes that number the
// slices, and all axes with the strides of the numbers of slices.

// The offset that an index stands for, by a list of axes.
fn offset_of(index: u32, first: u32, count: u32) -> u32 {
    var rest = index;
    var offset = 0u;
    for (var axis = 0u; axis < count; axis++) {
        let length = axes[first + 2u * axis];
        offset += (rest % length) * axes[first + 2u * axis + 1u];
        rest /= length;
    }
    return offset;
}

// The offset of an element of a slice, in elements.
fn offset_in_slice(index: u32) -> u32 {
    return offset_of(index, 4u, axes[0]);
}

// The offset of the first element of a slice, in elements.
fn offset_of_slice(slice: u32) -> u32 {
    return offset_of(slice, 4u + 2u * axes[0], axes[1]);
}

// The number of the slice that an element of the array belongs to.
fn slice_of(element: u32) -> u32 {
    return offset_of(element, 4u + 2u * (axes[0] + axes[1]), axes[2]);
}

// Where element `index` of a chunk lies, in elements from the start of the array.
fn place_of(chunk: vec4<u32>, index: u32) -> u32 {
    return offset_of_slice(chunk.w) + offset_in_slice(chunk.y + index);
}
