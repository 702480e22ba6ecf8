/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sources: places in memory where work appears that somebody else puts there, with a notification
 * that can be switched off (the available ring of a virtqueue and its kicks).
 *
 * A source whose notifications are off is open: the loop looks at it in every turn. Before the loop
 * sleeps it asks for notifications again, unless it finds that looking on for a few microseconds
 * costs less than going to sleep and being woken (see source.c).
 */
#ifndef QV_IO_SOURCE_H
#define QV_IO_SOURCE_H

#include <stdbool.h>

struct qv_thread;

/** Embedded by the owner, who sets the functions. All of it belongs to one I/O thread. */
struct qv_source {
    /** ready - whether there is work. Reads memory only: it is called very often. */
    bool (*ready)(const struct qv_source *source);
    /** arm - asks for a notification of the next work. Returns whether there is some already, for
     * which no notification may come. */
    bool (*arm)(struct qv_source *source);
    /** run - takes work that is ready; may open or close this source and no other. */
    void (*run)(struct qv_source *source);
    /** eager - somebody stands still until each piece of work is done (a guest's CPU in an access
     * to a register): looking may go on for longer, and cost more CPU than sleeping, as long as it
     * is quicker. */
    bool eager;
    bool open;                       /* private */
    struct qv_source *next, **where; /* private */
};

/** qv_source_open - notifications are off now: the loop looks by itself until it has armed the
 * source. Fine when it is open. I/O thread only. */
void qv_source_open(struct qv_source *source);

/** qv_source_close - the loop forgets the source, without arming it. Fine when it is not open. Same
 * thread. */
void qv_source_close(struct qv_source *source);

/** qv_source_served - @count requests have been answered on this thread: what the cost of waiting
 * is weighed against. I/O thread only. */
void qv_source_served(unsigned count);

#endif
