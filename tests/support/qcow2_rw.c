/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests on an open qcow2 image, one a line on stdin, for tests that let QEMU judge the result.
 *   qcow2_rw [-r] [-d DATA-FILE] IMAGE [BACKING [FORMAT]]
 *     write OFFSET LEN BYTE | zero OFFSET LEN | unmap OFFSET LEN | discard OFFSET LEN | flush
 *     resize SIZE | dump FILE | map | die (no close: as if killed)
 * Stops at the first error, says which, and ends with 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "base/maths.h"
#include "format/qcow2/qcow2.h"
#include "format/raw/raw.h"
#include "io/thread.h"

#define CHUNK (UINT64_C(1) << 20)

static struct {
    bool readonly;
    const char *image, *backing, *backing_format, *data_file;
    int rc;
} args = {.backing_format = "raw"};

static struct qv_node *open_file(const char *path, bool readonly, GError **error)
{
    struct qv_file_opts opts = {.name = path, .readonly = readonly, .engine = QV_ENGINE_THREADS};
    struct qv_node *file = NULL;
    int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

    if (fd < 0) {
        qv_fail_errno(error, errno, "%s", path);
        return NULL;
    }
    return qv_file_new(fd, &opts, &file, error) ? file : NULL;
}

static struct qv_node *co_open_backing(GError **error)
{
    struct qcow2_open_opts opts = {.name = args.backing, .readonly = true};
    struct qv_node *file = open_file(args.backing, true, error);
    struct qv_node *out = NULL;

    if (file == NULL) {
        return NULL;
    }
    if (strcmp(args.backing_format, "raw") == 0) {
        qv_raw_co_open(file, args.backing, true, &out, error);
    } else if (!qcow2_co_open(file, &opts, &out, error)) {
        return NULL;
    }
    return out;
}

static int co_write(struct qv_node *node, uint64_t offset, uint64_t len, int byte)
{
    QV_CLEANUP(qv_freep) char *buf = qv_node_mem_alloc(len);

    memset(buf, byte, len);
    return qv_co_pwrite(node, offset, buf, len);
}

static int co_dump(struct qv_node *node, const char *path)
{
    QV_CLEANUP(qv_freep) char *buf = qv_node_mem_alloc(CHUNK);
    uint64_t size = atomic_load(&node->size);
    FILE *out = fopen(path, "wb");
    int ret = out == NULL ? -errno : 0;

    for (uint64_t pos = 0; pos < size && ret == 0; pos += CHUNK) {
        uint64_t len = qv_min_u64(CHUNK, size - pos);

        ret = qv_co_pread(node, pos, buf, len);
        if (ret == 0 && fwrite(buf, 1, len, out) != len) {
            ret = -EIO;
        }
    }
    if (out != NULL && fclose(out) != 0 && ret == 0) {
        ret = -EIO;
    }
    return ret;
}

static int co_map(struct qv_node *node)
{
    static const char *const names[] = {"data", "zero", "hole", "backing", "special"};
    uint64_t size = atomic_load(&node->size);
    int ret = 0;

    for (uint64_t pos = 0; pos < size && ret == 0;) {
        struct qv_extent extent = {0};

        ret = qv_node_co_status(node, pos, size - pos, &extent);
        if (ret == 0) {
            printf("%" PRIu64 " %" PRIu64 " %s\n", pos, extent.len, names[extent.kind]);
            pos += extent.len;
        }
    }
    return ret;
}

static int co_line(struct qv_node *node, char *line)
{
    char word[16] = "", path[512] = "";
    uint64_t offset = 0, len = 0;
    int byte = 0;

    if (sscanf(line, "dump %511s", path) == 1) {
        return co_dump(node, path);
    }
    if (sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %d", word, &offset, &len, &byte) < 1) {
        return 0;
    }
    if (strcmp(word, "write") == 0) {
        return co_write(node, offset, len, byte);
    }
    if (strcmp(word, "zero") == 0) {
        return qv_co_zero(node, offset, len, 0);
    }
    if (strcmp(word, "unmap") == 0) {
        return qv_co_zero(node, offset, len, QV_IO_MAY_UNMAP);
    }
    if (strcmp(word, "discard") == 0) {
        return qv_co_discard(node, offset, len);
    }
    if (strcmp(word, "flush") == 0) {
        return qv_co_flush(node);
    }
    if (strcmp(word, "resize") == 0) {
        return qv_node_co_truncate(node, offset);
    }
    if (strcmp(word, "map") == 0) {
        return co_map(node);
    }
    if (strcmp(word, "die") == 0) {
        fflush(stdout);
        _exit(0);
    }
    return -ENOSYS;
}

static void co_main(void *arg)
{
    struct qcow2_open_opts opts = {.name = args.image, .readonly = args.readonly};
    g_autoptr(GError) error = NULL;
    struct qv_node *file, *node = NULL;
    char line[600];
    int ret = 0;

    (void)arg;
    args.rc = 1;
    if (args.backing != NULL && (opts.backing = co_open_backing(&error)) == NULL) {
        fprintf(stderr, "%s\n", error->message);
        return;
    }
    if (args.data_file != NULL &&
        (opts.data_file = open_file(args.data_file, args.readonly, &error)) == NULL) {
        fprintf(stderr, "%s\n", error->message);
        return;
    }
    file = open_file(args.image, args.readonly, &error);
    if (file == NULL || !qcow2_co_open(file, &opts, &node, &error)) {
        fprintf(stderr, "%s\n", error->message);
        return;
    }
    while (ret == 0 && fgets(line, sizeof(line), stdin) != NULL) {
        ret = co_line(node, line);
        if (ret != 0) {
            fprintf(stderr, "%s: %s\n", g_strchomp(line), qv_strerror(ret));
        }
    }
    if (qv_node_co_close_tree(node) == 0 && ret == 0) {
        args.rc = 0;
    }
}

int main(int argc, char **argv)
{
    struct qv_thread *thread;

    if (argc > 1 && strcmp(argv[1], "-r") == 0) {
        args.readonly = true;
        argv++;
        argc--;
    }
    if (argc > 2 && strcmp(argv[1], "-d") == 0) {
        args.data_file = argv[2];
        argv += 2;
        argc -= 2;
    }
    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: qcow2_rw [-r] [-d DATA-FILE] IMAGE [BACKING [FORMAT]]\n");
        return 2;
    }
    args.image = argv[1];
    args.backing = argc > 2 ? argv[2] : NULL;
    args.backing_format = argc > 3 ? argv[3] : "raw";
    thread = qv_thread_new("rw", NULL);
    if (thread == NULL) {
        return 2;
    }
    qv_thread_run_co(thread, co_main, NULL);
    qv_thread_free(thread);
    return args.rc;
}
