/* xdp DEVICE: sends the frames on standard input, NAME and hexadecimal a line, by an AF_XDP socket in copy mode, which meets
 * neither a socket hook nor a queueing discipline; NAME=ok|ERRNO a line. */
#include <errno.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef AF_XDP
#define AF_XDP 44
#endif

enum { CHUNK = 2048, CHUNKS = 64 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *ring(int fd, uint64_t at, size_t length)
{
    void *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)at);
    if (mapped == MAP_FAILED)
        die("mmap of a ring");
    return mapped;
}

int main(int argc, char **argv)
{
    int fd = socket(AF_XDP, SOCK_RAW, 0), entries = CHUNKS;
    if (fd < 0 || argc != 2)
        die("socket");
    char *area = mmap(NULL, CHUNK * CHUNKS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        die("mmap");
    struct xdp_umem_reg umem = {.addr = (uintptr_t)area, .len = CHUNK * CHUNKS, .chunk_size = CHUNK};
    if (setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem))
        die("XDP_UMEM_REG");
    if (setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof entries) ||
        setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof entries) ||
        setsockopt(fd, SOL_XDP, XDP_TX_RING, &entries, sizeof entries))
        die("rings");
    struct xdp_mmap_offsets at;
    socklen_t length = sizeof at;
    if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length))
        die("XDP_MMAP_OFFSETS");
    char *tx = ring(fd, XDP_PGOFF_TX_RING, at.tx.desc + CHUNKS * sizeof(struct xdp_desc));
    char *done = ring(fd, XDP_UMEM_PGOFF_COMPLETION_RING, at.cr.desc + CHUNKS * sizeof(uint64_t));
    struct sockaddr_xdp address = {
        .sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = if_nametoindex(argv[1]), .sxdp_queue_id = 0};
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        die("bind");

    char name[64], hexadecimal[2 * CHUNK + 1];
    uint32_t sent = 0;
    while (scanf("%63s %4096s", name, hexadecimal) == 2) {
        uint32_t size = (uint32_t)strlen(hexadecimal) / 2;
        char *chunk = area + (sent % CHUNKS) * CHUNK;
        for (uint32_t byte = 0; byte < size; byte++)
            sscanf(hexadecimal + 2 * byte, "%2hhx", (unsigned char *)chunk + byte);
        struct xdp_desc *descriptor = (struct xdp_desc *)(tx + at.tx.desc) + sent % CHUNKS;
        *descriptor = (struct xdp_desc){.addr = (uint64_t)(chunk - area), .len = size};
        sent++;
        __atomic_store_n((uint32_t *)(tx + at.tx.producer), sent, __ATOMIC_RELEASE);
        int failed = 0;
        /* The kernel has taken the frame when it comes back on the completion ring. */
        for (int turn = 0; turn < 2000; turn++) {
            if (sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY && errno != ENOBUFS) {
                failed = errno;
                break;
            }
            if (__atomic_load_n((uint32_t *)(done + at.cr.producer), __ATOMIC_ACQUIRE) == sent)
                break;
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        __atomic_store_n((uint32_t *)(done + at.cr.consumer), sent, __ATOMIC_RELEASE);
        if (failed)
            printf("%s=%d\n", name, failed);
        else
            printf("%s=ok\n", name);
    }
    return 0;
}
