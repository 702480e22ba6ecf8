/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalogue: what exists under the root (interface contract, section 4) and under which name.
 *
 *     images/NAME.raw, images/NAME.qcow2   the disks
 *     catalog/NAME.json                    the record of an image; an image exists when its record
 * does catalog/NAME.intent                  its making or deleting is under way (see names.c)
 *     configs/NAME.json                    a VM's configuration
 *     locks/                               notes on who holds an image (lock.h)
 *     keys/, run/                          others'
 *
 * Control path only: functions may block; one catalogue is used by one thread at a time, any number
 * of processes work on one root at once.
 */
#ifndef QV_CATALOG_CATALOG_H
#define QV_CATALOG_CATALOG_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/atomic_file.h"

struct qv_catalog;

/** The pool that every root has: files in images/. */
#define QV_POOL_DEFAULT "default"

#define QV_NAME_MAX 64

/** qv_name_valid - 1 to 64 of [A-Za-z0-9._-], not starting with '.' or '-'. */
bool qv_name_valid(const char *name);

/** qv_name_check - as qv_name_valid; QV_ERROR_USAGE, naming @what ("image", "VM") and the rule. */
bool qv_name_check(const char *what, const char *name, GError **error);

/**
 * qv_catalog_open - @root, else $QUANTAVIRT_ROOT, else /var/lib/quantavirt. Nothing is created
 * before it is needed, so commands that only look work on a root that does not exist.
 */
bool qv_catalog_open(const char *root, struct qv_catalog **out, GError **error);
void qv_catalog_close(struct qv_catalog *catalog);

/** qv_catalog_root - absolute path of the root. */
const char *qv_catalog_root(const struct qv_catalog *catalog);

/** qv_catalog_run_dir - $QUANTAVIRT_RUN, else ROOT/run for a root given by hand (option or
 * environment), else /run/quantavirt. */
const char *qv_catalog_run_dir(const struct qv_catalog *catalog);

/** qv_catalog_dir - "ROOT/@name", created (0700) when missing: "configs", "keys", "locks". NULL and
 * @error on failure; the caller frees it. */
char *qv_catalog_dir(struct qv_catalog *catalog, const char *name, GError **error);

/** qv_catalog_make_run_dir - creates the run directory (0700) when missing. */
bool qv_catalog_make_run_dir(struct qv_catalog *catalog, GError **error);

#endif
