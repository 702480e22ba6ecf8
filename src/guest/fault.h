/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that another process may take away. Guest memory is a file the client owns: when the
 * client truncates it, or a huge page pool runs dry, our next access raises SIGBUS. A client must
 * not be able to end our process that way, so guarded ranges get a fresh zero page put under the
 * access, and a mark that tells the owner the range can no longer be trusted.
 *
 * The table of ranges is process-wide because signal handlers are.
 */
#ifndef QV_GUEST_FAULT_H
#define QV_GUEST_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/* Ranges guarded at once: 256 disks with 32 memory regions each. */
#define QV_FAULT_RANGES_MAX 8192u

/**
 * qv_fault_guard - guards the mapping [@base, @base + @len).
 * @page: page size of the mapping; @base and @len are multiples of it
 * @hit:  set when an access failed; must live until qv_fault_unguard
 * Returns a handle >= 0, or -1 when the table is full or the handler cannot be installed. Any
 * thread; installs the process's SIGBUS handler. A SIGBUS outside of all guarded
 * ranges ends the process as usual.
 */
int qv_fault_guard(void *base, size_t len, size_t page, atomic_bool *hit);

/** qv_fault_unguard - call before unmapping. Any thread; -1 is fine. */
void qv_fault_unguard(int handle);

#endif
