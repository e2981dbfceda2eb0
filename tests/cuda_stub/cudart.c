/* A CUDA 13 runtime without a GPU: device memory is host memory, copies are counted, kernels compute nothing.
 *
 * Only the functions whose answer matters are here; build.py adds every other symbol that ONNX Runtime's CUDA provider
 * needs as a function that returns cudaSuccess. Device memory starts as zeros unless traffic.py says otherwise, so
 * results are the same in every run.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_COPY_DIRECTION = 21, INSUFFICIENT_DRIVER = 35 };
enum { HOST_TO_HOST = 0, HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2, DEVICE_TO_DEVICE = 3 };

/* Read through ctypes by traffic.py. */
unsigned long stub_bytes_to_device, stub_bytes_to_host, stub_copies_to_device, stub_copies_to_host, stub_launches;
unsigned long stub_device_bytes, stub_device_bytes_peak;
/* Set by traffic.py: bytes of device memory that can be allocated, and the byte that fills new device memory. */
unsigned long stub_device_limit = (unsigned long)-1, stub_device_fill = 0;

/* --- Memory: 256-byte aligned and zeroed; the block from calloc and its device bytes are stored just below. --- */

typedef struct {
    char *block;
    size_t device_bytes;
} Header;

static int allocate(void **pointer, size_t size, size_t device_bytes) {
    if (device_bytes > 0 && stub_device_bytes + device_bytes > stub_device_limit) return OUT_OF_MEMORY;
    char *block = calloc(1, size + 256 + sizeof(Header));
    if (block == NULL) return OUT_OF_MEMORY;
    uintptr_t aligned = ((uintptr_t)block + sizeof(Header) + 255) & ~(uintptr_t)255;
    ((Header *)aligned)[-1] = (Header){block, device_bytes};
    *pointer = (void *)aligned;
    if (stub_device_fill != 0 && device_bytes > 0) memset(*pointer, (int)stub_device_fill, size);
    stub_device_bytes += device_bytes;
    if (stub_device_bytes > stub_device_bytes_peak) stub_device_bytes_peak = stub_device_bytes;
    return SUCCESS;
}

static int release(void *pointer) {
    if (pointer == NULL) return SUCCESS;
    stub_device_bytes -= ((Header *)pointer)[-1].device_bytes;
    free(((Header *)pointer)[-1].block);
    return SUCCESS;
}

int cudaMalloc(void **pointer, size_t size) { return allocate(pointer, size, size); }
int cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size, 0); }
int cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return allocate(pointer, size, 0); }
int cudaMallocFromPoolAsync(void **pointer, size_t size, void *pool, void *stream) {
    return allocate(pointer, size, size);
}
int cudaFree(void *pointer) { return release(pointer); }
int cudaFreeHost(void *pointer) { return release(pointer); }
int cudaFreeAsync(void *pointer, void *stream) { return release(pointer); }

int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = (size_t)22 << 30;
    *total = (size_t)24 << 30;
    return SUCCESS;
}

int cudaMemset(void *pointer, int value, size_t size) {
    memset(pointer, value, size);
    return SUCCESS;
}
int cudaMemsetAsync(void *pointer, int value, size_t size, void *stream) { return cudaMemset(pointer, value, size); }

/* --- Copies. A copy without a direction (cudaMemcpyDefault) is an error: it could not be counted. --- */

static int count(size_t size, int direction) {
    if (direction < HOST_TO_HOST || direction > DEVICE_TO_DEVICE) return INVALID_COPY_DIRECTION;
    if (direction == HOST_TO_DEVICE) stub_copies_to_device++, stub_bytes_to_device += size;
    if (direction == DEVICE_TO_HOST) stub_copies_to_host++, stub_bytes_to_host += size;
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t size, int direction) {
    int status = count(size, direction);
    if (status == SUCCESS) memmove(to, from, size);
    return status;
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int direction, void *stream) {
    return cudaMemcpy(to, from, size, direction);
}

int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int direction, void *stream) {
    int status = count(width * height, direction);
    if (status != SUCCESS) return status;
    for (size_t row = 0; row < height; row++) memmove(to + row * to_pitch, from + row * from_pitch, width);
    return SUCCESS;
}

int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, int direction) {
    int status = count(size, direction);
    if (status == SUCCESS) memset(to, 0, size); /* symbols live in device code, which is not there */
    return status;
}

/* --- The device: a 24 GiB GPU of compute capability 8.9. --- */

static void put32(char *properties, size_t offset, uint32_t value) { memcpy(properties + offset, &value, 4); }
static void put64(char *properties, size_t offset, uint64_t value) { memcpy(properties + offset, &value, 8); }

int cudaGetDevice(int *device) { return *device = 0, SUCCESS; }
int cudaDriverGetVersion(int *version) { /* the real runtime asks the driver, too */
    int (*ask)(int *) = dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuDriverGetVersion");
    return ask(version);
}
int cudaGetDeviceCount(int *devices) {
    int version;
    cudaDriverGetVersion(&version);
    return *devices = 1, version < 13000 ? INSUFFICIENT_DRIVER : SUCCESS;
}
int cudaRuntimeGetVersion(int *version) { return *version = 13000, SUCCESS; }
const char *cudaGetErrorName(int error) { return "cudaErrorOfStandIn"; }
const char *cudaGetErrorString(int error) { return "an error of the stand-in CUDA runtime"; }

int cudaGetDeviceProperties(char *properties, int device) { /* offsets into cudaDeviceProp of CUDA 13, 1008 bytes */
    memset(properties, 0, 1008);
    strcpy(properties, "stand-in device");
    put64(properties, 288, (uint64_t)24 << 30); /* totalGlobalMem */
    put64(properties, 296, 48 << 10);           /* sharedMemPerBlock */
    put32(properties, 304, 65536);              /* regsPerBlock */
    put32(properties, 308, 32);                 /* warpSize */
    put32(properties, 320, 1024);               /* maxThreadsPerBlock */
    put32(properties, 324, 1024);               /* maxThreadsDim */
    put32(properties, 328, 1024);
    put32(properties, 332, 64);
    put32(properties, 336, INT32_MAX); /* maxGridSize */
    put32(properties, 340, 65535);
    put32(properties, 344, 65535);
    put32(properties, 360, 8); /* major, minor */
    put32(properties, 364, 9);
    put32(properties, 384, 128);       /* multiProcessorCount */
    put32(properties, 596, 72 << 20);  /* l2CacheSize */
    put32(properties, 604, 1536);      /* maxThreadsPerMultiProcessor */
    put64(properties, 624, 100 << 10); /* sharedMemPerMultiprocessor */
    put32(properties, 632, 65536);     /* regsPerMultiprocessor */
    put64(properties, 672, 99 << 10);  /* sharedMemPerBlockOptin */
    return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 8: *value = 48 << 10; break;   /* MaxSharedMemoryPerBlock */
        case 10: *value = 32; break;        /* WarpSize */
        case 12: *value = 65536; break;     /* MaxRegistersPerBlock */
        case 16: *value = 128; break;       /* MultiProcessorCount */
        case 75: *value = 8; break;         /* ComputeCapabilityMajor */
        case 76: *value = 9; break;         /* ComputeCapabilityMinor */
        case 81: *value = 100 << 10; break; /* MaxSharedMemoryPerMultiprocessor */
        case 97: *value = 99 << 10; break;  /* MaxSharedMemoryPerBlockOptin */
        default: *value = 1024;
    }
    return SUCCESS;
}

/* --- Streams, events, kernels: everything completes at once. --- */

static char handle[64]; /* what every handle points to */

int cudaStreamCreate(void **stream) { return *stream = handle, SUCCESS; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return *stream = handle, SUCCESS; }
int cudaStreamIsCapturing(void *stream, int *status) { return *status = 0, SUCCESS; }
int cudaStreamEndCapture(void *stream, void **graph) { return *graph = handle, SUCCESS; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    return *executable = handle, SUCCESS;
}
int cudaEventCreate(void **event) { return *event = handle, SUCCESS; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return *event = handle, SUCCESS; }
int cudaEventElapsedTime(float *milliseconds, void *from, void *to) { return *milliseconds = 0, SUCCESS; }
int cudaMemPoolCreate(void **pool, const void *properties) { return *pool = handle, SUCCESS; }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { return memset(value, 0, 8), SUCCESS; }
int cudaLibraryLoadData(void **library) { return *library = handle, SUCCESS; }
int cudaLibraryGetKernel(void **kernel, void *library, const char *name) { return *kernel = handle, SUCCESS; }
int cudaPointerGetAttributes(void *attributes, const void *pointer) { return memset(attributes, 0, 24), SUCCESS; }
int cudaFuncGetAttributes(void *attributes, const void *function) { return memset(attributes, 0, 144), SUCCESS; }
void **__cudaRegisterFatBinary(void *binary) { return (void **)handle; }

int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                     int *result) {
    *function = NULL;
    if (result != NULL) *result = 1; /* cudaDriverEntryPointSymbolNotFound */
    return SUCCESS;
}

int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    function(data);
    return SUCCESS;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                           size_t shared, unsigned flags) {
    return *blocks = 1, SUCCESS;
}

int cudaLaunchKernel(void) { return stub_launches++, SUCCESS; }
int cudaLaunchKernelExC(void) { return stub_launches++, SUCCESS; }
int cudaLaunchCooperativeKernel(void) { return stub_launches++, SUCCESS; }
int __cudaLaunchKernel(void) { return stub_launches++, SUCCESS; }
