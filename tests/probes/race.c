/* race SERVER PORT COUNT FIRST SUFFIX: asks SERVER for A of nFIRST.SUFFIX and the next ones, and connects to PORT of each
   answer at once. Prints how many connected, how many the kernel refused, and what else happened. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static size_t question(unsigned char *out, unsigned id, const char *name)
{
	unsigned char *at = out;
	unsigned char header[12] = { id >> 8, id, 1, 0, 0, 1 };
	memcpy(at, header, 12);
	at += 12;
	while (*name) {
		size_t length = strcspn(name, ".");
		*at++ = length;
		memcpy(at, name, length);
		at += length;
		name += length + (name[length] == '.');
	}
	memcpy(at, "\0\0\1\0\1", 5);
	return at + 5 - out;
}

int main(int count, char **words)
{
	if (count != 6)
		return 2;
	int connected = 0, refused = 0, other = 0, lost = 0;
	int first = atoi(words[4]), many = atoi(words[3]);
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(53) };
	inet_pton(AF_INET, words[1], &server.sin_addr);
	int dns = socket(AF_INET, SOCK_DGRAM, 0);
	struct timeval patience = { .tv_sec = 5 };
	setsockopt(dns, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (connect(dns, (struct sockaddr *)&server, sizeof server))
		return 3;
	for (int i = first; i < first + many; i++) {
		char name[128];
		unsigned char query[300], answer[512];
		snprintf(name, sizeof name, "n%d.%s", i, words[5]);
		size_t length = question(query, i, name);
		ssize_t got = send(dns, query, length, 0) < 0 ? -1 : recv(dns, answer, sizeof answer, 0);
		/* One A record: its address is the last four octets. */
		if (got < (ssize_t)length + 16 || answer[7] != 1) {
			lost++;
			continue;
		}
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(words[2])) };
		memcpy(&to.sin_addr, answer + got - 4, 4);
		int tcp = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(tcp, (struct sockaddr *)&to, sizeof to) == 0)
			connected++;
		else if (errno == EPERM || errno == EACCES)
			refused++;
		else
			other++;
		/* A reset instead of TIME_WAIT. */
		struct linger now = { .l_onoff = 1 };
		setsockopt(tcp, SOL_SOCKET, SO_LINGER, &now, sizeof now);
		close(tcp);
	}
	printf("connected=%d\nrefused=%d\nother=%d\nlost=%d\n", connected, refused, other, lost);
	return 0;
}
