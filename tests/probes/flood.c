/* flood COUNT MILLISECONDS ADDRESS [SPREAD]: sends COUNT datagrams, or as many as fit into MILLISECONDS: to port 4242 of ADDRESS, or
   with SPREAD to one address and port of the /24 behind it after the other. Prints how many were sent, how many of them were
   refused (EPERM), how many failed otherwise, and the milliseconds. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static long now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

int main(int words, char **word)
{
	if (words < 4)
		return 2;
	long most = atol(word[1]), start = now(), end = start + atol(word[2]);
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(4242) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || inet_pton(AF_INET, word[3], &to.sin_addr) != 1)
		return 2;
	unsigned base = ntohl(to.sin_addr.s_addr);
	long sent, refused = 0, failed = 0;
	for (sent = 0; sent < most && (sent % 256 || now() < end); sent++) {
		if (words > 4) {
			to.sin_addr.s_addr = htonl(base + sent % 250);
			to.sin_port = htons(1024 + sent / 250 % 60000);
		}
		if (sendto(fd, word[3], 1, 0, (struct sockaddr *)&to, sizeof to) < 0) {
			refused += errno == EPERM;
			failed += errno != EPERM;
		}
	}
	printf("%ld %ld %ld %ld\n", sent, refused, failed, now() - start);
	return 0;
}
