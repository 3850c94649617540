/* A wire with delay, jitter, loss and a rate between two network interfaces, in user space, for kernels without
 * sch_netem.
 *
 *   wire IF IF delay_us jitter_us loss_ppm rate_bit_s
 *
 * Opens both interfaces raw and carries every frame that comes in at one out at the other. Frames travel with their
 * virtio-net header, so a segment-offload frame stays one frame and checksums stay deferred. Each direction gets the
 * one-way delay and never reorders: jitter only adds to the gap between frames. A rate holds back at most 50 ms of
 * frames and drops what comes on top, as a switch does. Losses are the same in every run. Writes "ready" once both ends
 * are open and runs until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL               /* all times are nanoseconds */
#define HEADER 10                         /* struct virtio_net_hdr */
#define FRAME_MAX (HEADER + 14 + 65536 + 64)
#define QUEUE_MAX (256u << 20)            /* bytes on the way, per direction */
#define BACKLOG_MAX (SECOND / 20)         /* waiting for the line, beyond a burst of BURST bytes */
#define BURST 262144LL

struct frame { struct frame *next; int64_t due; int len; char bytes[]; };
struct direction {
    int in, out;
    struct frame *head, **tail;
    size_t queued;
    int64_t free_at;                      /* when the line is idle again */
    int64_t last_due;                     /* no frame arrives before its predecessor */
};

static int64_t delay, jitter, rate;
static long loss;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void buffer(int fd, int forced, int plain) {
    int size = 32 << 20;
    if (setsockopt(fd, SOL_SOCKET, forced, &size, sizeof size))
        setsockopt(fd, SOL_SOCKET, plain, &size, sizeof size);
}

static int open_raw(const char *name) {
    int on = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("AF_PACKET");
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
                              .sll_ifindex = if_nametoindex(name) };
    if (!at.sll_ifindex) fail(name);
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on)) fail("PACKET_VNET_HDR");
    if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on)) fail("PACKET_IGNORE_OUTGOING");
    buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
    buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF);
    if (bind(fd, (struct sockaddr *)&at, sizeof at)) fail("bind");
    return fd;
}

/* When a frame of that many bytes arrives; 0: never. */
static int64_t arrival(struct direction *d, int len) {
    if (loss && random() % 1000000 < loss) return 0;
    int64_t t = now();
    if (rate) {
        if (d->free_at < t) d->free_at = t;
        if (d->free_at - t > BACKLOG_MAX + BURST * 8 * SECOND / rate) return 0;
        t = d->free_at += len * 8LL * SECOND / rate;
    }
    t += delay + (jitter ? random() % jitter : 0);
    return d->last_due = t < d->last_due ? d->last_due : t;
}

/* Takes the frames that wait at the inlet. */
static void take(struct direction *d) {
    static char bytes[FRAME_MAX];
    for (int i = 0; i < 256; i++) {
        int len = read(d->in, bytes, sizeof bytes);
        if (len <= HEADER) return;
        int64_t due = d->queued + len > QUEUE_MAX ? 0 : arrival(d, len - HEADER);
        struct frame *f = due ? malloc(sizeof *f + len) : NULL;
        if (!f) continue;
        f->next = NULL;
        f->due = due;
        f->len = len;
        memcpy(f->bytes, bytes, len);
        *d->tail = f;
        d->tail = &f->next;
        d->queued += len;
    }
}

/* Delivers what is due; when the next frame is, or -1. */
static int64_t give(struct direction *d) {
    struct frame *f;
    while ((f = d->head) && f->due <= now()) {
        if (write(d->out, f->bytes, f->len) < 0 && (errno == EAGAIN || errno == ENOBUFS))
            return now() + 50000;
        /* Any other failure loses the frame: the cable is out. */
        if (!(d->head = f->next)) d->tail = &d->head;
        d->queued -= f->len;
        free(f);
    }
    return f ? f->due : -1;
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: wire IF IF delay_us jitter_us loss_ppm rate_bit_s\n");
        return 2;
    }
    delay = atoll(argv[3]) * 1000;
    jitter = atoll(argv[4]) * 1000;
    loss = atol(argv[5]);
    rate = atoll(argv[6]);
    prctl(PR_SET_TIMERSLACK, 1);
    int left = open_raw(argv[1]), right = open_raw(argv[2]);
    struct direction there = { .in = left, .out = right, .tail = &there.head };
    struct direction back = { .in = right, .out = left, .tail = &back.head };
    puts("ready");
    fflush(stdout);
    for (;;) {
        int64_t a = give(&there), b = give(&back), next = a < 0 ? b : b < 0 || a < b ? a : b;
        int64_t wait = next < 0 ? 0 : next - now();
        if (wait < 0) wait = 0;
        struct timespec t = { wait / SECOND, wait % SECOND };
        struct pollfd ends[2] = { { left, POLLIN, 0 }, { right, POLLIN, 0 } };
        if (ppoll(ends, 2, next < 0 ? NULL : &t, NULL) < 0 && errno != EINTR) fail("poll");
        take(&there);
        take(&back);
    }
}
