/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that writes anything to the registers of an IDE controller, with any PRD tables.
 * Promised: nothing but guest memory is touched, every request comes back, and a reset always ends.
 *
 * Input: switches (1: PRD tables are set; 2: two drives), number of steps, steps, guest memory.
 */
#include "ata_world.h"
#include "device/ide/ide.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct qv_pci_function *make(struct ata_world *w, uint8_t switches)
{
    struct qv_ide_opts opts = {.name = "fuzz"};

    opts.drives[0].disk = w->disk[0];
    opts.drives[switches & 4 ? 1 : 2].disk = switches & 2 ? w->disk[1] : NULL;
    return qv_ide_new(&opts);
}

static void set_up(struct ata_world *w)
{
    uint32_t table = 0x1000;

    qv_pci_bar_write(w->fn, 4, 4, &table, 4);
    qv_pci_bar_write(w->fn, 4, 12, &table, 4);
}

/* A task file in one step, so that inputs are short: command, count, address. */
static void task_file(struct ata_world *w, unsigned bar, const struct ata_step *s)
{
    uint8_t v[8] = {0,
                    1,
                    (uint8_t)(s->value >> 24),
                    (uint8_t)s->value,
                    (uint8_t)(s->value >> 8),
                    0,
                    (uint8_t)(0xe0 | (s->value >> 16 & 0x1f)),
                    s->where};

    for (unsigned i = 1; i < 8; i++) {
        qv_pci_bar_write(w->fn, bar, i, &v[i], 1);
    }
}

static void touch(struct ata_world *w, const struct ata_step *s)
{
    static const unsigned sizes[] = {8, 4, 8, 4, 16};
    unsigned bar = s->what % 5, size = sizes[bar];
    uint64_t value = s->value;
    unsigned len = 1u << (s->where >> 4 & 3);

    if ((s->what & 0xe0) == 0xa0) {
        task_file(w, bar & 2, s);
    } else if ((s->what & 0xe0) == 0x80) { /* a sector of data */
        for (unsigned i = 0; i < 128; i++) {
            if (s->where & 1) {
                qv_pci_bar_read(w->fn, bar & 2, 0, &value, 4);
            } else {
                qv_pci_bar_write(w->fn, bar & 2, 0, &value, 4);
            }
        }
    } else if (s->what & 0x40) {
        qv_pci_bar_read(w->fn, bar, s->where % size, &value, len);
    } else {
        qv_pci_bar_write(w->fn, bar, s->where % size, &value, len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ata_world_run(data, size, make, set_up, touch);
    return 0;
}
