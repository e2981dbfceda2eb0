/* A stand-in for the CUDA driver, as far as this project uses it: one GPU. */
#include <dlfcn.h>

int stub_driver_version = 13000; /* set by traffic.py: the newest CUDA that the driver supports */

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *devices) { return *devices = 1, 0; }
int cuDriverGetVersion(int *version) { return *version = stub_driver_version, 0; }

/* The GPU has no name. Its used memory is what cudart.c has allocated, of 24 GiB. */
int cuDeviceGetName(char *name, int size, int device) { return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &stub_driver_version, 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(unsigned long *available, unsigned long *total) {
    void *runtime = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
    unsigned long *used = runtime ? dlsym(runtime, "stub_device_bytes") : 0;
    unsigned long *limit = runtime ? dlsym(runtime, "stub_device_limit") : 0;
    *total = 24ul << 30;
    *available = (limit && *limit < *total ? *limit : *total) - (used ? *used : 0);
    return 0;
}
