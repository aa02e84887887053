// A stand-in for NVIDIA's driver, libcuda.so.1: it is there, and tells what the environment says of version and GPU.
//   FAKE_CUDA_DRIVER  the CUDA version of the driver, such as 12040; without it no function succeeds
//   FAKE_CUDA_GPU     MAJOR.MINOR NAME of its only GPU, such as "6.1 Some GPU"; without it there is none
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, FAILED = 100, MAJOR = 75, MINOR = 76 };

static const char *gpu(void) { return getenv("FAKE_CUDA_GPU"); }
static int works(void) { return getenv("FAKE_CUDA_DRIVER") != NULL; }

int cuInit(unsigned flags) {
    (void)flags;
    return works() && gpu() ? OK : FAILED;
}

int cuDriverGetVersion(int *version) {
    if (!works()) return FAILED;
    *version = atoi(getenv("FAKE_CUDA_DRIVER"));
    return OK;
}

int cuDeviceGetCount(int *count) {
    *count = gpu() ? 1 : 0;
    return works() ? OK : FAILED;
}

int cuDeviceGetName(char *name, int size, int device) {
    if (!gpu() || device != 0) return FAILED;
    const char *text = strchr(gpu(), ' ');
    snprintf(name, (size_t)size, "%s", text ? text + 1 : "");
    return OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = 0, minor = 0;
    if (!gpu() || device != 0 || sscanf(gpu(), "%d.%d", &major, &minor) != 2) return FAILED;
    if (attribute != MAJOR && attribute != MINOR) return FAILED;
    *value = attribute == MAJOR ? major : minor;
    return OK;
}
