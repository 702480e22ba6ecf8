/* SPDX-License-Identifier: Apache-2.0 */
/* VM configurations kept under the root: configs/NAME.json. See catalog.h for threads. */
#ifndef QV_CATALOG_VMS_H
#define QV_CATALOG_VMS_H

#include <glib.h>
#include <stdbool.h>

#include "catalog/catalog.h"
#include "catalog/config.h"
#include "catalog/images.h"

/**
 * qv_catalog_vm_add - keeps @config. QV_ERROR_EXISTS: the name is taken. QV_ERROR_NOT_FOUND: a disk
 * names an image that does not exist; it cannot be deleted from then on.
 */
bool qv_catalog_vm_add(struct qv_catalog *catalog, const struct qv_vm_config *config,
                       GError **error);

/** qv_catalog_vm_load - the configuration of the VM @name. QV_ERROR_NOT_FOUND. */
bool qv_catalog_vm_load(struct qv_catalog *catalog, const char *name, struct qv_vm_config **out,
                        GError **error);

/** qv_catalog_vm_update - replaces the configuration of an existing VM (disk-attach). As _add. */
bool qv_catalog_vm_update(struct qv_catalog *catalog, const struct qv_vm_config *config,
                          GError **error);

/** qv_catalog_vm_remove - forgets the VM; its images stay. QV_ERROR_NOT_FOUND. */
bool qv_catalog_vm_remove(struct qv_catalog *catalog, const char *name, GError **error);

/** qv_catalog_vm_names - every VM's name, sorted (char *, owned). */
bool qv_catalog_vm_names(struct qv_catalog *catalog, GPtrArray **out, GError **error);

/** qv_catalog_vms_of - names of the VMs configured with @record's image, sorted (char *, owned). A
 * configuration that cannot be read is an error: it might use the image. */
bool qv_catalog_vms_of(struct qv_catalog *catalog, const struct qv_image_record *record,
                       GPtrArray **out, GError **error);

#endif
