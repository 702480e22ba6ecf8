/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much time a job leaves to the guest whose disk it works on. The guest gets its full speed in
 * the pauses, whatever is left of it meanwhile: so with pauses twice as long as the steps it keeps
 * two thirds at least. While the guest asks for nothing the job makes none.
 */
#ifndef QV_SERVER_PACE_H
#define QV_SERVER_PACE_H

#include <stdint.h>

#define SERVER_PACE_FACTOR 2                   /* pause / step */
#define SERVER_PACE_MAX_NS INT64_C(2000000000) /* the longest pause: a stop waits for it */
#define SERVER_PACE_IDLE   4u /* steps without a request before the guest counts as idle */

/** Zero-initialise. Not thread-safe. */
struct server_pace {
    uint64_t requests; /* of the guest, ended so far, at the last look */
    unsigned quiet;    /* steps since one ended or was under way */
};

/**
 * server_pace_rest - ns to pause after a step.
 * @took: ns that it has taken   @requests: of the guest, ended so far   @in_flight: under way now
 */
int64_t server_pace_rest(struct server_pace *pace, int64_t took, uint64_t requests,
                         uint64_t in_flight);

#endif
