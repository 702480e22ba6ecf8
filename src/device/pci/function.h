/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One PCI function: configuration space, capabilities, BARs and interrupts, the part that all
 * controllers share. Above it stands a transport (vfio-user), which passes on what the guest does;
 * below it a controller model (NVMe, AHCI, IDE), which sees registers, guest memory and interrupts,
 * and no transport.
 * Source: PCI Local Bus 3.0, chapter 6; PCI Express Base 4.0, 7.5 and 7.7 (MSI, MSI-X).
 *
 * Threads: the function belongs to one I/O thread, "its thread". The transport calls it there, and
 * it calls the model there. Only qv_pci_notify and qv_pci_intx_set may be called from any thread.
 */
#ifndef QV_DEVICE_PCI_FUNCTION_H
#define QV_DEVICE_PCI_FUNCTION_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "guest/dirty_log.h"
#include "guest/irq.h"
#include "guest/memory.h"

#define QV_PCI_BARS        6u
#define QV_PCI_CONFIG_SIZE 256u
#define QV_PCI_MSIX_MAX    2048u

struct qv_pci_function;

enum qv_pci_bar_kind {
    QV_PCI_BAR_NONE,
    QV_PCI_BAR_MEM32,
    QV_PCI_BAR_MEM64, /* takes the next BAR's place too */
    QV_PCI_BAR_IO,
};

/** A part of a BAR that the guest reads and writes as memory, without telling us. */
struct qv_pci_shared {
    uint64_t offset, size; /* multiples of the page size, inside the BAR */
    int fd;                /* a memfd of the model's, which it keeps mapped; -1: none */
    uint64_t
        fd_offset; /* of the part; at least @offset: clients map at fd_offset - offset + offset */
};

struct qv_pci_bar {
    enum qv_pci_bar_kind kind;
    uint64_t size;               /* power of two; memory: at least 4096 */
    struct qv_pci_shared shared; /* at most one such part; fd -1 where there is none */
};

/** What the model is; constant. */
struct qv_pci_identity {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t class_code, subclass, prog_if, revision;
    struct qv_pci_bar bars[QV_PCI_BARS];
    bool intx;             /* has pin INTA# */
    unsigned msi_vectors;  /* power of two up to 32; 0: no MSI */
    unsigned msix_vectors; /* up to QV_PCI_MSIX_MAX; 0: no MSI-X */
    unsigned msix_bar;     /* where the table and the pending bits are: a BAR with room for both */
    uint32_t msix_table, msix_pba; /* offsets in it, multiples of 4096 */
    bool express;                  /* has a PCI Express capability (NVMe: yes; IDE: no) */
};

/** A controller model. All calls come on the function's thread, and none may block. */
struct qv_pci_model_ops {
    const char *name; /* for messages */
    /** bar_read - @size is 1, 2, 4 or 8; the range lies inside the BAR and is naturally aligned
     * (other accesses are split). What no register answers reads as zeros. */
    uint64_t (*bar_read)(struct qv_pci_function *fn, unsigned bar, uint64_t offset, unsigned size);
    /** bar_write - as bar_read. Work that takes time is started here and goes on by itself. */
    void (*bar_write)(struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t value,
                      unsigned size);
    /** command_changed - the guest wrote the command register: bus mastering, memory or I/O space
     * was switched. A model starts no DMA while qv_pci_bus_master() is false. May be NULL. */
    void (*command_changed)(struct qv_pci_function *fn);
    /** config_write - the guest wrote registers of the model's own in configuration space (those
     * it made writable with qv_pci_config_set); after the bytes changed. May be NULL. */
    void (*config_write)(struct qv_pci_function *fn, unsigned offset, unsigned size);
    /**
     * reset - as after power-on, except for what hardware keeps. Ends in one qv_pci_reset_done,
     * perhaps from inside, when no request of before is in flight and none will touch guest
     * memory. One at a time. The client's end (disconnect) is a reset too.
     */
    void (*reset)(struct qv_pci_function *fn);
    /**
     * memory_changed - guest memory is now qv_pci_memory(fn), which may be an empty map. Ends in
     * one qv_pci_memory_done, perhaps from inside, when nothing uses an older map any more (views
     * of it are retired and their requests have left). One at a time; not during a reset.
     */
    void (*memory_changed)(struct qv_pci_function *fn);
    /**
     * quiesce / resume - for live migration and snapshots: quiesce takes no more work from rings
     * and ends in one qv_pci_quiesced when nothing is in flight; resume goes on.
     */
    void (*quiesce)(struct qv_pci_function *fn);
    void (*resume)(struct qv_pci_function *fn);
    /** save / load - the model's own state as bytes, while quiesced; load checks them as untrusted
     * input. */
    void (*save)(struct qv_pci_function *fn, GByteArray *out);
    bool (*load)(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error);
    /** destroy - frees the model; nothing is in flight (a reset came before). */
    void (*destroy)(struct qv_pci_function *fn);
};

/* ---- for the model ---- */

/** qv_pci_function_new - a function after power-on, without guest memory and without a transport.
 * @ops, @identity: copied by reference, must outlive it; @model: qv_pci_model(). I/O thread, which
 * becomes the function's. */
struct qv_pci_function *qv_pci_function_new(const struct qv_pci_model_ops *ops,
                                            const struct qv_pci_identity *identity, void *model);

/** qv_pci_function_free - destroys the model too. Its thread. NULL is fine. */
void qv_pci_function_free(struct qv_pci_function *fn);

void *qv_pci_model(const struct qv_pci_function *fn);

/** qv_pci_memory - guest memory as it is now; never NULL. The caller takes a reference to keep it.
 */
struct qv_guest_map *qv_pci_memory(const struct qv_pci_function *fn);

/** qv_pci_dirty_log - where writes to guest memory are noted; NULL: nowhere. Changes of it come
 * with memory_changed. */
struct qv_dirty_log *qv_pci_dirty_log(const struct qv_pci_function *fn);

bool qv_pci_bus_master(const struct qv_pci_function *fn);

enum qv_pci_irq_mode {
    QV_PCI_IRQ_INTX, /* the level last given to qv_pci_intx_set counts */
    QV_PCI_IRQ_MSI,
    QV_PCI_IRQ_MSIX,
};

/** qv_pci_irq_mode - what the guest has switched on. Any thread. */
enum qv_pci_irq_mode qv_pci_irq_mode(const struct qv_pci_function *fn);

/** qv_pci_notify - an event of @vector: an MSI-X or MSI message (MSI: modulo the vectors enabled).
 * Nothing while the mode is INTx, or the vector has no receiver. Any thread, lock-free, at the cost
 * of one eventfd write. */
void qv_pci_notify(struct qv_pci_function *fn, unsigned vector);

/** qv_pci_intx_set - the level of the interrupt pin; asserted again by itself when the guest
 * unmasks it and the level is still on. Harmless in other modes. Any thread. */
void qv_pci_intx_set(struct qv_pci_function *fn, bool asserted);

/** qv_pci_config_set - initial value of @size (1, 2, 4) bytes of configuration space at @offset, of
 * which the guest may change the bits of @writable. Before a transport is there. For registers that
 * a model has beside the standard ones (IDE timing, AHCI SATA capability). */
void qv_pci_config_set(struct qv_pci_function *fn, unsigned offset, unsigned size, uint32_t value,
                       uint32_t writable);
/** qv_pci_config_get - @size bytes at @offset as the guest sees them. */
uint32_t qv_pci_config_get(const struct qv_pci_function *fn, unsigned offset, unsigned size);

/** qv_pci_add_capability - room for @len bytes with the capability @id in the list; returns its
 * offset. Before a transport is there. Asserts that there is room. */
unsigned qv_pci_add_capability(struct qv_pci_function *fn, uint8_t id, unsigned len);

void qv_pci_reset_done(struct qv_pci_function *fn);
void qv_pci_memory_done(struct qv_pci_function *fn);
void qv_pci_quiesced(struct qv_pci_function *fn);

/* ---- for the transport (and for tests, which are one) ---- */

const struct qv_pci_identity *qv_pci_identity(const struct qv_pci_function *fn);

/** qv_pci_config_read / _write - configuration space accesses of any size and alignment inside its
 * 256 bytes (a transport cuts off what lies behind). */
void qv_pci_config_read(struct qv_pci_function *fn, unsigned offset, void *buf, unsigned len);
void qv_pci_config_write(struct qv_pci_function *fn, unsigned offset, const void *buf,
                         unsigned len);

/** qv_pci_bar_read / _write - any size and alignment; false when outside of the BAR. The MSI-X
 * table and pending bits are answered here. */
bool qv_pci_bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, void *buf,
                     uint64_t len);
bool qv_pci_bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, const void *buf,
                      uint64_t len);

/** qv_pci_set_irqs - who receives the interrupts of @mode: @count of them for vectors from @start
 * on; NULL entries receive nothing. They stay the caller's, and must last until they are replaced
 * and qv_pci_set_irqs has returned (no raise is under way then). @count 0 with @start 0 switches
 * the mode off (back to INTx). */
bool qv_pci_set_irqs(struct qv_pci_function *fn, enum qv_pci_irq_mode mode, unsigned start,
                     unsigned count, struct qv_irq *const *irqs, GError **error);

/** qv_pci_intx_mask - the client masks (after each interrupt it does so by itself: "automasked") or
 * unmasks the pin; unmasking raises again while the level is on. Its thread. */
void qv_pci_intx_mask(struct qv_pci_function *fn, bool masked);

/** qv_pci_intx_unmask_early - the client unmasks, perhaps before the guest's driver has dealt with
 * the interrupt: QEMU without KVM takes the guest's first access to the function for the end of
 * the interrupt. A level that has been on since it was told of is told of again only when the guest
 * has left the BARs alone for a moment. I/O thread, which is the function's. */
void qv_pci_intx_unmask_early(struct qv_pci_function *fn);

/** qv_pci_change_memory - hands a new map (referenced by the function) to the model; @done on the
 * function's thread when the old one is out of use. One at a time. */
void qv_pci_change_memory(struct qv_pci_function *fn, struct qv_guest_map *map,
                          struct qv_dirty_log *log, void (*done)(void *arg), void *arg);

/** qv_pci_reset - resets function and model; @done as above. One at a time, not during a change of
 * memory. */
void qv_pci_reset(struct qv_pci_function *fn, void (*done)(void *arg), void *arg);

void qv_pci_quiesce(struct qv_pci_function *fn, void (*done)(void *arg), void *arg);
void qv_pci_resume(struct qv_pci_function *fn);

/** qv_pci_save / _load - state of function and model as bytes, while quiesced; load checks them as
 * untrusted input, and changes nothing of the function (the model: see its load) when it fails.
 * Receivers of interrupts and guest memory are not part of it. Its thread. */
void qv_pci_save(struct qv_pci_function *fn, GByteArray *out);
bool qv_pci_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error);

#endif
