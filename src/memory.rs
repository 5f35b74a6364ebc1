//! Memory for results: pages that were paid for once are used again.
//!
//! The first touch of a fresh page costs more than the arithmetic on it. So a large block is a
//! mapping of its own, backed by huge pages where the system has them; when it is dropped it goes to
//! a bounded cache, marked so that the system may take the pages back under memory pressure. Small
//! blocks come from the ordinary allocator, and so does everything on systems without these calls.

use crate::pool::PerProcess;
use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// From this size on a block is a mapping of its own.
pub const MAPPED_BYTES: usize = 64 << 10;
/// The alignment of every block: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

const PAGE: usize = 4096;
#[cfg(all(target_os = "linux", not(miri)))]
const HUGE_PAGE: usize = 2 << 20;
/// Cached blocks of this size and more are offered back to the system.
#[cfg(all(target_os = "linux", not(miri)))]
const OFFER_BYTES: usize = 1 << 20;
/// What the cache holds at most: this, or an eighth of the machine's memory if that is less.
const CACHE_BYTES: usize = 1 << 30;

/// Memory that is its owner's alone: zeros, or what the last owner left in it. Goes back to the cache when
/// dropped.
#[derive(Debug)]
pub struct Block {
    pointer: NonNull<u8>,
    size: usize,
}

// SAFETY: a block owns its memory.
unsafe impl Send for Block {}
// SAFETY: nothing is reached through a shared reference but the address.
unsafe impl Sync for Block {}

impl Block {
    /// At least `bytes` of memory, aligned to [`ALIGNMENT`]; `None` if there is no more.
    #[must_use]
    pub fn new(bytes: usize) -> Option<Self> {
        let size = rounded(bytes)?;
        if size >= MAPPED_BYTES
            && let Some(block) = cache().lock().unwrap_or_else(PoisonError::into_inner).take(size)
        {
            return Some(block);
        }
        Some(Self { pointer: system::allocate(size)?, size })
    }

    /// Where it starts.
    #[must_use]
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.size >= MAPPED_BYTES {
            let returned = Self { pointer: self.pointer, size: self.size };
            let evicted = cache().lock().unwrap_or_else(PoisonError::into_inner).put(returned);
            for block in evicted {
                block.release();
            }
        } else {
            // SAFETY: allocated by `system::allocate` with this size; the owner is gone.
            unsafe { system::free(self.pointer, self.size) };
        }
    }
}

impl Block {
    /// Gives the memory back to the system.
    fn release(self) {
        // SAFETY: allocated by `system::allocate` with this size; the owner is gone.
        unsafe { system::free(self.pointer, self.size) };
        std::mem::forget(self);
    }
}

/// Sizes that a block may have: whole pages for a mapping, whole cache lines for the rest.
fn rounded(bytes: usize) -> Option<usize> {
    let unit = if bytes >= MAPPED_BYTES { PAGE } else { ALIGNMENT };
    bytes.max(1).checked_next_multiple_of(unit)
}

/// Blocks that nobody uses at the moment, by size and by age.
#[derive(Default)]
struct Cache {
    by_age: BTreeMap<u64, Block>,
    by_size: HashMap<usize, VecDeque<u64>>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    /// The block of that size that was put back last: its pages are the likeliest to be there still.
    fn take(&mut self, size: usize) -> Option<Block> {
        let age = self.by_size.get_mut(&size)?.pop_back()?;
        self.bytes -= size;
        self.by_age.remove(&age)
    }

    /// Keeps a block. Returns the oldest ones, if the cache has become too large.
    fn put(&mut self, block: Block) -> Vec<Block> {
        system::offer(block.pointer, block.size);
        self.clock += 1;
        self.bytes += block.size;
        self.by_size.entry(block.size).or_default().push_back(self.clock);
        self.by_age.insert(self.clock, block);
        self.shrink(limit())
    }

    fn shrink(&mut self, limit: usize) -> Vec<Block> {
        let mut evicted = Vec::new();
        while self.bytes > limit
            && let Some((_, block)) = self.by_age.pop_first()
        {
            self.bytes -= block.size;
            if let Some(ages) = self.by_size.get_mut(&block.size) {
                ages.pop_front();
                if ages.is_empty() {
                    self.by_size.remove(&block.size);
                }
            }
            evicted.push(block);
        }
        evicted
    }
}

fn cache() -> &'static Mutex<Cache> {
    static CACHE: PerProcess<Mutex<Cache>> = PerProcess::new();
    CACHE.get(Mutex::default)
}

/// Gives everything in the cache back to the system. Returns how many bytes that were.
pub fn free_cached() -> usize {
    let evicted = cache().lock().unwrap_or_else(PoisonError::into_inner).shrink(0);
    evicted
        .into_iter()
        .map(|block| {
            let size = block.size;
            block.release();
            size
        })
        .sum()
}

/// How many bytes the cache may hold.
fn limit() -> usize {
    static LIMIT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *LIMIT.get_or_init(|| system::total_memory().map_or(CACHE_BYTES, |all| CACHE_BYTES.min(all / 8)))
}

fn from_allocator(size: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(size, ALIGNMENT).ok()?;
    // SAFETY: the size is not 0: `rounded` sees to it.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

/// # Safety
///
/// As `system::free`, for a block of [`from_allocator`].
unsafe fn to_allocator(pointer: NonNull<u8>, size: usize) {
    if let Ok(layout) = Layout::from_size_align(size, ALIGNMENT) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(pointer.as_ptr(), layout) };
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use super::{HUGE_PAGE, MAPPED_BYTES, NonNull, OFFER_BYTES};

    pub fn allocate(size: usize) -> Option<NonNull<u8>> {
        if size < MAPPED_BYTES {
            return super::from_allocator(size);
        }
        // Huge pages start at multiples of their size: reserve one more and cut the ends off.
        let spare = if size >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let reserved = size.checked_add(spare)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the ends that are
        // unmapped are inside it and whole pages, and nobody uses them.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return None;
            }
            let start = start.cast::<u8>();
            if spare == 0 {
                return NonNull::new(start);
            }
            let head = start.align_offset(HUGE_PAGE).min(spare);
            let pointer = start.add(head);
            if head > 0 {
                libc::munmap(start.cast(), head);
            }
            if spare > head {
                libc::munmap(pointer.add(size).cast(), spare - head);
            }
            libc::madvise(pointer.cast(), size, libc::MADV_HUGEPAGE);
            NonNull::new(pointer)
        }
    }

    /// # Safety
    ///
    /// The memory must come from [`allocate`] with this size, and nobody may use it afterwards.
    pub unsafe fn free(pointer: NonNull<u8>, size: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            if size < MAPPED_BYTES {
                super::to_allocator(pointer, size);
            } else {
                libc::munmap(pointer.as_ptr().cast(), size);
            }
        }
    }

    /// Tells the system that it may take the pages if it needs them.
    pub fn offer(pointer: NonNull<u8>, size: usize) {
        if size >= OFFER_BYTES {
            // SAFETY: a mapping of ours whose contents nobody needs.
            unsafe { libc::madvise(pointer.as_ptr().cast(), size, libc::MADV_FREE) };
        }
    }

    pub fn total_memory() -> Option<usize> {
        // SAFETY: these calls have no preconditions.
        let (pages, size) =
            unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        usize::try_from(pages).ok()?.checked_mul(usize::try_from(size).ok()?)
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use super::NonNull;

    pub use super::{from_allocator as allocate, to_allocator as free};

    pub fn offer(_pointer: NonNull<u8>, _size: usize) {}

    pub fn total_memory() -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(block: &Block, value: u8) {
        // SAFETY: the block is ours and that long.
        unsafe { block.pointer().write_bytes(value, block.size()) };
    }

    #[test]
    fn blocks_of_every_size_are_aligned_apart_and_writable() {
        let sizes = [0, 1, 63, 64, 4097, MAPPED_BYTES - 1, MAPPED_BYTES, 3 << 20, (5 << 20) + 12345];
        let blocks: Vec<Block> = sizes.iter().map(|size| Block::new(*size).unwrap()).collect();
        for (i, block) in blocks.iter().enumerate() {
            assert_eq!(block.pointer().addr() % ALIGNMENT, 0);
            assert!(block.size() >= sizes[i]);
            fill(block, i as u8);
        }
        for (i, block) in blocks.iter().enumerate() {
            // SAFETY: initialised above.
            let bytes = unsafe { std::slice::from_raw_parts(block.pointer(), block.size()) };
            assert!(bytes.iter().all(|b| *b == i as u8));
        }
        assert!(Block::new(usize::MAX).is_none());
        assert!(Block::new(usize::MAX / 2).is_none());
    }

    fn block(size: usize) -> Block {
        Block { pointer: system::allocate(size).unwrap(), size }
    }

    #[test]
    fn the_cache_gives_back_the_youngest_of_a_size_and_evicts_the_oldest() {
        let mut cache = Cache::default();
        let blocks = [block(MAPPED_BYTES), block(MAPPED_BYTES), block(2 * MAPPED_BYTES)];
        let addresses = blocks.each_ref().map(Block::pointer);
        for block in blocks {
            assert!(cache.put(block).is_empty());
        }
        assert!(cache.take(MAPPED_BYTES + PAGE).is_none());
        let youngest = cache.take(MAPPED_BYTES).unwrap();
        assert_eq!(youngest.pointer(), addresses[1]);
        let evicted = cache.shrink(2 * MAPPED_BYTES);
        assert_eq!(evicted.iter().map(Block::pointer).collect::<Vec<_>>(), [addresses[0]]);
        assert_eq!(cache.bytes, 2 * MAPPED_BYTES);
        assert_eq!(cache.take(2 * MAPPED_BYTES).unwrap().pointer(), addresses[2]);
        assert!(cache.take(MAPPED_BYTES).is_none());
    }
}
