//! Clamping that writes only what changes.

use std::ops::BitOr;

/// Elements that are written together: a few registers.
const GROUP: usize = 64;

/// Writes the groups of `x` that `one` changes, which is given an element and its bounds. `difference` is 0 for the same
/// bits. The slices have the same length.
#[inline(always)]
pub(super) fn change_groups<T, D>(
    x: &mut [T],
    bounds: [&[T]; 2],
    one: impl Fn(T, T, T) -> T,
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
            clamped[i] = one(group[i], low[i], high[i]);
            differs = differs | difference(group[i], clamped[i]);
        }
        if differs != D::default() {
            *group = clamped;
        }
        changed = changed | differs;
    }
    for ((v, low), high) in rest.iter_mut().zip(rest_low).zip(rest_high) {
        let clamped = one(*v, *low, *high);
        let differs = difference(*v, clamped);
        if differs != D::default() {
            *v = clamped;
        }
        changed = changed | differs;
    }
    changed != D::default()
}

/// As [`change_groups`], where all elements have the same bounds.
#[inline(always)]
pub(super) fn change_groups_alike<T, D>(
    x: &mut [T],
    one: impl Fn(T) -> T,
    difference: impl Fn(T, T) -> D,
) -> bool
where
    T: Copy + Default,
    D: Copy + Default + PartialEq + BitOr<Output = D>,
{
    let bounds = [T::default(); GROUP];
    x.chunks_mut(GROUP).fold(false, |changed, group| {
        let bounds = &bounds[..group.len()];
        change_groups(group, [bounds, bounds], |v, _, _| one(v), &difference) | changed
    })
}
