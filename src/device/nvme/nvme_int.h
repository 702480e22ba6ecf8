/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of this folder.
 *
 * Two kinds of threads: the home thread owns struct nvme_ctrl (registers, features, namespaces,
 * what queues there are); each worker owns its I/O thread's queues and requests. They talk by
 * orders, posted to a worker and handed back when carried out, and by the few atomics of struct
 * nvme_shared.
 */
#ifndef QV_DEVICE_NVME_NVME_INT_H
#define QV_DEVICE_NVME_NVME_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/log.h"
#include "device/nvme/nvme.h"
#include "device/nvme/spec.h"
#include "device/pci/moderation.h"

#define NVME_QIDS     (QV_NVME_QUEUES_MAX + 1u) /* 0 is the admin queue */
#define NVME_NSIDS    (QV_NVME_NAMESPACES_MAX + 1u)
#define NVME_CNTLID   0u
#define NVME_BAR_SIZE 0x4000u
#define NVME_DB_PAGE  0x1000u /* where doorbells are; one page */
#define NVME_DB_SIZE  0x1000u
#define NVME_MSIX     0x2000u
#define NVME_PBA      0x3000u

/* Entries of an I/O queue. */
#define NVME_QUEUE_ENTRIES 1024u
/* CAP.MPSMAX, CAP.TO (500 ms units), Identify MDTS (memory pages of 4 KiB, log 2). */
#define NVME_MPS_MAX   4u
#define NVME_TIMEOUT   60u
#define NVME_MDTS      9u
#define NVME_DATA_MAX  (4096u << NVME_MDTS)
#define NVME_AERL      3u /* as in Identify: one less than there can be */
#define NVME_ACL       3u
#define NVME_ELPE      63u
#define NVME_TEMP      308 /* kelvin: what we claim to be warm */
#define NVME_TEMP_WARN 343
#define NVME_TEMP_CRIT 353

/* Commands of one queue in flight; more wait in the ring. Bounds our memory. */
#define NVME_DEPTH_MAX 1024u
/* Buffers that fit into a request (88 KiB of scattered pages), and into a borrowed block. */
#define NVME_IOV_INLINE 24u
#define NVME_IOV_BLOCK  1024u
/* Blocks of one worker lent out at once. */
#define NVME_BLOCKS_MAX 64u
/* Compare and Verify read in pieces of this size; buffers of one worker lent out at once. */
#define NVME_BOUNCE     (UINT64_C(128) * 1024)
#define NVME_BOUNCE_MAX 16u
/* Commands taken from one queue before others get their turn. */
#define NVME_BUDGET 256u
/* Completions after which the guest is told without waiting for the end of the turn. */
#define NVME_FLUSH_EVERY 16u
/* How often what a stopped disk keeps is taken back while something waits for it. */
#define NVME_CANCEL_NS INT64_C(5000000)

struct nvme_ctrl;
struct nvme_worker;
struct nvme_sq;
struct nvme_cq;

struct nvme_block {
    struct nvme_block *next;
    struct iovec iov[NVME_IOV_BLOCK];
};

struct nvme_bounce {
    struct nvme_bounce *next;
    uint8_t bytes[NVME_BOUNCE] __attribute__((aligned(4096)));
};

/** A namespace. Made and freed on the home thread; read-only while it is in the table. */
struct nvme_ns {
    uint32_t nsid;
    struct qv_disk *disk;
    unsigned shift; /* log 2 of the block size */
    uint8_t nguid[16], eui64[8], uuid[16];
    _Atomic int64_t last_used_ms; /* of a command, coarse: updated while leaving */
    atomic_bool leaving;          /* not in the lists any more */
    /* home: */
    bool seen; /* the guest has read the list without it */
    struct qv_timer timer;
    struct nvme_ctrl *ctrl;
    void (*removed)(void *arg);
    void *removed_arg;
};

/** One command. Belongs to a worker. */
struct nvme_req {
    struct qv_io io;
    struct nvme_worker *worker;
    struct nvme_sq *sq;    /* NULL: our own (shutdown's flush) */
    struct nvme_req *next; /* free, waiting for a buffer, parked, or waiting for room in a CQ */
    struct qv_guest_view *view; /* entered while the data is in use; NULL: not */
    struct nvme_ns *ns;         /* counted in ns_users; NULL: none */
    struct nvme_block *block;   /* borrowed; NULL: own_iov is used */
    struct nvme_bounce *bounce;
    struct iovec *iov;
    unsigned iovcnt;
    uint64_t len; /* bytes of data */
    uint32_t dw0; /* of the completion */
    uint16_t status;
    bool busy;    /* taken and not yet put back */
    bool on_disk; /* io is submitted */
    bool fills;   /* the data is written to by us */
    bool aborted; /* by an Abort command */
    bool in_step, again;
    struct iovec bounce_iov;
    uint64_t piece;   /* steps: bytes being read into bounce */
    uint64_t gpa_end; /* guest address behind the last buffer, while the list is made */
    /* The next step of a command that takes several: returns true when it has submitted io, false
     * when @req->status is final. NULL: the first result is the command's. */
    bool (*step)(struct nvme_req *req);
    uint64_t done, total; /* steps: bytes, or namespaces */
    uint64_t base;        /* steps: byte offset of the range on the disk */
    unsigned range, ranges;
    struct nvme_dsm_range *list;            /* DSM: owned */
    void (*finished)(struct nvme_req *req); /* our own requests */
    struct nvme_sqe sqe;
    struct iovec own_iov[NVME_IOV_INLINE];
};

#define NVME_REQS_CHUNK 32u
struct nvme_chunk {
    struct nvme_chunk *next;
    struct nvme_req reqs[NVME_REQS_CHUNK];
};

enum nvme_queue_state {
    NVME_Q_NONE,
    NVME_Q_LIVE,
    NVME_Q_DYING, /* no more commands are taken; what ends is dropped or completed as aborted */
};

/* Submission and completion queues: a worker's, between its SQ_ADD / CQ_ADD and the end of the
 * order that takes them away. */
struct nvme_sq {
    struct nvme_ctrl *ctrl;
    struct nvme_worker *worker;
    struct nvme_cq *cq;
    struct nvme_sq *next; /* of the worker */
    enum nvme_queue_state state;
    uint16_t id;
    uint32_t size, head;
    uint32_t refused; /* the doorbell value last reported as wrong; UINT32_MAX: none */
    uint64_t base;
    uint64_t shadow,
        event;       /* guest addresses of the shadow doorbell and its event index; 0: none */
    unsigned taken;  /* commands taken and not yet completed towards the guest */
    unsigned active; /* of these: not parked, and not waiting for room in the CQ */
    bool starved;    /* commands wait for a completion */
    bool silent;     /* DYING: completions are dropped */
    struct nvme_req *parked,
        **parked_tail; /* taken back from a stopped disk, to be started again */
    struct qv_work kick;
    atomic_bool kicked;
};

struct nvme_cq {
    struct nvme_ctrl *ctrl;
    struct nvme_worker *worker;
    struct nvme_cq *next; /* of the worker */
    struct nvme_cq *next_dirty;
    enum nvme_queue_state state;
    uint16_t id, vector;
    bool ien, phase, dirty;
    bool level; /* counted in shared.levels; under its lock */
    uint32_t size, head, tail;
    uint32_t refused;
    uint64_t base;
    uint64_t shadow, event;
    unsigned fresh;                           /* completions the guest has not been told of */
    struct nvme_req *waiting, **waiting_tail; /* no room */
    struct qv_timer timer;                    /* interrupt coalescing, or moderation */
    struct qv_moderation moderation;          /* where the guest has not set up coalescing */
    struct qv_work kick;
    atomic_bool kicked;
    atomic_bool wants_kick; /* a new head matters now */
};

enum nvme_order_op {
    NVME_ORDER_CQ_ADD,
    NVME_ORDER_CQ_DEL,
    NVME_ORDER_SQ_ADD,
    NVME_ORDER_SQ_DEL,   /* done when nothing of the queue is in flight */
    NVME_ORDER_STOP,     /* all queues go, silently; done when nothing is in flight */
    NVME_ORDER_MEMORY,   /* a new view; done when the old one is out of use */
    NVME_ORDER_QUIESCE,  /* done when nothing is in flight; commands may be parked */
    NVME_ORDER_RUN,      /* look at everything again (paused or DMA has changed) */
    NVME_ORDER_NS_DRAIN, /* done when no command of the namespace is in flight */
    NVME_ORDER_ABORT,
    NVME_ORDER_DBBUF, /* shadow doorbells of the worker's queues */
};

struct nvme_group;

/** A command of a queue that moves to another host: to be started again, or only to be told of. */
struct nvme_kept {
    struct nvme_sqe sqe;
    bool completed;
    uint16_t status;
    uint32_t dw0;
};

struct nvme_order {
    struct qv_work work;
    struct nvme_order *next; /* those that wait, of the worker */
    struct nvme_worker *worker;
    struct nvme_group *group;
    enum nvme_order_op op;
    uint16_t qid, cid;
    uint16_t vector;
    bool ien;
    bool result; /* ABORT: it was aborted */
    uint32_t size, nsid;
    uint16_t cqid;
    bool restored; /* the queue goes on from another host: */
    bool phase;
    uint32_t head, tail;
    uint64_t base;            /* of the queue */
    uint64_t shadow, event;   /* DBBUF, and new queues: the two buffers; 0: none */
    struct nvme_ns *ns;       /* NS_DRAIN */
    GArray *kept;             /* restored SQ: struct nvme_kept; owned; NULL: none */
    struct qv_guest_map *map; /* MEMORY; a reference */
    struct qv_dirty_log *log; /* likewise; may be NULL */
};

/** Orders given at once; @done on the home thread when all are carried out. */
struct nvme_group {
    struct nvme_ctrl *ctrl;
    unsigned left;
    bool result; /* of any of them */
    void (*done)(struct nvme_group *group);
    struct nvme_req *req; /* the admin command it is for; NULL: none */
    void *arg;
};

/** What one I/O thread does for the controller. */
struct nvme_worker {
    struct nvme_ctrl *ctrl;
    struct qv_thread *thread;
    struct qv_guest_view *view;
    struct qv_guest_view *old_view; /* of before the MEMORY order under way; NULL: out of use */
    struct qv_dirty_log *log;
    struct nvme_sq *sqs;
    struct nvme_cq *cqs;
    unsigned in_flight; /* requests that are not in a waiting list of a CQ, nor parked */
    uint32_t ns_users[NVME_NSIDS];
    struct nvme_chunk *chunks;
    struct nvme_req *free;
    struct nvme_block *blocks;
    unsigned blocks_lent;
    struct nvme_bounce *bounces;
    unsigned bounces_lent;
    struct nvme_req *bounce_wait, **bounce_wait_tail;
    uint8_t *bucket; /* where SGL bit buckets go */
    struct nvme_cq *dirty;
    struct qv_work flush_work;
    bool flush_queued;
    struct nvme_order *orders; /* that wait */
    struct qv_timer cancel_timer;
    /* Looking for work without being told (doorbell.c). */
    struct qv_work poll_work;
    struct qv_timer poll_timer;
    bool poll_queued;
    int64_t poll_window_ns, poll_end_ns, last_work_ns, slept_ns, poll_interval_ns;
};

/** Read and written by the home thread and by workers. */
struct nvme_shared {
    atomic_bool fatal;               /* CSTS.CFS */
    atomic_bool paused;              /* quiesced */
    atomic_bool dma;                 /* bus master */
    atomic_bool through;             /* writes are durable when they complete */
    atomic_uint coalesce;            /* feature 08h */
    _Atomic uint64_t no_coalesce[2]; /* vectors that are not; bit per vector */
    atomic_uint page_shift;
    _Atomic(struct nvme_ns *) ns[NVME_NSIDS];
    pthread_mutex_t lock; /* the pin and the error log */
    unsigned levels;      /* CQs with something to tell */
    uint32_t intms;
};

/* What SMART counts of disks; wraps. */
struct nvme_totals {
    uint64_t read_bytes, write_bytes, reads, writes, errors;
};

struct nvme_error_entry {
    uint64_t count, lba;
    uint32_t nsid;
    uint16_t sqid, cid, status, location;
};

enum nvme_state {
    NVME_DISABLED,
    NVME_ENABLED,
    NVME_STOPPING, /* until the workers' STOP is done; then DISABLED */
};

struct nvme_qinfo {
    bool sq, cq;           /* there is one: for the guest's commands and doorbells */
    bool sq_busy, cq_busy; /* a command that creates or deletes it is under way */
    uint16_t cqid;         /* of the SQ */
    uint16_t users;        /* SQs of the CQ */
    uint32_t sq_size, cq_size;
};

struct nvme_features {
    uint32_t arbitration, power, error_recovery, coalescing, atomicity, events;
    uint16_t over_temp, under_temp;
    bool write_cache;
    uint64_t timestamp_ms;    /* set by the host, at... */
    int64_t timestamp_set_ns; /* ...this time of ours */
    uint8_t timestamp_origin;
};

struct nvme_ctrl {
    struct qv_pci_function *fn;
    struct qv_pci_identity identity;
    char *name;
    char serial[QV_NVME_SERIAL_MAX]; /* padded with spaces */
    uint8_t uuid[16];                /* of the subsystem's name */
    unsigned queues;
    bool db_page;
    int db_fd;
    void *db_map;         /* where db is */
    _Atomic uint32_t *db; /* by 2 * qid (tail of the SQ) and + 1 (head of the CQ) */
    struct qv_thread *home;
    struct nvme_worker *workers[NVME_QIDS]; /* [0] is the home thread's */
    unsigned worker_count;
    struct nvme_worker *worker_of[NVME_QIDS]; /* by queue */
    struct nvme_shared shared;
    struct nvme_sq sqs[NVME_QIDS];
    struct nvme_cq cqs[NVME_QIDS];
    struct qv_log_limit log_limit;
    /* home: */
    enum nvme_state state;
    bool resetting; /* the function's reset, not only the guest's */
    bool quiescing;
    bool stop_done;
    bool quiesce_acked;
    bool flushing; /* the shutdown's flush is under way */
    uint32_t cc, csts, aqa;
    uint64_t asq, acq;
    uint64_t dbbuf_shadow, dbbuf_event;
    struct nvme_qinfo q[NVME_QIDS];
    struct nvme_features feat;
    bool has_cache;   /* VWC as reported since it was enabled */
    bool has_discard; /* likewise, Dataset Management */
    bool used;        /* enabled since the function's reset */
    unsigned groups_out;
    atomic_uint events_posted; /* by workers, on their way to the home thread */
    unsigned aborts;           /* Abort commands under way */
    /* Asynchronous events (events.c). */
    uint16_t aer[NVME_AERL + 1];
    unsigned aer_count;
    uint32_t event_pending[3]; /* by type; the completion's dword 0, plus 1 << 31: there is one */
    bool event_masked[3];      /* until the log page is read */
    bool temp_warned;
    bool draining[NVME_NSIDS];                     /* left the table, and is still in use */
    uint64_t changed[NVME_NSIDS / 64 + 1];         /* NSIDs not yet reported by log page 04h */
    struct nvme_error_entry errors[NVME_ELPE + 1]; /* under shared.lock, as is: */
    uint64_t error_count;
    struct nvme_totals gone; /* of disks that are gone, or were counted on another host */
    int64_t born_ns;
    uint64_t power_cycles;
};

/* ---- ctrl.c: the controller's life. Home thread. ---- */

void nvme_ctrl_enable(struct nvme_ctrl *c);
void nvme_ctrl_disable(struct nvme_ctrl *c);
void nvme_ctrl_shutdown(struct nvme_ctrl *c);
/** nvme_ctrl_progress - looks whether a reset or a quiesce has come to its end. */
void nvme_ctrl_progress(struct nvme_ctrl *c);
/** nvme_fatal - CSTS.CFS: no more commands are taken. Any thread. */
void nvme_fatal(struct nvme_ctrl *c, const char *why);

/* ---- regs.c: BAR 0. Home thread. ---- */

uint64_t nvme_bar_read(struct qv_pci_function *fn, unsigned bar, uint64_t offset, unsigned size);
void nvme_bar_write(struct qv_pci_function *fn, unsigned bar, uint64_t offset, uint64_t value,
                    unsigned size);

/* ---- worker.c: workers, orders, requests ---- */

struct nvme_worker *nvme_worker_new(struct nvme_ctrl *c, struct qv_thread *thread);
void nvme_worker_free(struct nvme_worker *w);
/** nvme_group_new, nvme_order_give - home thread. A group without an order is done at once by
 * nvme_group_seal, which comes after its last order. */
struct nvme_group *nvme_group_new(struct nvme_ctrl *c, void (*done)(struct nvme_group *group));
struct nvme_order *nvme_order_new(struct nvme_group *g, struct nvme_worker *w,
                                  enum nvme_order_op op);
void nvme_order_give(struct nvme_order *o);
/** nvme_order_all - one order for each worker. */
void nvme_order_all(struct nvme_group *g, enum nvme_order_op op);

/* The worker's thread: */
struct nvme_req *nvme_req_get(struct nvme_worker *w);
void nvme_req_put(struct nvme_req *req);
/** nvme_req_release - lets go of data, namespace and buffers; the request itself stays. */
void nvme_req_release(struct nvme_req *req);
bool nvme_req_enlarge(struct nvme_req *req);
/** nvme_req_bounce - a buffer for @req: false when it has to wait; then its step() is called again
 * when there is one. */
bool nvme_req_bounce(struct nvme_req *req);
void nvme_worker_flush_later(struct nvme_worker *w);

/* ---- irq.c: interrupts of completion queues. The worker's thread. ---- */

void nvme_cq_irq_init(struct nvme_cq *cq);
/** nvme_cq_signal - tells the guest of fresh completions; @now: whatever coalescing says. */
void nvme_cq_signal(struct nvme_cq *cq, bool now);
/** nvme_cq_uses_pin - whether its interrupt is the pin, whose level follows the head: it has to be
 * told of. */
bool nvme_cq_uses_pin(const struct nvme_cq *cq);
/** nvme_cq_set_level - of the pin, as far as this queue goes. */
void nvme_cq_set_level(struct nvme_cq *cq, bool level);
/** nvme_cq_want_head - asks for a kick with the next head doorbell, and looks once more: a write
 * that came before the wish was seen brought none. */
void nvme_cq_want_head(struct nvme_cq *cq);
/** nvme_intx_update - recomputes the pin. Any thread. */
void nvme_intx_update(struct nvme_ctrl *c);

/* ---- queue.c: rings. The worker's thread. ---- */

void nvme_sq_init(struct nvme_ctrl *c, unsigned id);
void nvme_cq_init(struct nvme_ctrl *c, unsigned id);
void nvme_sq_start(struct nvme_sq *sq, const struct nvme_order *o);
void nvme_cq_start(struct nvme_cq *cq, const struct nvme_order *o);
void nvme_sq_run(struct nvme_sq *sq);
void nvme_sq_end(struct nvme_sq *sq);
void nvme_cq_end(struct nvme_cq *cq);
/** nvme_cq_drain - publishes what waits for room, as far as there is some. */
void nvme_cq_drain(struct nvme_cq *cq);
/** nvme_complete - the one end of every command. */
void nvme_complete(struct nvme_req *req, unsigned status, uint32_t dw0);
/** nvme_park - @req has come back from a stopped disk and will be started again. */
void nvme_park(struct nvme_req *req);

/* ---- doorbell.c: doorbell values, shadow doorbells, polling. The worker's thread. ---- */

/** nvme_sq_tail, nvme_cq_head - the guest's value, checked; an impossible one is reported, and the
 * last good one returned. */
uint32_t nvme_sq_tail(struct nvme_sq *sq);
uint32_t nvme_cq_head(struct nvme_cq *cq);
/** nvme_sq_arm - asks for a doorbell write with the next command. */
void nvme_sq_arm(struct nvme_sq *sq);
void nvme_cq_arm(struct nvme_cq *cq);
/** nvme_sq_shadow, nvme_cq_shadow - shadow doorbells and event indexes are in these buffers now (0:
 * there are none); @fresh: the shadow doorbell gets the value the doorbell has. */
void nvme_sq_shadow(struct nvme_sq *sq, uint64_t shadows, uint64_t events, bool fresh);
void nvme_cq_shadow(struct nvme_cq *cq, uint64_t shadows, uint64_t events, bool fresh);
void nvme_poll_init(struct nvme_worker *w);
/** nvme_poll_after - all queues are looked at once, after @ns, and asked for doorbell writes only
 * then; false: @ns is 0, or they are looked at anyway. */
bool nvme_poll_after(struct nvme_worker *w, int64_t ns);
/** nvme_poll_idle - a queue has run dry: looks for its next command for a while; nvme_poll_kicked -
 * a doorbell write has woken the queue. */
void nvme_poll_idle(struct nvme_worker *w);
void nvme_poll_kicked(struct nvme_worker *w);
void nvme_poll_stop(struct nvme_worker *w);

/* ---- data.c: from PRPs and SGLs to buffers ---- */

/**
 * nvme_map_data - buffers of the @len bytes (> 0, at most NVME_DATA_MAX) that @req's command moves;
 * @req->view is entered then. @fills: they will be written to.
 * NVME_OK, a status, or -EAGAIN: a longer list is needed and none is free now.
 */
int nvme_map_data(struct nvme_req *req, uint64_t len, bool fills);
void nvme_mark_data(struct nvme_req *req);
int nvme_map_sgl(struct nvme_req *req, uint64_t len);
int nvme_map_prp(struct nvme_req *req, uint64_t len);
/** nvme_iov_add - appends [@gpa, @gpa + @len); NVME_OK, a status, or -EAGAIN. */
int nvme_iov_add(struct nvme_req *req, uint64_t gpa, uint64_t len);
int nvme_iov_add_ptr(struct nvme_req *req, void *ptr, uint64_t len);
/** nvme_data_out / _in - moves an admin command's data from, or to, the guest. NVME_OK or a
 * status. */
int nvme_data_to_guest(struct nvme_req *req, const void *buf, uint64_t len);
int nvme_data_from_guest(struct nvme_req *req, void *buf, uint64_t len);

/* ---- io.c, steps.c: NVM commands. The worker's thread. ---- */

/** nvme_io_start - carries out the command in @req->sqe; false: it must wait for a completion, and
 * nothing has happened. */
bool nvme_io_start(struct nvme_req *req);
void nvme_io_submit(struct nvme_req *req, enum qv_op op, uint32_t flags, uint64_t offset,
                    uint64_t len);
void nvme_step_run(struct nvme_req *req);
unsigned nvme_status_of(enum qv_op op, int result);
/** nvme_range - blocks to bytes, on the disk; NVME_OK or a status. */
unsigned nvme_range(const struct nvme_ns *ns, uint64_t lba, uint64_t blocks, uint64_t *offset,
                    uint64_t *len);
uint32_t nvme_write_flags(const struct nvme_req *req);
/** nvme_start_* - commands of several steps; as nvme_io_start. */
bool nvme_start_compare(struct nvme_req *req);
bool nvme_start_verify(struct nvme_req *req);
bool nvme_start_dsm(struct nvme_req *req);
bool nvme_start_flush_all(struct nvme_req *req);
/** nvme_start_fua_read - a read whose buffers are mapped. */
bool nvme_start_fua_read(struct nvme_req *req, uint64_t offset);
/** nvme_end - ends @req with @status; true, so that commands can say "return nvme_end(...)". */
bool nvme_end(struct nvme_req *req, unsigned status);
/** nvme_hold_ns - @req works on @ns from now on, and no longer on another. */
void nvme_hold_ns(struct nvme_req *req, struct nvme_ns *ns);
uint64_t nvme_sqe_lba(const struct nvme_req *req);
uint32_t nvme_sqe_blocks(const struct nvme_req *req);

/* ---- admin.c and what it dispatches to. Home thread. ---- */

void nvme_admin_start(struct nvme_req *req);
void nvme_identify(struct nvme_req *req);
void nvme_get_log(struct nvme_req *req);

/** nvme_totals - what SMART counts, of all disks that were here; home thread. nvme_totals_add -
 * adds what @disk has counted. */
struct nvme_totals nvme_totals(struct nvme_ctrl *c);
void nvme_totals_add(struct nvme_totals *t, const struct qv_disk *disk);
void nvme_get_features(struct nvme_req *req);
void nvme_set_features(struct nvme_req *req);
void nvme_features_reset(struct nvme_ctrl *c);
/** nvme_features_publish - tells workers what they need to know of them. */
void nvme_features_publish(struct nvme_ctrl *c);
void nvme_create_cq(struct nvme_req *req);
void nvme_create_sq(struct nvme_req *req);
void nvme_delete_cq(struct nvme_req *req);
void nvme_delete_sq(struct nvme_req *req);

/* ---- events.c ---- */

void nvme_aer(struct nvme_req *req);
/** nvme_aer_abort - whether an AER with @cid waited; it is completed as aborted. */
bool nvme_aer_abort(struct nvme_ctrl *c, uint16_t cid);
void nvme_event(struct nvme_ctrl *c, enum nvme_event_type type, unsigned info, enum nvme_log log);
/** nvme_event_post - the same, from any thread. */
void nvme_event_post(struct nvme_ctrl *c, enum nvme_event_type type, unsigned info,
                     enum nvme_log log);
/** nvme_events_read - the log page of @type was read: its events may come again. */
void nvme_events_read(struct nvme_ctrl *c, enum nvme_event_type type);
void nvme_events_reset(struct nvme_ctrl *c);
/** nvme_events_deliver - hands out what waits, as far as there are requests for it. */
void nvme_events_deliver(struct nvme_ctrl *c);
void nvme_ns_changed(struct nvme_ctrl *c, uint32_t nsid);
/** nvme_temperature_check - compares with the thresholds. */
void nvme_temperature_check(struct nvme_ctrl *c);
uint8_t nvme_critical_warning(const struct nvme_ctrl *c);
/** nvme_error_note - an entry in the error log. Any thread. */
void nvme_error_note(struct nvme_req *req, unsigned status);

/* ---- ns.c ---- */

/** nvme_ns_get - the namespace of @nsid, or NULL. Any thread; see NS_DRAIN for how long it lasts.
 */
struct nvme_ns *nvme_ns_get(struct nvme_ctrl *c, uint32_t nsid);
/** nvme_ns_active - as the guest sees it: NULL also for one that is leaving. */
struct nvme_ns *nvme_ns_active(struct nvme_ctrl *c, uint32_t nsid);
/** nvme_ns_list_read - the guest knows what namespaces there are. */
void nvme_ns_list_read(struct nvme_ctrl *c);
/** nvme_ns_guest_gone - nobody uses namespaces any more: removals go on. */
void nvme_ns_guest_gone(struct nvme_ctrl *c);
void nvme_ns_destroy(struct nvme_ctrl *c);
void nvme_derive_ids(const char *identity, uint8_t nguid[16], uint8_t eui64[8], uint8_t uuid[16]);

/* ---- state.c ---- */

void nvme_save(struct qv_pci_function *fn, GByteArray *out);
bool nvme_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error);

static inline struct nvme_ctrl *nvme_of(struct qv_pci_function *fn)
{
    return qv_pci_model(fn);
}

/** nvme_db - a doorbell: @index is 2 * qid for the tail of an SQ, and 1 more for the head of a CQ.
 */
static inline _Atomic uint32_t *nvme_db(const struct nvme_ctrl *c, unsigned index)
{
    return &c->db[index];
}

#endif
