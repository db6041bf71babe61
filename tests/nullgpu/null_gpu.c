/* A GPU that computes nothing: what PyTorch and Triton call of the CUDA runtime and driver, cuBLAS, NCCL and NVML.

   Put before those libraries by LD_PRELOAD. Here is every function that has something to answer: a count, a handle, an
   address. All others are made by __init__.py when this file is built, and say that they have succeeded.
   NVIDIA's headers are included so that the compiler holds each function to its declaration, and each struct to its
   size, for the version that is installed. README.md says what may be concluded from a run, and what may not. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cufftXt.h>
#include <nccl.h>

/* ---------------------------------------------------------------------------------------------------- switches */

enum { MOST_GPUS = 8, LARGEST_COPY = 32 << 20 };

static struct {
    int gpus;                /* that this process sees */
    int physical[MOST_GPUS]; /* the machine's number of each */
    size_t memory;           /* bytes of each */
    int capability;          /* 90 is 9.0 */
    int full;                /* the machine's number of the GPU that has no memory left; -1: none */
    const char *full_for;    /* who is told so: torch, cublas or triton */
    int refusals;            /* how often; -1: always */
    const char *log;         /* file; NULL: none */
} set;

static const char *text(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static int machine_gpus(void) { return atoi(text("NULLGPU_DEVICES", "1")); }

/* As the driver does: once, when it is first asked for something, so that a process may set the variable before. */
static void read_switches(void) {
    int machine = machine_gpus();
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    for (int i = 0; !visible && i < machine && i < MOST_GPUS; i++) set.physical[set.gpus++] = i;
    while (visible && *visible && set.gpus < MOST_GPUS) {
        char *end;
        long number = strtol(visible, &end, 10);
        if (end == visible || number < 0 || number >= machine) break; /* what follows is not seen either */
        set.physical[set.gpus++] = (int)number;
        visible = *end == ',' ? end + 1 : end;
    }
    set.memory = (size_t)(atof(text("NULLGPU_GIB", "80")) * (1 << 30));
    set.capability = atoi(text("NULLGPU_CAPABILITY", "90"));
    set.full = atoi(text("NULLGPU_FULL", "-1"));
    set.full_for = text("NULLGPU_FULL_FOR", "torch");
    set.refusals = atoi(text("NULLGPU_FULL_TIMES", "-1"));
    set.log = getenv("NULLGPU_LOG");
}

/* A function with one thing to say. 0 is the success of all these libraries. */
#define SUCCEEDS(function, ...) function { __VA_ARGS__; return 0; }

static int gpus(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_switches);
    return set.gpus;
}

/* ------------------------------------------------------------------------------------- the log, contexts, errors */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int current;         /* each thread has a GPU, as in CUDA */
static __thread cudaError_t pending; /* until cudaGetLastError */

/* A line "RANK WHAT DETAIL NUMBER", by one write: ranks share the file. */
static void note(const char *what, const char *detail, size_t number) {
    if (!set.log) return;
    FILE *file = fopen(set.log, "a");
    if (!file) return;
    fprintf(file, "%s %s %s %zu\n", text("RANK", "0"), what, detail, number);
    fclose(file);
}

static int used[MOST_GPUS]; /* whether this process has a context there */

/* Of the calls that make a context, some 300 MB on a real GPU: whoever did not mean that GPU takes them from others. */
static int use_gpu(void) {
    if (current >= gpus()) return 0;
    if (!__sync_lock_test_and_set(&used[current], 1)) note("context", "GPU", (size_t)set.physical[current]);
    return 1;
}

static cudaError_t fail(cudaError_t error) { return pending = error; }

static int is_full_for(const char *who) {
    if (!use_gpu() || set.physical[current] != set.full || strcmp(who, set.full_for)) return 0;
    if (set.refusals > 0) return set.refusals--, 1;
    return set.refusals < 0;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = pending;
    pending = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return pending; }

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    default: return "an error that the null GPU has no words for";
    }
}

const char *cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }

CUresult cuGetErrorString(CUresult error, const char **words) {
    *words = cudaGetErrorString((cudaError_t)error); /* the numbers used here mean the same in both */
    return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------------------------------------- what the GPU is */

static int shared_memory(void) { /* bytes that a block may ask for (CUDA C programming guide, table 28) */
    switch (set.capability) {
    case 75: return 64 << 10;
    case 80: return 163 << 10;
    case 90: case 100: return 227 << 10;
    default: return 99 << 10;
    }
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = gpus();
    return *count ? cudaSuccess : fail(cudaErrorNoDevice);
}

SUCCEEDS(cudaError_t cudaGetDevice(int *device), *device = current)

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= gpus()) return fail(cudaErrorInvalidDevice);
    current = device;
    use_gpu();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *it, int device) {
    if (device < 0 || device >= gpus()) return fail(cudaErrorInvalidDevice);
    memset(it, 0, sizeof *it);
    strcpy(it->name, "null GPU");
    it->major = set.capability / 10;
    it->minor = set.capability % 10;
    it->totalGlobalMem = set.memory;
    it->multiProcessorCount = 132;
    it->warpSize = 32;
    it->maxThreadsPerBlock = it->maxThreadsDim[0] = it->maxThreadsDim[1] = 1024;
    it->maxThreadsDim[2] = 64;
    it->maxThreadsPerMultiProcessor = 2048;
    it->maxBlocksPerMultiProcessor = 32;
    it->maxGridSize[0] = INT_MAX;
    it->maxGridSize[1] = it->maxGridSize[2] = 65535;
    it->regsPerBlock = it->regsPerMultiprocessor = 65536;
    it->sharedMemPerBlock = 48 << 10;
    it->sharedMemPerBlockOptin = (size_t)shared_memory();
    it->sharedMemPerMultiprocessor = (size_t)shared_memory() + 1024;
    it->l2CacheSize = 50 << 20;
    it->textureAlignment = 512;
    it->unifiedAddressing = it->canMapHostMemory = it->concurrentKernels = 1;
    it->pciBusID = it->uuid.bytes[0] = (char)(set.physical[device] + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp it;
    cudaError_t error = cudaGetDeviceProperties(&it, device);
    if (error) return error;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = it.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = it.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = it.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = it.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = it.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = it.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = it.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = it.regsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)it.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)it.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)it.sharedMemPerMultiprocessor; break;
    default: *value = 0; /* a feature that it does not have */
    }
    return cudaSuccess;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device); /* the same numbers */
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
    snprintf(id, (size_t)size, "0000:%02x:00.0", set.physical[device] + 1);
    return cudaSuccess;
}

SUCCEEDS(cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int other), *can = 0)
SUCCEEDS(cudaError_t cudaDriverGetVersion(int *version), *version = CUDA_VERSION)
SUCCEEDS(cudaError_t cudaRuntimeGetVersion(int *version), *version = CUDART_VERSION)

/* ------------------------------------------------------------------------------------------------------- memory */

/* The machine's own, which takes no room until it is written to; counted against what the GPU has. */

enum { MOST_BLOCKS = 1 << 16 };
static struct {
    char *start; /* NULL: this place is free */
    size_t size;
    enum cudaMemoryType type;
    int device;
} blocks[MOST_BLOCKS];
static int places; /* that have been in use */
static size_t taken[MOST_GPUS];

/* The place of the block that an address lies in; -1: none. Under the lock. */
static int place_of(const void *address) {
    for (int i = 0; i < places; i++)
        if (blocks[i].start && (char *)address >= blocks[i].start && (char *)address < blocks[i].start + blocks[i].size)
            return i;
    return -1;
}

static cudaError_t allocate(void **address, size_t size, enum cudaMemoryType type) {
    int on_gpu = type == cudaMemoryTypeDevice;
    size = (size + 4095) & ~(size_t)4095;
    if (!size) size = 4096;
    if (!use_gpu()) return fail(cudaErrorNoDevice);
    if (on_gpu && is_full_for("torch")) return fail(cudaErrorMemoryAllocation);
    cudaError_t error = cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    int place = 0;
    while (place < places && blocks[place].start) place++;
    if (place < MOST_BLOCKS && !(on_gpu && taken[current] + size > set.memory)) {
        void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start != MAP_FAILED) {
            blocks[place].start = *address = start;
            blocks[place].size = size;
            blocks[place].type = type;
            blocks[place].device = current;
            if (on_gpu) taken[current] += size;
            if (place == places) places++;
            error = cudaSuccess;
        }
    }
    pthread_mutex_unlock(&lock);
    return error ? fail(error) : cudaSuccess;
}

static cudaError_t release(void *address) {
    if (!address) return cudaSuccess;
    pthread_mutex_lock(&lock);
    int place = place_of(address), known = place >= 0 && blocks[place].start == address;
    if (known) {
        if (blocks[place].type == cudaMemoryTypeDevice) taken[blocks[place].device] -= blocks[place].size;
        munmap(address, blocks[place].size);
        blocks[place].start = NULL;
    }
    pthread_mutex_unlock(&lock);
    return known ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void **address, size_t size) { return allocate(address, size, cudaMemoryTypeDevice); }

cudaError_t cudaFree(void *address) {
    use_gpu();
    return release(address);
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
    return allocate(address, size, cudaMemoryTypeHost);
}

cudaError_t cudaMallocHost(void **address, size_t size) { return allocate(address, size, cudaMemoryTypeHost); }

cudaError_t cudaFreeHost(void *address) { return release(address); }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    if (!use_gpu()) return fail(cudaErrorNoDevice);
    *total = set.memory;
    *available = set.physical[current] == set.full ? 0 : set.memory - taken[current];
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *it, const void *address) {
    memset(it, 0, sizeof *it); /* the type of memory that CUDA has not given out is 0 */
    it->device = -2;
    pthread_mutex_lock(&lock);
    int place = place_of(address);
    if (place >= 0) {
        it->type = blocks[place].type;
        it->device = blocks[place].device;
        it->devicePointer = (void *)address;
        it->hostPointer = it->type == cudaMemoryTypeHost ? (void *)address : NULL;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    struct cudaPointerAttributes it; /* Triton asks, of each tensor that it is given, whether it is on a GPU */
    cudaPointerGetAttributes(&it, (void *)address);
    if (it.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = address;
    return CUDA_SUCCESS;
}

/* Copies are real, and done when the call returns. Beyond 32 MiB none is: nothing depends on what such a tensor holds,
   and tests may use all of an 80 GiB GPU. */
static void copy(void *to, const void *from, size_t size) {
    use_gpu();
    if (size <= LARGEST_COPY) memmove(to, from, size);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    note("wait", "cudaMemcpy", size);
    copy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    copy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *to, int device, const void *from, int source, size_t size, cudaStream_t stream) {
    copy(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    for (size_t row = 0; row < height; row++)
        copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
    use_gpu();
    if (size <= LARGEST_COPY) memset(address, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *address, int value, size_t size) { return cudaMemsetAsync(address, value, size, NULL); }

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char variables[1 << 20]; /* one place for all variables of all kernels: none is ever read */
    *address = variables;
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------ streams, events, launches */

/* A handle that only we give a meaning: none but being unlike all others. */
static void *new_handle(void) {
    static uintptr_t last = 0x1000;
    return (void *)__sync_add_and_fetch(&last, 16);
}

SUCCEEDS(cudaError_t cudaStreamCreate(cudaStream_t *stream), use_gpu(), *stream = new_handle())
SUCCEEDS(cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags), use_gpu(), *stream = new_handle())

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}

SUCCEEDS(cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority), *priority = 0)

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

SUCCEEDS(cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags), use_gpu(), *event = new_handle())

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

SUCCEEDS(cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end), *milliseconds = 1)

/* There is never anything to wait for; what a real GPU would be waited for is noted. */
SUCCEEDS(cudaError_t cudaStreamSynchronize(cudaStream_t stream), use_gpu(), note("wait", "cudaStreamSynchronize", 0))
SUCCEEDS(cudaError_t cudaDeviceSynchronize(void), use_gpu(), note("wait", "cudaDeviceSynchronize", 0))
SUCCEEDS(cudaError_t cudaEventSynchronize(cudaEvent_t event), note("wait", "cudaEventSynchronize", 0))

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t shared,
                             cudaStream_t stream) {
    use_gpu();
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *it, const void *kernel) {
    memset(it, 0, sizeof *it);
    it->maxThreadsPerBlock = 1024;
    it->numRegs = 32;
    it->ptxVersion = it->binaryVersion = set.capability;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size,
                                                                   size_t shared, unsigned flags) {
    *blocks = 4;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int size, size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, kernel, size, shared, 0);
}

/* ----------------------------------------------------------------------------- the driver, for Triton's kernels */

static int succeed(void) { return 0; }

/* torch asks for the driver's functions by name. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)succeed;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

CUresult cuInit(unsigned flags) {
    return gpus() ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) { return (CUresult)cudaDriverGetVersion(version); }

SUCCEEDS(CUresult cuDeviceGetCount(int *count), *count = gpus())
SUCCEEDS(CUresult cuDeviceGet(CUdevice *device, int ordinal), *device = ordinal)
SUCCEEDS(CUresult cuCtxGetDevice(CUdevice *device), *device = current)
SUCCEEDS(CUresult cuCtxGetCurrent(CUcontext *context), *context = (CUcontext)1)

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = used[device];
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    if (is_full_for("triton")) return CUDA_ERROR_OUT_OF_MEMORY;
    *module = new_handle();
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    note("kernel", name, (size_t)set.physical[current]);
    *function = new_handle();
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

/* --------------------------------------------------------------------------------------------- cuBLAS and cuFFT */

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    if (is_full_for("cublas")) return CUBLAS_STATUS_ALLOC_FAILED;
    *handle = new_handle();
    return CUBLAS_STATUS_SUCCESS;
}

SUCCEEDS(cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode), *mode = CUBLAS_DEFAULT_MATH)

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *it, cublasComputeType_t compute, cudaDataType_t scale) {
    *it = new_handle();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *it, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride) {
    *it = new_handle();
    return CUBLAS_STATUS_SUCCESS;
}

SUCCEEDS(cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *it), *it = new_handle())

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found) {
    memset(results, 0, sizeof *results);
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cufftResult cufftXtMakePlanMany(cufftHandle plan, int rank, long long *n, long long *inembed, long long istride,
                                long long idist, cudaDataType in, long long *onembed, long long ostride,
                                long long odist, cudaDataType out, long long batch, size_t *size,
                                cudaDataType compute) {
    *size = 0; /* bytes of workspace */
    return CUFFT_SUCCESS;
}

/* --------------------------------------------------------------------------------------------------------- NVML */

/* torch counts GPUs by it in a process that is to be forked. Its header is in none of the wheels that torch needs. */

unsigned nvmlInit(void) { return 0; }

unsigned nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)machine_gpus(); /* visible or not */
    return 0;
}

unsigned nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) {
    *count = 0; /* the table that torch shows where memory runs out */
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- NCCL */

struct ncclComm {
    int ranks, rank;
};

SUCCEEDS(ncclResult_t ncclGetVersion(int *version), *version = NCCL_VERSION_CODE)
SUCCEEDS(ncclResult_t ncclGetUniqueId(ncclUniqueId *id), memset(id, 0, sizeof *id))

ncclResult_t ncclCommInitRankConfig(ncclComm_t *group, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
    *group = calloc(1, sizeof **group);
    (*group)->ranks = ranks;
    (*group)->rank = rank;
    return ncclSuccess;
}

SUCCEEDS(ncclResult_t ncclCommGetAsyncError(ncclComm_t group, ncclResult_t *error), *error = ncclSuccess)

SUCCEEDS(ncclResult_t ncclCommCount(const ncclComm_t group, int *ranks), *ranks = group->ranks)
SUCCEEDS(ncclResult_t ncclCommUserRank(const ncclComm_t group, int *rank), *rank = group->rank)

const char *ncclGetErrorString(ncclResult_t error) { return error ? "an error" : "no error"; }

const char *ncclGetLastError(ncclComm_t group) {
    return "";
}

/* Ranks do not meet: each is alone with its numbers. That all call the same, in one order, is for the log to show. */
static ncclResult_t exchange(const char *what, void *to, const void *from, size_t count, ncclDataType_t type,
                             int copies) {
    static const int bytes[ncclNumTypes] = {
        [ncclInt8] = 1, [ncclUint8] = 1, [ncclInt32] = 4, [ncclUint32] = 4, [ncclInt64] = 8, [ncclUint64] = 8,
        [ncclFloat16] = 2, [ncclFloat32] = 4, [ncclFloat64] = 8, [ncclBfloat16] = 2,
    };
    char detail[64];
    snprintf(detail, sizeof detail, "%s:%d", what, (int)type);
    note("collective", detail, count);
    size_t size = count * (size_t)bytes[type];
    for (int i = 0; i < copies; i++)
        if ((char *)to + (size_t)i * size != from) copy((char *)to + (size_t)i * size, from, size);
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t group, cudaStream_t stream) {
    return exchange("AllReduce", to, from, count, type, 1);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t group,
                           cudaStream_t stream) {
    return exchange("Broadcast", to, from, count, type, 1);
}

ncclResult_t ncclBcast(void *to, size_t count, ncclDataType_t type, int root, ncclComm_t group, cudaStream_t stream) {
    return ncclBroadcast(to, to, count, type, root, group, stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t group,
                           cudaStream_t stream) {
    return exchange("AllGather", to, from, count, type, group->ranks);
}

/* -------------------------------------------------------------------------------------------------------- torch */

/* cuDNN describes its work by objects that are asked for their contents, more than a stand-in can answer. torch goes
   without it where these two methods of at::Context say that the user does not want it. */
char _ZNK2at7Context16userEnabledCuDNNEv(const void *context) {
    return 0;
}

char _ZNK2at7Context19userEnabledCuDNNSDPEv(const void *context) {
    return 0;
}
