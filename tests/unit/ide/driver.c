/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct make {
    struct ide *d;
    struct qv_ide_opts opts;
};

static void make(void *arg)
{
    struct make *m = arg;

    m->d->rig.fn = qv_ide_new(&m->opts);
}

void ide_init(struct ide *d, const struct rig_how *how)
{
    struct make m = {.d = d, .opts = {.name = "test"}};

    rig_init(&d->rig, how);
    d->channel = d->device = 0;
    for (unsigned i = 0; i < how->disks; i++) {
        m.opts.drives[i] = (struct qv_ata_drive_opts){
            .disk = d->rig.disk[i], .serial = "SN-1", .model = "TEST MODEL", .firmware = "FW1"};
    }
    rig_call(&d->rig, make, &m);
    rig_start(&d->rig, false);
}

void ide_destroy(struct ide *d)
{
    rig_destroy(&d->rig);
}

uint8_t ide_r(struct ide *d, unsigned reg)
{
    return (uint8_t)rig_read(&d->rig, 2 * d->channel, reg, 1);
}

void ide_w(struct ide *d, unsigned reg, uint8_t value)
{
    rig_write(&d->rig, 2 * d->channel, reg, value, 1);
}

uint8_t ide_altstatus(struct ide *d)
{
    return (uint8_t)rig_read(&d->rig, 2 * d->channel + 1, 2, 1);
}

void ide_control(struct ide *d, uint8_t value)
{
    rig_write(&d->rig, 2 * d->channel + 1, 2, value, 1);
}

uint8_t ide_bm_r(struct ide *d, unsigned reg)
{
    return (uint8_t)rig_read(&d->rig, 4, 8 * d->channel + reg, 1);
}

void ide_bm_w(struct ide *d, unsigned reg, uint8_t value)
{
    rig_write(&d->rig, 4, 8 * d->channel + reg, value, 1);
}

void ide_bm_w32(struct ide *d, unsigned reg, uint32_t value)
{
    rig_write(&d->rig, 4, 8 * d->channel + reg, value, 4);
}

uint8_t *ide_data(struct ide *d)
{
    return qv_fake_vm_ptr(&d->rig.vm, IDE_DATA);
}

uint8_t ide_wait(struct ide *d)
{
    for (int i = 0; i < 50000; i++) {
        uint8_t status = ide_altstatus(d);

        if (!(status & BSY)) {
            return status;
        }
        usleep(100);
    }
    fail_msg("BSY stays set");
    return 0;
}

void ide_select(struct ide *d)
{
    ide_w(d, 6, (uint8_t)(0xe0 | d->device << 4));
    ide_wait(d);
}

void ide_send(struct ide *d, const struct ide_cmd *c)
{
    if (c->ext) {
        ide_w(d, 1, (uint8_t)(c->feature >> 8));
        ide_w(d, 2, (uint8_t)(c->count >> 8));
        for (unsigned i = 0; i < 3; i++) {
            ide_w(d, 3 + i, (uint8_t)(c->lba >> (24 + 8 * i)));
        }
    }
    ide_w(d, 1, (uint8_t)c->feature);
    ide_w(d, 2, (uint8_t)c->count);
    for (unsigned i = 0; i < 3; i++) {
        ide_w(d, 3 + i, (uint8_t)(c->lba >> (8 * i)));
    }
    ide_w(d, 6, (uint8_t)(0xe0 | d->device << 4 | (c->ext ? 0 : (c->lba >> 24) & 0xf)));
    ide_w(d, 7, c->command);
}

/* Waits for a data block; false: there is none, and *@status says why. */
static bool wait_block(struct ide *d, uint8_t *status)
{
    *status = ide_wait(d);
    return *status & DRQ;
}

uint8_t ide_pio_in(struct ide *d, const struct ide_cmd *c, void *buf, uint32_t len, uint32_t block)
{
    uint8_t status, *to = buf;

    ide_send(d, c);
    for (uint32_t done = 0; done < len; done += block) {
        if (!wait_block(d, &status)) {
            return ide_r(d, 7);
        }
        assert_int_equal(ide_r(d, 7) & (DRQ | ERR), DRQ);
        for (uint32_t i = done; i < done + block && i < len; i += 4) {
            /* In turns by 32 and by 16 bits. */
            uint32_t v = rig_read(&d->rig, 2 * d->channel, 0, i % 8 ? 2 : 4);

            if (i % 8) {
                v |= rig_read(&d->rig, 2 * d->channel, 0, 2) << 16;
            }
            memcpy(to + i, &v, 4);
        }
    }
    ide_wait(d);
    return ide_r(d, 7);
}

uint8_t ide_pio_out(struct ide *d, const struct ide_cmd *c, const void *buf, uint32_t len,
                    uint32_t block)
{
    const uint8_t *from = buf;
    uint8_t status;

    ide_send(d, c);
    for (uint32_t done = 0; done < len; done += block) {
        if (!wait_block(d, &status)) {
            return ide_r(d, 7);
        }
        for (uint32_t i = done; i < done + block && i < len; i += 2) {
            uint16_t v;

            memcpy(&v, from + i, 2);
            rig_write(&d->rig, 2 * d->channel, 0, v, 2);
        }
    }
    ide_wait(d);
    return ide_r(d, 7);
}

uint8_t ide_nodata(struct ide *d, const struct ide_cmd *c)
{
    ide_send(d, c);
    ide_wait(d);
    return ide_r(d, 7);
}

void ide_table(struct ide *d, uint32_t len, uint32_t cut)
{
    uint32_t *prd = qv_fake_vm_ptr(&d->rig.vm, IDE_TABLE);

    cut = cut != 0 ? cut : 65536;
    for (uint32_t done = 0; done < len; prd += 2) {
        uint32_t part = len - done < cut ? len - done : cut;

        prd[0] = (uint32_t)(IDE_DATA + done);
        prd[1] = part & 0xffff;
        done += part;
        if (done == len) {
            prd[1] |= 0x80000000;
        }
    }
}

uint8_t ide_dma(struct ide *d, const struct ide_cmd *c, bool write, uint8_t *bm)
{
    uint32_t sectors = c->count != 0 ? c->count : c->ext ? 65536 : 256;

    ide_table(d, c->len != 0 ? c->len : sectors * 512, c->cut);
    ide_bm_w32(d, 4, (uint32_t)IDE_TABLE);
    ide_bm_w(d, 2, 0x66);
    ide_bm_w(d, 0, write ? 0 : 8);
    ide_send(d, c);
    ide_bm_w(d, 0, write ? 1 : 9);
    for (int i = 0; i < 50000 && !(ide_bm_r(d, 2) & 4); i++) {
        usleep(100);
    }
    *bm = ide_bm_r(d, 2);
    ide_bm_w(d, 0, write ? 0 : 8);
    ide_wait(d);
    return ide_r(d, 7);
}
