/* SPDX-License-Identifier: Apache-2.0 */
#include "image/report.h"

#include "backend/file/file.h"

void qv_image_report_get(struct qv_node *root, struct qv_image_report *out)
{
    struct qv_node *node = root;

    while (node != NULL && qv_file_fd(node) < 0) {
        node = node->data_file != NULL ? node->data_file : node->file;
    }
    *out = (struct qv_image_report){.known = node != NULL};
    if (node != NULL) {
        out->engine = qv_file_engine(node);
        out->direct = qv_file_direct(node);
    }
}

/* Counts by power of two of nanoseconds, without the empty end. */
static json_t *histogram(const uint64_t *buckets)
{
    json_t *array = json_array();
    size_t used = QV_LATENCY_BUCKETS;

    while (used > 0 && buckets[used - 1] == 0) {
        used--;
    }
    for (size_t i = 0; i < used; i++) {
        json_array_append_new(array, json_integer((json_int_t)buckets[i]));
    }
    return array;
}

static json_t *operations(const struct qv_disk_stats *stats)
{
    static const struct {
        const char *name;
        enum qv_op op;
    } ops[] = {{"read", QV_OP_READ},
               {"write", QV_OP_WRITE},
               {"zero", QV_OP_ZERO},
               {"discard", QV_OP_DISCARD},
               {"flush", QV_OP_FLUSH}};
    json_t *all = json_object();

    for (size_t i = 0; i < G_N_ELEMENTS(ops); i++) {
        enum qv_op op = ops[i].op;

        json_object_set_new(all, ops[i].name,
                            json_pack("{s:I, s:I, s:I, s:o}", "ops", (json_int_t)stats->ops[op],
                                      "bytes", (json_int_t)stats->bytes[op], "errors",
                                      (json_int_t)stats->errors[op], "latency",
                                      histogram(stats->latency[op])));
    }
    return all;
}

json_t *qv_disk_report(struct qv_disk *disk, bool counters)
{
    struct qv_image_report image;
    struct qv_disk_stats stats;
    const char *cache = NULL;
    json_t *report;

    qv_image_report_get(qv_disk_root(disk), &image);
    if (qv_disk_writethrough(disk)) {
        cache = "writethrough";
    } else if (image.known) {
        cache = image.direct ? "none" : "writeback";
    }
    report = json_pack("{s:I, s:b, s:s?, s:s?}", "size", (json_int_t)qv_disk_size(disk), "readonly",
                       qv_disk_readonly(disk), "io",
                       image.known ? qv_engine_name(image.engine) : NULL, "cache", cache);
    if (counters) {
        qv_disk_stats(disk, &stats);
        json_object_set_new(report, "stopped", json_integer(stats.stopped_errno));
        json_object_set_new(report, "in_flight", json_integer((json_int_t)stats.in_flight));
        json_object_set_new(report, "ops", operations(&stats));
    }
    return report;
}
