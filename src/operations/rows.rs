//! Rows of a larger tensor, given by their indices: their order, and the sums of those that occur more than once.

use crate::allocation::{OutOfMemory, filled, with_capacity};
use crate::engine::exec::{self, Direction};
use crate::engine::plan::{CHUNK, Plan};
use crate::engine::segment::{INPUT, Segment};
use crate::engine::workspace::{Context, Workspace};
use crate::kernels::row_sum::{Groups, sum_rows};
use crate::with_float;

/// Bits of a digit of the radix sort: its counters stay in the first-level cache.
const DIGIT_BITS: u32 = 11;
/// Below this many rows a comparison sort is faster than clearing and adding up the counters of a digit.
const RADIX_ROWS: usize = 1024;

/// The order of rows by their indices.
pub struct RowOrder {
    /// Positions of the rows, sorted by index; rows of the same index in the order in which they occur.
    order: Vec<usize>,
    /// Where each index starts in `order`, and the number of rows.
    starts: Vec<usize>,
    /// Each index once, in ascending order.
    indices: Vec<i64>,
}

impl RowOrder {
    /// Sorts rows by their indices.
    pub fn new(indices: &[i64]) -> Result<Self, OutOfMemory> {
        let least = indices.iter().min().copied().unwrap_or(0);
        let mut entries: Vec<(u64, usize)> = with_capacity(indices.len())?;
        // The difference of two int64 is a uint64.
        let key = |index: i64| index.wrapping_sub(least).cast_unsigned();
        entries.extend(indices.iter().enumerate().map(|(position, index)| (key(*index), position)));
        let largest = entries.iter().map(|(key, _)| *key).max().unwrap_or(0);
        let digits = (u64::BITS - largest.leading_zeros()).div_ceil(DIGIT_BITS);
        if entries.len() < RADIX_ROWS || digits > 4 {
            entries.sort_unstable();
        } else {
            let mut other = filled((0, 0), entries.len())?;
            for digit in 0..digits {
                sort_by_digit(&entries, &mut other, digit * DIGIT_BITS);
                std::mem::swap(&mut entries, &mut other);
            }
        }
        let is_first = |at: usize| at == 0 || entries[at].0 != entries[at - 1].0;
        let count = (0..entries.len()).filter(|at| is_first(*at)).count();
        let (mut starts, mut unique) = (with_capacity(count + 1)?, with_capacity(count)?);
        for at in (0..entries.len()).filter(|at| is_first(*at)) {
            starts.push(at);
            unique.push(least.wrapping_add(entries[at].0.cast_signed()));
        }
        starts.push(entries.len());
        let mut order = with_capacity(entries.len())?;
        order.extend(entries.iter().map(|(_, position)| *position));
        Ok(Self { order, starts, indices: unique })
    }

    /// Each index once, in ascending order.
    #[must_use]
    pub fn indices(&self) -> &[i64] {
        &self.indices
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.order.len()
    }

    /// Sums the rows of each index. `rows` has the rows, and `sums`, whose only operand is written, one for each index.
    ///
    /// # Panics
    ///
    /// If the operands are not contiguous, or of other sizes or types.
    pub fn sum(
        &self,
        context: Context,
        rows: &Segment<1>,
        sums: &mut [Segment<1>; 1],
    ) -> Result<(), OutOfMemory> {
        if self.order.is_empty() || rows.is_empty() {
            return Ok(());
        }
        let width = rows.len() / self.order.len();
        assert!(rows.len() == width * self.order.len() && sums[0].len() == width * self.indices.len());
        let rows_per_chunk = (CHUNK / width).max(1);
        let size = rows.scalar().size();
        let plan = Plan::cut(std::iter::once((sums[0].len(), size)), rows_per_chunk * width)?;
        let workspace = Workspace::with_scratch(context, rows.len() * size, 0)?;
        exec::for_each(&workspace, sums, &plan, Direction::Forwards, |_, (), mut chunk, _| {
            let range = chunk.range();
            let starts = &self.starts[range.start / width..=range.end / width];
            let groups = Groups { order: &self.order, starts };
            with_float!(
                rows.scalar(),
                T => {
                    let from = rows.run::<T>(INPUT, 0..rows.len());
                    sum_rows(context.level, from, chunk.run_mut::<T>(INPUT, range), width, groups);
                },
                else unreachable!("the bindings reject integers")
            );
        });
        Ok(())
    }
}

/// Copies entries to `to`, sorted by the bits of the key from `shift` on; entries with the same bits in their order.
fn sort_by_digit(from: &[(u64, usize)], to: &mut [(u64, usize)], shift: u32) {
    let digit = |key: u64| (key >> shift) as usize & ((1 << DIGIT_BITS) - 1);
    let mut next = [0_usize; 1 << DIGIT_BITS];
    for (key, _) in from {
        next[digit(*key)] += 1;
    }
    let mut sum = 0;
    for count in &mut next {
        (*count, sum) = (sum, sum + *count);
    }
    for entry in from {
        let next = &mut next[digit(entry.0)];
        to[*next] = *entry;
        *next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(indices: &[i64]) {
        let order = RowOrder::new(indices).unwrap();
        let mut want: Vec<(i64, usize)> = indices.iter().enumerate().map(|(i, index)| (*index, i)).collect();
        want.sort_unstable();
        assert_eq!(order.order, want.iter().map(|(_, i)| *i).collect::<Vec<_>>());
        want.dedup_by_key(|(index, _)| *index);
        assert_eq!(order.indices, want.iter().map(|(index, _)| *index).collect::<Vec<_>>());
        for (index, ends) in order.indices.iter().zip(order.starts.windows(2)) {
            assert!(ends[0] < ends[1]);
            assert!(order.order[ends[0]..ends[1]].iter().all(|i| indices[*i] == *index));
        }
    }

    #[test]
    fn rows_are_sorted_by_index_and_position() {
        for modulus in [1, 7, 3000, 1 << 24, i64::MAX] {
            for count in [0_i64, 1, 10, RADIX_ROWS as i64, 5000] {
                let next = |i: i64| i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12345) % modulus;
                check(&(0..count).map(next).collect::<Vec<_>>());
                check(&(0..count).map(|i| next(i).wrapping_abs()).collect::<Vec<_>>());
            }
        }
        check(&[i64::MAX, i64::MIN, 0, i64::MIN, -1]);
    }
}
