//! Allocations that report failure: every size that depends on what the caller passed goes through here.
//!
//! The standard collections abort the process when memory runs out. The functions below return [`OutOfMemory`]
//! instead, which becomes a `MemoryError` in Python. They are called before the first write of an operation, so that
//! an operation that fails has written nothing.

/// An allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fastclip cannot allocate {bytes} bytes")]
pub struct OutOfMemory {
    /// The size of the allocation.
    pub bytes: usize,
}

/// Makes room for `additional` more items, so that pushing that many cannot fail.
#[inline]
pub fn reserve<T>(items: &mut Vec<T>, additional: usize) -> Result<(), OutOfMemory> {
    if items.capacity() - items.len() >= additional {
        return Ok(());
    }
    let bytes = items.len().saturating_add(additional).saturating_mul(size_of::<T>());
    items.try_reserve(additional).map_err(|_| OutOfMemory { bytes })
}

/// An empty vector with room for `capacity` items.
pub fn with_capacity<T>(capacity: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut items = Vec::new();
    match items.try_reserve_exact(capacity) {
        Ok(()) => Ok(items),
        Err(_) => Err(OutOfMemory { bytes: capacity.saturating_mul(size_of::<T>()) }),
    }
}

/// The items of an iterator whose length is known.
pub fn collect<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, OutOfMemory> {
    let mut found = with_capacity(items.len())?;
    found.extend(items);
    Ok(found)
}

/// The items of an iterator of at most `most` items, or its first error.
pub fn try_collect<T, E: From<OutOfMemory>>(
    most: usize,
    items: impl Iterator<Item = Result<T, E>>,
) -> Result<Vec<T>, E> {
    let mut found = with_capacity(most)?;
    for item in items {
        reserve(&mut found, 1)?;
        found.push(item?);
    }
    Ok(found)
}

/// `count` times the same value.
pub fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut found = with_capacity(count)?;
    found.resize(count, value);
    Ok(found)
}

/// A copy of a slice.
pub fn copied<T: Copy>(items: &[T]) -> Result<Box<[T]>, OutOfMemory> {
    let mut found = with_capacity(items.len())?;
    found.extend_from_slice(items);
    // The capacity is the length: nothing is allocated again.
    Ok(found.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_memory_are_an_error_and_no_abort() {
        assert_eq!(with_capacity::<u64>(usize::MAX), Err(OutOfMemory { bytes: usize::MAX }));
        let most = isize::MAX as usize / 8;
        assert_eq!(filled(0_u64, most), Err(OutOfMemory { bytes: most * 8 }));
        let mut items = vec![1_u8];
        assert!(reserve(&mut items, usize::MAX).is_err());
        assert_eq!(items, [1]);
    }

    #[test]
    fn what_fits_is_what_the_standard_collections_make() {
        assert_eq!(collect([1, 2, 3].into_iter()), Ok(vec![1, 2, 3]));
        assert_eq!(filled(7, 3), Ok(vec![7; 3]));
        assert_eq!(copied(&[1, 2]).as_deref(), Ok(&[1, 2][..]));
        let found: Result<Vec<i32>, OutOfMemory> = try_collect(0, [Ok(1), Ok(2)].into_iter());
        assert_eq!(found, Ok(vec![1, 2]));
    }
}
