//! Allocator for results, with a cache that reuses pages.
//!
//! The first access to a new page costs more than the arithmetic on it. So each large block is a memory mapping of its
//! own, backed by huge pages where the system has them. When a block is dropped it is stored in a bounded cache. All but
//! the last blocks in the cache are marked so that the system may reclaim their pages under memory pressure. Small blocks come from the global allocator,
//! and so do all blocks on systems other than Linux.

use crate::engine::process::PerProcess;
use std::alloc::Layout;
use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Size in bytes from which a block is a mapping of its own.
pub const MAPPED_BYTES: usize = 64 << 10;
/// Alignment of every block in bytes: that of a cache line and of the widest SIMD vector.
pub const ALIGNMENT: usize = 64;

/// Size of a huge page in bytes.
#[cfg(all(target_os = "linux", not(miri)))]
const HUGE_PAGE: usize = 2 << 20;
/// Size in bytes from which the system may reclaim the pages of a cached block.
const RECLAIM_BYTES: usize = 1 << 20;
/// Most bytes of such blocks whose pages the system may not reclaim: those that were cached last, which the next call
/// is likely to take. Marking a block, and writing to its pages again, takes longer than filling 4 MiB of it.
const KEPT_BYTES: usize = 64 << 20;
/// Most bytes that the cache holds, unless an eighth of the machine's memory is less.
const CACHE_BYTES: usize = 1 << 30;

/// An owned block of memory. It holds zeros, or what its last owner wrote if it comes from the cache. Dropping it
/// returns it to the cache.
#[derive(Debug)]
pub struct Block {
    pointer: NonNull<u8>,
    size: usize,
}

// SAFETY: a block owns its memory.
unsafe impl Send for Block {}
// SAFETY: a shared reference gives access to the address and the size only.
unsafe impl Sync for Block {}

impl Block {
    /// Allocates at least `bytes` bytes, aligned to [`ALIGNMENT`]. Returns None if memory runs out.
    #[must_use]
    pub fn new(bytes: usize) -> Option<Self> {
        let size = rounded_size(bytes)?;
        if size >= MAPPED_BYTES
            && let Some(block) = cache().take(size)
        {
            return Some(block);
        }
        let pointer = system::allocate(size).or_else(|| {
            // Freeing the cache may make enough room.
            (free_cached() > 0).then(|| system::allocate(size)).flatten()
        })?;
        Some(Self { pointer, size })
    }

    /// Address of the first byte.
    #[must_use]
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.size >= MAPPED_BYTES {
            let block = Self { pointer: self.pointer, size: self.size };
            let rejected = cache().insert(block);
            rejected.into_iter().for_each(Block::free);
            evict_beyond(cache_limit());
        } else {
            // SAFETY: allocated by `system::allocate` with this size, and dropped by its only owner.
            unsafe { system::free(self.pointer, self.size) };
        }
    }
}

impl Block {
    /// Returns the memory to the system, not to the cache.
    fn free(self) {
        // SAFETY: allocated by `system::allocate` with this size, and consumed by its only owner.
        unsafe { system::free(self.pointer, self.size) };
        std::mem::forget(self);
    }
}

/// Rounds a size up to whole pages for a mapping, and to whole cache lines for smaller blocks.
fn rounded_size(bytes: usize) -> Option<usize> {
    let unit = if bytes >= MAPPED_BYTES { system::page_bytes() } else { ALIGNMENT };
    bytes.max(1).checked_next_multiple_of(unit)
}

/// Blocks that are free to be reused.
#[derive(Default)]
struct Cache {
    /// Blocks of each size with the time of their insertion, the oldest first.
    by_size: HashMap<usize, VecDeque<(u64, Block)>>,
    /// Total size of all blocks in bytes.
    bytes: usize,
    /// Number of insertions so far, which serves as the time.
    clock: u64,
    /// Time and size of the blocks that were inserted last and are not marked; they may have been taken since.
    kept: VecDeque<(u64, usize)>,
    /// Total size of these blocks in bytes.
    kept_bytes: usize,
}

impl Cache {
    /// Removes and returns the newest block of exactly this size: the system is the least likely to have reclaimed its
    /// pages.
    fn take(&mut self, size: usize) -> Option<Block> {
        let (_, block) = self.by_size.get_mut(&size)?.pop_back()?;
        self.bytes -= size;
        Some(block)
    }

    /// Inserts a block. Returns it if there is no memory for its entry.
    fn insert(&mut self, block: Block) -> Option<Block> {
        if self.by_size.try_reserve(1).is_err() {
            return Some(block);
        }
        let same_size = self.by_size.entry(block.size).or_default();
        if same_size.try_reserve(1).is_err() {
            return Some(block);
        }
        let size = block.size;
        self.clock += 1;
        self.bytes += size;
        same_size.push_back((self.clock, block));
        if size >= RECLAIM_BYTES {
            self.keep(self.clock, size);
        }
        None
    }

    /// Notes a block that is not marked, and marks the oldest such blocks beyond [`KEPT_BYTES`].
    fn keep(&mut self, time: u64, size: usize) {
        if self.kept.try_reserve(1).is_err() {
            self.mark(time, size);
            return;
        }
        self.kept.push_back((time, size));
        self.kept_bytes += size;
        while self.kept_bytes > KEPT_BYTES
            && let Some((time, size)) = self.kept.pop_front()
        {
            self.kept_bytes -= size;
            self.mark(time, size);
        }
    }

    /// Lets the system reclaim the pages of the block that was inserted at a time, if it has not been taken.
    fn mark(&self, time: u64, size: usize) {
        if let Some(blocks) = self.by_size.get(&size)
            && let Ok(index) = blocks.binary_search_by_key(&time, |(time, _)| *time)
        {
            let (_, block) = &blocks[index];
            system::allow_reclaim(block.pointer, block.size);
        }
    }

    /// Removes and returns the oldest block if the cache holds more than `limit` bytes.
    fn evict(&mut self, limit: usize) -> Option<Block> {
        if self.bytes <= limit {
            return None;
        }
        let time = |blocks: &VecDeque<(u64, Block)>| blocks.front().map(|(time, _)| *time);
        let oldest = self.by_size.iter().filter_map(|(size, blocks)| Some((time(blocks)?, *size)));
        let (_, size) = oldest.min()?;
        let blocks = self.by_size.get_mut(&size)?;
        let (_, block) = blocks.pop_front()?;
        if blocks.is_empty() {
            self.by_size.remove(&size);
        }
        self.bytes -= size;
        Some(block)
    }
}

/// Locks the cache of this process.
fn cache() -> MutexGuard<'static, Cache> {
    static CACHE: PerProcess<Mutex<Cache>> = PerProcess::new();
    CACHE.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the oldest blocks of the cache until it holds at most `limit` bytes. Returns the number of bytes freed.
fn evict_beyond(limit: usize) -> usize {
    let mut freed = 0;
    loop {
        // The lock is not held while the system unmaps the pages.
        let evicted = cache().evict(limit);
        let Some(block) = evicted else { return freed };
        freed += block.size;
        block.free();
    }
}

/// Frees all blocks of the cache. Returns the number of bytes freed.
pub fn free_cached() -> usize {
    evict_beyond(0)
}

/// Returns the most bytes that the cache may hold.
fn cache_limit() -> usize {
    static LIMIT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *LIMIT.get_or_init(|| system::total_memory().map_or(CACHE_BYTES, |total| CACHE_BYTES.min(total / 8)))
}

/// Allocates zeroed memory with the global allocator. Returns None if memory runs out.
fn allocate_on_heap(size: usize) -> Option<NonNull<u8>> {
    let layout = Layout::from_size_align(size, ALIGNMENT).ok()?;
    // SAFETY: the size is not 0, because `rounded_size` returns at least one cache line.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
}

/// Frees memory allocated by [`allocate_on_heap`].
///
/// # Safety
///
/// The memory must come from [`allocate_on_heap`] with this size, and must not be used afterwards.
unsafe fn free_on_heap(pointer: NonNull<u8>, size: usize) {
    if let Ok(layout) = Layout::from_size_align(size, ALIGNMENT) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(pointer.as_ptr(), layout) };
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use super::{HUGE_PAGE, MAPPED_BYTES, NonNull};

    /// Allocates zeroed memory: a mapping from [`MAPPED_BYTES`] on. Returns None if memory runs out.
    pub fn allocate(size: usize) -> Option<NonNull<u8>> {
        if size < MAPPED_BYTES {
            return super::allocate_on_heap(size);
        }
        // Huge pages start at multiples of their size: one more is reserved, and the ends are unmapped.
        let spare = if size >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let reserved = size.checked_add(spare)?;
        // SAFETY: an anonymous mapping at an address that the kernel chooses; the ends that are unmapped lie inside
        // it, are whole pages, and have not been used.
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

    /// Frees memory allocated by [`allocate`].
    ///
    /// # Safety
    ///
    /// The memory must come from [`allocate`] with this size, and must not be used afterwards.
    pub unsafe fn free(pointer: NonNull<u8>, size: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            if size < MAPPED_BYTES {
                super::free_on_heap(pointer, size);
            } else {
                libc::munmap(pointer.as_ptr().cast(), size);
            }
        }
    }

    /// Lets the system reclaim the pages of an unused block if it needs memory.
    pub fn allow_reclaim(pointer: NonNull<u8>, size: usize) {
        // SAFETY: a mapping made by `allocate`, whose contents are not needed any more.
        unsafe { libc::madvise(pointer.as_ptr().cast(), size, libc::MADV_FREE) };
    }

    /// Returns the size of a page in bytes, a power of two: 4 KiB on most machines, up to 64 KiB on some with Arm
    /// processors.
    pub fn page_bytes() -> usize {
        static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *PAGE.get_or_init(|| {
            // SAFETY: the call has no preconditions.
            let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(64 << 10)
        })
    }

    /// Returns the size of the machine's memory in bytes; None if it is unknown.
    pub fn total_memory() -> Option<usize> {
        // SAFETY: the call has no preconditions.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        usize::try_from(pages).ok()?.checked_mul(page_bytes())
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use super::NonNull;

    pub use super::{allocate_on_heap as allocate, free_on_heap as free};

    /// Does nothing: the memory belongs to the global allocator.
    pub fn allow_reclaim(_pointer: NonNull<u8>, _size: usize) {}

    /// Returns the number of bytes of which sizes of large blocks are multiples. The system's pages do not matter here.
    pub fn page_bytes() -> usize {
        4096
    }

    /// Returns None: the size of the machine's memory is unknown.
    pub fn total_memory() -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(block: &Block, value: u8) {
        // SAFETY: the test owns the block, which has this size.
        unsafe { block.pointer().write_bytes(value, block.size()) };
    }

    #[test]
    fn blocks_of_every_size_are_aligned_disjoint_and_writable() {
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

    /// Allocates a block without the cache.
    fn block(size: usize) -> Block {
        Block { pointer: system::allocate(size).unwrap(), size }
    }

    #[test]
    fn the_cache_returns_the_newest_block_of_a_size_and_evicts_the_oldest() {
        let mut cache = Cache::default();
        let blocks = [block(MAPPED_BYTES), block(MAPPED_BYTES), block(2 * MAPPED_BYTES)];
        let addresses = blocks.each_ref().map(Block::pointer);
        for block in blocks {
            assert!(cache.insert(block).is_none());
        }
        assert!(cache.take(MAPPED_BYTES + system::page_bytes()).is_none());
        let newest = cache.take(MAPPED_BYTES).unwrap();
        assert_eq!(newest.pointer(), addresses[1]);
        assert_eq!(cache.evict(2 * MAPPED_BYTES).unwrap().pointer(), addresses[0]);
        assert!(cache.evict(2 * MAPPED_BYTES).is_none());
        assert_eq!(cache.bytes, 2 * MAPPED_BYTES);
        assert_eq!(cache.take(2 * MAPPED_BYTES).unwrap().pointer(), addresses[2]);
        assert!(cache.take(MAPPED_BYTES).is_none());
    }

    #[test]
    fn only_the_last_blocks_are_kept_from_the_system() {
        let mut cache = Cache::default();
        let size = 8 << 20;
        for i in 1..=20 {
            assert!(cache.insert(block(size)).is_none());
            assert_eq!((cache.kept.len(), cache.kept_bytes), (i.min(8), i.min(8) * size));
            assert_eq!(cache.kept.back(), Some(&(i as u64, size)));
        }
        // A block that is larger than all that are kept is marked at once.
        assert!(cache.insert(block(KEPT_BYTES + size)).is_none());
        assert_eq!((cache.kept.len(), cache.kept_bytes), (0, 0));
        while cache.evict(0).is_some() {}
    }
}
