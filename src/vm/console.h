/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The serial line: everything the guest writes goes into a log of bounded size; whoever watches
 * reads that log at his own pace, from its start, and what he types goes to the guest.
 *
 *     console.log          newest part of this boot, at most VM_CONSOLE_PART bytes
 *     console.log.1        the part before it
 *     console.previous.log the last part of the boot before this one
 *
 * One thread, the default main context's.
 */
#ifndef QV_VM_CONSOLE_H
#define QV_VM_CONSOLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define VM_CONSOLE_PART (4u << 20) /* bytes */

struct vm_console;

/** vm_console_new - starts a log for a new boot in the folder @dir; the guest's line is @fd, a
 * stream socket, taken over. @part: VM_CONSOLE_PART, or less for tests. */
bool vm_console_new(const char *dir, int fd, uint64_t part, struct vm_console **out,
                    GError **error);

/** vm_console_attach - @client, a connected stream socket (taken over), watches from now on. */
void vm_console_attach(struct vm_console *console, int client);

/** vm_console_free - takes down what the guest wrote last, lets watchers have it (up to a second
 * each), closes. NULL is fine. Blocks. */
void vm_console_free(struct vm_console *console);

/** vm_console_cat - writes the log in @dir to @out: what a VM that does not run has said. Blocks.
 */
bool vm_console_cat(const char *dir, int out, GError **error);

#endif
