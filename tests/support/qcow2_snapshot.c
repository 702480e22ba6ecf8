/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots of a qcow2 file, without locks or catalogue. A backing file is not opened.
 *   qcow2_snapshot list FILE            JSON
 *   qcow2_snapshot create FILE NAME
 *   qcow2_snapshot restore FILE NAME
 *   qcow2_snapshot delete FILE NAME [STEP]   STEP: bytes of the disk dealt with at once
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2/snapshot.h"
#include "image/image.h"
#include "io/thread.h"
#include "job/snapshot.h"

struct task {
    int argc;
    char **argv;
};

static bool co_list(struct qv_node *node, GError **error)
{
    g_autoptr(GPtrArray) list = NULL;
    json_t *json;

    if (!qcow2_co_snapshot_list(node, &list, error)) {
        return false;
    }
    json = qv_snapshots_json(list);
    json_dumpf(json, stdout, 0);
    json_decref(json);
    return true;
}

static bool co_do(const struct task *t, struct qv_node *node, GError **error)
{
    const char *what = t->argv[1], *name = t->argv[3];

    if (strcmp(what, "list") == 0) {
        return co_list(node, error);
    }
    if (name != NULL && strcmp(what, "create") == 0) {
        struct qcow2_snapshot_opts opts = {.name = name};

        return qcow2_co_snapshot_create(node, &opts, NULL, error);
    }
    if (name != NULL && strcmp(what, "restore") == 0) {
        return qcow2_co_snapshot_restore(node, name, error);
    }
    if (name != NULL && strcmp(what, "delete") == 0) {
        struct qcow2_delete_opts opts = {.step = t->argc > 4 ? strtoull(t->argv[4], NULL, 10) : 0};

        return qcow2_co_snapshot_delete(node, name, &opts, error);
    }
    return qv_fail(error, QV_ERROR_USAGE, "%s: unknown command", what);
}

static bool co_main(void *arg, GError **error)
{
    struct task *t = arg;
    struct qv_image_spec spec = {.name = t->argv[2],
                                 .format = "qcow2",
                                 .path = t->argv[2],
                                 .fd = -1,
                                 .readonly = strcmp(t->argv[1], "list") == 0,
                                 .cache = QV_CACHE_WRITEBACK};
    struct qv_node *node;
    bool ok;
    int ret;

    if (!qv_image_co_open(&spec, &node, error)) {
        return false;
    }
    ok = co_do(t, node, error);
    ret = qv_node_co_close_tree(node);
    return ok && (ret == 0 || qv_fail_errno(error, ret, "%s: closing it", t->argv[2]));
}

int main(int argc, char **argv)
{
    struct task task = {.argc = argc, .argv = argv};
    g_autoptr(GError) error = NULL;

    if (argc < 3) {
        fprintf(stderr, "usage: qcow2_snapshot list|create|restore|delete FILE ...\n");
        return 2;
    }
    if (!qv_job_run(co_main, &task, &error)) {
        fprintf(stderr, "qcow2_snapshot: %s\n", error->message);
        return qv_error_exit_code(error);
    }
    return 0;
}
