/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2 metadata code on files, for tests that let qemu-img judge it. No locks, no catalogue.
 *   qcow2_tool create FILE SIZE CLUSTER_SIZE REFCOUNT_BITS VERSION PREALLOC [extended-l2] [raw]
 *                     [data=NAME]
 *   qcow2_tool check FILE      JSON with qemu-img's words; exit 0 clean, 2 corrupt, 3 leaks
 *   qcow2_tool repair FILE     exit 0: clean now
 *   qcow2_tool rebuild FILE    as opening a dirty image for writing does
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/file/file.h"
#include "base/error.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/rebuild.h"
#include "format/qcow2/repair.h"
#include "format/qcow2/walk.h"

struct task {
    char **argv;
    int argc;
    int rc;
};

static bool create(struct qv_node *file, int argc, char **argv, GError **error)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};
    struct qcow2_create_opts opts = {
        .size = strtoull(argv[0], NULL, 10),
        .cluster_size = strtoull(argv[1], NULL, 10),
        .refcount_bits = (uint32_t)strtoul(argv[2], NULL, 10),
        .version = (uint32_t)strtoul(argv[3], NULL, 10),
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (strcmp(argv[4], modes[i]) == 0) {
            opts.prealloc = i;
        }
    }
    for (int i = 5; i < argc; i++) {
        opts.extended_l2 |= strcmp(argv[i], "extended-l2") == 0;
        opts.data_file_raw |= strcmp(argv[i], "raw") == 0;
        if (g_str_has_prefix(argv[i], "data=")) {
            opts.data_file = argv[i] + strlen("data=");
        }
    }
    return qcow2_co_create(file, &opts, error);
}

static bool check(struct qv_node *file, int *rc, GError **error)
{
    struct qcow2_check c;

    if (!qcow2_co_check_file(file, &c, NULL, NULL, error)) {
        return false;
    }
    printf("{\"corruptions\": %" PRIu64 ", \"leaks\": %" PRIu64 ", \"image-end-offset\": %" PRIu64
           ", \"total-clusters\": %" PRIu64 ", \"allocated-clusters\": %" PRIu64
           ", \"fragmented-clusters\": %" PRIu64 ", \"compressed-clusters\": %" PRIu64 "}\n",
           c.corruptions, c.leaks, c.image_end, c.total_clusters, c.allocated_clusters,
           c.fragmented_clusters, c.compressed_clusters);
    for (unsigned i = 0; i < c.details->len; i++) {
        fprintf(stderr, "%s\n", (const char *)g_ptr_array_index(c.details, i));
    }
    *rc = c.corruptions > 0 ? 2 : c.leaks > 0 ? 3 : 0;
    qcow2_check_clear(&c);
    return true;
}

static bool repair(struct qv_node *file, GError **error)
{
    struct qcow2_check c;

    if (!qcow2_co_repair(file, &c, NULL, NULL, error)) {
        return false;
    }
    printf("{\"corruptions\": %" PRIu64 ", \"leaks\": %" PRIu64 "}\n", c.corruptions_fixed,
           c.leaks_fixed);
    qcow2_check_clear(&c);
    return true;
}

static void co_main(void *arg)
{
    struct task *t = arg;
    bool making = strcmp(t->argv[1], "create") == 0;
    int fd = open(t->argv[2], O_RDWR | O_CLOEXEC | (making ? O_CREAT | O_TRUNC : 0), 0600);
    struct qv_file_opts opts = {.name = t->argv[2], .engine = QV_ENGINE_THREADS};
    g_autoptr(GError) error = NULL;
    struct qv_node *file = NULL;
    bool ok = false;

    t->rc = 0;
    if (fd < 0) {
        qv_fail_errno(&error, errno, "%s", t->argv[2]);
    } else if (qv_file_new(fd, &opts, &file, &error)) {
        if (making && t->argc >= 8) {
            ok = create(file, t->argc - 3, t->argv + 3, &error);
        } else if (strcmp(t->argv[1], "check") == 0) {
            ok = check(file, &t->rc, &error);
        } else if (strcmp(t->argv[1], "repair") == 0) {
            ok = repair(file, &error);
        } else if (strcmp(t->argv[1], "rebuild") == 0) {
            ok = qcow2_co_rebuild_dirty(file, NULL, &error);
        } else {
            qv_fail(&error, QV_ERROR_USAGE, "unknown command");
        }
        qv_node_co_close_tree(file);
    }
    if (!ok) {
        fprintf(stderr, "qcow2_tool: %s\n", error->message);
        t->rc = 1;
    }
}

int main(int argc, char **argv)
{
    struct task task = {.argv = argv, .argc = argc};
    struct qv_thread *thread;

    if (argc < 3) {
        fprintf(stderr, "usage: qcow2_tool create|check|repair|rebuild FILE ...\n");
        return 1;
    }
    thread = qv_thread_new("tool", NULL);
    if (thread == NULL) {
        return 1;
    }
    qv_thread_run_co(thread, co_main, &task);
    qv_thread_free(thread);
    return task.rc;
}
