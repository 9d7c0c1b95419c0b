/* SPDX-License-Identifier: Apache-2.0 */
/* Load for the benchmark: blocking sockets, one thread a connection, nothing between the clock and
 * the system call. C, because a Go runtime's scheduler would be measured with it.
 *
 *   load server TCPPORT UDPPORT THREADS   answers each read with one byte; UDPPORT 0: no UDP
 *   load rr IP:PORT SECONDS CONNECTIONS   request and response on connections that stay
 *   load crr IP:PORT SECONDS CONNECTIONS  connect, request, response, close
 *   load udp IP:PORT SECONDS SIZE FLOWS   datagrams as fast as they go
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64       /* datagrams a system call */
#define DATAGRAM 2048  /* room for one that is received */
#define MAX_FAILS 1000 /* then a client gives up */
#define STAYS 'K'      /* first byte of a connection that gets a thread of its own */
#define CLOSES 'c'

static const int one = 1;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct sockaddr_in parse_address(const char *text)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	char copy[64], *colon;

	snprintf(copy, sizeof(copy), "%s", text);
	colon = strchr(copy, ':');
	if (!colon)
		die("address without a port");
	*colon = 0;
	if (inet_pton(AF_INET, copy, &a.sin_addr) != 1)
		die("address");
	a.sin_port = htons(atoi(colon + 1));
	return a;
}

static struct sockaddr_in any_address(int port)
{
	return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
}

static void set_timeout(int fd, int option, int seconds)
{
	struct timeval t = {.tv_sec = seconds};

	setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t));
}

/* ---- server ---- */

static void *serve_kept(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char buf[65536];

	while (read(fd, buf, sizeof(buf)) > 0)
		if (write(fd, buf, 1) != 1)
			break;
	close(fd);
	return NULL;
}

/* serve_one answers a connection's requests; one that stays is handed to a thread. */
static void serve_one(int fd)
{
	pthread_t thread;
	char buf[4096];

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	set_timeout(fd, SO_RCVTIMEO, 2);
	while (read(fd, buf, sizeof(buf)) > 0) {
		if (write(fd, buf, 1) != 1)
			break;
		if (buf[0] != STAYS)
			continue;
		set_timeout(fd, SO_RCVTIMEO, 0);
		if (pthread_create(&thread, NULL, serve_kept, (void *)(intptr_t)fd))
			break;
		pthread_detach(thread);
		return;
	}
	close(fd);
}

static void *serve_tcp(void *arg)
{
	struct sockaddr_in a = any_address((int)(intptr_t)arg);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (bind(listener, (void *)&a, sizeof(a)) || listen(listener, 4096))
		die("listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd >= 0)
			serve_one(fd);
	}
	return NULL;
}

static void serve_udp(int port)
{
	static char buf[BATCH][DATAGRAM];
	int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 8 << 20;
	struct sockaddr_in a = any_address(port);
	struct mmsghdr messages[BATCH] = {0};
	struct iovec parts[BATCH];

	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (bind(fd, (void *)&a, sizeof(a)))
		die("bind");
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){.iov_base = buf[i], .iov_len = DATAGRAM};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
	}
	for (;;)
		recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
}

static void server(char **argv)
{
	pthread_t thread;

	for (int i = 0; i < atoi(argv[4]); i++)
		pthread_create(&thread, NULL, serve_tcp, (void *)(intptr_t)atoi(argv[2]));
	if (atoi(argv[3]))
		serve_udp(atoi(argv[3]));
	for (;;)
		pause();
}

/* ---- TCP clients ---- */

struct client {
	pthread_t thread;
	struct sockaddr_in to;
	int64_t end;
	int closes;	/* a connection for each request */
	uint32_t *took; /* ns of each request */
	size_t requests, room;
	long fails;
};

static void note(struct client *c, int64_t took)
{
	if (c->requests == c->room) {
		c->room *= 2;
		c->took = realloc(c->took, c->room * sizeof(*c->took));
		if (!c->took)
			die("memory");
	}
	c->took[c->requests++] = took > UINT32_MAX ? UINT32_MAX : took;
}

static int dial(const struct client *c)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	set_timeout(fd, SO_RCVTIMEO, 1);
	set_timeout(fd, SO_SNDTIMEO, 1);
	if (connect(fd, (const void *)&c->to, sizeof(c->to))) {
		close(fd);
		return -1;
	}
	return fd;
}

static int ask(int fd, char request)
{
	char answer[64];

	return write(fd, &request, 1) == 1 && read(fd, answer, sizeof(answer)) == 1;
}

static void ask_and_close(struct client *c)
{
	int64_t begin = now_ns();

	while (begin < c->end && c->fails < MAX_FAILS) {
		int fd = dial(c), answered = fd >= 0 && ask(fd, CLOSES);
		int64_t end;

		if (fd >= 0)
			close(fd);
		end = now_ns();
		if (answered)
			note(c, end - begin);
		else
			c->fails++;
		begin = end;
	}
}

static void ask_and_stay(struct client *c)
{
	int fd = dial(c);
	int64_t begin = now_ns();

	if (fd < 0) {
		c->fails++;
		return;
	}
	while (begin < c->end) {
		int64_t end;

		if (!ask(fd, STAYS)) {
			c->fails++;
			break;
		}
		end = now_ns();
		note(c, end - begin);
		begin = end;
	}
	close(fd);
}

static void *run_client(void *arg)
{
	struct client *c = arg;

	c->room = 1 << 20;
	c->took = malloc(c->room * sizeof(*c->took));
	if (!c->took)
		die("memory");
	memset(c->took, 0, c->room * sizeof(*c->took)); /* no page fault while measuring */
	if (c->closes)
		ask_and_close(c);
	else
		ask_and_stay(c);
	return NULL;
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static double quantile_us(const uint32_t *sorted, size_t n, double q)
{
	return n ? sorted[(size_t)(q * (n - 1))] / 1e3 : 0;
}

static int tcp(char **argv)
{
	int n = atoi(argv[4]);
	struct client *clients = calloc(n, sizeof(*clients));
	int64_t begin = now_ns();
	size_t requests = 0, at = 0;
	long fails = 0;
	uint32_t *all;
	double seconds;

	for (int i = 0; i < n; i++) {
		clients[i].to = parse_address(argv[2]);
		clients[i].closes = !strcmp(argv[1], "crr");
		clients[i].end = begin + atof(argv[3]) * 1e9;
		pthread_create(&clients[i].thread, NULL, run_client, &clients[i]);
	}
	for (int i = 0; i < n; i++) {
		pthread_join(clients[i].thread, NULL);
		requests += clients[i].requests;
		fails += clients[i].fails;
	}
	seconds = (now_ns() - begin) / 1e9;
	all = malloc(requests * sizeof(*all) + 1);
	if (!all)
		die("memory");
	for (int i = 0; i < n; i++) {
		memcpy(all + at, clients[i].took, clients[i].requests * sizeof(*all));
		at += clients[i].requests;
	}
	qsort(all, requests, sizeof(*all), compare);
	printf("rate=%.1f p50us=%.2f p99us=%.2f n=%zu fails=%ld\n", requests / seconds,
	       quantile_us(all, requests, .5), quantile_us(all, requests, .99), requests, fails);
	return 0;
}

/* ---- UDP client ---- */

static int udp(char **argv)
{
	struct sockaddr_in to = parse_address(argv[2]);
	int size = atoi(argv[4]), flows = atoi(argv[5]), room = 4 << 20;
	int *fds = calloc(flows, sizeof(*fds));
	int64_t begin, end, now;
	static char payload[DATAGRAM];
	struct mmsghdr messages[BATCH] = {0};
	struct iovec part = {.iov_base = payload, .iov_len = size};
	long sent = 0;

	for (int i = 0; i < flows; i++) {
		fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
		if (connect(fds[i], (void *)&to, sizeof(to)))
			die("connect");
	}
	for (int i = 0; i < BATCH; i++)
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
	begin = now = now_ns();
	end = begin + atof(argv[3]) * 1e9;
	for (long i = 0; now < end; i++) {
		int n = sendmmsg(fds[i % flows], messages, BATCH, 0);

		if (n > 0)
			sent += n;
		if ((i & 15) == 0)
			now = now_ns();
	}
	printf("pps=%.0f sec=%.3f\n", sent / ((now - begin) / 1e9), (now - begin) / 1e9);
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 5 && !strcmp(argv[1], "server"))
		server(argv);
	if (argc == 5 && (!strcmp(argv[1], "rr") || !strcmp(argv[1], "crr")))
		return tcp(argv);
	if (argc == 6 && !strcmp(argv[1], "udp"))
		return udp(argv);
	fprintf(stderr, "usage: load server TCP UDP THREADS | rr|crr IP:PORT SECONDS CONNECTIONS |"
			" udp IP:PORT SECONDS SIZE FLOWS\n");
	return 2;
}
