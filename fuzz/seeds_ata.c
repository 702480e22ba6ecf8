/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs for fuzz_ahci and fuzz_ide that get them into the middle of things: one file for each
 * command. seeds_ahci FOLDER, seeds_ide FOLDER: by the name it is called with. */
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const uint8_t codes[] = {0x06, 0x20, 0x24, 0x25, 0x2f, 0x30, 0x35, 0x40, 0x47,
                                0x60, 0x61, 0x90, 0xb0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca,
                                0xe0, 0xe4, 0xe5, 0xe7, 0xe8, 0xea, 0xec, 0xef, 0xf8};

static void step(GByteArray *out, uint8_t what, uint8_t where, uint32_t value)
{
    uint8_t s[6] = {what, where};

    memcpy(s + 2, &value, 4);
    g_byte_array_append(out, s, sizeof(s));
}

/* Guest memory with a command in slot 0 of port 0, and PRDTs everywhere. */
static GByteArray *ahci(uint8_t code)
{
    GByteArray *a = g_byte_array_new();
    const uint8_t head[2] = {3, 6};
    uint8_t memory[0x2000] = {0};
    uint32_t header[4] = {5 | 2 << 16, 0, 0x1000, 0};
    uint32_t prds[8] = {0x4000, 0, 0, 511, 0x6000, 0, 0, 8191};

    g_byte_array_append(a, head, 2);
    step(a, 0, 0x34, 1);          /* PxSACT */
    step(a, 0, 0x38, 1);          /* PxCI */
    step(a, 0x80, 0x10, 0);       /* reads PxIS */
    step(a, 0, 0x10, 0xffffffff); /* PxIS */
    step(a, 0, 0x18, 0x10);
    step(a, 0, 0x18, 0x11);
    memcpy(memory, header, sizeof(header));
    memory[0x1000] = 0x27;
    memory[0x1001] = 0x80;
    memory[0x1002] = code;
    memory[0x1003] = 1;
    memory[0x1004] = code == 0x2f ? 0x30 : 0;
    memory[0x1007] = 0x40;
    memory[0x100c] = code == 0x60 || code == 0x61 ? 0 : 1;
    memcpy(memory + 0x1080, prds, sizeof(prds));
    g_byte_array_append(a, memory, sizeof(memory));
    return a;
}

static GByteArray *ide(uint8_t code)
{
    GByteArray *a = g_byte_array_new();
    const uint8_t head[2] = {3, 6};
    uint8_t memory[0x1010] = {0};
    uint32_t prds[4] = {0x4000, 256, 0x5000, 256 | 0x80000000};

    g_byte_array_append(a, head, 2);
    step(a, 0xa0, code, 0x01000005); /* one sector at 5 */
    step(a, 4, 0, 9);                /* bus master: start, to memory */
    step(a, 0x80, 1, 0);             /* reads a sector of data */
    step(a, 0x80, 0, 0x55);          /* writes one */
    step(a, 0x46, 7, 0);             /* status */
    step(a, 1, 2, 4);                /* SRST */
    memcpy(memory + 0x1000, prds, sizeof(prds));
    g_byte_array_append(a, memory, sizeof(memory));
    return a;
}

int main(int argc, char **argv)
{
    bool is_ahci = strstr(argv[0], "seeds_ahci") != NULL;

    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(codes); i++) {
        g_autoptr(GByteArray) a = is_ahci ? ahci(codes[i]) : ide(codes[i]);
        g_autofree char *path = g_strdup_printf("%s/command-%02x", argv[1], codes[i]);

        if (!g_file_set_contents(path, (const char *)a->data, a->len, NULL)) {
            return 1;
        }
    }
    return 0;
}
