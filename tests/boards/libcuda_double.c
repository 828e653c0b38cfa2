/* A double of NVIDIA's driver library libcuda.so.1, whose devices' memory is the host's.
 *
 * It answers as a driver of DOUBLE_CUDA (12060 by default) with the GPUs of DOUBLE_GPUS: which calls
 * there are, contexts, streams, memory that runs out, page-locked memory, events, and graphs that
 * repeat what was recorded. Work runs when it is queued. It proves calls, never speed or numbers.
 *
 * DOUBLE_GPUS     name|compute capability|memory in MB|1 if integrated, separated by ";"
 * DOUBLE_FREE_MB  what cuMemAlloc and cuMemHostAlloc may take together; no limit by default
 * DOUBLE_REPLAY   "nothing": graphs are launched and compute nothing
 * DOUBLE_INIT     the status of cuInit, 0 by default
 *
 * double_alive tells what was made and not given back; a driver has no such call.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
enum { OK, INVALID_VALUE, NO_MEMORY, NOT_READY = 4, NO_DEVICE = 100, INVALID_DEVICE,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { MOST = 4 };
enum { DEVICEMAP = 2, GLOBAL_MODE = 0, THREAD_LOCAL_MODE = 1 };

static struct gpu { char name[64]; int major, minor, integrated; size_t mb; } gpus[MOST];
static int count, version = 12060, init_status;
static size_t used, limit = (size_t)-1;
static int contexts, streams, events, graphs; /* alive */

__attribute__((constructor)) static void configure(void) {
    const char *text = getenv("DOUBLE_CUDA");
    if (text) version = atoi(text);
    if ((text = getenv("DOUBLE_INIT"))) init_status = atoi(text);
    if ((text = getenv("DOUBLE_FREE_MB"))) limit = (size_t)atol(text) << 20;
    text = getenv("DOUBLE_GPUS");
    if (!text) text = "Orin|8.7|7620|1";
    while (count < MOST && *text) {
        struct gpu *g = &gpus[count++];
        sscanf(text, "%63[^|]|%d.%d|%zu|%d", g->name, &g->major, &g->minor, &g->mb, &g->integrated);
        text = strchr(text, ';');
        if (!text) break;
        text++;
    }
}

/* Contexts: the primary one of each device, a stack for each thread. */
static __thread int stack[32], depth;
#define ALIGNED 256 /* bytes: no address has a smaller multiple */
#define CURRENT (depth ? stack[depth - 1] : -1)
#define NEED_CONTEXT if (CURRENT < 0) return INVALID_CONTEXT

R cuInit(unsigned f) { return init_status ? init_status : count ? OK : NO_DEVICE; }
R cuDriverGetVersion(int *v) { *v = version; return OK; }
R cuDeviceGetCount(int *n) { *n = count; return OK; }
R cuDeviceGet(int *d, int i) { *d = i; return i < 0 || i >= count ? INVALID_DEVICE : OK; }
R cuDeviceGetName(char *s, int n, int d) { snprintf(s, n, "%s", gpus[d].name); return OK; }
R cuDeviceTotalMem_v2(size_t *n, int d) { *n = gpus[d].mb << 20; return OK; }
R cuDeviceGetPCIBusId(char *s, int n, int d) {
    snprintf(s, n, "0000:%02x:00.0", d + 1);
    return OK;
}
R cuDeviceGetAttribute(int *v, int a, int d) { /* numbers of CUdevice_attribute */
    struct gpu *g = &gpus[d];
    *v = a == 75 ? g->major : a == 76 ? g->minor : a == 18 ? g->integrated : 0;
    return OK;
}
R cuGetErrorName(R r, const char **s) {
    *s = r == OK ? "CUDA_SUCCESS" : r == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
        : r == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
        : r == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
        : r == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_OF_THE_DOUBLE";
    return OK;
}
R cuGetErrorString(R r, const char **s) { return cuGetErrorName(r, s); }
R cuDevicePrimaryCtxRetain(void **c, int d) {
    contexts++;
    *c = (void *)(uintptr_t)(d + 1);
    return OK;
}
R cuDevicePrimaryCtxRelease_v2(int d) {
    if (!contexts) return INVALID_CONTEXT;
    contexts--;
    return OK;
}
R cuDevicePrimaryCtxSetFlags_v2(int d, unsigned f) { return OK; }
R cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) {
    *f = 0;
    *active = contexts > 0;
    return OK;
}
R cuCtxGetCurrent(void **c) { *c = (void *)(uintptr_t)(CURRENT + 1); return OK; }
R cuCtxSynchronize(void) { NEED_CONTEXT; return OK; }
R cuCtxPushCurrent_v2(void *c) { stack[depth++] = (int)(uintptr_t)c - 1; return OK; }
R cuCtxPopCurrent_v2(void **c) {
    NEED_CONTEXT;
    if (c) *c = (void *)(uintptr_t)(CURRENT + 1);
    depth--;
    return OK;
}
R cuCtxGetDevice(int *d) { NEED_CONTEXT; *d = CURRENT; return OK; }

/* Memory: a block knows its device, so that a copy outside of it is an error. */
static struct block { char *at; size_t size; int device, host; unsigned flags; struct block *next; }
    *blocks;
static struct stream *capturing; /* one capture at a time suffices */
static int capture_mode;
static pthread_t capturer;

/* Whether this thread may not allocate: of the mode's meaning in cuda.h, CUstreamCaptureMode. */
static int refused_by_capture(void) {
    return capturing && (capture_mode == GLOBAL_MODE ||
        (capture_mode == THREAD_LOCAL_MODE && pthread_equal(capturer, pthread_self())));
}
static R take(void **p, size_t n, int host, unsigned flags) {
    NEED_CONTEXT;
    if (refused_by_capture()) return CAPTURE_UNSUPPORTED;
    if (!n) return INVALID_VALUE;
    if (n > limit || used > limit - n) return NO_MEMORY;
    struct block *b = malloc(sizeof *b);
    size_t whole = (n + ALIGNED - 1) / ALIGNED * ALIGNED;
    *b = (struct block){memset(aligned_alloc(ALIGNED, whole), 0, whole), n, CURRENT, host, flags, blocks};
    blocks = b;
    used += n;
    *p = b->at;
    return OK;
}
static R give(void *p, int host) {
    for (struct block **at = &blocks; *at; at = &(*at)->next) {
        struct block *b = *at;
        if (b->at != p || b->host != host) continue;
        *at = b->next;
        used -= b->size;
        free(b->at);
        free(b);
        return OK;
    }
    return INVALID_VALUE;
}
static struct block *block_of(const void *p, size_t n, int host) {
    for (struct block *b = blocks; b; b = b->next)
        if ((char *)p >= b->at && (char *)p + n <= b->at + b->size && b->host == host) return b;
    return 0;
}
static int inside(const void *p, size_t n, int host, int device) {
    struct block *b = block_of(p, n, host);
    return b && (host || b->device == device);
}
R cuMemHostAlloc(void **p, size_t n, unsigned f) { return take(p, n, 1, f); }
R cuMemAllocHost_v2(void **p, size_t n) { return take(p, n, 1, 0); }
R cuMemHostGetFlags(unsigned *f, void *p) {
    struct block *b = block_of(p, 1, 1);
    if (b) *f = b->flags;
    return b ? OK : INVALID_VALUE;
}
R cuMemHostGetDevicePointer_v2(uint64_t *d, void *p, unsigned f) {
    struct block *b = block_of(p, 1, 1);
    *d = (uint64_t)(uintptr_t)p;
    return b && b->flags & DEVICEMAP ? OK : INVALID_VALUE;
}
R cuMemGetInfo_v2(size_t *left, size_t *total) {
    NEED_CONTEXT;
    *total = gpus[CURRENT].mb << 20;
    *left = (limit < *total ? limit : *total) - used;
    return OK;
}
R cuMemFreeHost(void *p) { return give(p, 1); }
R cuMemAlloc_v2(uint64_t *d, size_t n) {
    void *p = 0;
    R status = take(&p, n, 0, 0);
    *d = (uint64_t)(uintptr_t)p;
    return status;
}
R cuMemFree_v2(uint64_t d) { return give((void *)(uintptr_t)d, 0); }

/* Streams, and the nodes that a capture gathers. */
struct node { int kind; void *to; const void *from; size_t size; void (*work)(void *); void *data;
              struct node *next; };
struct stream { int device, invalid; unsigned flags; struct node *first, **last; };
struct graph { int device; struct node *first; };
static float clock_ms;

static void work(struct node *n) {
    if (n->kind) n->work(n->data); else memcpy(n->to, n->from, n->size);
    clock_ms += n->kind ? 1.0f : 0.25f;
}
static R queue(struct stream *s, struct node n) {
    if (!s || s->device != CURRENT) return INVALID_HANDLE;
    if (s != capturing) { work(&n); return OK; }
    *s->last = malloc(sizeof n);
    **s->last = n;
    s->last = &(*s->last)->next;
    return OK;
}
R cuStreamCreate(void **s, unsigned f) {
    NEED_CONTEXT;
    struct stream *made = calloc(1, sizeof *made);
    made->device = CURRENT;
    made->flags = f;
    streams++;
    *s = made;
    return OK;
}
R cuStreamGetFlags(void *s, unsigned *f) { *f = ((struct stream *)s)->flags; return OK; }
R cuStreamDestroy_v2(void *s) { streams--; free(s); return OK; }
R cuStreamSynchronize(void *s) {
    NEED_CONTEXT;
    if (s != capturing || !s) return OK;
    capturing->invalid = 1;
    return CAPTURE_UNSUPPORTED;
}
R cuMemcpyHtoDAsync_v2(uint64_t d, const void *s, size_t n, void *q) {
    NEED_CONTEXT;
    void *to = (void *)(uintptr_t)d;
    if (!inside(to, n, 0, CURRENT)) return INVALID_VALUE;
    return queue(q, (struct node){0, to, s, n});
}
R cuMemcpyDtoHAsync_v2(void *d, uint64_t s, size_t n, void *q) {
    NEED_CONTEXT;
    const void *from = (void *)(uintptr_t)s;
    if (!inside(from, n, 0, CURRENT)) return INVALID_VALUE;
    return queue(q, (struct node){0, d, from, n});
}
R cuLaunchHostFunc(void *q, void (*f)(void *), void *data) {
    NEED_CONTEXT;
    return queue(q, (struct node){1, 0, 0, 0, f, data});
}

struct event { int recorded; float at; };
R cuEventCreate(void **e, unsigned f) {
    NEED_CONTEXT;
    *e = calloc(1, sizeof(struct event));
    events++;
    return OK;
}
R cuEventRecord(void *e, void *s) {
    NEED_CONTEXT;
    struct event *event = e;
    if (((struct stream *)s)->device != CURRENT) return INVALID_HANDLE;
    event->recorded = 1;
    event->at = clock_ms += 0.125f;
    return OK;
}
R cuEventDestroy_v2(void *e) { events--; free(e); return OK; }
R cuEventQuery(void *e) { return ((struct event *)e)->recorded ? OK : NOT_READY; }
R cuEventSynchronize(void *e) { return OK; }
R cuEventElapsedTime(float *ms, void *a, void *b) {
    struct event *first = a, *second = b;
    if (!first->recorded || !second->recorded) return INVALID_HANDLE;
    *ms = second->at - first->at;
    return OK;
}
R cuEventElapsedTime_v2(float *ms, void *a, void *b) { return cuEventElapsedTime(ms, a, b); }

R cuStreamBeginCapture_v2(void *s, int mode) {
    NEED_CONTEXT;
    struct stream *stream = s;
    if (!stream || stream->device != CURRENT) return INVALID_HANDLE;
    stream->first = 0;
    stream->last = &stream->first;
    stream->invalid = 0;
    capturing = stream;
    capture_mode = mode;
    capturer = pthread_self();
    return OK;
}
R cuStreamIsCapturing(void *s, int *status) { *status = s && s == capturing; return OK; }
R cuStreamEndCapture(void *s, void **g) {
    struct stream *stream = s;
    *g = 0;
    if (stream != capturing) return INVALID_VALUE;
    capturing = 0;
    if (stream->invalid) return CAPTURE_INVALIDATED;
    struct graph *graph = malloc(sizeof *graph);
    *graph = (struct graph){stream->device, stream->first};
    graphs++;
    *g = graph;
    return OK;
}
R cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long f) {
    struct graph *made = malloc(sizeof *made);
    *made = *(struct graph *)g;
    graphs++;
    *x = made;
    return OK;
}
R cuGraphDestroy(void *g) { graphs--; free(g); return OK; }
R cuGraphLaunch(void *x, void *s) {
    NEED_CONTEXT;
    struct graph *graph = x;
    const char *replay = getenv("DOUBLE_REPLAY");
    if (!s || ((struct stream *)s)->device != CURRENT) return INVALID_HANDLE;
    if (replay && !strcmp(replay, "nothing")) return OK;
    for (struct node *n = graph->first; n; n = n->next) work(n);
    return OK;
}
R cuGraphExecDestroy(void *x) { graphs--; free(x); return OK; }

/* Bytes, contexts, streams, events, graphs, and contexts that are current in this thread. */
void double_alive(long *n) {
    long alive[] = {(long)used, contexts, streams, events, graphs, depth};
    memcpy(n, alive, sizeof alive);
}

R cuGetProcAddress_v2(const char *name, void **f, int wanted, uint64_t flags, int *status);
R cuGetProcAddress(const char *name, void **f, int wanted, uint64_t flags);

/* Name, the CUDA version that brought this form of it (cuda.h), and the form. */
static const struct { const char *name; int since; void *form; } CALLS[] = {
#define SAME(name) {#name, 2000, name}
    SAME(cuInit), SAME(cuDriverGetVersion), SAME(cuDeviceGetCount), SAME(cuDeviceGet),
    SAME(cuDeviceGetName), SAME(cuDeviceGetAttribute), SAME(cuGetErrorName),
    SAME(cuGetErrorString), SAME(cuCtxGetDevice),
    SAME(cuMemHostAlloc), SAME(cuMemFreeHost), SAME(cuStreamCreate), SAME(cuStreamSynchronize),
    SAME(cuEventCreate), SAME(cuEventRecord), SAME(cuEventElapsedTime),
    {"cuEventElapsedTime", 12080, cuEventElapsedTime_v2},
    {"cuDeviceGetPCIBusId", 4010, cuDeviceGetPCIBusId},
    {"cuMemHostGetFlags", 2030, cuMemHostGetFlags}, {"cuMemAllocHost", 3020, cuMemAllocHost_v2},
    {"cuMemGetInfo", 3020, cuMemGetInfo_v2}, {"cuStreamGetFlags", 5050, cuStreamGetFlags},
    {"cuCtxGetCurrent", 4000, cuCtxGetCurrent}, SAME(cuCtxSynchronize), SAME(cuEventQuery),
    SAME(cuEventSynchronize), {"cuDevicePrimaryCtxGetState", 7000, cuDevicePrimaryCtxGetState},
    {"cuDevicePrimaryCtxSetFlags", 11000, cuDevicePrimaryCtxSetFlags_v2},
    {"cuDeviceTotalMem", 3020, cuDeviceTotalMem_v2},
    {"cuDevicePrimaryCtxRetain", 7000, cuDevicePrimaryCtxRetain},
    {"cuDevicePrimaryCtxRelease", 11000, cuDevicePrimaryCtxRelease_v2},
    {"cuCtxPushCurrent", 4000, cuCtxPushCurrent_v2},
    {"cuCtxPopCurrent", 4000, cuCtxPopCurrent_v2},
    {"cuMemHostGetDevicePointer", 3020, cuMemHostGetDevicePointer_v2},
    {"cuMemAlloc", 3020, cuMemAlloc_v2}, {"cuMemFree", 3020, cuMemFree_v2},
    {"cuMemcpyHtoDAsync", 3020, cuMemcpyHtoDAsync_v2},
    {"cuMemcpyDtoHAsync", 3020, cuMemcpyDtoHAsync_v2},
    {"cuStreamDestroy", 4000, cuStreamDestroy_v2}, {"cuEventDestroy", 4000, cuEventDestroy_v2},
    {"cuLaunchHostFunc", 10000, cuLaunchHostFunc},
    {"cuStreamIsCapturing", 10000, cuStreamIsCapturing},
    {"cuStreamBeginCapture", 10010, cuStreamBeginCapture_v2},
    {"cuStreamEndCapture", 10000, cuStreamEndCapture},
    {"cuGraphInstantiate", 12000, cuGraphInstantiateWithFlags},
    {"cuGraphInstantiateWithFlags", 11040, cuGraphInstantiateWithFlags},
    {"cuGraphDestroy", 10000, cuGraphDestroy}, {"cuGraphLaunch", 10000, cuGraphLaunch},
    {"cuGraphExecDestroy", 10000, cuGraphExecDestroy},
    {"cuGetProcAddress", 11030, cuGetProcAddress}, {"cuGetProcAddress", 12000, cuGetProcAddress_v2},
};

R cuGetProcAddress_v2(const char *name, void **f, int wanted, uint64_t flags, int *status) {
    int known = 0, since = 0;
    *f = 0;
    for (unsigned i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
        if (strcmp(name, CALLS[i].name)) continue;
        known = 1;
        if (CALLS[i].since <= wanted && CALLS[i].since >= since) {
            since = CALLS[i].since;
            *f = CALLS[i].form;
        }
    }
    if (since > version) *f = 0; /* a form that this driver is too old for */
    if (status) *status = *f ? 0 : known ? 2 : 1;
    return *f ? OK : known ? INVALID_VALUE : NOT_FOUND;
}
R cuGetProcAddress(const char *name, void **f, int wanted, uint64_t flags) {
    return cuGetProcAddress_v2(name, f, wanted, flags, 0);
}
