/* A stand-in for the CUDA driver, as far as this project asks it: one card. */

int stub_driver_version = 13000; /* set by traffic.py: the newest CUDA that the driver knows */

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *devices) { return *devices = 1, 0; }
int cuDriverGetVersion(int *version) { return *version = stub_driver_version, 0; }

/* Of the driver by `export.card`; answered with nothing. */
int cuDeviceGetName(char *name, int size, int device) { return 0; }
int cuMemGetInfo_v2(unsigned long *available, unsigned long *total) { return 0; }
