/* The recorder of writes and syncs, and the source of disk faults: a library to be preloaded.
 *
 * Owns: the log, to which it appends every change that the process makes to a file under one
 * directory, in the order in which the changes happened; and the faults, which it reads from a page
 * shared with the test. `rebuild.py` reads the log, `shim.py` sets the environment:
 *
 *   MQTTD_POWER_ROOT    the directory; without it everything passes through untouched
 *   MQTTD_POWER_LOG     the log; absent: nothing is recorded
 *   MQTTD_POWER_FAULTS  a file that holds `struct faults`; absent: no faults
 *
 * Invariants: an operation and its record are one step (`turn`), so the log's order is the order
 * on all threads; a record says what did happen, not what was asked for; it is appended in one
 * writev, so that a kill leaves whole records and at most one torn one at the end; a recorder that
 * can't record ends the process. There is no table of descriptors that could grow stale: which file
 * a descriptor is, is asked of the kernel at each operation, so close, dup and fork need no care.
 *
 * Not seen: writes to mapped memory (SQLite's -shm file, which holds nothing that has to last, is
 * left out on purpose), copy_file_range and its kind. sync_file_range isn't recorded because it
 * promises nothing. A test compares what is rebuilt with the real files, so what is missed is found.
 * 64-bit Linux only: there, off_t and off64_t are one, and so is each pair of functions.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE /* it would define some of the functions that are defined here */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "64-bit only");

/* The layout of a record is known to rebuild.py; numbers are little endian as the machine is. */
enum kind {
    OPENED = 1,      /* file, name: what was there before is known under this number from now on */
    CREATED = 2,     /* file, name */
    WRITTEN = 3,     /* file, offset, data */
    TRUNCATED = 4,   /* file, length: cut off or extended with zeros */
    ALLOCATED = 5,   /* file, length: at least so long, zeros where there was nothing */
    SYNCED = 6,      /* file */
    SYNC_FAILED = 7, /* file: what was written since the last sync may never reach the disk */
    RENAMED = 8,     /* name, and the new one after a zero byte */
    REMOVED = 9,     /* name */
    DIR_SYNCED = 10, /* the root itself */
    UNKNOWN = 11,    /* something that the model has no answer to; name says what */
};

struct record {
    uint32_t size; /* of all of it: this head, the name, the data */
    uint16_t kind;
    uint16_t name_size;
    uint64_t file; /* inode; one that was freed comes back with CREATED */
    uint64_t offset;
    uint64_t length;
};

/* Set by the test at any time, see `Faults` in shim.py. */
struct faults {
    uint32_t enospc;      /* while set: nothing can be written, extended or created */
    uint32_t eio_write;   /* while set: no write succeeds */
    uint32_t eio_fsync;   /* so many syncs fail from now on; counted down */
    uint32_t fsync_delay; /* milliseconds before each sync */
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX]; /* canonical, without a slash at the end; empty: not at work */
static size_t root_size;
static int log_fd = -1;
static struct faults calm;
static volatile struct faults *faults = &calm;

/* The calls themselves: by number, since libc's names are ours now. */
static int sys_openat(int dir, const char *path, int flags, mode_t mode)
{
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}
static void sys_close(int fd)
{
    int kept = errno;
    syscall(SYS_close, fd);
    errno = kept;
}

static void give_up(const char *what)
{
    dprintf(STDERR_FILENO, "power shim: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void begin(void)
{
    const char *dir = getenv("MQTTD_POWER_ROOT");
    const char *file = getenv("MQTTD_POWER_LOG");
    const char *page = getenv("MQTTD_POWER_FAULTS");
    if (dir == NULL)
        return;
    if (file != NULL) {
        log_fd = sys_openat(AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (log_fd < 0)
            give_up(file);
    }
    if (page != NULL) {
        int fd = sys_openat(AT_FDCWD, page, O_RDWR | O_CLOEXEC, 0);
        void *at = fd < 0 ? MAP_FAILED
                          : mmap(NULL, sizeof calm, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED)
            give_up(page);
        faults = at;
        sys_close(fd);
    }
    if (realpath(dir, root) == NULL)
        give_up(dir);
    root_size = strlen(root);
}

/* What a path or descriptor is to us. */
enum place { ELSEWHERE, ROOT, FILE_IN, SHM_IN };

static enum place place_of(const char *path, const char **name)
{
    if (root_size == 0 || strncmp(path, root, root_size) != 0)
        return ELSEWHERE;
    if (path[root_size] == '\0')
        return ROOT;
    if (path[root_size] != '/')
        return ELSEWHERE;
    *name = path + root_size + 1;
    size_t size = strlen(*name);
    return size >= 4 && strcmp(*name + size - 4, "-shm") == 0 ? SHM_IN : FILE_IN;
}

static int path_of(int fd, char *path)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = '\0';
    return size < 0 ? -1 : 0;
}

struct known {
    enum place place;
    uint64_t file;
    char path[PATH_MAX];
    const char *name; /* inside `path` */
};

/* errno is as before, whatever is found. */
static enum place know(int fd, struct known *known)
{
    struct stat found;
    int kept = errno;
    known->place = ELSEWHERE;
    if (root_size != 0 && fstat(fd, &found) == 0 && (S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))
        && path_of(fd, known->path) == 0) {
        known->file = found.st_ino;
        known->place = place_of(known->path, &known->name);
    }
    errno = kept;
    return known->place;
}

/* Likewise for a name that may not exist yet: its directory, made canonical, and its last part. */
static enum place know_path(int dir, const char *path, struct known *known)
{
    char parent[PATH_MAX];
    int kept = errno;
    const char *slash = strrchr(path, '/');
    known->place = ELSEWHERE;
    if (root_size == 0 || strlen(path) >= sizeof parent)
        return ELSEWHERE;
    snprintf(parent, sizeof parent, "%.*s", slash == NULL ? 1 : (int)(slash - path + 1),
             slash == NULL ? "." : path);
    int fd = sys_openat(dir, parent, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd >= 0) {
        if (path_of(fd, known->path) == 0) {
            size_t size = strlen(known->path);
            snprintf(known->path + size, sizeof known->path - size, "/%s",
                     slash == NULL ? path : slash + 1);
            known->place = place_of(known->path, &known->name);
        }
        sys_close(fd);
    }
    errno = kept;
    return known->place;
}

/* Called with the turn held, after the operation; errno is kept. */
static void record(enum kind kind, uint64_t file, const char *name, size_t name_size,
                   uint64_t offset, uint64_t length, const struct iovec *data, int parts)
{
    int kept = errno;
    struct iovec all[2 + 64];
    struct record head = {0, (uint16_t)kind, (uint16_t)name_size, file, offset, length};
    size_t size = sizeof head + name_size;
    if (log_fd < 0)
        return;
    if (parts > 64) {
        errno = E2BIG;
        give_up("a write in too many parts");
    }
    all[0] = (struct iovec){&head, sizeof head};
    all[1] = (struct iovec){(void *)name, name_size};
    size_t left = kind == WRITTEN ? length : 0; /* a write may have been cut short */
    for (int i = 0; i < parts; i++) {
        size_t part = data[i].iov_len < left ? data[i].iov_len : left;
        all[2 + i] = (struct iovec){data[i].iov_base, part};
        left -= part;
        size += part;
    }
    head.size = (uint32_t)size;
    if (syscall(SYS_writev, log_fd, all, 2 + parts) != (long)size)
        give_up("the log");
    errno = kept;
}

static void record_file(enum kind kind, const struct known *known, uint64_t length)
{
    if (known->place == FILE_IN)
        record(kind, known->file, NULL, 0, 0, length, NULL, 0);
}

static void record_name(enum kind kind, const struct known *known)
{
    if (known->place == FILE_IN)
        record(kind, known->file, known->name, strlen(known->name), 0, 0, NULL, 0);
}

static void record_unknown(const char *what)
{
    record(UNKNOWN, 0, what, strlen(what), 0, 0, NULL, 0);
}

static int fails(int error)
{
    errno = error;
    return -1;
}

static void begin_turn(void) { pthread_mutex_lock(&turn); }
static void end_turn(void) { pthread_mutex_unlock(&turn); }

/* Opening. */

static int open_any(int dir, const char *path, int flags, mode_t mode)
{
    struct known known;
    struct stat before;
    if (know_path(dir, path, &known) != FILE_IN && known.place != SHM_IN)
        return sys_openat(dir, path, flags, mode);
    begin_turn();
    int kept = errno;
    int fresh = fstatat(dir, path, &before, 0) != 0;
    errno = kept;
    int fd = fresh && (flags & O_CREAT) && faults->enospc ? fails(ENOSPC)
                                                         : sys_openat(dir, path, flags, mode);
    if (fd >= 0 && know(fd, &known) != ELSEWHERE) {
        struct stat now;
        if (fstat(fd, &now) == 0 && S_ISREG(now.st_mode)) {
            record_name(fresh ? CREATED : OPENED, &known);
            if (!fresh && (flags & O_TRUNC))
                record_file(TRUNCATED, &known, 0);
        }
    }
    end_turn();
    return fd;
}

static mode_t mode_of(int flags, va_list rest)
{
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open_any(AT_FDCWD, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open_any(dir, path, flags, mode);
}

int creat(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

/* What the compiler calls instead where it was told to fortify. */
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __openat_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }

/* Writing. `offset` -1: where the descriptor stands, or at the end with O_APPEND. */

static ssize_t write_any(int fd, const struct iovec *data, int parts, off_t offset)
{
    struct known known;
    ssize_t done;
    if (know(fd, &known) != FILE_IN && known.place != SHM_IN)
        return offset < 0 ? syscall(SYS_writev, fd, data, parts)
                          : syscall(SYS_pwritev, fd, data, parts, offset, 0L);
    begin_turn();
    if (faults->enospc)
        done = fails(ENOSPC);
    else if (faults->eio_write)
        done = fails(EIO);
    else if (offset < 0) {
        done = syscall(SYS_writev, fd, data, parts);
        offset = done < 0 ? 0 : lseek(fd, 0, SEEK_CUR) - done;
    } else
        done = syscall(SYS_pwritev, fd, data, parts, offset, 0L);
    if (done > 0 && known.place == FILE_IN)
        record(WRITTEN, known.file, NULL, 0, (uint64_t)offset, (uint64_t)done, data, parts);
    end_turn();
    return done;
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec one = {(void *)data, size};
    return write_any(fd, &one, 1, -1);
}

ssize_t writev(int fd, const struct iovec *data, int parts)
{
    return write_any(fd, data, parts, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec one = {(void *)data, size};
    return offset < 0 ? fails(EINVAL) : write_any(fd, &one, 1, offset);
}

ssize_t pwritev(int fd, const struct iovec *data, int parts, off_t offset)
{
    return offset < 0 ? fails(EINVAL) : write_any(fd, data, parts, offset);
}

/* The length of a file. */

int ftruncate(int fd, off_t length)
{
    struct known known;
    struct stat now;
    if (know(fd, &known) != FILE_IN && known.place != SHM_IN)
        return (int)syscall(SYS_ftruncate, fd, length);
    begin_turn();
    int longer = fstat(fd, &now) == 0 && length > now.st_size;
    int status = longer && faults->enospc ? fails(ENOSPC) : (int)syscall(SYS_ftruncate, fd, length);
    if (status == 0)
        record_file(TRUNCATED, &known, (uint64_t)length);
    end_turn();
    return status;
}

int truncate(const char *path, off_t length)
{
    int fd = open_any(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int status = ftruncate(fd, length);
    sys_close(fd);
    return status;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    struct known known;
    if (know(fd, &known) != FILE_IN && known.place != SHM_IN)
        return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    begin_turn();
    int status = faults->enospc ? fails(ENOSPC)
                                : (int)syscall(SYS_fallocate, fd, mode, offset, length);
    if (status == 0 && mode == 0)
        record_file(ALLOCATED, &known, (uint64_t)(offset + length));
    else if (status == 0 && mode != FALLOC_FL_KEEP_SIZE && known.place == FILE_IN)
        record_unknown("fallocate with holes");
    end_turn();
    return status;
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    int kept = errno;
    int error = fallocate(fd, 0, offset, length) == 0 ? 0 : errno;
    errno = kept;
    return error;
}

/* Syncing. A fault is a sync that never reached the disk: the real one isn't called. */

static int sync_any(int fd, long call)
{
    struct known known;
    if (know(fd, &known) == ELSEWHERE)
        return (int)syscall(call, fd);
    uint32_t wait = faults->fsync_delay; /* outside of the turn: others go on meanwhile */
    if (wait != 0) {
        struct timespec pause = {wait / 1000, (long)(wait % 1000) * 1000000};
        nanosleep(&pause, NULL);
    }
    begin_turn();
    int status;
    if (faults->eio_fsync != 0) {
        faults->eio_fsync--;
        status = fails(EIO);
    } else
        status = (int)syscall(call, fd);
    if (known.place == FILE_IN)
        record_file(status == 0 ? SYNCED : SYNC_FAILED, &known, 0);
    else if (known.place == ROOT && status == 0)
        record(DIR_SYNCED, 0, NULL, 0, 0, 0, NULL, 0);
    end_turn();
    return status;
}

int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

/* Names. */

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    struct known a, b;
    know_path(from_dir, from, &a);
    know_path(to_dir, to, &b);
    if (a.place == ELSEWHERE && b.place == ELSEWHERE)
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    begin_turn();
    int status = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (status == 0) {
        if (a.place == FILE_IN && b.place == FILE_IN && flags == 0) {
            char both[2 * PATH_MAX];
            size_t size = strlen(a.name) + 1;
            memcpy(both, a.name, size);
            strcpy(both + size, b.name);
            record(RENAMED, 0, both, size + strlen(b.name), 0, 0, NULL, 0);
        } else
            record_unknown("a rename into or out of the directory");
    }
    end_turn();
    return status;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags)
{
    struct known known;
    if (know_path(dir, path, &known) != FILE_IN)
        return (int)syscall(SYS_unlinkat, dir, path, flags);
    known.file = 0;
    begin_turn();
    int status = (int)syscall(SYS_unlinkat, dir, path, flags);
    if (status == 0)
        record_name(REMOVED, &known);
    end_turn();
    return status;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int remove(const char *path)
{
    int status = unlink(path);
    return status != 0 && errno == EISDIR ? unlinkat(AT_FDCWD, path, AT_REMOVEDIR) : status;
}

/* The second name of each. */
#define ALSO(name, result, ...) result name##64(__VA_ARGS__) __attribute__((alias(#name)))
ALSO(open, int, const char *, int, ...);
ALSO(openat, int, int, const char *, int, ...);
ALSO(creat, int, const char *, mode_t);
ALSO(pwrite, ssize_t, int, const void *, size_t, off_t);
ALSO(pwritev, ssize_t, int, const struct iovec *, int, off_t);
ALSO(ftruncate, int, int, off_t);
ALSO(truncate, int, const char *, off_t);
ALSO(fallocate, int, int, int, off_t, off_t);
ALSO(posix_fallocate, int, int, off_t, off_t);
int __open64_2(const char *, int) __attribute__((alias("__open_2")));
int __openat64_2(int, const char *, int) __attribute__((alias("__openat_2")));
