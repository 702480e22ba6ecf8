/* SPDX-License-Identifier: Apache-2.0 */
/* A drive, and commands to it as a controller gives them. */
#ifndef TESTS_UNIT_ATA_DRIVE_ENV_H
#define TESTS_UNIT_ATA_DRIVE_ENV_H

#include "device/ata/ata.h"
#include "rig.h"

#define OK   0x50
#define FAIL 0x51
#define SIZE (UINT64_C(8) << 20)

struct env {
    struct rig rig;
    bool sata;
    struct qv_ata_drive *drive;
    struct qv_ata_cmd cmd;
    struct iovec iov;
    uint8_t buf[65536];
    uint32_t piece;
    bool begun;
    atomic_uint done;
    struct qv_ata_tf sig;
    enum qv_ata_reset how;
    GByteArray *bytes;
    size_t len;
    bool ok;
};

extern const struct rig_how usual;

/** run - carries out @tf with the data in e->buf; returns status, and error above it. */
unsigned run(struct env *e, struct qv_ata_tf tf);

/** simple - a command without parameters; likewise features: SET FEATURES. */
unsigned simple(struct env *e, uint8_t command);
unsigned features(struct env *e, uint8_t sub, uint8_t count);

/** word - the @i-th of the data; id_word: of IDENTIFY's, which it asks for. */
uint16_t word(const struct env *e, unsigned i);
uint16_t id_word(struct env *e, unsigned i);

/** sum512 - of the bytes of a page; 0 where it has a checksum. */
uint8_t sum512(const uint8_t *page);
struct env *env_new(const struct rig_how *how, bool sata);
void env_free(struct env *e);
void reset(struct env *e, enum qv_ata_reset how);

#endif
