/* Preloaded, fails one call under a folder that changes the disk (write, fsync, rename, mkdir, unlink,
   rmdir, open of a new file): it is full, or broken.

   fail_at(folder, number, error): the call of this number (from 0) from now on returns `error`; calls_seen():
   how many there were since. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static long number = -1, seen = 0;
static int code = 0;

void fail_at(const char *where, long which, int error) {
    strncpy(folder, where, sizeof folder - 1);
    number = which, code = error, seen = 0;
}

long calls_seen(void) { return seen; }

static int fails(const char *path) {
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
    if (seen++ != number) return 0;
    errno = code;
    return 1;
}

static int fails_at_handle(int handle) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return fails(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void *data, size_t size) {
    return fails_at_handle(handle) ? -1 : REAL(write)(handle, data, size);
}
int fsync(int handle) { return fails_at_handle(handle) ? -1 : REAL(fsync)(handle); }
int rename(const char *from, const char *to) { return fails(from) ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails(path) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return fails(path) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails(path) ? -1 : REAL(rmdir)(path); }
int unlinkat(int folder_of, const char *path, int flags) {
    return fails_at_handle(folder_of) ? -1 : REAL(unlinkat)(folder_of, path, flags);
}
static int opened(int folder_of, const char *path, int flags, mode_t mode) {
    if ((flags & O_CREAT) && fails(path)) return -1;
    return REAL(openat)(folder_of, path, flags, mode);
}
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        return opened(AT_FDCWD, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
