/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dirty page log: a bitmap in memory shared with the client, one bit for each 4 KiB page of
 * guest-physical memory that a device has written to. Live migration copies marked pages again.
 * Source: vhost-user, "Migration".
 */
#ifndef QV_GUEST_DIRTY_LOG_H
#define QV_GUEST_DIRTY_LOG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define QV_DIRTY_LOG_PAGE 4096u

struct qv_dirty_log;

/** qv_dirty_log_new - maps @size bytes at @offset of @fd (which stays the caller's). One reference.
 * Any thread. */
bool qv_dirty_log_new(int fd, uint64_t offset, uint64_t size, struct qv_dirty_log **out,
                      GError **error);
struct qv_dirty_log *qv_dirty_log_ref(struct qv_dirty_log *log);
/** qv_dirty_log_unref - NULL is fine. */
void qv_dirty_log_unref(struct qv_dirty_log *log);

/** qv_dirty_log_mark - marks the pages of [@gpa, @gpa + @len); pages the log does not cover are
 * skipped. Any thread; atomic. */
void qv_dirty_log_mark(struct qv_dirty_log *log, uint64_t gpa, uint64_t len);

#endif
