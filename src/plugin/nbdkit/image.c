/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdkit calls plugins on threads that block; the block layer works on I/O threads that do not. A
 * call posts its request to an I/O thread and sleeps until it is done.
 */
#include <errno.h>
#include <semaphore.h>

#include "plugin/nbdkit/plugin_int.h"

struct waiting_io {
    struct qv_work work;
    struct qv_disk *disk;
    struct qv_io io;
    struct iovec iov;
    sem_t done;
};

static void io_done(struct qv_io *io)
{
    struct waiting_io *w = io->user;

    sem_post(&w->done); /* last use: the waiter frees it */
}

static void io_start(struct qv_work *work)
{
    struct waiting_io *w = qv_container_of(work, struct waiting_io, work);

    qv_disk_submit(w->disk, &w->io);
}

int nbd_image_io(struct nbd_image *image, unsigned thread, enum qv_op op, uint32_t flags,
                 uint64_t offset, uint64_t len, void *buf)
{
    struct waiting_io w = {
        .work.fn = io_start,
        .disk = image->disk,
        .iov = {.iov_base = buf, .iov_len = len},
        .io = {.op = op, .flags = flags, .offset = offset, .len = len, .done = io_done}};

    w.io.user = &w;
    if (buf != NULL) {
        w.io.iov = &w.iov;
        w.io.iovcnt = 1;
    }
    sem_init(&w.done, 0, 0);
    qv_thread_post(image->threads[thread % image->nthreads], &w.work);
    while (sem_wait(&w.done) < 0) {
        /* a signal: nbdkit handles it elsewhere */
    }
    sem_destroy(&w.done);
    return w.io.result;
}

struct status_call {
    struct qv_node *root;
    uint64_t offset, len;
    struct qv_extent *out;
    int ret;
};

/* Follows "not here, ask the backing image" down the chain. */
static void status_co(void *arg)
{
    struct status_call *call = arg;
    struct qv_node *node = call->root;
    uint64_t len = call->len;

    for (;;) {
        uint64_t size = node->size;

        if (call->offset >= size) { /* a backing image shorter than the disk: zeros follow */
            *call->out = (struct qv_extent){.kind = QV_EXTENT_HOLE, .len = len};
            return;
        }
        call->ret = qv_node_co_status(node, call->offset, MIN(len, size - call->offset), call->out);
        if (call->ret != 0 || call->out->kind != QV_EXTENT_BACKING || node->backing == NULL) {
            return;
        }
        len = call->out->len;
        node = node->backing;
    }
}

int nbd_image_status(struct nbd_image *image, unsigned thread, uint64_t offset, uint64_t len,
                     struct qv_extent *out)
{
    struct status_call call = {
        .root = qv_disk_root(image->disk), .offset = offset, .len = len, .out = out};

    qv_thread_run_co(image->threads[thread % image->nthreads], status_co, &call);
    return call.ret;
}

static void free_threads(struct nbd_image *image)
{
    for (; image->nthreads > 0; image->nthreads--) {
        qv_thread_free(image->threads[image->nthreads - 1]);
    }
}

static void close_spec(const struct qv_image_spec *spec)
{
    for (; spec != NULL; spec = spec->backing) {
        int fd = spec->fd;

        qv_close_fd(&fd);
        if (spec->data_file != NULL) {
            close_spec(spec->data_file);
        }
    }
}

bool nbd_image_open(struct nbd_image *image, unsigned nthreads, const struct qv_image_spec *spec,
                    const struct qv_disk_opts *opts, GError **error)
{
    struct qv_node *root;

    for (unsigned i = 0; i < nthreads; i++) {
        g_autofree char *name = g_strdup_printf("io%u", i);

        image->threads[i] = qv_thread_new(name, error);
        if (image->threads[i] == NULL) {
            close_spec(spec);
            free_threads(image);
            return false;
        }
        image->nthreads++;
    }
    if (!qv_image_open(image->threads[0], spec, &root, error)) {
        free_threads(image);
        return false;
    }
    image->disk = qv_disk_new(root, opts);
    return true;
}

struct close_call {
    struct qv_disk *disk;
    int ret;
};

static void close_co(void *arg)
{
    struct close_call *call = arg;

    call->ret = qv_disk_co_free(call->disk);
}

int nbd_image_close(struct nbd_image *image)
{
    struct close_call call = {.disk = image->disk};

    if (image->disk != NULL) {
        image->disk = NULL;
        qv_thread_run_co(image->threads[0], close_co, &call);
    }
    free_threads(image);
    return call.ret;
}
