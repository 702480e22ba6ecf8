/* SPDX-License-Identifier: Apache-2.0 */
#include "drive_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void move_next(struct env *e)
{
    uint32_t left = e->cmd.len - e->cmd.moved;

    e->iov = (struct iovec){e->buf + e->cmd.moved, MIN(left, e->piece)};
    qv_ata_move(&e->cmd, &e->iov, 1, (uint32_t)e->iov.iov_len);
}

static void cmd_done(struct qv_ata_cmd *cmd)
{
    struct env *e = qv_container_of(cmd, struct env, cmd);

    if (cmd->ended || cmd->canceled) {
        atomic_fetch_add(&e->done, 1);
    } else {
        move_next(e);
    }
}

static void begin(void *arg)
{
    struct env *e = arg;

    e->cmd.done = cmd_done;
    e->begun = qv_ata_begin(e->drive, &e->cmd);
    if (e->begun) {
        move_next(e);
    }
}

unsigned run(struct env *e, struct qv_ata_tf tf)
{
    unsigned before = atomic_load(&e->done);

    e->cmd.tf = tf;
    rig_call(&e->rig, begin, e);
    rig_wait(&e->done, before + 1);
    assert_int_equal(atomic_load(&e->done), before + 1);
    return e->cmd.tf.status | (unsigned)e->cmd.tf.error << 8;
}

unsigned simple(struct env *e, uint8_t command)
{
    return run(e, (struct qv_ata_tf){.command = command});
}

unsigned features(struct env *e, uint8_t sub, uint8_t count)
{
    return run(e, (struct qv_ata_tf){.command = 0xef, .feature = sub, .count = count});
}

uint16_t word(const struct env *e, unsigned i)
{
    return (uint16_t)(e->buf[2 * i] | e->buf[2 * i + 1] << 8);
}

uint16_t id_word(struct env *e, unsigned i)
{
    assert_int_equal(simple(e, 0xec), OK);
    return word(e, i);
}

uint8_t sum512(const uint8_t *page)
{
    uint8_t sum = 0;

    for (int i = 0; i < 512; i++) {
        sum = (uint8_t)(sum + page[i]);
    }
    return sum;
}

static void make(void *arg)
{
    struct env *e = arg;
    struct qv_ata_drive_opts opts = {.disk = e->rig.disk[0],
                                     .serial = "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                                     .model = "Model \n x",
                                     .firmware = "1.2"};

    e->drive = qv_ata_drive_new("test", &opts, e->sata, 1);
}

static void unmake(void *arg)
{
    qv_ata_drive_free(((struct env *)arg)->drive);
}

struct env *env_new(const struct rig_how *how, bool sata)
{
    struct env *e = g_new0(struct env, 1);

    rig_init(&e->rig, how);
    e->sata = sata;
    e->piece = 1u << 20;
    rig_call(&e->rig, make, e);
    return e;
}

void env_free(struct env *e)
{
    rig_call(&e->rig, unmake, e);
    rig_destroy(&e->rig);
    g_free(e);
}

static void do_reset(void *arg)
{
    struct env *e = arg;

    qv_ata_reset(e->drive, e->how, &e->sig);
}

void reset(struct env *e, enum qv_ata_reset how)
{
    e->how = how;
    rig_call(&e->rig, do_reset, e);
}

const struct rig_how usual = {.disks = 1, .size = SIZE};
