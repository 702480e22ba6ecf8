/* SPDX-License-Identifier: Apache-2.0 */
/* Options that several commands have, for their tables. */
#ifndef QV_CLI_OPTIONS_H
#define QV_CLI_OPTIONS_H

#include "cli/cli.h"

#define CLI_NAME_OPTION                                                                            \
    {                                                                                              \
        .name = "name", .type = CLI_TEXT, .meta = "NAME", .summary = "what to call it",            \
        .required = true                                                                           \
    }

/* Of a new image: create, convert and import take them to cli_create_options(). */
#define CLI_PREALLOC_OPTION                                                                        \
    {                                                                                              \
        .name = "prealloc", .type = CLI_CHOICE, .meta = "off|metadata|falloc|full",                \
        .summary = "how much space to take now"                                                    \
    }
#define CLI_CLUSTER_SIZE_OPTION                                                                    \
    {                                                                                              \
        .name = "cluster-size", .type = CLI_SIZE, .meta = "SIZE",                                  \
        .summary = "qcow2: 512 to 2M, 64K when not given"                                          \
    }
#define CLI_COMPRESSION_OPTION                                                                     \
    {                                                                                              \
        .name = "compression", .type = CLI_CHOICE, .meta = "zlib|zstd",                            \
        .summary = "qcow2: how compressed clusters are stored"                                     \
    }
#define CLI_EXTENDED_L2_OPTION                                                                     \
    {                                                                                              \
        .name = "extended-l2", .type = CLI_FLAG,                                                   \
        .summary = "qcow2: sub-clusters, so that small writes over a backing image copy little"    \
    }
#define CLI_KEY_OPTIONS                                                                            \
    {.name = "key",                                                                                \
     .type = CLI_TEXT,                                                                             \
     .meta = "KEY",                                                                                \
     .summary = "encrypted: for this key; one called like the image is made when not given"},      \
        {.name = "kem",                                                                            \
         .type = CLI_CHOICE,                                                                       \
         .meta = "ML-KEM-512|ML-KEM-768|ML-KEM-1024|X25519MLKEM768",                               \
         .summary = "encrypted: what kind of key to make; ML-KEM-768 when not given"},             \
    {                                                                                              \
        .name = "aead", .type = CLI_CHOICE, .meta = "AES-256-GCM|ChaCha20-Poly1305",               \
        .summary = "encrypted: the cipher; AES-256-GCM when not given"                             \
    }
#define CLI_POOL_OPTION                                                                            \
    {                                                                                              \
        .name = "pool", .type = CLI_TEXT, .meta = "POOL", .summary = "where the image is kept"     \
    }

/* Of an image that is there. */
#define CLI_BACKING_ROOT_OPTION                                                                    \
    {                                                                                              \
        .name = "backing-root", .type = CLI_TEXT, .meta = "DIR",                                   \
        .summary = "follow what a qcow2 file names as backing and data file, if it lies in DIR"    \
    }
#define CLI_PATH_FORMAT_OPTION                                                                     \
    {                                                                                              \
        .name = "format", .type = CLI_CHOICE, .meta = "raw|qcow2|encrypted",                       \
        .summary = "format of a file or device (needed for a path)"                                \
    }

/* Of a disk that is served. */
#define CLI_CACHE_OPTION                                                                           \
    {                                                                                              \
        .name = "cache", .type = CLI_CHOICE, .meta = "none|writeback|writethrough",                \
        .summary = "none passes the page cache by; the default where the file allows it"           \
    }
#define CLI_IO_OPTION                                                                              \
    {                                                                                              \
        .name = "io", .type = CLI_CHOICE, .meta = "native|io_uring|threads",                       \
        .summary = "how requests reach the kernel (default io_uring)"                              \
    }

#endif
