/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A journal of mappings that outlives the process, in shared memory of its supervisor.
 *
 * Completed writes stand in the file as soon as they complete, but the L2 entries that lead to new
 * clusters wait in memory for the next flush. When the host loses power the guest is gone too, and
 * what it had not flushed may be lost. But when only the I/O process dies, the guest goes on: it
 * counts on its completed writes, and its next flush promises that they are durable. So each change
 * of an entry is noted here first; the process that takes over applies what was noted and not
 * written. A commit that is durable clears what was noted before it began.
 *
 * The memory is not trusted: it was written by a process that faced a guest. Ring of records, one
 * writer (img->lock held), indices that only grow.
 */
#ifndef QV_FORMAT_QCOW2_JOURNAL_H
#define QV_FORMAT_QCOW2_JOURNAL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct qcow2_image;
struct qcow2_journal;
struct qcow2_l2e;

/** qcow2_journal_open - maps the memory behind @fd, which stays the caller's, and makes it a
 * journal when it is empty (size 0). Control; does not block for long. */
bool qcow2_journal_open(int fd, unsigned cluster_bits, struct qcow2_journal **out, GError **error);

/** qcow2_journal_pending - whether the memory behind @fd holds mappings that are not durable. */
bool qcow2_journal_pending(int fd);

/** qcow2_journal_size - bytes that it takes at the start of the memory; what is behind is
 * anybody's.
 */
uint64_t qcow2_journal_size(void);

/** qcow2_journal_free - unmaps; the content stays with whoever has the descriptor. NULL is fine. */
void qcow2_journal_free(struct qcow2_journal *journal);

/** qcow2_journal_note - guest cluster @cluster is mapped by @e from now on. Lock held. */
void qcow2_journal_note(struct qcow2_journal *journal, uint64_t cluster, struct qcow2_l2e e);

/** qcow2_journal_mark - all noted so far; for qcow2_journal_clear when that is durable. Lock held.
 */
uint64_t qcow2_journal_mark(struct qcow2_journal *journal);
void qcow2_journal_clear(struct qcow2_journal *journal, uint64_t mark);

/** qcow2_journal_co_room - writes metadata back when the journal is filling up. 0 or -errno.
 * Outside the guard. */
int qcow2_journal_co_room(struct qcow2_image *img);

/** qcow2_journal_co_replay - applies what another process left, makes it durable, clears it. */
bool qcow2_journal_co_replay(struct qcow2_image *img, GError **error);

#endif
