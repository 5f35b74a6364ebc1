/* A library that makes chosen allocations fail.
 *
 * Loaded before all other libraries (LD_PRELOAD), it replaces the C library's allocation functions, and
 * pthread_create, which allocates a stack. They work normally until a thread is armed: then its allocations are
 * counted, and the n-th, or all from the n-th on, fail as they do when memory is exhausted.
 *
 * call_armed calls a Python function with the calling thread armed only during the call, so that no allocation of
 * the test itself fails. It has to be called through ctypes.PyDLL.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

static void *(*next_malloc)(size_t);
static void *(*next_calloc)(size_t, size_t);
static void *(*next_realloc)(void *, size_t);
static void (*next_free)(void *);
static int (*next_posix_memalign)(void **, size_t, size_t);
static void *(*next_aligned_alloc)(size_t, size_t);
static void *(*next_memalign)(size_t, size_t);
static void *(*next_mmap)(void *, size_t, int, int, int, off_t);
static void *(*next_mmap64)(void *, size_t, int, int, int, off_t);
static int (*next_pthread_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

/* dlsym may allocate before it has found the functions above. It gets this memory, which is never freed. */
static _Alignas(64) char boot[1 << 16];
static size_t boot_used;

static __thread int this_thread;
static atomic_int every_thread;
static atomic_int persistent;
static atomic_long first;
static atomic_long counted;
static atomic_long failed;

static void *boot_memory(size_t alignment, size_t size)
{
    size_t start = (boot_used + alignment - 1) / alignment * alignment;
    if (size > sizeof boot || start > sizeof boot - size)
        return NULL;
    boot_used = start + (size ? size : 1);
    return boot + start;
}

static int is_boot(const void *pointer)
{
    return (uintptr_t)pointer - (uintptr_t)boot < sizeof boot;
}

__attribute__((constructor)) static void find(void)
{
    if (next_free)
        return;
    next_calloc = dlsym(RTLD_NEXT, "calloc");
    next_malloc = dlsym(RTLD_NEXT, "malloc");
    next_realloc = dlsym(RTLD_NEXT, "realloc");
    next_posix_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    next_aligned_alloc = dlsym(RTLD_NEXT, "aligned_alloc");
    next_memalign = dlsym(RTLD_NEXT, "memalign");
    next_mmap = dlsym(RTLD_NEXT, "mmap");
    next_mmap64 = dlsym(RTLD_NEXT, "mmap64");
    next_pthread_create = dlsym(RTLD_NEXT, "pthread_create");
    next_free = dlsym(RTLD_NEXT, "free");
}

/* Counts an allocation of an armed thread. Returns whether it fails. */
static int fails(void)
{
    if (!this_thread && !atomic_load(&every_thread))
        return 0;
    long index = atomic_fetch_add(&counted, 1);
    long from = atomic_load(&first);
    if (from < 0 || (atomic_load(&persistent) ? index < from : index != from))
        return 0;
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    if (!next_malloc)
        return boot_memory(16, size);
    return fails() ? NULL : next_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    if (!next_calloc)
        return boot_memory(16, count * size);
    return fails() ? NULL : next_calloc(count, size);
}

void *realloc(void *pointer, size_t size)
{
    if (is_boot(pointer)) {
        void *moved = malloc(size);
        size_t rest = (size_t)(boot + sizeof boot - (char *)pointer);
        if (moved)
            memcpy(moved, pointer, size < rest ? size : rest);
        return moved;
    }
    if (!next_realloc)
        find();
    return fails() ? NULL : next_realloc(pointer, size);
}

void *reallocarray(void *pointer, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(pointer, bytes);
}

void free(void *pointer)
{
    if (pointer && !is_boot(pointer) && next_free)
        next_free(pointer);
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    if (!next_posix_memalign)
        find();
    return fails() ? ENOMEM : next_posix_memalign(result, alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    if (!next_aligned_alloc)
        find();
    return fails() ? NULL : next_aligned_alloc(alignment, size);
}

void *memalign(size_t alignment, size_t size)
{
    if (!next_memalign)
        find();
    return fails() ? NULL : next_memalign(alignment, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    if (!next_mmap)
        find();
    if ((flags & MAP_ANONYMOUS) && fails())
        return MAP_FAILED;
    return next_mmap(address, size, protection, flags, file, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    if (!next_mmap64)
        find();
    if ((flags & MAP_ANONYMOUS) && fails())
        return MAP_FAILED;
    return next_mmap64(address, size, protection, flags, file, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    if (!next_pthread_create)
        find();
    return fails() ? EAGAIN : next_pthread_create(thread, attributes, start, argument);
}

/* Arms the calling thread, or all threads if `anywhere`: allocation number n, counted from 0, will fail, and with
 * `all_after` those after it too. If n is negative, none fails. */
void arm(long n, int all_after, int anywhere)
{
    atomic_store(&first, n);
    atomic_store(&persistent, all_after);
    atomic_store(&counted, 0);
    atomic_store(&failed, 0);
    if (anywhere)
        atomic_store(&every_thread, 1);
    else
        this_thread = 1;
}

/* Lets all allocations succeed again. Returns the number of allocations since `arm`. */
long disarm(void)
{
    this_thread = 0;
    atomic_store(&every_thread, 0);
    return atomic_load(&counted);
}

/* Returns the number of allocations that failed since `arm`. */
long failures(void)
{
    return atomic_load(&failed);
}

/* Returns the number of allocations between the last `arm` and `disarm`. */
long count(void)
{
    return atomic_load(&counted);
}

/* Calls a Python function without arguments while armed. Returns its result. */
void *call_armed(void *function, long n, int all_after, int anywhere)
{
    static void *(*call)(void *, void *);
    if (!call)
        call = (void *(*)(void *, void *))dlsym(RTLD_DEFAULT, "PyObject_CallObject");
    arm(n, all_after, anywhere);
    void *result = call(function, NULL);
    disarm();
    return result;
}
