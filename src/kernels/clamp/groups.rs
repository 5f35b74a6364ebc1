//! Clamping in groups of elements, of which only those with a changed element are written.

use std::ops::BitOr;

/// Number of elements that are written together: a few registers.
const GROUP: usize = 64;

/// Replaces each element of `x` by `clamp(element, lower bound, upper bound)`. Writes only groups of elements that
/// change, and returns whether one does. `difference` is 0 for values of the same bits. The slices have the same
/// length.
#[inline(always)]
pub(super) fn clamp_groups<T, D>(
    x: &mut [T],
    bounds: [&[T]; 2],
    clamp: impl Fn(T, T, T) -> T,
    difference: impl Fn(T, T) -> D,
) -> bool
where
    T: Copy + Default,
    D: Copy + Default + PartialEq + BitOr<Output = D>,
{
    let mut changed = D::default();
    let [(low, rest_low), (high, rest_high)] = bounds.map(|bounds| bounds.as_chunks::<GROUP>());
    let (groups, rest) = x.as_chunks_mut::<GROUP>();
    for ((group, low), high) in groups.iter_mut().zip(low).zip(high) {
        let mut clamped = [T::default(); GROUP];
        let mut differs = D::default();
        for i in 0..GROUP {
            clamped[i] = clamp(group[i], low[i], high[i]);
            differs = differs | difference(group[i], clamped[i]);
        }
        if differs != D::default() {
            *group = clamped;
        }
        changed = changed | differs;
    }
    for ((v, low), high) in rest.iter_mut().zip(rest_low).zip(rest_high) {
        let clamped = clamp(*v, *low, *high);
        let differs = difference(*v, clamped);
        if differs != D::default() {
            *v = clamped;
        }
        changed = changed | differs;
    }
    changed != D::default()
}

/// As [`clamp_groups`], with the same bounds for all elements: they are in `clamp`.
#[inline(always)]
pub(super) fn clamp_groups_to_same_bounds<T, D>(
    x: &mut [T],
    clamp: impl Fn(T) -> T,
    difference: impl Fn(T, T) -> D,
) -> bool
where
    T: Copy + Default,
    D: Copy + Default + PartialEq + BitOr<Output = D>,
{
    let bounds = [T::default(); GROUP];
    x.chunks_mut(GROUP).fold(false, |changed, group| {
        let bounds = &bounds[..group.len()];
        clamp_groups(group, [bounds, bounds], |v, _, _| clamp(v), &difference) | changed
    })
}
