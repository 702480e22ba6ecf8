/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the adapter. Register names and bits: AHCI 1.3.1, 3. */
#ifndef QV_DEVICE_AHCI_AHCI_INT_H
#define QV_DEVICE_AHCI_AHCI_INT_H

#include "base/log.h"
#include "device/ahci/ahci.h"
#include "device/pci/moderation.h"
#include "io/thread.h"

#define AHCI_SLOTS 32u

/* ---- registers ---- */

enum {
    HBA_CAP = 0x00,
    HBA_GHC = 0x04,
    HBA_IS = 0x08,
    HBA_PI = 0x0c,
    HBA_VS = 0x10,
    HBA_CCC_CTL = 0x14,
    HBA_CCC_PORTS = 0x18,
    HBA_CAP2 = 0x24,
    HBA_PORTS = 0x100, /* the first port's */
    HBA_PORT_SIZE = 0x80,
};

#define GHC_HR 0x00000001u
#define GHC_IE 0x00000002u
#define GHC_AE 0x80000000u

#define CCC_EN 0x00000001u

enum {
    PX_CLB = 0x00,
    PX_CLBU = 0x04,
    PX_FB = 0x08,
    PX_FBU = 0x0c,
    PX_IS = 0x10,
    PX_IE = 0x14,
    PX_CMD = 0x18,
    PX_TFD = 0x20,
    PX_SIG = 0x24,
    PX_SSTS = 0x28,
    PX_SCTL = 0x2c,
    PX_SERR = 0x30,
    PX_SACT = 0x34,
    PX_CI = 0x38,
    PX_SNTF = 0x3c,
    PX_FBS = 0x40,
};

#define PXIS_DHRS 0x00000001u
#define PXIS_PSS  0x00000002u
#define PXIS_DSS  0x00000004u
#define PXIS_SDBS 0x00000008u
#define PXIS_DPS  0x00000020u
#define PXIS_PCS  0x00000040u /* shows PxSERR.DIAG.X */
#define PXIS_PRCS 0x00400000u /* shows PxSERR.DIAG.N */
#define PXIS_OFS  0x01000000u
#define PXIS_HBFS 0x20000000u
#define PXIS_TFES 0x40000000u
#define PXIE_MASK 0xfdc000ffu

#define PXCMD_ST   0x00000001u
#define PXCMD_SUD  0x00000002u
#define PXCMD_POD  0x00000004u
#define PXCMD_CLO  0x00000008u
#define PXCMD_FRE  0x00000010u
#define PXCMD_FR   0x00004000u
#define PXCMD_CR   0x00008000u
#define PXCMD_HPCP 0x00040000u /* drives of this port may be plugged at run time */
#define PXCMD_ICC  0xf0000000u

#define SERR_DIAG_N 0x00010000u
#define SERR_DIAG_X 0x04000000u
#define SERR_E      0x00000800u /* internal error */

#define SCTL_DET     0x0000000fu
#define SCTL_OFFLINE 4u

#define SSTS_OFFLINE 4u

#define SIG_ATA  0x00000101u
#define SIG_NONE 0xffffffffu
#define TFD_NONE 0x0000007fu

/* Pieces of scattered memory that fit into a slot; more borrow a block. */
#define AHCI_IOV_INLINE 32u
/* ... and of a block: what one request of the disk takes. The rest of a longer list follows in
 * further requests. */
#define AHCI_IOV_BLOCK 1024u
/* How often requests that a stopped disk keeps are taken back while the adapter must fall silent.
 */
#define AHCI_CANCEL_NS INT64_C(5000000)
/* Commands a port starts before other work of the thread gets its turn. */
#define AHCI_TURN 64u

struct ahci_port;

/** A command in execution. */
struct ahci_slot {
    struct qv_ata_cmd cmd;
    struct ahci_port *port;
    unsigned index;
    uint64_t table;      /* guest address of the command table */
    uint32_t prdt_len;   /* entries */
    uint32_t prd;        /* the next entry */
    uint32_t prd_done;   /* bytes of it that are used */
    bool prd_irq;        /* one of the entries used asked for an interrupt */
    bool inside, over;   /* the move under way ended inside of its call */
    struct iovec *block; /* owned; NULL: iov is used */
    struct iovec iov[AHCI_IOV_INLINE];
};

enum ahci_link {
    LINK_NONE,    /* no drive, or pulled */
    LINK_OFFLINE, /* PxSCTL.DET 4 */
    LINK_RESET,   /* COMRESET is on, or has ended but requests of before are in flight */
    LINK_UP,
};

enum ahci_detach {
    DETACH_NONE,
    DETACH_DRAIN, /* commands that run end first */
    DETACH_WAIT,  /* the link is down: until the guest has noticed */
};

struct ahci_port {
    struct qv_ahci *hba;
    unsigned index;
    /* Registers. */
    uint64_t clb, fb;
    uint32_t is, ie, cmd, tfd, sig, sctl, serr, sact, ci;
    enum ahci_link link; /* moved by port_set_link() only */
    /* The drive at the end of the cable. */
    struct qv_ata_drive *drive;
    struct ahci_slot *slots; /* AHCI_SLOTS, with the drive */
    uint32_t running;        /* slots in execution */
    uint32_t dropped;        /* of those, whose end nobody wants to know */
    uint32_t redo;           /* queued commands taken and given back: to be begun anew */
    uint32_t finished;       /* queued commands that ended, not yet reported */
    bool report;             /* ... and are to be, with the next flush */
    unsigned ccs;            /* the slot begun last */
    bool exclusive;          /* the one that runs is not queued */
    bool halted;             /* an error: nothing is begun until PxCMD.ST is cleared */
    bool srst;               /* software reset is on */
    bool sig_pending;        /* the signature waits for PxCMD.FRE */
    bool failed;             /* a queued command failed: report once the others have ended */
    uint8_t failed_error;
    bool flush_queued, run_queued;
    bool paused, busy; /* the drive: was told to rest; does not yet */
    struct qv_work flush_work, run_work;
    struct qv_moderation moderation;
    struct qv_timer report_timer; /* the longest that queued commands which ended wait for more */
    uint8_t *list, *fis;          /* in guest memory; NULL: not looked up, or not there */
    enum ahci_detach detach;
    bool detach_force;
    void (*detach_done)(void *arg);
    void *detach_arg;
};

/* Why the adapter begins no commands. */
enum { HOLD_RESET = 1, HOLD_HBA_RESET = 2, HOLD_MEMORY = 4, HOLD_QUIESCE = 8 };

struct qv_ahci {
    struct qv_pci_function *fn;
    char *name;
    unsigned port_count;
    uint32_t ghc, is, ccc_ctl, ccc_ports;
    bool pin;           /* its level */
    unsigned hold;      /* HOLD_* */
    bool quiet_told;    /* HOLD_QUIESCE: the transport knows */
    unsigned ccc_count; /* completions since the last coalesced interrupt */
    struct qv_timer ccc_timer;
    struct qv_timer cancel_timer;
    struct qv_guest_view *view;
    struct qv_dirty_log *log;
    struct qv_log_limit log_limit;
    struct ahci_port ports[QV_AHCI_PORTS_MAX];
};

/* ---- ahci.c ---- */

/** ahci_irq_update - looks at all ports' interrupts again. */
void ahci_irq_update(struct qv_ahci *hba);
/** ahci_port_event - sets bits of PxIS. */
void ahci_port_event(struct ahci_port *p, uint32_t bits);
/** ahci_completed - @n commands of @p ended, for coalescing. */
void ahci_completed(struct ahci_port *p, unsigned n);
/** ahci_settle - something came to rest: does what waited for it. */
void ahci_settle(struct qv_ahci *hba);
/** ahci_rest - @p is to come to rest: its drive begins nothing of its own, and what a stopped disk
 * keeps is taken back. ahci_settle follows when it has. */
void ahci_rest(struct ahci_port *p);
bool ahci_dma_ok(const struct qv_ahci *hba);

/* ---- port.c ---- */

uint32_t ahci_port_read(struct ahci_port *p, uint32_t reg);
void ahci_port_write(struct ahci_port *p, uint32_t reg, uint32_t value);
uint32_t ahci_port_is(const struct ahci_port *p);
void ahci_port_init(struct ahci_port *p, struct qv_ahci *hba, unsigned index);
/** ahci_port_insert - a drive into a port without one; the link comes up. */
void ahci_port_insert(struct ahci_port *p, const struct qv_ata_drive_opts *opts);
void ahci_port_remove(struct ahci_port *p);
/** ahci_port_pull - the link of the drive goes down for good. */
void ahci_port_pull(struct ahci_port *p);
/** ahci_port_reset - registers and link as after a reset of the adapter; nothing runs.
 * @power_on: of the whole machine. */
void ahci_port_reset(struct ahci_port *p, bool power_on);
/** ahci_port_drop - what runs is forgotten; what waits too. */
void ahci_port_drop(struct ahci_port *p);
/** ahci_port_settle - nothing runs any more: what waited for that. */
void ahci_port_settle(struct ahci_port *p);
bool ahci_port_quiet(const struct ahci_port *p);
/** ahci_port_detached - a pending detach is over: empties the port. */
void ahci_port_detached(struct ahci_port *p);
/** ahci_port_remap - guest memory is another one. */
void ahci_port_remap(struct ahci_port *p);

/* ---- slot.c ---- */

void ahci_port_run(struct ahci_port *p);
void ahci_port_run_later(struct ahci_port *p);
/** ahci_port_report - queued commands that have ended wait for no more of them. */
void ahci_port_report(struct ahci_port *p);
/** ahci_port_forget - they are not reported at all. */
void ahci_port_forget(struct ahci_port *p);
/** ahci_port_arrived - the guest has brought @n commands. */
void ahci_port_arrived(struct ahci_port *p, unsigned n);
void ahci_port_works_init(struct ahci_port *p);

/* ---- fis.c ---- */

void ahci_post_d2h(struct ahci_port *p, const struct qv_ata_tf *tf, bool irq);
void ahci_post_pio_setup(struct ahci_port *p, const struct qv_ata_tf *tf, bool in, uint16_t count);
void ahci_post_dma_setup(struct ahci_port *p, unsigned tag, bool in, uint32_t len);
void ahci_post_sdb(struct ahci_port *p, uint8_t status, uint8_t error, uint32_t finished);
/** ahci_parse_h2d - a host to device FIS; false: it is none. @control: of one that is no command.
 */
bool ahci_parse_h2d(const uint8_t *fis, struct qv_ata_tf *tf, bool *command, uint8_t *control);

/* ---- state.c ---- */

void ahci_save(struct qv_pci_function *fn, GByteArray *out);
bool ahci_load(struct qv_pci_function *fn, const uint8_t *bytes, size_t len, GError **error);

#endif
