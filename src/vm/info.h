/* SPDX-License-Identifier: Apache-2.0 */
/* What `vm info --json` shows. Pure; any thread. */
#ifndef QV_VM_INFO_H
#define QV_VM_INFO_H

#include <glib.h>
#include <jansson.h>

#include "catalog/config.h"
#include "vm/state.h"

/** What is in use, which may differ from what was asked for; NULL: not known. */
struct vm_info_disk {
    const char *cache, *io;
};

struct vm_info {
    const struct qv_vm_config *config;
    const struct vm_status *status;
    const struct vm_info_disk *disks; /* one a disk; NULL: not running */
    int64_t uptime;                   /* seconds; when it runs */
};

/** vm_info_json - a new document. */
json_t *vm_info_json(const struct vm_info *info);

#endif
