//! Allocations that report failure. Every allocation whose size depends on the caller's arguments is made here.
//!
//! The standard collections abort the process when memory runs out. The functions below return [`OutOfMemory`]
//! instead, which becomes a `MemoryError` in Python. They are called before the first write of an operation, so that
//! an operation that fails has written nothing.

/// An allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fastclip cannot allocate {bytes} bytes")]
pub struct OutOfMemory {
    /// Size of the allocation, in bytes.
    pub bytes: usize,
}

/// Reserves room for `additional` more items, so that pushing that many cannot fail.
#[inline]
pub fn reserve<T>(items: &mut Vec<T>, additional: usize) -> Result<(), OutOfMemory> {
    if items.capacity() - items.len() >= additional {
        return Ok(());
    }
    let bytes = items.len().saturating_add(additional).saturating_mul(size_of::<T>());
    items.try_reserve(additional).map_err(|_| OutOfMemory { bytes })
}

/// Returns an empty vector with room for `capacity` items.
pub fn with_capacity<T>(capacity: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut items = Vec::new();
    match items.try_reserve_exact(capacity) {
        Ok(()) => Ok(items),
        Err(_) => Err(OutOfMemory { bytes: capacity.saturating_mul(size_of::<T>()) }),
    }
}

/// Collects the items of an iterator of known length.
pub fn collect<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, OutOfMemory> {
    let mut collected = with_capacity(items.len())?;
    collected.extend(items);
    Ok(collected)
}

/// Collects the items of an iterator up to its first error, which is returned. Room for `expected` items is reserved at
/// once, and more when it is needed.
pub fn try_collect<T, E: From<OutOfMemory>>(
    expected: usize,
    items: impl Iterator<Item = Result<T, E>>,
) -> Result<Vec<T>, E> {
    let mut collected = with_capacity(expected)?;
    for item in items {
        reserve(&mut collected, 1)?;
        collected.push(item?);
    }
    Ok(collected)
}

/// Returns a vector of `count` copies of a value.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut values = with_capacity(count)?;
    values.resize(count, value);
    Ok(values)
}

/// Copies a slice.
pub fn copied<T: Copy>(items: &[T]) -> Result<Box<[T]>, OutOfMemory> {
    let mut copy = with_capacity(items.len())?;
    copy.extend_from_slice(items);
    // Capacity and length are equal: this does not reallocate.
    Ok(copy.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_memory_return_an_error() {
        assert_eq!(with_capacity::<u64>(usize::MAX), Err(OutOfMemory { bytes: usize::MAX }));
        let count = isize::MAX as usize / 8;
        assert_eq!(filled(0_u64, count), Err(OutOfMemory { bytes: count * 8 }));
        let mut items = vec![1_u8];
        assert!(reserve(&mut items, usize::MAX).is_err());
        assert_eq!(items, [1]);
    }

    #[test]
    fn results_equal_those_of_the_standard_collections() {
        assert_eq!(collect([1, 2, 3].into_iter()), Ok(vec![1, 2, 3]));
        assert_eq!(filled(7, 3), Ok(vec![7; 3]));
        assert_eq!(copied(&[1, 2]).as_deref(), Ok(&[1, 2][..]));
        let collected: Result<Vec<i32>, OutOfMemory> = try_collect(0, [Ok(1), Ok(2)].into_iter());
        assert_eq!(collected, Ok(vec![1, 2]));
    }
}
