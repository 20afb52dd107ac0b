/* Preloaded into egressd: its clocks, shifted by files of the directory CLOCKS. `back` sets the wall clock back by an hour, `slept`
 * lets a day pass that CLOCK_MONOTONIC does not count. */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int told(const char *name) {
    char path[PATH_MAX];
    const char *directory = getenv("CLOCKS");
    if (directory == NULL) {
        return 0;
    }
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return access(path, F_OK) == 0;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    long result = syscall(SYS_clock_gettime, clock, out);
    if (clock == CLOCK_REALTIME && told("back")) {
        out->tv_sec -= 3600;
    }
    if (clock == CLOCK_BOOTTIME && told("slept")) {
        out->tv_sec += 86400;
    }
    return (int)result;
}
