/* The part of the ACL runtime that torch_npu calls, over host memory: one device, every stream synchronous.
 *
 * Only names and argument orders of the public interface are used; nothing here is CANN's code. A function that
 * has no out-parameter and nothing to do is not here: those that the wheel links are generated, those that it looks
 * up by name are listed under NOTHING. No kernel exists: a launch is refused, so that no output stays unwritten
 * without anyone noticing.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status; /* aclError: 0 is success */
typedef void *Handle;

enum { OK = 0, INVALID = 100000, NO_KERNEL = 500001, CAPTURING = 107027, FAILED = 507899 };
enum { GIB = 1 << 30, CUBE_CORES = 24, VECTOR_CORES = 48 };

/* What happens is told to Python, which holds the tapes of captures (capture.py has the same numbers). */
enum Event { CAPTURE_BEGIN, CAPTURE_END, REPLAY, COPY, FILL, GROUP_BEGIN, GROUP_END, UPDATE_BEGIN, UPDATE_END,
             VALUE_WRITE, VALUE_WAIT, DESTROY };
typedef int (*Observer)(int event, Handle subject, const void *other, size_t size);
static Observer observer;
void stand_in_observe(Observer o) { observer = o; }
static Status tell(enum Event event, Handle subject, const void *other, size_t size) {
    return observer && observer(event, subject, other, size) ? FAILED : OK;
}
static Handle fresh(void) { return malloc(64); }

/* Capture. Host reads and synchronisation are illegal while a stream is captured, unless the mode is relaxed. */
enum { RELAXED = 2 };
static int capturing, capture_mode, updating;
static Handle captured;
static Status illegal_in_capture(const char *what) {
    if (!capturing || capture_mode == RELAXED) return OK;
    fprintf(stderr, "[stand-in] %s while a stream is captured\n", what);
    return CAPTURING;
}
Status aclmdlRICaptureBegin(Handle stream, int mode) {
    capturing = 1, capture_mode = mode, captured = fresh();
    return tell(CAPTURE_BEGIN, captured, NULL, 0);
}
Status aclmdlRICaptureEnd(Handle stream, Handle *model) {
    capturing = 0, *model = captured;
    return tell(CAPTURE_END, captured, NULL, 0);
}
Status aclmdlRICaptureGetInfo(Handle stream, int *status, Handle *model) {
    *status = capturing;
    if (model) *model = captured;
    return OK;
}
Status aclmdlRICaptureThreadExchangeMode(int *mode) {
    int before = capture_mode;
    capture_mode = *mode, *mode = before;
    return OK;
}
Status aclmdlRIExecuteAsync(Handle model, Handle stream) { return tell(REPLAY, model, NULL, 0); }
Status aclmdlRIDestroy(Handle model) { return tell(DESTROY, model, NULL, 0); }
Status aclmdlRICaptureTaskGrpBegin(Handle stream) { return tell(GROUP_BEGIN, NULL, NULL, 0); }
Status aclmdlRICaptureTaskGrpEnd(Handle stream, Handle *group) {
    *group = fresh();
    return tell(GROUP_END, *group, NULL, 0);
}
Status aclmdlRICaptureTaskUpdateBegin(Handle stream, Handle group) {
    updating = 1;
    return tell(UPDATE_BEGIN, group, NULL, 0);
}
Status aclmdlRICaptureTaskUpdateEnd(Handle stream) {
    updating = 0;
    return tell(UPDATE_END, NULL, NULL, 0);
}

/* The device. */
static const char *setting(const char *name, const char *usual) {
    const char *value = getenv(name);
    return value ? value : usual;
}
static _Thread_local int32_t current;
static char context[64];
Status aclrtGetDeviceCount(uint32_t *count) { return *count = atoi(setting("STAND_IN_DEVICES", "1")), OK; }
Status aclrtGetDevice(int32_t *device) { return *device = current, OK; }
Status aclrtSetDevice(int32_t device) { return current = device, OK; }
const char *aclrtGetSocName(void) { return setting("STAND_IN_SOC", "Ascend910B1"); }
const char *aclGetRecentErrMsg(void) { return ""; }
Status aclrtGetCurrentContext(Handle *c) { return *c = context, OK; }
Status aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return OK;
}
Status aclrtDeviceGetBareTgid(int32_t *pid) { return *pid = 1, OK; }
Status aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { return *can = 0, OK; }
Status aclGetDeviceCapability(uint32_t device, int info, int64_t *value) { return *value = 0, OK; }
size_t aclGetCompileoptSize(int option) { return 256; }
Status aclGetCompileopt(int option, char *value, size_t length) {
    if (length) value[0] = 0;
    return OK;
}
static int64_t parameters[64];
static int known(int option) { return option >= 0 && option < 64; }
Status aclrtSetSysParamOpt(int option, int64_t value) {
    if (!known(option)) return INVALID;
    return parameters[option] = value, OK;
}
Status aclrtGetSysParamOpt(int option, int64_t *value) { return *value = known(option) ? parameters[option] : 0, OK; }
static Status cores(int type, uint32_t *limit) { return *limit = type == 0 ? CUBE_CORES : VECTOR_CORES, OK; }
Status aclrtGetStreamResLimit(Handle stream, int type, uint32_t *limit) { return cores(type, limit); }
Status aclrtGetDeviceResLimit(int32_t device, int type, uint32_t *limit) { return cores(type, limit); }
Status aclrtGetResInCurrentThread(int type, uint32_t *limit) { return cores(type, limit); }

/* Memory: the device's is the host's. Copies that belong to a capture run when it is replayed. */
static Status allocate(Handle *p, size_t alignment, size_t size) {
    return posix_memalign(p, alignment, size ? size : alignment) ? INVALID : OK;
}
Status aclrtMalloc(Handle *p, size_t size, int policy) { return allocate(p, 512, size); }
Status aclrtMallocAlign32(Handle *p, size_t size, int policy) { return allocate(p, 512, size); }
Status aclrtMallocHost(Handle *p, size_t size) { return allocate(p, 64, size); }
Status aclrtFree(Handle p) { return free(p), OK; }
Status aclrtFreeHost(Handle p) { return free(p), OK; }
Status aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
    return *available = (size_t)60 * GIB, *total = (size_t)64 * GIB, OK;
}
Status aclrtMemcpy(Handle to, size_t room, const void *from, size_t size, int kind) {
    Status illegal = illegal_in_capture("aclrtMemcpy");
    if (illegal) return illegal;
    return memcpy(to, from, size), OK;
}
Status aclrtMemcpyAsync(Handle to, size_t room, const void *from, size_t size, int kind, Handle stream) {
    if (capturing || updating) return tell(COPY, to, from, size);
    return memcpy(to, from, size), OK;
}
Status aclrtMemset(Handle to, size_t room, int32_t value, size_t size) {
    Status illegal = illegal_in_capture("aclrtMemset");
    if (illegal) return illegal;
    return memset(to, value, size), OK;
}
Status aclrtMemsetAsync(Handle to, size_t room, int32_t value, size_t size, Handle stream) {
    if (capturing || updating) return tell(FILL, to, (const void *)(intptr_t)value, size);
    return memset(to, value, size), OK;
}

/* Streams and events: whatever is asked has been done. An external event is a word in memory: a captured graph waits
 * for its value, so its replay may have to go on when somebody writes it. */
Status aclrtValueWrite(Handle word, uint64_t value, uint32_t flag, Handle stream) {
    return tell(VALUE_WRITE, word, NULL, value);
}
Status aclrtValueWait(Handle word, uint64_t value, uint32_t condition, Handle stream) {
    return tell(VALUE_WAIT, word, (const void *)(uintptr_t)condition, value);
}
Status aclrtCreateStream(Handle *stream) { return *stream = fresh(), OK; }
Status aclrtCreateStreamWithConfig(Handle *stream, uint32_t priority, uint32_t flags) { return aclrtCreateStream(stream); }
Status aclrtStreamGetId(Handle stream, int32_t *id) { return *id = (int32_t)((uintptr_t)stream & 0xffffff), OK; }
Status aclrtStreamQuery(Handle stream, int *status) { return *status = 1, OK; }
Status aclrtSynchronizeStream(Handle stream) { return illegal_in_capture("aclrtSynchronizeStream"); }
Status aclrtSynchronizeStreamWithTimeout(Handle stream, int32_t ms) { return aclrtSynchronizeStream(stream); }
Status aclrtSynchronizeDevice(void) { return illegal_in_capture("aclrtSynchronizeDevice"); }
Status aclrtSynchronizeDeviceWithTimeout(int32_t ms) { return aclrtSynchronizeDevice(); }
Status aclrtCreateEventWithFlag(Handle *event, uint32_t flag) { return *event = fresh(), OK; }
Status aclrtCreateEventExWithFlag(Handle *event, uint32_t flag) { return *event = fresh(), OK; }
Status aclrtQueryEventStatus(Handle event, int *status) { return *status = 1, OK; }
Status aclrtQueryEventWaitStatus(Handle event, int *status) { return *status = 1, OK; }
Status aclrtEventElapsedTime(float *ms, Handle begin, Handle end) { return *ms = 0, OK; }

/* Kernels: refused. */
Status aclopCompileAndExecute(const char *op, ...) {
    fprintf(stderr, "[stand-in] no kernel for %s\n", op ? op : "?");
    return NO_KERNEL;
}
Status aclopCompileAndExecuteV2(const char *op, ...) { return aclopCompileAndExecute(op); }

/* Functions that are looked up by name, and have nothing to do or to say. */
#define NOTHING(name) Status name(void) { return OK; }
NOTHING(aclInit) NOTHING(aclFinalize) NOTHING(aclrtResetDevice) NOTHING(aclrtSetDeviceSatMode)
NOTHING(aclrtSetCurrentContext) NOTHING(aclSetCompileopt) NOTHING(aclrtCtxSetSysParamOpt)
NOTHING(aclrtSetOpWaitTimeout) NOTHING(aclrtSetOpExecuteTimeOut) NOTHING(aclrtSetStreamFailureMode)
NOTHING(aclrtSetStreamResLimit) NOTHING(aclrtDestroyStream) NOTHING(aclrtDestroyStreamForce)
NOTHING(aclrtDestroyEvent) NOTHING(aclrtSynchronizeEvent) NOTHING(aclrtRecordEvent) NOTHING(aclrtResetEvent)
NOTHING(aclrtStreamWaitEvent) NOTHING(aclrtPeekAtLastError) NOTHING(aclrtGetLastError)
NOTHING(aclmdlRIDebugPrint) NOTHING(aclmdlRIDebugJsonPrint)

/* Three functions of the bounds-checking library that the wheel expects CANN to bring. */
int strcpy_s(char *to, size_t room, const char *from) {
    if (strlen(from) >= room) return 22;
    return strcpy(to, from), 0;
}
int vsnprintf_s(char *to, size_t room, size_t count, const char *format, va_list arguments) {
    return vsnprintf(to, room, format, arguments);
}
int snprintf_s(char *to, size_t room, size_t count, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(to, room, format, arguments);
    va_end(arguments);
    return length;
}
