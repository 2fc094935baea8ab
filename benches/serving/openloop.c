/* Load that does not wait for answers: so many requests a second, whatever the server makes of them.
 *
 *     openloop PORT REQUEST RATE SECONDS
 *
 * REQUEST is a file with a whole HTTP/1.1 request. Prints one line of JSON: latencies by status, from the moment that a
 * request was due, and how late this program itself was. Connections are kept; a request takes a free one or opens another.
 * Status 0 is a connection that broke, -1 a request that this program had no connection left for. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 4000, ANSWER_MAX = 1 << 16, DRAIN_SECONDS = 30 };

struct connection {
    int fd, busy;
    double due;
    size_t sent, got;
    struct connection *next; /* In the list of free ones. */
    char answer[ANSWER_MAX + 1];
};

struct result {
    int status;
    double seconds;
};

static struct connection *unused;
static struct result *results;
static size_t results_count, open_count, waiting, request_len;
static char *request;
static int epoll_fd;
static struct sockaddr_in server;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void done(int status, double due) {
    results[results_count++] = (struct result){status, now() - due};
    waiting--;
}

static void drop(struct connection *c) {
    if (c->busy) {
        done(0, c->due);
    } else {
        for (struct connection **at = &unused; *at; at = &(*at)->next) {
            if (*at == c) {
                *at = c->next;
                break;
            }
        }
    }
    close(c->fd);
    free(c);
    open_count--;
}

/* Sends what is left of the request; 0 where the connection broke. */
static int go_on(struct connection *c) {
    while (c->sent < request_len) {
        ssize_t n = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            return errno == EAGAIN || errno == ENOTCONN || errno == EINPROGRESS;
        }
        c->sent += (size_t)n;
    }
    return 1;
}

static void ask(double due) {
    waiting++;
    struct connection *c = unused;
    if (c) {
        unused = c->next;
    } else if (open_count >= CONNECTIONS_MAX) {
        done(-1, due); /* The result must not hide it. */
        return;
    } else {
        c = calloc(1, sizeof *c);
        if (!c) {
            fail("memory");
        }
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (c->fd < 0) {
            fail("socket");
        }
        int one = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        open_count++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) {
            fail("epoll_ctl");
        }
        if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
            c->busy = 1;
            c->due = due;
            drop(c);
            return;
        }
    }
    c->busy = 1;
    c->due = due;
    c->sent = c->got = 0;
    if (!go_on(c)) {
        drop(c);
    }
}

/* The length of a whole answer in the buffer, or 0. */
static size_t whole(struct connection *c) {
    c->answer[c->got] = 0;
    char *end = strstr(c->answer, "\r\n\r\n");
    if (!end) {
        return 0;
    }
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    size_t body = length && length < end ? strtoul(length + 17, NULL, 10) : 0;
    size_t all = (size_t)(end - c->answer) + 4 + body;
    return c->got >= all ? all : 0;
}

static void hear(struct connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, c->answer + c->got, ANSWER_MAX - c->got, 0);
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n <= 0) {
            drop(c);
            return;
        }
        c->got += (size_t)n;
        if (c->busy && whole(c)) {
            done(atoi(c->answer + 9), c->due);
            c->busy = 0;
            c->got = 0;
            c->next = unused;
            unused = c;
        }
    }
}

/* Answers what comes within so many seconds. */
static void listen_for(double seconds) {
    struct epoll_event events[256];
    struct timespec wait = {0, 0};
    if (seconds > 0) {
        wait = (struct timespec){(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    }
    int count = epoll_pwait2(epoll_fd, events, 256, &wait, NULL);
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT && c->busy && !go_on(c)) {
            drop(c);
        } else if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
            hear(c);
        }
    }
}

static int by_status(const void *a, const void *b) {
    const struct result *x = a, *y = b;
    if (x->status != y->status) {
        return x->status < y->status ? -1 : 1;
    }
    return (x->seconds > y->seconds) - (x->seconds < y->seconds);
}

static void summary(const struct result *sorted, size_t count) {
    double p50 = count ? sorted[count / 2].seconds : 0, p99 = count ? sorted[count * 99 / 100].seconds : 0;
    printf("{\"count\": %zu, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f}", count, p50 * 1e3, p99 * 1e3,
           count ? sorted[count - 1].seconds * 1e3 : 0);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: openloop PORT REQUEST RATE SECONDS\n");
        return 2;
    }
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    size_t count = (size_t)(rate * seconds);
    struct rlimit files = {CONNECTIONS_MAX + 64, CONNECTIONS_MAX + 64};
    setrlimit(RLIMIT_NOFILE, &files); /* Where it is refused, connections are, and the result shows it. */
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    FILE *file = fopen(argv[2], "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        fail(argv[2]);
    }
    request_len = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_len + 1);
    results = calloc(count + 1, sizeof *results);
    struct result *late = calloc(count + 1, sizeof *late);
    if (!request || !results || !late || fread(request, 1, request_len, file) != request_len) {
        fail(argv[2]);
    }
    epoll_fd = epoll_create1(0);

    double begun = now();
    size_t sent = 0, lates = 0, connections = 0;
    while (sent < count) {
        double at = now();
        late[lates++].seconds = at - (begun + sent / rate);
        while (sent < count && begun + sent / rate <= at) {
            ask(begun + sent++ / rate);
        }
        connections = open_count > connections ? open_count : connections;
        do {
            listen_for(begun + sent / rate - now());
        } while (sent < count && now() < begun + sent / rate);
    }
    double took = now() - begun;
    for (double end = now() + DRAIN_SECONDS; waiting && now() < end;) {
        listen_for(0.05);
    }

    qsort(results, results_count, sizeof *results, by_status);
    qsort(late, lates, sizeof *late, by_status);
    printf("{\"sent\": %zu, \"seconds\": %.6f, \"unanswered\": %zu, \"connections\": %zu, \"late_ms\": ", sent, took, waiting,
           connections);
    summary(late, lates);
    printf(", \"statuses\": {");
    for (size_t from = 0, to; from < results_count; from = to) {
        for (to = from; to < results_count && results[to].status == results[from].status; to++) {
        }
        printf("%s\"%d\": ", from ? ", " : "", results[from].status);
        summary(results + from, to - from);
    }
    printf("}}\n");
    return 0;
}
