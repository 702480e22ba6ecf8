/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/topology.h"

/* Vectors for disks: measured with Linux 6.1, which takes some for itself and for each port. */
#define VECTORS_PER_CPU 128u
#define VECTORS_MAX     320u /* Linux makes about 430 interrupt descriptors, and 8 a processor */

#define FIRST_SLOT 1u /* slot 0 is the host bridge */

unsigned vm_topology_ports(unsigned disks)
{
    return disks <= VM_PORT_DISKS_MAX ? disks : (disks + VM_FUNCTIONS - 1) / VM_FUNCTIONS;
}

struct vm_seat vm_topology_seat(unsigned index, unsigned disks)
{
    if (disks <= VM_PORT_DISKS_MAX) {
        return (struct vm_seat){.port = index};
    }
    return (struct vm_seat){.port = index / VM_FUNCTIONS, .function = index % VM_FUNCTIONS};
}

void vm_topology_vectors(struct vm_seat *seats, const uint32_t *queues, unsigned disks,
                         unsigned cpus)
{
    unsigned budget = MIN(cpus * VECTORS_PER_CPU, VECTORS_MAX);
    unsigned wanted = 0;

    for (unsigned i = 0; i < disks; i++) {
        wanted += MIN(queues[i], cpus) + 1; /* one a queue in use, and one for config changes */
    }
    for (unsigned i = 0; i < disks; i++) {
        unsigned all = MIN(queues[i], cpus) + 1;
        unsigned give = wanted <= budget ? all : 2; /* two: all queues share the second */

        seats[i].vectors = give <= budget ? give : 0;
        if (wanted > budget) {
            budget -= seats[i].vectors;
            wanted = UINT32_MAX; /* stays "too many" */
        }
    }
}

char *vm_topology_port_addr(unsigned port)
{
    return g_strdup_printf("%x.%u", FIRST_SLOT + port / VM_FUNCTIONS, port % VM_FUNCTIONS);
}
