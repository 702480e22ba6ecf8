/* SPDX-License-Identifier: Apache-2.0 */
#include "server/pace.h"

int64_t server_pace_rest(struct server_pace *pace, int64_t took, uint64_t requests,
                         uint64_t in_flight)
{
    if (requests != pace->requests || in_flight > 0) {
        pace->quiet = 0;
    } else if (pace->quiet < SERVER_PACE_IDLE) {
        pace->quiet++;
    }
    pace->requests = requests;
    if (pace->quiet >= SERVER_PACE_IDLE || took <= 0) {
        return 0;
    }
    return took < SERVER_PACE_MAX_NS / SERVER_PACE_FACTOR ? took * SERVER_PACE_FACTOR
                                                          : SERVER_PACE_MAX_NS;
}
