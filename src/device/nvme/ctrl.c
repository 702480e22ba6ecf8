/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controller's life: enabled, stopped, reset, shut down, quiesced. All on the home thread.
 * Source: NVMe 1.4, 7.3 "Resets", 7.6 "Controller Initialization and Shutdown Processing".
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "device/nvme/nvme_int.h"

/* No vendor has given us an ID; drivers go by the class code. */
#define PCI_VENDOR 0x1234
#define PCI_DEVICE 0x4e56
/* Mass storage, non-volatile memory, NVMe I/O controller. */
#define PCI_CLASS    0x01
#define PCI_SUBCLASS 0x08
#define PCI_PROG_IF  0x02

void nvme_fatal(struct nvme_ctrl *c, const char *why)
{
    if (!atomic_exchange(&c->shared.fatal, true)) {
        qv_log_limited(&c->log_limit, QV_LOG_WARN, "%s: controller fatal status: %s", c->name, why);
    }
}

/* ---- on ---- */

/* What is wrong with the registers; NULL: nothing. */
static const char *check_registers(const struct nvme_ctrl *c)
{
    uint64_t page = UINT64_C(4096) << NVME_CC_MPS(c->cc);

    if (NVME_CC_CSS(c->cc) != 0) {
        return "CC.CSS is not the NVM command set";
    }
    if (NVME_CC_AMS(c->cc) != 0) {
        return "CC.AMS is not round robin";
    }
    if (NVME_CC_MPS(c->cc) > NVME_MPS_MAX) {
        return "CC.MPS is above CAP.MPSMAX";
    }
    if ((c->aqa & 0xfff) == 0 || (c->aqa >> 16 & 0xfff) == 0) {
        return "an admin queue of one entry";
    }
    if (c->asq % page != 0 || c->acq % page != 0) {
        return "an admin queue that is not on a page boundary";
    }
    return NULL;
}

static bool any_cache(struct nvme_ctrl *c)
{
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        const struct nvme_ns *ns = nvme_ns_get(c, i);

        if (ns != NULL && !qv_disk_writethrough(ns->disk) && !qv_disk_readonly(ns->disk)) {
            return true;
        }
    }
    return false;
}

static bool any_discard(struct nvme_ctrl *c)
{
    for (uint32_t i = 1; i < NVME_NSIDS; i++) {
        const struct nvme_ns *ns = nvme_ns_get(c, i);

        if (ns != NULL && qv_disk_discards(ns->disk) && !qv_disk_readonly(ns->disk)) {
            return true;
        }
    }
    return false;
}

static void start_admin(struct nvme_ctrl *c)
{
    struct nvme_order cq = {
        .worker = c->workers[0], .base = c->acq, .size = (c->aqa >> 16 & 0xfff) + 1, .ien = true};
    struct nvme_order sq = {.worker = c->workers[0], .base = c->asq, .size = (c->aqa & 0xfff) + 1};

    atomic_store(nvme_db(c, 0), 0);
    atomic_store(nvme_db(c, 1), 0);
    c->q[0] = (struct nvme_qinfo){
        .sq = true, .cq = true, .users = 1, .sq_size = sq.size, .cq_size = cq.size};
    nvme_cq_start(&c->cqs[0], &cq);
    nvme_sq_start(&c->sqs[0], &sq);
}

void nvme_ctrl_enable(struct nvme_ctrl *c)
{
    const char *wrong = check_registers(c);

    if (c->state != NVME_DISABLED) {
        return; /* still stopping: nvme_ctrl_progress comes back */
    }
    if (wrong != NULL) {
        nvme_fatal(c, wrong);
        return;
    }
    atomic_store(&c->shared.page_shift, 12 + NVME_CC_MPS(c->cc));
    /* What this driver is told; a disk with a cache that comes later is written through, because
     * a driver that was told of none does not flush. */
    c->has_cache = any_cache(c);
    c->has_discard = any_discard(c);
    c->used = true;
    nvme_features_reset(c);
    c->state = NVME_ENABLED;
    start_admin(c);
    c->csts = NVME_CSTS_RDY;
}

/* ---- off ---- */

static void stopped(struct nvme_group *g)
{
    struct nvme_ctrl *c = g->ctrl;

    c->stop_done = true; /* nvme_ctrl_progress follows */
}

static void stop(struct nvme_ctrl *c)
{
    if (c->state == NVME_STOPPING) {
        return;
    }
    c->state = NVME_STOPPING;
    c->stop_done = false;
    nvme_events_reset(c);
    nvme_order_all(nvme_group_new(c, stopped), NVME_ORDER_STOP);
}

void nvme_ctrl_disable(struct nvme_ctrl *c)
{
    if (c->state == NVME_DISABLED) {
        atomic_store(&c->shared.fatal, false); /* it could not be enabled */
        return;
    }
    stop(c);
}

/* Any controller reset clears the interrupt mask (7.3.2); AQA, ASQ and ACQ stay unless the function
 * is reset. */
static void unmask(struct nvme_ctrl *c)
{
    pthread_mutex_lock(&c->shared.lock);
    c->shared.intms = 0;
    pthread_mutex_unlock(&c->shared.lock);
    nvme_intx_update(c);
}

/* Everything of before has ended. */
static void now_disabled(struct nvme_ctrl *c)
{
    c->state = NVME_DISABLED;
    c->csts = 0;
    c->aborts = 0;
    c->dbbuf_shadow = c->dbbuf_event = 0;
    memset(c->q, 0, sizeof(c->q));
    for (unsigned i = 0; i < 2 * NVME_QIDS; i++) {
        atomic_store(nvme_db(c, i), 0);
    }
    atomic_store(&c->shared.fatal, false);
    unmask(c);
    nvme_events_reset(c);
    nvme_features_reset(c);
    nvme_ns_guest_gone(c);
}

static void registers_reset(struct nvme_ctrl *c)
{
    c->cc = c->aqa = 0;
    c->asq = c->acq = 0;
    unmask(c);
}

void nvme_ctrl_progress(struct nvme_ctrl *c)
{
    bool idle = c->groups_out == 0 && atomic_load(&c->events_posted) == 0;

    if (c->state == NVME_STOPPING && c->stop_done && idle) {
        now_disabled(c);
        idle = c->groups_out == 0;
        if (!c->resetting && (c->cc & NVME_CC_EN)) {
            nvme_ctrl_enable(c);
        }
    }
    if (c->resetting && c->state == NVME_DISABLED && idle) {
        c->resetting = false;
        registers_reset(c);
        qv_pci_reset_done(c->fn);
        return; /* the function may be gone */
    }
    if (c->quiescing && c->quiesce_acked && c->state != NVME_STOPPING && idle) {
        c->quiescing = false;
        qv_pci_quiesced(c->fn);
    }
}

static void model_reset(struct qv_pci_function *fn)
{
    struct nvme_ctrl *c = nvme_of(fn);

    c->resetting = true;
    c->cc = 0;
    atomic_store(&c->shared.dma, false);
    atomic_store(&c->shared.paused, false);
    c->power_cycles += c->used; /* power went, as far as the guest can tell */
    c->used = false;
    stop(c); /* also when it is off: nothing of before may run on any worker afterwards */
}

/* ---- shutdown: 7.6.2 ---- */

static void shutdown_flushed(struct nvme_req *req)
{
    struct nvme_ctrl *c = req->worker->ctrl;

    c->flushing = false;
    if (atomic_load(&c->shared.paused) || c->state != NVME_ENABLED) {
        return; /* done again after a quiesce; forgotten by a reset */
    }
    if (req->status != NVME_OK) {
        qv_warn("%s: the flush of a shutdown has failed", c->name);
    }
    c->csts = (c->csts & NVME_CSTS_RDY) | (uint32_t)NVME_SHST_COMPLETE << NVME_CSTS_SHST_SHIFT;
    nvme_ns_guest_gone(c);
}

static void shutdown_flush(struct nvme_ctrl *c)
{
    struct nvme_worker *w = c->workers[0];
    struct nvme_req *req = nvme_req_get(w);

    c->flushing = true;
    memset(&req->sqe, 0, sizeof(req->sqe));
    req->finished = shutdown_flushed;
    w->in_flight++;
    nvme_start_flush_all(req);
}

void nvme_ctrl_shutdown(struct nvme_ctrl *c)
{
    if (c->flushing) {
        return;
    }
    if (c->state != NVME_ENABLED) {
        return; /* nothing to write out: what completed before was flushed or is on its way */
    }
    c->csts = (c->csts & NVME_CSTS_RDY) | (uint32_t)NVME_SHST_OCCURRING << NVME_CSTS_SHST_SHIFT;
    shutdown_flush(c);
}

/* ---- what the function asks for ---- */

static void run_done(struct nvme_group *g)
{
}

static void command_changed(struct qv_pci_function *fn)
{
    struct nvme_ctrl *c = nvme_of(fn);
    bool dma = qv_pci_bus_master(fn);

    if (dma != atomic_exchange(&c->shared.dma, dma) && dma) {
        nvme_order_all(nvme_group_new(c, run_done), NVME_ORDER_RUN);
    }
}

static void memory_out_of_use(struct nvme_group *g)
{
    qv_pci_memory_done(g->ctrl->fn);
}

static void memory_changed(struct qv_pci_function *fn)
{
    nvme_order_all(nvme_group_new(nvme_of(fn), memory_out_of_use), NVME_ORDER_MEMORY);
}

static void quiesce_acked(struct nvme_group *g)
{
    g->ctrl->quiesce_acked = true; /* nvme_ctrl_progress follows */
}

static void quiesce(struct qv_pci_function *fn)
{
    struct nvme_ctrl *c = nvme_of(fn);

    c->quiescing = true;
    c->quiesce_acked = false;
    atomic_store(&c->shared.paused, true);
    nvme_order_all(nvme_group_new(c, quiesce_acked), NVME_ORDER_QUIESCE);
}

static void resume(struct qv_pci_function *fn)
{
    struct nvme_ctrl *c = nvme_of(fn);

    atomic_store(&c->shared.paused, false);
    atomic_store(&c->shared.dma, qv_pci_bus_master(fn));
    nvme_order_all(nvme_group_new(c, run_done), NVME_ORDER_RUN);
    nvme_events_deliver(c);
    if (c->state == NVME_ENABLED && !c->flushing &&
        c->csts >> NVME_CSTS_SHST_SHIFT == NVME_SHST_OCCURRING) {
        shutdown_flush(c);
    }
}

static void destroy(struct qv_pci_function *fn)
{
    struct nvme_ctrl *c = nvme_of(fn);

    assert(c->groups_out == 0 && c->state == NVME_DISABLED);
    nvme_ns_destroy(c);
    for (unsigned i = 0; i < c->worker_count; i++) {
        nvme_worker_free(c->workers[i]);
    }
    munmap(c->db_map, NVME_DB_SIZE);
    qv_close_fd(&c->db_fd);
    pthread_mutex_destroy(&c->shared.lock);
    g_free(c->name);
    g_free(c);
}

static const struct qv_pci_model_ops ops = {
    .name = "nvme",
    .bar_read = nvme_bar_read,
    .bar_write = nvme_bar_write,
    .command_changed = command_changed,
    .reset = model_reset,
    .memory_changed = memory_changed,
    .quiesce = quiesce,
    .resume = resume,
    .save = nvme_save,
    .load = nvme_load,
    .destroy = destroy,
};

/* ---- new ---- */

/* Doorbells are a page of memory; one that the guest maps is of a file that can not be cut short
 * under us. */
static bool make_doorbells(struct nvme_ctrl *c, GError **error)
{
    void *page;

    c->db_fd = -1;
    if (c->db_page) {
        c->db_fd = memfd_create("nvme-doorbells", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (c->db_fd < 0 || ftruncate(c->db_fd, NVME_DB_PAGE + NVME_DB_SIZE) < 0 ||
            fcntl(c->db_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
            return qv_fail_errno(error, errno, "%s: cannot make a doorbell page", c->name);
        }
    }
    page = mmap(NULL, NVME_DB_SIZE, PROT_READ | PROT_WRITE,
                c->db_page ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, c->db_fd,
                c->db_page ? NVME_DB_PAGE : 0);
    if (page == MAP_FAILED) {
        return qv_fail_errno(error, errno, "%s: cannot map the doorbells", c->name);
    }
    c->db = c->db_map = page;
    return true;
}

static void set_identity(struct nvme_ctrl *c)
{
    c->identity = (struct qv_pci_identity){
        .vendor = PCI_VENDOR,
        .device = PCI_DEVICE,
        .subsystem_vendor = PCI_VENDOR,
        .subsystem = PCI_DEVICE,
        .class_code = PCI_CLASS,
        .subclass = PCI_SUBCLASS,
        .prog_if = PCI_PROG_IF,
        .revision = 1,
        .intx = true,
        .msix_vectors = c->queues + 1,
        .msix_bar = 0,
        .msix_table = NVME_MSIX,
        .msix_pba = NVME_PBA,
        .express = true,
    };
    for (unsigned i = 0; i < QV_PCI_BARS; i++) {
        c->identity.bars[i].shared.fd = -1;
    }
    c->identity.bars[0].kind = QV_PCI_BAR_MEM64;
    c->identity.bars[0].size = NVME_BAR_SIZE;
    if (c->db_page) {
        c->identity.bars[0].shared = (struct qv_pci_shared){.offset = NVME_DB_PAGE,
                                                            .size = NVME_DB_SIZE,
                                                            .fd = c->db_fd,
                                                            .fd_offset = NVME_DB_PAGE};
    }
}

static struct nvme_worker *worker_for(struct nvme_ctrl *c, struct qv_thread *thread)
{
    for (unsigned i = 0; i < c->worker_count; i++) {
        if (c->workers[i]->thread == thread) {
            return c->workers[i];
        }
    }
    c->workers[c->worker_count] = nvme_worker_new(c, thread);
    return c->workers[c->worker_count++];
}

static void make_workers(struct nvme_ctrl *c, const struct qv_nvme_opts *opts)
{
    c->worker_of[0] = worker_for(c, c->home);
    for (unsigned i = 1; i <= c->queues; i++) {
        c->worker_of[i] =
            worker_for(c, opts->threads[(opts->first_thread + i - 1) % opts->nthreads]);
    }
    for (unsigned i = 0; i <= c->queues; i++) {
        nvme_sq_init(c, i);
        nvme_cq_init(c, i);
    }
}

static bool check_serial(const struct qv_nvme_opts *opts, const char *serial, GError **error)
{
    if (strlen(serial) > QV_NVME_SERIAL_MAX) {
        return qv_fail(error, QV_ERROR_USAGE, "%s: serial \"%s\" is longer than %u characters",
                       opts->name, serial, QV_NVME_SERIAL_MAX);
    }
    for (const char *at = serial; *at != '\0'; at++) {
        if (!g_ascii_isprint(*at)) {
            return qv_fail(error, QV_ERROR_USAGE,
                           "%s: the serial has a character that is not ASCII", opts->name);
        }
    }
    return true;
}

struct qv_pci_function *qv_nvme_new(const struct qv_nvme_opts *opts, GError **error)
{
    const char *serial = opts->serial != NULL ? opts->serial : "";
    uint8_t nguid[16], eui64[8];
    struct nvme_ctrl *c;

    assert(opts->queues >= 1 && opts->queues <= QV_NVME_QUEUES_MAX && opts->nthreads >= 1);
    if (!check_serial(opts, serial, error)) {
        return NULL;
    }
    c = g_new0(struct nvme_ctrl, 1);
    c->name = g_strdup(opts->name);
    c->queues = opts->queues;
    c->db_page = opts->doorbells == QV_NVME_DOORBELLS_PAGE;
    c->home = qv_thread_self();
    c->born_ns = qv_now_ns();
    c->power_cycles = 1;
    memset(c->serial, ' ', sizeof(c->serial));
    memcpy(c->serial, serial, strlen(serial));
    nvme_derive_ids(serial[0] != '\0' ? serial : opts->name, nguid, eui64, c->uuid);
    if (!make_doorbells(c, error)) {
        qv_close_fd(&c->db_fd);
        g_free(c->name);
        g_free(c);
        return NULL;
    }
    pthread_mutex_init(&c->shared.lock, NULL);
    atomic_init(&c->shared.page_shift, 12);
    set_identity(c);
    c->fn = qv_pci_function_new(&ops, &c->identity, c);
    make_workers(c, opts);
    nvme_features_reset(c);
    return c->fn;
}
