/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one register access of a guest costs over vfio-user: the round trip of a REGION_READ or
 * REGION_WRITE to a running server.
 *
 *     vfio_user_bench SOCKET [REGION [OFFSET [SECONDS]]]
 *
 * Measured twice: by one thread that sends and then blocks for the answer (what the server and two
 * wake-ups cost), and as QEMU's client does it: one thread sends and waits on a condition, another
 * one receives the answer and signals it (three wake-ups). Pin the process and the server (taskset)
 * to compare placements. A read of configuration space (region 7, the default) has no effect on the
 * device.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "wire/vfio_user/protocol.h"

static struct {
    int fd;
    uint32_t region;
    uint64_t offset;
    pthread_mutex_t lock;
    pthread_cond_t answered;
    bool waiting, ended;
} b = {.region = 7, .lock = PTHREAD_MUTEX_INITIALIZER, .answered = PTHREAD_COND_INITIALIZER};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void send_all(const void *bytes, size_t len)
{
    if (send(b.fd, bytes, len, MSG_NOSIGNAL) != (ssize_t)len) {
        die("send");
    }
}

/* One answer: the header, then the rest, as QEMU reads it. False at the end. */
static bool receive(void)
{
    struct vfu_header header;
    char rest[4096];
    size_t len;

    if (recv(b.fd, &header, sizeof(header), MSG_WAITALL) != (ssize_t)sizeof(header)) {
        return false;
    }
    len = header.size - sizeof(header);
    if (len > sizeof(rest) || recv(b.fd, rest, len, MSG_WAITALL) != (ssize_t)len) {
        return false;
    }
    if (header.flags & VFU_F_ERROR) {
        fprintf(stderr, "the server refuses command %u: error %u\n", header.command, header.error);
        exit(1);
    }
    return true;
}

static void say_hello(void)
{
    static const char json[] = "{\"capabilities\":{}}";
    struct {
        struct vfu_header header;
        struct vfu_version version;
        char json[sizeof(json)];
    } m = {.header = {.command = VFU_VERSION}, .version = {.major = VFU_MAJOR, .minor = VFU_MINOR}};
    size_t len = sizeof(m.header) + sizeof(m.version) + sizeof(json);

    memcpy(m.json, json, sizeof(json));
    m.header.size = (uint32_t)len;
    send_all(&m, len);
    if (!receive()) {
        die("no answer");
    }
}

static void send_read(void)
{
    struct {
        struct vfu_header header;
        struct vfu_region_access access;
    } m = {.header = {.command = VFU_REGION_READ, .size = sizeof(m)},
           .access = {.offset = b.offset, .region = b.region, .count = 4}};

    send_all(&m, sizeof(m));
}

static void direct(double seconds)
{
    uint64_t count = 0;
    double begin = now(), end = begin + seconds, last;

    do {
        send_read();
        if (!receive()) {
            die("recv");
        }
        count++;
        last = now();
    } while (last < end);
    printf("one thread       %9.2f us\n", (last - begin) * 1e6 / (double)count);
}

static void *receiver(void *arg)
{
    while (receive()) {
        pthread_mutex_lock(&b.lock);
        b.waiting = false;
        pthread_cond_signal(&b.answered);
        pthread_mutex_unlock(&b.lock);
    }
    return NULL;
}

static void as_qemu(double seconds)
{
    pthread_t thread;
    uint64_t count = 0;
    double begin, end, last;

    if (pthread_create(&thread, NULL, receiver, NULL) != 0) {
        die("pthread_create");
    }
    begin = now();
    end = begin + seconds;
    do {
        pthread_mutex_lock(&b.lock);
        b.waiting = true;
        send_read();
        while (b.waiting) {
            pthread_cond_wait(&b.answered, &b.lock);
        }
        pthread_mutex_unlock(&b.lock);
        count++;
        last = now();
    } while (last < end);
    printf("sender, receiver %9.2f us\n", (last - begin) * 1e6 / (double)count);
    shutdown(b.fd, SHUT_RDWR);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    double seconds = argc > 4 ? strtod(argv[4], NULL) : 1;

    if (argc < 2 || strlen(argv[1]) >= sizeof(address.sun_path)) {
        fprintf(stderr, "usage: vfio_user_bench SOCKET [REGION [OFFSET [SECONDS]]]\n");
        return 2;
    }
    memcpy(address.sun_path, argv[1], strlen(argv[1]));
    b.region = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : b.region;
    b.offset = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
    b.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (b.fd < 0 || connect(b.fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        die(argv[1]);
    }
    say_hello();
    direct(seconds);
    as_qemu(seconds);
    return 0;
}
