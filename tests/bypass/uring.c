/* uring TOKEN ADDRESS PORT…: sockets made, connected and sent from by io_uring, inline and by the kernel's worker threads;
 * NAME,ADDRESS=ok|ERRNO a line, payloads are TOKEN-NAME; */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
    int fd;
    char *rings;
    struct io_uring_sqe *entries;
    struct io_uring_params is;
} ring;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void setup(void)
{
    ring.fd = (int)syscall(SYS_io_uring_setup, 8, &ring.is);
    if (ring.fd < 0)
        die("io_uring_setup");
    size_t submitted = ring.is.sq_off.array + ring.is.sq_entries * sizeof(uint32_t);
    size_t completed = ring.is.cq_off.cqes + ring.is.cq_entries * sizeof(struct io_uring_cqe);
    ring.rings = mmap(NULL, submitted > completed ? submitted : completed, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
    ring.entries = mmap(NULL, ring.is.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
    if (ring.rings == MAP_FAILED || ring.entries == MAP_FAILED)
        die("mmap");
}

/* One operation, to its end. */
static int operate(struct io_uring_sqe what, int by_worker)
{
    if (by_worker)
        what.flags |= IOSQE_ASYNC;
    uint32_t *tail = (uint32_t *)(ring.rings + ring.is.sq_off.tail), at = *tail & (ring.is.sq_entries - 1);
    ring.entries[at] = what;
    ((uint32_t *)(ring.rings + ring.is.sq_off.array))[at] = at;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        die("io_uring_enter");
    uint32_t *head = (uint32_t *)(ring.rings + ring.is.cq_off.head);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(ring.rings + ring.is.cq_off.cqes);
    int result = done[*head & (ring.is.cq_entries - 1)].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static void way(const char *token, const char *address, const struct sockaddr_storage *to, socklen_t length, int kind,
                int connects, int by_worker)
{
    char name[64], payload[256];
    snprintf(name, sizeof name, "%s%s%s", kind == SOCK_STREAM ? "stream" : "datagram", connects ? "_connected" : "",
             by_worker ? "_by_worker" : "");
    snprintf(payload, sizeof payload, "%s-%s;", token, name);
    int result = operate((struct io_uring_sqe){.opcode = IORING_OP_SOCKET, .fd = to->ss_family, .off = (uint64_t)kind}, by_worker);
    int socket = result;
    if (socket >= 0 && kind == SOCK_STREAM) {
        /* Nobody waits for a handshake that never comes: net.ipv4.tcp_syn_retries does not count connects in a hurry. */
        struct timeval soon = {.tv_usec = 300000};
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
        unsigned patience = 300;
        setsockopt(socket, IPPROTO_TCP, 18 /* TCP_USER_TIMEOUT */, &patience, sizeof patience);
    }
    if (result >= 0 && connects)
        result = operate((struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = socket, .addr = (uintptr_t)to, .off = length},
                         by_worker);
    struct iovec part = {payload, strlen(payload)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (!connects)
        message.msg_name = (void *)to, message.msg_namelen = length;
    if (result >= 0)
        result = operate((struct io_uring_sqe){.opcode = IORING_OP_SENDMSG, .fd = socket, .addr = (uintptr_t)&message, .len = 1,
                                               .msg_flags = MSG_NOSIGNAL},
                         by_worker);
    if (socket >= 0)
        close(socket);
    if (result >= 0)
        printf("%s,%s=ok\n", name, address);
    else
        printf("%s,%s=%d\n", name, address, -result);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    setup();
    for (int at = 2; at + 1 < argc; at += 2) {
        struct sockaddr_storage to = {0};
        struct sockaddr_in *to4 = (struct sockaddr_in *)&to;
        struct sockaddr_in6 *to6 = (struct sockaddr_in6 *)&to;
        int is6 = strchr(argv[at], ':') != NULL;
        if (inet_pton(is6 ? AF_INET6 : AF_INET, argv[at], is6 ? (void *)&to6->sin6_addr : (void *)&to4->sin_addr) != 1)
            die(argv[at]);
        to.ss_family = is6 ? AF_INET6 : AF_INET;
        to4->sin_port = to6->sin6_port = htons((uint16_t)atoi(argv[at + 1]));
        socklen_t length = is6 ? sizeof *to6 : sizeof *to4;
        for (int by_worker = 0; by_worker < 2; by_worker++) {
            way(argv[1], argv[at], &to, length, SOCK_DGRAM, 0, by_worker);
            way(argv[1], argv[at], &to, length, SOCK_DGRAM, 1, by_worker);
            way(argv[1], argv[at], &to, length, SOCK_STREAM, 1, by_worker);
        }
    }
    return 0;
}
