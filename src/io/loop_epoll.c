/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop that waits in epoll, for kernels and sandboxes without io_uring. Edges are EPOLLET's.
 *
 * epoll knows a descriptor once; a second watch of the same descriptor gets a duplicate.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "io/thread_int.h"

#define BATCH 64

struct epoll_node {
    struct qv_watch *watch; /* NULL: removed */
    int fd;                 /* watch->fd or a duplicate of it */
    bool duplicate;
    uint32_t synthetic; /* events for a descriptor that epoll does not take, given once */
    struct epoll_node *next, **prev;
};

struct epoll_loop {
    int fd;
    bool no_pwait2; /* older than 5.11, or refused: only milliseconds */
    struct epoll_event event[BATCH];
    int ready;
    struct epoll_node *live;
    struct epoll_node *dead; /* removed; freed when no event of this turn can name them */
    unsigned synthetic;      /* live nodes with synthetic events */
};

static void node_link(struct epoll_node **list, struct epoll_node *node)
{
    node->next = *list;
    node->prev = list;
    if (node->next) {
        node->next->prev = &node->next;
    }
    *list = node;
}

static void node_unlink(struct epoll_node *node)
{
    *node->prev = node->next;
    if (node->next) {
        node->next->prev = node->prev;
    }
}

static int epoll_open(struct qv_thread *thread)
{
    struct epoll_loop *loop = g_new0(struct epoll_loop, 1);

    loop->fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->fd < 0) {
        int err = -errno;

        g_free(loop);
        return err;
    }
    thread->loop = loop;
    return 0;
}

static void free_nodes(struct epoll_node **list)
{
    struct epoll_node *next;

    for (struct epoll_node *node = *list; node; node = next) {
        next = node->next;
        g_free(node);
    }
    *list = NULL;
}

static void epoll_close(struct qv_thread *thread)
{
    struct epoll_loop *loop = thread->loop;

    free_nodes(&loop->live);
    free_nodes(&loop->dead);
    close(loop->fd);
    g_free(loop);
    thread->loop = NULL;
}

static int wait_ms(int64_t timeout_ns)
{
    if (timeout_ns < 0) {
        return -1;
    }
    /* Rounded up: a timer never fires early. */
    timeout_ns = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
    return timeout_ns > INT32_MAX ? INT32_MAX : (int)timeout_ns;
}

static void epoll_loop_wait(struct qv_thread *thread, int64_t timeout_ns)
{
    struct epoll_loop *loop = thread->loop;

    if (loop->synthetic) {
        timeout_ns = 0;
    }
    if (timeout_ns > 0 && !loop->no_pwait2) {
        struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};

        loop->ready = epoll_pwait2(loop->fd, loop->event, BATCH, &ts, NULL);
        if (loop->ready >= 0 || errno == EINTR) {
            return;
        }
        loop->no_pwait2 = true;
    }
    loop->ready = epoll_wait(loop->fd, loop->event, BATCH, wait_ms(timeout_ns));
}

static void give_synthetic(struct epoll_loop *loop)
{
    for (struct epoll_node *node = loop->live; node && loop->synthetic;) {
        struct qv_watch *watch = node->watch;
        uint32_t events = node->synthetic;

        if (events == 0) {
            node = node->next;
            continue;
        }
        node->synthetic = 0;
        loop->synthetic--;
        watch->fn(watch, events);
        node = loop->live; /* the callback may have removed any node */
    }
}

static void epoll_dispatch(struct qv_thread *thread)
{
    struct epoll_loop *loop = thread->loop;

    for (int i = 0; i < loop->ready; i++) {
        struct epoll_node *node = loop->event[i].data.ptr;

        if (node->watch) {
            /* EPOLLIN etc. have the values of POLLIN etc. */
            node->watch->fn(node->watch, loop->event[i].events);
        }
    }
    loop->ready = 0;
    if (loop->synthetic) {
        give_synthetic(loop);
    }
    free_nodes(&loop->dead);
}

static void epoll_watch_add(struct qv_thread *thread, struct qv_watch *watch)
{
    struct epoll_loop *loop = thread->loop;
    struct epoll_node *node = g_new0(struct epoll_node, 1);
    struct epoll_event event = {.events = watch->events | EPOLLET, .data.ptr = node};
    int rc;

    *node = (struct epoll_node){.watch = watch, .fd = watch->fd};
    node_link(&loop->live, node);
    watch->private_data = node;
    rc = epoll_ctl(loop->fd, EPOLL_CTL_ADD, node->fd, &event);
    if (rc < 0 && errno == EEXIST) {
        int fd = fcntl(watch->fd, F_DUPFD_CLOEXEC, 0);

        if (fd >= 0) {
            node->fd = fd;
            node->duplicate = true;
            rc = epoll_ctl(loop->fd, EPOLL_CTL_ADD, fd, &event);
        }
    }
    if (rc < 0) {
        /* EPERM: a regular file, which is always ready. Else the descriptor is bad. */
        node->synthetic = errno == EPERM ? watch->events : POLLERR | POLLNVAL;
        loop->synthetic++;
    }
}

static void epoll_watch_del(struct qv_thread *thread, struct qv_watch *watch)
{
    struct epoll_loop *loop = thread->loop;
    struct epoll_node *node = watch->private_data;

    epoll_ctl(loop->fd, EPOLL_CTL_DEL, node->fd, NULL); /* fails for synthetic ones: fine */
    if (node->duplicate) {
        close(node->fd);
    }
    if (node->synthetic) {
        loop->synthetic--;
    }
    node->watch = NULL;
    node_unlink(node);
    node_link(&loop->dead, node);
    watch->private_data = NULL;
}

const struct qv_loop_ops qv_loop_epoll = {
    .name = "epoll",
    .open = epoll_open,
    .close = epoll_close,
    .wait = epoll_loop_wait,
    .dispatch = epoll_dispatch,
    .watch_add = epoll_watch_add,
    .watch_del = epoll_watch_del,
};
