/* A double of a board's files: the paths of PREFIXES are read below the folder that DOUBLE_FILES names.
 *
 * Preloaded (LD_PRELOAD) before glibc, whose functions do the work; without DOUBLE_FILES nothing is
 * changed. What the folder does not have is not there. The host's name is DOUBLE_HOST's.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const PREFIXES[] = {
    "/sys/", "/proc/device-tree", "/proc/self/task", "/proc/meminfo", "/etc/nv_tegra_release",
    "/etc/nvpmodel.conf", "/etc/os-release", "/etc/machine-id",
};

static const char *at(const char *path, char *room) {
    const char *root = getenv("DOUBLE_FILES");
    if (root && path)
        for (unsigned i = 0; i < sizeof PREFIXES / sizeof *PREFIXES; i++)
            if (!strncmp(path, PREFIXES[i], strlen(PREFIXES[i]))) {
                snprintf(room, 4096, "%s%s", root, path);
                return room;
            }
    return path;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define AT(path) at(path, (char[4096]){0})
#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *p, int flags, ...) { MODE(flags) return REAL(open)(AT(p), flags, mode); }
int open64(const char *p, int flags, ...) { MODE(flags) return REAL(open64)(AT(p), flags, mode); }
int openat(int d, const char *p, int flags, ...) {
    MODE(flags)
    return REAL(openat)(d, AT(p), flags, mode);
}
int openat64(int d, const char *p, int flags, ...) {
    MODE(flags)
    return REAL(openat64)(d, AT(p), flags, mode);
}
FILE *fopen(const char *p, const char *m) { return REAL(fopen)(AT(p), m); }
FILE *fopen64(const char *p, const char *m) { return REAL(fopen64)(AT(p), m); }
DIR *opendir(const char *p) { return REAL(opendir)(AT(p)); }
int access(const char *p, int m) { return REAL(access)(AT(p), m); }
ssize_t readlink(const char *p, char *to, size_t n) { return REAL(readlink)(AT(p), to, n); }

int gethostname(char *name, size_t size) {
    const char *host = getenv("DOUBLE_HOST");
    if (!host) return REAL(gethostname)(name, size);
    snprintf(name, size, "%s", host);
    return 0;
}

#define STAT(name, kind) \
    int name(const char *p, struct kind *s) { \
        int (*real)(const char *, struct kind *) = dlsym(RTLD_NEXT, #name); \
        return real(AT(p), s); \
    }
STAT(stat, stat)
STAT(lstat, stat)
STAT(stat64, stat64)
STAT(lstat64, stat64)
#define FSTATAT(name, kind) \
    int name(int d, const char *p, struct kind *s, int flags) { \
        int (*real)(int, const char *, struct kind *, int) = dlsym(RTLD_NEXT, #name); \
        return real(d, AT(p), s, flags); \
    }
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)
#define XSTAT(name, kind) /* of programs that were built with glibc before 2.33 */ \
    int name(int version, const char *p, struct kind *s) { \
        int (*real)(int, const char *, struct kind *) = dlsym(RTLD_NEXT, #name); \
        return real(version, AT(p), s); \
    }
XSTAT(__xstat, stat)
XSTAT(__lxstat, stat)
XSTAT(__xstat64, stat64)
XSTAT(__lxstat64, stat64)
