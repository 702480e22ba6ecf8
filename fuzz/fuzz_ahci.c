/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that writes anything to the registers of an AHCI adapter, with anything in its memory:
 * command lists, FISes, PRDTs. Promised: nothing but guest memory is touched, every request comes
 * back, and a reset always ends.
 *
 * Input: switches (1: command list, FIS area and start are set up; 2: both ports), number of steps,
 * steps, guest memory.
 */
#include "ata_world.h"
#include "device/ahci/ahci.h"

#define PORTS 2u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct qv_pci_function *make(struct ata_world *w, uint8_t switches)
{
    struct qv_ahci_opts opts = {.name = "fuzz", .ports = PORTS};

    opts.drives[0].disk = w->disk[0];
    opts.drives[1].disk = switches & 2 ? w->disk[1] : NULL;
    return qv_ahci_new(&opts);
}

static void write32(struct ata_world *w, uint32_t reg, uint32_t value)
{
    qv_pci_bar_write(w->fn, 5, reg, &value, 4);
}

static void set_up(struct ata_world *w)
{
    write32(w, 0x04, 0x80000002);
    for (uint32_t port = 0; port < PORTS; port++) {
        uint32_t px = 0x100 + 0x80 * port;

        write32(w, px + 0x00, port * 0x800);
        write32(w, px + 0x08, port * 0x800 + 0x400);
        write32(w, px + 0x18, 0x10);
        write32(w, px + 0x30, 0xffffffff);
        write32(w, px + 0x14, 0xffffffff);
        write32(w, px + 0x18, 0x11);
    }
}

/* Where: the upper bit says which port, all others its register; FFh and below: the adapter's. */
static void touch(struct ata_world *w, const struct ata_step *s)
{
    uint32_t reg =
        s->where < 0x20 ? s->where * 2u : 0x100u + (s->where & 0x80u) + (s->where & 0x7fu);
    uint64_t value = s->value;

    if (s->what & 0x80) {
        qv_pci_bar_read(w->fn, 5, reg, &value, 1 + s->what % 8);
    } else if (s->what & 0x40) {
        qv_pci_bar_write(w->fn, 5, reg, &value, 1 + s->what % 8);
    } else {
        write32(w, reg & ~3u, s->value);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ata_world_run(data, size, make, set_up, touch);
    return 0;
}
