/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small encrypted image to tamper with, and a look at what is left of it. Every sector holds its
 * own number and a version, so that a sector from another place, another image, or of nobody is
 * told from an older one of its own.
 */
#ifndef QV_TESTS_TAMPER_H
#define QV_TESTS_TAMPER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/encrypted/area.h"
#include "format/qcow2/header.h"
#include "mem_node.h"

#define TAMPER_SECTORS 16u /* of the disk */
#define TAMPER_FULL    12u /* of these written; the rest was never */
#define TAMPER_CLUSTER 16384u
#define TAMPER_SIZE    ((uint64_t)TAMPER_SECTORS * ENC_SECTOR)

/* Versions of a sector. In the end: 3 in the first TAMPER_NEW, else 1. The snapshot shows 1 in all,
 * and 2 was written over. */
#define TAMPER_NEW    6u
#define TAMPER_MENDED 4u /* by a look through a writable node */

enum tamper_what {
    TAMPER_CLOSED,  /* closed properly */
    TAMPER_CRASHED, /* as power loss leaves it: its log is needed, and carries data */
};

struct tamper_parts {
    struct qcow2_header h; /* qcow2_header_clear */
    GArray *meta;          /* of struct tamper_part; no key areas, no data in the log */
};
struct tamper_part {
    const char *name;
    uint64_t at, len; /* bytes of the file */
};

/** tamper_start - the thread that images are used on. tamper_end - stops it. */
bool tamper_start(void);
void tamper_end(void);

/** tamper_make - a new image with data key @dek and UUID @uuid. */
void tamper_make(struct mem_file *file, enum tamper_what what, uint8_t dek, const uint8_t *uuid);
/** tamper_make_more - writes version @version into the first @sectors sectors. */
void tamper_write(struct mem_file *file, uint8_t dek, unsigned sectors, unsigned version);

/** tamper_parts - where the metadata is. */
void tamper_parts(const struct mem_file *file, struct tamper_parts *out);
void tamper_parts_clear(struct tamper_parts *p);
/** tamper_host - where sector @guest lies: of the disk, or of the snapshot. */
uint64_t tamper_host(const struct mem_file *file, unsigned guest, bool snapshot);
/** tamper_entry - where the entry of the sector at @host lies. */
uint64_t tamper_entry(const struct mem_file *file, uint64_t host);

/** What was seen. */
struct tamper_look {
    bool opened;
    char *error;                 /* why not; owned */
    int version[TAMPER_SECTORS]; /* 0: zeros; < 0: the error, e.g. -EBADMSG */
    bool foreign;                /* something was shown that was never written there */
    bool lost;                   /* a write that was told to be durable is not there */
    bool one_copy_damaged;       /* of the key area */
};
void tamper_look_clear(struct tamper_look *look);

/** tamper_look - reads all. @dek: as in tamper_make  @snapshot: NULL: the disk */
void tamper_look(struct mem_file *file, uint8_t dek, const char *snapshot, struct tamper_look *out);
/** tamper_look_writing - opens @file for writing, reads all, writes sector 1, flushes, closes and
 * reads again; *@out: the last look, with what came before in foreign and lost. @file changes. */
void tamper_look_writing(struct mem_file *file, uint8_t dek, struct tamper_look *out);
/** tamper_check - our check, which must survive it. */
void tamper_check(struct mem_file *file);

#endif
