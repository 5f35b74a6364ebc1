//! Memory for results: pages that were paid for once are used again.
//!
//! The first touch of a fresh page costs more than the arithmetic on it. So a large block is a
//! mapping of its own, backed by huge pages where the system has them; when it is dropped it goes to
//! a bounded cache, marked so that the system may take the pages back under memory pressure. Small
//! blocks come from the ordinary allocator, and so does everything on systems without these calls.

use crate::engine::process::PerProcess;
use std::alloc::Layout;
use std::collections::{HashMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// From this size on a block is a mapping of its own.
pub const MAPPED_BYTES: usize = 64 << 10;
/// The alignment of every block: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

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
            && let Some(block) = lock().take(size)
        {
            return Some(block);
        }
        let pointer = system::allocate(size).or_else(|| {
            // What the cache keeps may be all that is missing.
            (free_cached() > 0).then(|| system::allocate(size)).flatten()
        })?;
        Some(Self { pointer, size })
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
            let refused = lock().put(returned);
            refused.into_iter().for_each(Block::release);
            free_beyond(limit());
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
    let unit = if bytes >= MAPPED_BYTES { system::page_bytes() } else { ALIGNMENT };
    bytes.max(1).checked_next_multiple_of(unit)
}

/// Blocks that nobody uses at the moment: for each size, from the oldest to the youngest.
#[derive(Default)]
struct Cache {
    by_size: HashMap<usize, VecDeque<(u64, Block)>>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    /// The block of that size that was put back last: its pages are the likeliest to be there still.
    fn take(&mut self, size: usize) -> Option<Block> {
        let (_, block) = self.by_size.get_mut(&size)?.pop_back()?;
        self.bytes -= size;
        Some(block)
    }

    /// Keeps a block, or gives it back if there is no memory to keep account of it.
    fn put(&mut self, block: Block) -> Option<Block> {
        if self.by_size.try_reserve(1).is_err() {
            return Some(block);
        }
        let same_size = self.by_size.entry(block.size).or_default();
        if same_size.try_reserve(1).is_err() {
            return Some(block);
        }
        system::offer(block.pointer, block.size);
        self.clock += 1;
        self.bytes += block.size;
        same_size.push_back((self.clock, block));
        None
    }

    /// Removes the oldest block, if the cache holds more than `limit` bytes.
    fn evict(&mut self, limit: usize) -> Option<Block> {
        if self.bytes <= limit {
            return None;
        }
        let age = |blocks: &VecDeque<(u64, Block)>| blocks.front().map(|(age, _)| *age);
        let oldest = self.by_size.iter().filter_map(|(size, blocks)| Some((age(blocks)?, *size)));
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

fn lock() -> MutexGuard<'static, Cache> {
    static CACHE: PerProcess<Mutex<Cache>> = PerProcess::new();
    CACHE.get(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the oldest blocks of the cache until it holds at most so many bytes. Returns how many bytes that were.
fn free_beyond(limit: usize) -> usize {
    let mut freed = 0;
    loop {
        // The lock is not held while the system takes the pages back.
        let evicted = lock().evict(limit);
        let Some(block) = evicted else { return freed };
        freed += block.size;
        block.release();
    }
}

/// Gives everything in the cache back to the system. Returns how many bytes that were.
pub fn free_cached() -> usize {
    free_beyond(0)
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

    /// The size of a page, a power of two: 4 KiB on most machines, up to 64 KiB on some with Arm processors.
    pub fn page_bytes() -> usize {
        static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *PAGE.get_or_init(|| {
            // SAFETY: the call has no preconditions.
            let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
            usize::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(64 << 10)
        })
    }

    pub fn total_memory() -> Option<usize> {
        // SAFETY: the call has no preconditions.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        usize::try_from(pages).ok()?.checked_mul(page_bytes())
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod system {
    use super::NonNull;

    pub use super::{from_allocator as allocate, to_allocator as free};

    pub fn offer(_pointer: NonNull<u8>, _size: usize) {}

    /// Sizes of blocks are multiples of this where the system's pages do not matter.
    pub fn page_bytes() -> usize {
        4096
    }

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
            assert!(cache.put(block).is_none());
        }
        assert!(cache.take(MAPPED_BYTES + system::page_bytes()).is_none());
        let youngest = cache.take(MAPPED_BYTES).unwrap();
        assert_eq!(youngest.pointer(), addresses[1]);
        assert_eq!(cache.evict(2 * MAPPED_BYTES).unwrap().pointer(), addresses[0]);
        assert!(cache.evict(2 * MAPPED_BYTES).is_none());
        assert_eq!(cache.bytes, 2 * MAPPED_BYTES);
        assert_eq!(cache.take(2 * MAPPED_BYTES).unwrap().pointer(), addresses[2]);
        assert!(cache.take(MAPPED_BYTES).is_none());
    }
}
