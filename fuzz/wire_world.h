/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that says anything, to a whole server.
 *
 * Input: a byte of switches, then records of request, flags, descriptor, size, payload. Descriptors
 * come from a small set that the fuzzer names. Guest memory is filled from the front of the input.
 */
#ifndef FUZZ_WIRE_WORLD_H
#define FUZZ_WIRE_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "io/thread.h"
#include "sock.h"

#define WIRE_MEMORY (UINT64_C(1) << 20)
#define WIRE_GPA    UINT64_C(0x1000) /* where the guest memory is, if the client says so */

struct wire_world {
    struct qv_thread *thread;
    int listen_fd; /* for the server */
    struct sock_address address;
    int memory, event; /* of WIRE_MEMORY bytes; an eventfd */
    uint8_t *guest;    /* the memory */
};

/** What a client of the protocol under test says. */
struct wire_talk {
    /** set_up - a good start, so that not every input must invent one. @switches: the input's. */
    void (*set_up)(const struct wire_world *w, int sock, uint8_t switches);
    /** say - one message, with @fd unless it is -1. False: the server does not listen any more. */
    bool (*say)(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
                int fd);
    int fds[4]; /* for messages; -1: none */
};

/** wire_world_init - all but the server, which @start(@arg) makes on the I/O thread. Aborts when
 * something fails. */
void wire_world_init(struct wire_world *w, void (*start)(void *arg), void *arg);

/** wire_world_run - one input: one connection, from the first message until the server has closed.
 */
void wire_world_run(const struct wire_world *w, const struct wire_talk *talk, const uint8_t *data,
                    size_t size);

#endif
