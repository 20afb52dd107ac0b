/* Resolves each name of the command line with this C library, or with c-ares (-DCARES). One line a name:
   NAME MICROSECONDS ADDRESS..., or NAME MICROSECONDS !ERROR. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static void show(int family, struct sockaddr *address)
{
	char text[INET6_ADDRSTRLEN];
	void *raw = family == AF_INET ? (void *)&((struct sockaddr_in *)address)->sin_addr
				      : (void *)&((struct sockaddr_in6 *)address)->sin6_addr;
	printf(" %s", inet_ntop(family, raw, text, sizeof text));
}

static long elapsed_us(const struct timespec *start)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - start->tv_sec) * 1000000 + (now.tv_nsec - start->tv_nsec) / 1000;
}

#ifdef CARES
#include <ares.h>
#include <sys/select.h>

struct asked {
	struct timespec start;
	int done;
};

static void told(void *of, int status, int timeouts, struct ares_addrinfo *found)
{
	struct asked *asked = of;
	(void)timeouts;
	asked->done = 1;
	printf("%ld", elapsed_us(&asked->start));
	if (status != ARES_SUCCESS)
		printf(" !%s", ares_strerror(status));
	for (struct ares_addrinfo_node *one = found ? found->nodes : NULL; one; one = one->ai_next)
		show(one->ai_family, one->ai_addr);
	ares_freeaddrinfo(found);
}

static void resolve(const char *name)
{
	struct asked asked = { .done = 0 };
	struct ares_addrinfo_hints hints = { .ai_family = AF_UNSPEC, .ai_flags = ARES_AI_NOSORT };
	ares_channel channel;
	if (ares_init(&channel) != ARES_SUCCESS)
		return;
	clock_gettime(CLOCK_MONOTONIC, &asked.start);
	ares_getaddrinfo(channel, name, NULL, &hints, told, &asked);
	while (!asked.done) {
		fd_set readable, writable;
		struct timeval patience;
		FD_ZERO(&readable);
		FD_ZERO(&writable);
		int count = ares_fds(channel, &readable, &writable);
		select(count, &readable, &writable, NULL, ares_timeout(channel, NULL, &patience));
		ares_process(channel, &readable, &writable);
	}
	ares_destroy(channel);
}
#else
static void resolve(const char *name)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *found = NULL;
	struct timespec start;
	clock_gettime(CLOCK_MONOTONIC, &start);
	int status = getaddrinfo(name, NULL, &hints, &found);
	printf("%ld", elapsed_us(&start));
	if (status != 0)
		printf(" !%s", gai_strerror(status));
	for (struct addrinfo *one = found; one; one = one->ai_next)
		show(one->ai_family, one->ai_addr);
	if (found)
		freeaddrinfo(found);
}
#endif

int main(int count, char **words)
{
	for (int i = 1; i < count; i++) {
		printf("%s ", words[i]);
		resolve(words[i]);
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
