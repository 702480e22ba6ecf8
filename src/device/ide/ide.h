/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A PCI bus-master IDE controller in native PCI mode: two channels, four drives, PIO and DMA. Its
 * timing registers are those of an Intel ICH4 (82801DB), so that drivers of every age set up
 * UDMA/100. Drives cannot be plugged at run time. Source: ATA/ATAPI-7 volume 2 (parallel
 * transport); "Programming Interface for Bus Master IDE Controller" 1.0; "PCI IDE Controller
 * Specification" 1.0.
 *
 * Threads: that of its PCI function, for every call and callback.
 */
#ifndef QV_DEVICE_IDE_IDE_H
#define QV_DEVICE_IDE_IDE_H

#include "device/ata/ata.h"
#include "device/pci/function.h"

#define QV_IDE_DRIVES 4u

struct qv_ide_opts {
    const char *name; /* for messages; copied */
    /* Primary device 0 and 1, secondary device 0 and 1; disk NULL: none.
     */
    struct qv_ata_drive_opts drives[QV_IDE_DRIVES];
};

/** qv_ide_new - a controller after power-on. I/O thread, which becomes the function's. Freed with
 * qv_pci_function_free; the disks stay the caller's and last until then. */
struct qv_pci_function *qv_ide_new(const struct qv_ide_opts *opts);

#endif
