/* A double of NVIDIA's driver library: one integrated GPU whose memory is the host's, CUDA 12.6.
 *
 * It answers cuGetProcAddress by version as a driver does: what is newer than it is not found. It
 * computes nothing; copies run when they are queued. It proves calls, never speed.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 12060
#endif

typedef int R;
enum { NOT_FOUND = 500 };

R cuInit(unsigned flags) { return 0; }
R cuDriverGetVersion(int *v) { *v = VERSION; return 0; }
R cuDeviceGetCount(int *n) { *n = 1; return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
R cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Double", n); return 0; }
R cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)7620 << 20; return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) {
    *v = a == 75 ? 8 : a == 76 ? 7 : a == 18 ? 1 : 0; /* capability 8.7, integrated */
    return 0;
}
R cuGetErrorName(R r, const char **s) { *s = r ? "CUDA_ERROR_DOUBLE" : "CUDA_SUCCESS"; return 0; }
R cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
R cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
R cuCtxPushCurrent_v2(void *c) { return 0; }
R cuCtxPopCurrent_v2(void **c) { if (c) *c = (void *)1; return 0; }
R cuMemHostAlloc(void **p, size_t n, unsigned f) { *p = calloc(1, n); return *p ? 0 : 2; }
R cuMemHostGetDevicePointer_v2(uint64_t *d, void *p, unsigned f) { *d = (uint64_t)p; return 0; }
R cuMemFreeHost(void *p) { free(p); return 0; }
R cuMemAlloc_v2(uint64_t *d, size_t n) { *d = (uint64_t)calloc(1, n); return *d ? 0 : 2; }
R cuMemFree_v2(uint64_t d) { free((void *)d); return 0; }
R cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *q) { memcpy((void *)d, s, n); return 0; }
R cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *q) { memcpy(d, (void *)s, n); return 0; }
R cuStreamCreate(void **s, unsigned f) { *s = malloc(1); return 0; }
R cuStreamDestroy_v2(void *s) { free(s); return 0; }
R cuStreamSynchronize(void *s) { return 0; }
static float now;
R cuEventCreate(void **e, unsigned f) { *e = malloc(sizeof(float)); return 0; }
R cuEventRecord(void *e, void *s) { *(float *)e = now += 0.5f; return 0; }
R cuEventDestroy_v2(void *e) { free(e); return 0; }
R cuEventElapsedTime(float *ms, void *a, void *b) { *ms = *(float *)b - *(float *)a; return 0; }
R cuStreamBeginCapture_v2(void *s, int mode) { return 0; }
R cuStreamEndCapture(void *s, void **g) { *g = malloc(1); return 0; }
R cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) { *x = malloc(1); return 0; }
R cuGraphDestroy(void *g) { free(g); return 0; }
R cuGraphLaunch(void *x, void *s) { return 0; }
R cuGraphExecDestroy(void *x) { free(x); return 0; }

static const struct { const char *name; int version; const char *symbol; } NAMES[] = {
    {"cuEventElapsedTime", 12080, "cuEventElapsedTime"}, /* the new call, in 12.8 */
    {"cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"},
    {"cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"},
    {"cuDevicePrimaryCtxRelease", 11000, "cuDevicePrimaryCtxRelease_v2"},
};

R cuGetProcAddress_v2(const char *name, void **f, int version, uint64_t flags, int *status) {
    char symbol[128];
    for (unsigned i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        if (strcmp(name, NAMES[i].name) || version < NAMES[i].version) continue;
        if (NAMES[i].version > VERSION) { *f = 0; if (status) *status = 2; return 1; }
        name = NAMES[i].symbol;
    }
    *f = dlsym(RTLD_DEFAULT, name);
    strcpy(symbol, name);
    strcat(symbol, "_v2");
    void *newer = dlsym(RTLD_DEFAULT, symbol);
    if (newer && strcmp(name, "cuGetProcAddress")) *f = newer;
    if (status) *status = *f ? 0 : 1;
    return *f ? 0 : NOT_FOUND;
}
R cuGetProcAddress(const char *name, void **f, int version, uint64_t flags) {
    if (!strcmp(name, "cuGetProcAddress")) { *f = (void *)cuGetProcAddress_v2; return 0; }
    return cuGetProcAddress_v2(name, f, version, flags, 0);
}
