/* Counts, inside a broker, what it makes the disk do: LD_PRELOAD=counter.so, BENCH_COUNTER=FILE.
 *
 * FILE holds four numbers of 64 bits, mapped by the broker, read by whoever measures: syncs,
 * nanoseconds spent in them, commits, bytes written to files. A commit is seen by SQLite's own
 * mark: a write of 24 bytes, the header of a frame in the write-ahead log, whose second word isn't
 * zero in the last frame of a transaction. An addition or two for each call: nothing that shows.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { SYNCS, SYNC_NS, COMMITS, WRITTEN, COUNTS };

static uint64_t unmapped[COUNTS];
static uint64_t *counts = unmapped;
static int (*real_fsync)(int), (*real_fdatasync)(int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);

__attribute__((constructor)) static void begin(void)
{
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    real_pwrite = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
    const char *name = getenv("BENCH_COUNTER");
    int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *place = mmap(0, sizeof unmapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (place != MAP_FAILED)
        counts = place;
    close(file);
}

static void add(int which, uint64_t number)
{
    __atomic_fetch_add(&counts[which], number, __ATOMIC_RELAXED);
}

static int timed(int (*call)(int), int file)
{
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    int result = call(file);
    clock_gettime(CLOCK_MONOTONIC, &after);
    add(SYNCS, 1);
    add(SYNC_NS, (uint64_t)((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec
                            - before.tv_nsec));
    return result;
}

int fsync(int file) { return timed(real_fsync, file); }
int fdatasync(int file) { return timed(real_fdatasync, file); }

ssize_t pwrite64(int file, const void *data, size_t size, off_t at)
{
    uint32_t pages = 0;
    if (size == 24)
        memcpy(&pages, (const char *)data + 4, 4);
    add(COMMITS, pages != 0);
    add(WRITTEN, size);
    return real_pwrite(file, data, size, at);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    return pwrite64(file, data, size, at);
}
