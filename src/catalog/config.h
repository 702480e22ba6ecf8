/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM configurations: the JSON of the interface contract, section 5, checked in full before anything
 * uses it. Untrusted input: errors say what is wrong and where it stands, nothing is ignored.
 * Any thread; qv_vm_config_* on one struct from one thread at a time.
 */
#ifndef QV_CATALOG_CONFIG_H
#define QV_CATALOG_CONFIG_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define QV_VM_CPUS_MAX   1024u
#define QV_QUEUES_MAX    64u
#define QV_QUEUES_USUAL  8u /* default: min(vCPUs, this) */
#define QV_SERIAL_MAX    20u
#define QV_CMDLINE_MAX   2048u /* bytes; what x86 Linux reads */
#define QV_BOOT_NOT_SET  (-1)
#define QV_VM_MEMORY_DEF (UINT64_C(1) << 30)

enum qv_disk_type { QV_DISK_VIRTIO_BLK, QV_DISK_NVME, QV_DISK_AHCI, QV_DISK_IDE, QV_DISK_TYPES };
enum qv_disk_cache {
    QV_DISK_CACHE_AUTO,
    QV_DISK_CACHE_NONE,
    QV_DISK_CACHE_WRITEBACK,
    QV_DISK_CACHE_WRITETHROUGH
};
enum qv_disk_io { QV_DISK_IO_URING, QV_DISK_IO_NATIVE, QV_DISK_IO_THREADS };
enum qv_disk_discard { QV_DISK_DISCARD_AUTO, QV_DISK_DISCARD_OFF, QV_DISK_DISCARD_ON };
enum qv_on_error { QV_ON_ERROR_REPORT, QV_ON_ERROR_STOP };
enum qv_on_enospc { QV_ON_ENOSPC_PAUSE, QV_ON_ENOSPC_REPORT };
enum qv_firmware { QV_FIRMWARE_BIOS, QV_FIRMWARE_UEFI };

/** One entry of "storage". Texts are owned. */
struct qv_vm_disk {
    enum qv_disk_type type;
    char *path;               /* "NAME", "POOL/NAME", or absolute */
    char *format;             /* NULL: what the catalogue says; never NULL with an absolute path */
    enum qv_disk_cache cache; /* AUTO: none where O_DIRECT works, else writeback */
    enum qv_disk_io io;
    uint32_t queues;              /* 1..QV_QUEUES_MAX */
    bool doorbell_page;           /* NVMe: the guest's doorbells are memory */
    enum qv_disk_discard discard; /* AUTO: on for thin images */
    bool readonly;
    char *serial;       /* NULL: none given */
    int64_t boot_index; /* QV_BOOT_NOT_SET, or 0 and more */
    uint64_t size;      /* bytes; 0: the image must exist */
    char *prealloc;     /* "off", "metadata", "falloc", "full"; NULL: not said */
    enum qv_on_error on_error;
    enum qv_on_enospc on_enospc;
};

struct qv_vm_config {
    char *name;
    uint32_t cpus;
    uint64_t memory;                 /* bytes */
    GPtrArray *disks;                /* struct qv_vm_disk * */
    char *kernel, *initrd, *cmdline; /* NULL: not given; kernel NULL: firmware boots a disk */
    enum qv_firmware firmware;
    bool serial_console;
};

/**
 * qv_vm_config_parse - checks @json and fills a new configuration; QV_ERROR_USAGE otherwise. Only
 * what stands in the document is checked: whether images exist and formats agree is for who opens
 * them.
 */
bool qv_vm_config_parse(const json_t *json, struct qv_vm_config **out, GError **error);

/** qv_vm_config_load - reads and parses the file @path; "-" is refused. Messages begin with @path.
 */
bool qv_vm_config_load(const char *path, struct qv_vm_config **out, GError **error);

/** qv_vm_config_json - the configuration as a document that parses to the same; a new reference. */
json_t *qv_vm_config_json(const struct qv_vm_config *config);

void qv_vm_config_free(struct qv_vm_config *config);
void qv_vm_config_freep(struct qv_vm_config **config); /* for QV_CLEANUP */

/** The words of the contract, by enum value. */
const char *qv_disk_type_name(enum qv_disk_type type);
const char *qv_disk_cache_name(enum qv_disk_cache cache);
const char *qv_disk_io_name(enum qv_disk_io io);

/** qv_disk_type_max - how many disks of @type fit in one VM. */
unsigned qv_disk_type_max(enum qv_disk_type type);

#endif
